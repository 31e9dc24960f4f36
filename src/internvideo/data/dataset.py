"""Decode manifest rows to clips and batches inside a loader worker.

`ManifestClipDecoder` decodes the sampled frames; `TrainingBatches` builds one batch per (epoch, batch index),
`EvaluationViews` all views of one sample. User errors are returned in the result; the loader raises them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from internvideo.data.batch import Batch
from internvideo.data.csv_columns import STRIDE
from internvideo.data.epoch_plan import AUGMENT, FRAMES, EpochPlan, Indices, random_stream
from internvideo.data.key_frame_indices import SLACK
from internvideo.data.manifest import Manifest, Sample
from internvideo.data.sampling import FrameSampler, OnePerSecond
from internvideo.data.transforms import ClipTransform
from internvideo.errors import InternVideoError, ManifestError, VideoError
from internvideo.video.pool import borrow
from internvideo.video.reader import Video, VideoInfo

Captions = Literal["random", "first", "none"]
NO_LABEL = -100  # the index that cross-entropy ignores


class ViewTransform(Protocol):
    """Evaluation transform, as `transforms.EvalTransform`."""

    def crop_clip(self, clip: Tensor) -> list[Tensor]:
        """Return the spatial crops (3, T, S, S) uint8 of a clip (T, H, W, 3) uint8."""


class TextEncoder(Protocol):
    """Text tokenizer, as `tokenizer.Tokenizer`."""

    def encode(self, texts: Sequence[str], /) -> Tensor:
        """Tokenize B texts to (B, L) int64."""


class SampleIndex(Protocol):
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
    def manifest(self) -> SampleIndex:
        """The dataset."""

    @property
    def labelled(self) -> bool:
        """Whether any sample has a label."""

    def clips(self, sample: Sample, sample_fn: Callable[[NDArray[np.float64]], Sequence[Indices]], /) -> list[Tensor]:
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

    batch: Batch | None = None
    views: tuple[int, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    error: InternVideoError | None = None
    truncated_spans: tuple[str, ...] = ()

    def pin_memory(self) -> WorkerResult:
        """Page-locked copy (called by the data loader when it pins)."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class ManifestClipDecoder:
    """Decode clips of a manifest, with an optional bounded cache of decoded videos (their spans) in memory.

    Args:
        manifest: the samples.
        short_side: scale in the decoder so that the shorter side has this many pixels; None keeps the size.
        cache_bytes: maximum size of the cache. Nothing is evicted: with one read per epoch an LRU cache never hits.
    """

    def __init__(self, manifest: Manifest, *, short_side: int | None = None, cache_bytes: int = 0) -> None:
        self.manifest, self.short_side, self.cache_bytes = manifest, short_side, cache_bytes
        self.cached_bytes = 0
        self._cache: dict[str, tuple[NDArray[np.uint8], NDArray[np.float64]]] = {}
        self._damaged: set[str] = set()
        self._truncated_spans: dict[str, str | None] = {}  # sample -> what to tell, None once it was told
        self.labelled = any(row.label is not None for row in manifest.rows)

    def clips(self, sample: Sample, sample_fn: Callable[[NDArray[np.float64]], Sequence[Indices]]) -> list[Tensor]:
        """Decode the frames that `sample_fn` selects, given the times (n,) in seconds of the frames in the span.

        Returns:
            the frames (T, H, W, 3) uint8 for each index array (T,) in [0, n) of `sample_fn`.

        Raises:
            VideoError: the video cannot be read, or has no frame inside the span.
        """
        cached = self._cache.get(sample.id)
        if cached is None:
            with borrow(self.manifest.video_path(sample), short_side=self.short_side, fps=sample.frame_rate) as video:
                inside = _inside(video.info, sample)
                if sample.span is not None and sample.span[1] > (end := video.info.duration) + SLACK:
                    self._truncated_spans.setdefault(sample.id, f"'{sample.id}' to {sample.span[1]:g} s of {end:.3f} s")
                times = video.info.times[inside]
                frames = self._decode_for_cache(sample, video, inside)
                if frames is None:
                    all_times = video.info.times
                    frame_indices, decoded = video.sample(
                        inside, lambda left: [left[part] for part in sample_fn(all_times[left])]
                    )
                    ends = np.cumsum([len(indices) for indices in frame_indices])[:-1]
                    return [torch.from_numpy(part) for part in np.split(decoded, ends)]
                self._cache[sample.id] = cached = (frames, times)
        return [torch.from_numpy(cached[0][indices]) for indices in sample_fn(cached[1])]

    def take_truncated_spans(self) -> tuple[str, ...]:
        """Return, once per sample, a message about spans that end after their video."""
        messages = tuple(line for line in self._truncated_spans.values() if line)
        self._truncated_spans = dict.fromkeys(self._truncated_spans)
        return messages

    def _decode_for_cache(self, sample: Sample, video: Video, inside: Indices) -> NDArray[np.uint8] | None:
        """Decode the span for the cache; return None where it does not fit."""
        info = video.info
        scale = min(1.0, (self.short_side or info.width) / min(info.width, info.height))
        # One pixel more per side than the decoder could round to.
        size = len(inside) * 3 * (int(info.width * scale) + 2) * (int(info.height * scale) + 2)
        if size > self.cache_bytes - self.cached_bytes or sample.id in self._damaged:
            return None
        try:
            frames = video.frames(inside)
        except VideoError:  # a damaged frame that the sampler may never select
            self._damaged.add(sample.id)
            return None
        self.cached_bytes += frames.nbytes
        return frames


def _inside(info: VideoInfo, sample: Sample) -> Indices:
    """Return the indices of the frames in the sample's span, which may end after the video."""
    if sample.span is None:
        return np.arange(info.frames, dtype=np.int64)
    start, end = sample.span
    inside = info.within(start, end)
    if not len(inside):
        raise VideoError(
            info.path, f"no frame from {start:g} s to {end:g} s (sample '{sample.id}')", f"0 to {info.duration:.3f} s"
        )
    return inside


class TrainingBatches(Dataset[WorkerResult]):
    """Map-style dataset with key (epoch, batch index); decodes each sample once, augments it several times."""

    def __init__(
        self,
        decoder: ClipDecoder,
        plan: EpochPlan,
        sampler: FrameSampler,
        transform: ClipTransform,
        *,
        repeated_augmentation: int,
        tokenizer: TextEncoder | None,
        caption: Captions,
    ) -> None:
        self.decoder, self.plan, self.sampler, self.transform = decoder, plan, sampler, transform
        self.repeated_augmentation, self.tokenizer, self.caption = repeated_augmentation, tokenizer, caption
        self.labelled = decoder.labelled
        self._order: tuple[int, Sequence[int] | Indices] | None = None

    def __getitem__(self, key: tuple[int, int]) -> WorkerResult:
        epoch, batch_index = key
        try:
            return self._build_batch(epoch, batch_index)
        except InternVideoError as error:
            return WorkerResult(error=error)

    def _build_batch(self, epoch: int, batch_index: int) -> WorkerResult:
        clips: list[Tensor] = []
        captions: list[str] = []
        rows: list[Sample] = []
        unreadable: list[Unreadable] = []
        for position in self.plan.positions(batch_index):
            index, attempt, clip = self._decode(epoch, position, unreadable)
            row = self.decoder.manifest.rows[index]
            for repeat in range(self.repeated_augmentation):
                rng = random_stream(AUGMENT, self.plan.seed, epoch, index, attempt, repeat)
                captions.append(choose_caption(row, self.caption, rng))
                clips.append(self.transform(clip, rng))
                rows.append(row)
        video, frame_mask = stack_clips(clips, self.sampler)
        return WorkerResult(
            Batch(
                video,
                tuple(row.id for row in rows),
                label_tensor(rows) if self.labelled else None,
                None if self.tokenizer is None or self.caption == "none" else self.tokenizer.encode(captions),
                frame_mask,
            ),
            unreadable=tuple(unreadable),
            truncated_spans=self.decoder.take_truncated_spans(),
        )

    def _decode(self, epoch: int, position: int, unreadable: list[Unreadable]) -> tuple[int, int, Tensor]:
        """Decode the sample at a position or a fallback: return its index, the attempt and its frames (T, H, W, 3)."""
        order = self._epoch_order(epoch)
        for attempt, candidate in enumerate([position, *self.plan.fallback_positions(position)]):
            index = int(order[candidate])
            rng = random_stream(FRAMES, self.plan.seed, epoch, index, attempt)
            row = self.decoder.manifest.rows[index]
            try:
                (clip,) = self.decoder.clips(row, partial(_one_clip, with_row_stride(row, self.sampler), rng))
            except VideoError as error:
                unreadable.append(Unreadable(row.id, row.path, str(error)))
            else:
                return index, attempt, clip
        raise VideoError(
            self.decoder.manifest.source,
            f"{len(unreadable)} clips in succession cannot be read, the last one because: {unreadable[-1].reason}",
            "",
            "check the paths of the manifest",
        )

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


def _one_clip(sampler: FrameSampler, rng: np.random.RandomState, times: NDArray[np.float64]) -> list[Indices]:
    return [with_frame_rate(times, sampler).train(len(times), rng)]


def stack_clips(clips: Sequence[Tensor], sampler: FrameSampler) -> tuple[Tensor, Tensor | None]:
    """Stack clips (3, k, S, S) to (B, 3, T, S, S); return also the frame mask (B, T) if the sampler may give k < T."""
    if not isinstance(sampler, OnePerSecond):
        return torch.stack(list(clips)), None
    video = clips[0].new_zeros((len(clips), 3, sampler.frames, *clips[0].shape[2:]))
    for padded, clip in zip(video, clips, strict=True):
        padded[:, : clip.shape[1]] = clip
    lengths = torch.tensor([clip.shape[1] for clip in clips])
    return video, torch.arange(sampler.frames)[None] < lengths[:, None]


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
        self.labelled = any(row.label is not None for row in decoder.manifest.rows)

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
        labels = label_tensor(rows) if self.labelled else None
        video, frame_mask = stack_clips(views, self.sampler)
        batch = Batch(video, (row.id,) * len(views), labels, tokens, frame_mask)
        return WorkerResult(batch, views=tuple(range(len(views))), truncated_spans=self.decoder.take_truncated_spans())


def label_tensor(rows: Sequence[Sample]) -> Tensor:
    """Return (B,) int64 class indices, NO_LABEL for rows without a label."""
    return torch.tensor([NO_LABEL if row.label is None else row.label for row in rows])


def choose_caption(row: Sample, caption: Captions, rng: np.random.RandomState) -> str:
    """Return the first or a random caption of a row; "" for caption "none"."""
    if caption == "none" or not row.captions:
        return ""
    return row.captions[int(rng.randint(len(row.captions))) if caption == "random" else 0]
