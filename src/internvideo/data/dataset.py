"""Decode manifest rows to clips and batches inside a loader worker.

`TrainingBatches` builds one batch per (epoch, batch index), `EvaluationViews` all views of one sample. User errors are
returned in the result; the loader raises them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from internvideo.data.batch import Batch
from internvideo.data.csv_columns import STRIDE
from internvideo.data.decoding.clip_decoder import ManifestClipDecoder
from internvideo.data.decoding.decoded_batch import DecodedBatch, DrawnClip, concatenate_frames
from internvideo.data.decoding.threads import ThreadMap
from internvideo.data.epoch_plan import AUGMENT, FRAMES, EpochPlan, Indices, random_stream
from internvideo.data.sample import Sample
from internvideo.data.sampling import FrameSampler, OnePerSecond
from internvideo.data.transforms import ClipTransform, DrawnTransform, TrainTransform
from internvideo.errors import InternVideoError, ManifestError, VideoError

CaptionRule = Literal["random", "first", "none"]
NO_LABEL = -100  # the index that cross-entropy ignores


class ViewTransform(Protocol):
    """Evaluation transform, as `transforms.EvalTransform`."""

    def crop_clip(self, clip: Tensor) -> list[Tensor]:
        """Return the spatial crops (3, T, S, S) of a clip (T, H, W, 3) uint8: uint8, or float32 in 0..255."""


class TextEncoder(Protocol):
    """Text tokenizer, as `tokenizer.Tokenizer`."""

    def encode(self, texts: Sequence[str], /) -> Tensor:
        """Tokenize B texts to (B, L) int64."""


class SampleSource(Protocol):
    """Dataset of a loader: a `Manifest`, or the samples of shards."""

    @property
    def rows(self) -> Sequence[Sample]:
        """The samples."""

    @property
    def source(self) -> Path | str:
        """Origin of the samples, for messages."""

    @property
    def fingerprint(self) -> str:
        """Hash that identifies the dataset."""

    def __len__(self) -> int: ...


class ClipDecoder(Protocol):
    """Decoder of the clips of a dataset, as `ManifestClipDecoder`."""

    @property
    def manifest(self) -> SampleSource:
        """The dataset."""

    @property
    def labeled(self) -> bool:
        """Whether any sample has a label."""

    def clips(
        self, sample: Sample, select_frames: Callable[[NDArray[np.float64]], Sequence[Indices]], /
    ) -> list[Tensor]:
        """Decode clips of one sample. Raises VideoError."""

    def take_truncated_spans(self) -> tuple[str, ...]:
        """Return, once per sample, a message about spans that end after their video."""


@dataclass(frozen=True)
class Unreadable:
    """A sample whose clip could not be read, and the reason."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class WorkerResult:
    """Result of a worker: a batch or None, view indices (B,), unreadable samples, an error, truncated spans."""

    batch: Batch | DecodedBatch | None = None
    views: tuple[int, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    error: InternVideoError | None = None
    truncated_spans: tuple[str, ...] = ()

    def pin_memory(self) -> WorkerResult:
        """Return a page-locked copy (called by the data loader when it pins)."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


@dataclass(frozen=True)
class _Augmented:
    """The sample decoded for one position of the epoch.

    Attributes:
        row: the sample itself, or the fallback that replaces unreadable ones.
        captions, drawn: a caption and an augmentation for each clip of the sample (repeated augmentation); no `drawn`
            if the transform is not a `TrainTransform`.
        unreadable: samples that were tried before `row` and could not be read.
        frames: (T, H, W, 3) uint8 if the augmentation is applied on the device, else None.
    """

    row: Sample
    captions: list[str]
    unreadable: list[Unreadable]
    drawn: list[DrawnTransform]
    frames: Tensor | None


class TrainingBatches(Dataset[WorkerResult]):
    """Map-style dataset with key (epoch, batch index); decodes each sample once and augments it several times.

    The samples of a batch are decoded and augmented by `threads` threads. A transform with `on_device` is only drawn:
    then the batches are `DecodedBatch`.
    """

    def __init__(
        self,
        decoder: ClipDecoder,
        plan: EpochPlan,
        sampler: FrameSampler,
        transform: ClipTransform,
        *,
        repeated_augmentation: int,
        tokenizer: TextEncoder | None,
        caption: CaptionRule,
        threads: int = 1,
    ) -> None:
        self.decoder, self.plan, self.sampler, self.transform = decoder, plan, sampler, transform
        self._threads = ThreadMap(threads)
        self.repeated_augmentation, self.tokenizer, self.caption = repeated_augmentation, tokenizer, caption
        self.labeled = decoder.labeled
        self._order: tuple[int, Sequence[int] | Indices] | None = None

    def __getitem__(self, key: tuple[int, int]) -> WorkerResult:
        epoch, batch_index = key
        try:
            return self._build_batch(epoch, batch_index)
        except InternVideoError as error:
            return WorkerResult(error=error)

    def _build_batch(self, epoch: int, batch_index: int) -> WorkerResult:
        self._epoch_order(epoch)  # before the threads need it
        positions = self.plan.positions(batch_index)
        buffer = BatchBuffer(len(positions) * self.repeated_augmentation, self.sampler)
        augmented = list(self._threads.map(partial(self._augment_sample, epoch, buffer), enumerate(positions)))
        rows = [sample.row for sample in augmented for _ in range(self.repeated_augmentation)]
        captions = [caption for sample in augmented for caption in sample.captions]
        ids, labels = tuple(row.id for row in rows), label_tensor(rows) if self.labeled else None
        text_ids = None if self.tokenizer is None or self.caption == "none" else self.tokenizer.encode(captions)
        batch: Batch | DecodedBatch
        if isinstance(self.transform, TrainTransform) and self.transform.on_device:
            decoded = [(sample.frames, tuple(sample.drawn)) for sample in augmented if sample.frames is not None]
            frames = [clip for clip, _ in decoded]
            batch = DecodedBatch(
                pixels=concatenate_frames(frames, _new_batch((sum(clip.numel() for clip in frames),), torch.uint8)),
                clips=tuple(DrawnClip((clip.shape[0], clip.shape[1], clip.shape[2]), drawn) for clip, drawn in decoded),
                transform=self.transform, padded=padded_frames(self.sampler), ids=ids, labels=labels, text_ids=text_ids,
            )  # fmt: skip
        else:
            video, frame_mask = buffer.batch()
            batch = Batch(video, ids, labels, text_ids, frame_mask)
        return WorkerResult(
            batch,
            unreadable=tuple(clip for sample in augmented for clip in sample.unreadable),
            truncated_spans=self.decoder.take_truncated_spans(),
        )

    def _augment_sample(self, epoch: int, buffer: BatchBuffer, positions: tuple[int, int]) -> _Augmented:
        """Decode a sample or its fallback and augment it, given its (index in the batch, position in the epoch)."""
        first, unreadable = positions[0] * self.repeated_augmentation, list[Unreadable]()
        index, attempt, clip = self._decode(epoch, positions[1], unreadable)
        transform = self.transform
        on_device = isinstance(transform, TrainTransform) and transform.on_device
        augmented = _Augmented(self.decoder.manifest.rows[index], [], unreadable, [], clip if on_device else None)
        for repeat in range(self.repeated_augmentation):
            rng = random_stream(AUGMENT, self.plan.seed, epoch, index, attempt, repeat)
            augmented.captions.append(choose_caption(augmented.row, self.caption, rng))
            if not isinstance(transform, TrainTransform):
                buffer.put(first + repeat, transform(clip, rng))
                continue
            drawn = transform.draw(clip.shape[1], clip.shape[2], rng)
            augmented.drawn.append(drawn)
            if not on_device:
                transform.apply(clip, drawn, buffer.slot(first + repeat, len(clip), transform.size))
        return augmented

    def _decode(self, epoch: int, position: int, unreadable: list[Unreadable]) -> tuple[int, int, Tensor]:
        """Decode the sample at a position or a fallback: return its index, the attempt and its frames (T, H, W, 3)."""
        order = self._epoch_order(epoch)
        for attempt, candidate in enumerate([position, *self.plan.fallback_positions(position)]):
            index = int(order[candidate])
            rng = random_stream(FRAMES, self.plan.seed, epoch, index, attempt)
            row = self.decoder.manifest.rows[index]
            try:
                (clip,) = self.decoder.clips(row, partial(_select_train_clip, with_row_stride(row, self.sampler), rng))
            except VideoError as error:
                unreadable.append(Unreadable(row.id, row.path, str(error)))
            else:
                return index, attempt, clip
        found = f"{len(unreadable)} clips in succession cannot be read, the last one because: {unreadable[-1].reason}"
        raise VideoError(self.decoder.manifest.source, found, "", "check the paths of the manifest")

    def _epoch_order(self, epoch: int) -> Sequence[int] | Indices:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self.plan.order(epoch))
        return self._order[1]


def with_row_stride(row: Sample, sampler: FrameSampler) -> FrameSampler:
    """Return the sampler with the row's stride (attribute "stride", of mixtures), if it has one.

    Raises:
        ManifestError: the attribute is not a number of frames.
    """
    stride = row.attributes.get(STRIDE)
    if stride is None or not hasattr(sampler, "stride") or not is_dataclass(sampler):
        return sampler
    if not (stride.isascii() and stride.isdecimal() and int(stride)):
        found = f"'{stride}'"
        raise ManifestError(f"sample '{row.id}' attributes.stride", found, "frames from one to the next, 1 or more")
    return cast(FrameSampler, replace(sampler, stride=int(stride)))


def with_frame_rate(times: NDArray[np.float64], sampler: FrameSampler) -> FrameSampler:
    """Return a `OnePerSecond` sampler with the average frame rate of frames at these seconds (n,); others unchanged."""
    if not isinstance(sampler, OnePerSecond) or len(times) < 2 or times[-1] <= times[0]:
        return sampler
    return replace(sampler, rate=float((len(times) - 1) / (times[-1] - times[0])))


def _select_train_clip(sampler: FrameSampler, rng: np.random.RandomState, times: NDArray[np.float64]) -> list[Indices]:
    return [with_frame_rate(times, sampler).train(len(times), rng)]


class BatchBuffer:
    """The clips of a batch, (B, 3, T, S, S); threads write each clip to its slot as soon as it is augmented.

    In a worker process the batch lies in shared memory, so that it is not copied again when it is sent.
    """

    def __init__(self, num_clips: int, sampler: FrameSampler) -> None:
        self._padded = padded_frames(sampler)
        self._num_clips, self._lock = num_clips, threading.Lock()
        self._lengths = [0] * num_clips
        self._video: Tensor | None = None

    def put(self, index: int, clip: Tensor) -> None:
        """Copy a clip (3, k, S, S), k at most T, to position `index` of the batch."""
        self.slot(index, clip.shape[1], clip.shape[2], clip.dtype).copy_(clip)

    def slot(self, index: int, num_frames: int, size: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return the view (3, k, S, S) of the batch for clip `index` of k frames, to be filled by the caller."""
        with self._lock:
            if self._video is None:
                self._video = _new_batch((self._num_clips, 3, self._padded or num_frames, size, size), dtype)
        self._video[index, :, num_frames:] = 0
        self._lengths[index] = num_frames
        return self._video[index, :, :num_frames]

    def batch(self) -> tuple[Tensor, Tensor | None]:
        """Return the batch, and the frame mask (B, T) if the sampler may give k < T."""
        assert self._video is not None  # every clip was written
        if self._padded is None:
            return self._video, None
        return self._video, torch.arange(self._padded)[None] < torch.tensor(self._lengths)[:, None]


def padded_frames(sampler: FrameSampler) -> int | None:
    """Return the number of frames to which the clips of a sampler are padded; None if all have the same number."""
    return sampler.frames if isinstance(sampler, OnePerSecond) else None


def stack_clips(clips: Sequence[Tensor], sampler: FrameSampler) -> tuple[Tensor, Tensor | None]:
    """Stack clips (3, k, S, S) to (B, 3, T, S, S); return also the frame mask (B, T) if the sampler may give k < T."""
    buffer = BatchBuffer(len(clips), sampler)
    for index, clip in enumerate(clips):
        buffer.put(index, clip)
    return buffer.batch()


def _new_batch(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocate a tensor; in a worker process in shared memory."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    length = math.prod(shape) * dtype.itemsize  # as torch's default_collate
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(length)  # type: ignore[no-untyped-call]  # torch's
    batch = torch.empty(0, dtype=dtype)
    batch.set_(storage)
    return batch.view(shape)


class EvaluationViews(Dataset[WorkerResult]):
    """Map-style dataset: all views (temporal x spatial) of a sample; the result of an unreadable one has no batch."""

    def __init__(
        self,
        decoder: ManifestClipDecoder,
        sampler: FrameSampler,
        transform: ViewTransform,
        *,
        tokenizer: TextEncoder | None,
    ) -> None:
        self.decoder, self.sampler, self.transform, self.tokenizer = decoder, sampler, transform, tokenizer
        self.labeled = decoder.manifest.labeled

    def __getitem__(self, index: int) -> WorkerResult:
        row = self.decoder.manifest.rows[index]
        try:
            clips = self.decoder.clips(row, lambda times: with_frame_rate(times, self.sampler).test(len(times)))
            views = [view for clip in clips for view in self.transform.crop_clip(clip)]
            rows = [row] * len(views)
            tokens = None if self.tokenizer is None else self.tokenizer.encode([row.captions[0]]).repeat(len(views), 1)
        except VideoError as error:
            return WorkerResult(unreadable=(Unreadable(row.id, row.path, str(error)),))
        except InternVideoError as error:
            return WorkerResult(error=error)
        labels = label_tensor(rows) if self.labeled else None
        video, frame_mask = stack_clips(views, self.sampler)
        batch = Batch(video, (row.id,) * len(views), labels, tokens, frame_mask)
        return WorkerResult(batch, views=tuple(range(len(views))), truncated_spans=self.decoder.take_truncated_spans())


def label_tensor(rows: Sequence[Sample]) -> Tensor:
    """Return (B,) int64 class indices, NO_LABEL for rows without a label."""
    return torch.tensor([NO_LABEL if row.label is None else row.label for row in rows])


def choose_caption(row: Sample, caption: CaptionRule, rng: np.random.RandomState) -> str:
    """Return the first or a random caption of a row; "" for caption "none" or a row without captions."""
    if caption == "none" or not row.captions:
        return ""
    return row.captions[int(rng.randint(len(row.captions))) if caption == "random" else 0]
