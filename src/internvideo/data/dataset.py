"""From a row of the manifest to clips: the part of loading that happens inside a worker.

`ClipReader` decodes the frames a sampler asks for; `TrainingBatches` makes one whole batch for each (epoch, batch
number), `EvaluationViews` all views of one sample. Neither raises a user's error across the process border: it travels
in the record, and the loader raises it.
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
from internvideo.data.key_frame_indices import SLACK
from internvideo.data.manifest import Manifest, Sample
from internvideo.data.sampling import FrameSampler, OnePerSecond
from internvideo.data.transforms import ClipTransform
from internvideo.errors import InternVideoError, ManifestError, VideoError
from internvideo.video.pool import borrow
from internvideo.video.reader import Video, VideoInfo

Captions = Literal["random", "first", "none"]
Indices = NDArray[np.int64]
NO_LABEL = -100  # the index that cross-entropy ignores
MOST_SUBSTITUTES = 32  # tries for one place of a batch before the run stops


class ViewTransform(Protocol):
    """Evaluation, as `transforms.EvalTransform`."""

    def views(self, clip: Tensor) -> list[Tensor]:
        """The crops (3, T, S, S) uint8 of a clip (T, H, W, 3) uint8."""


class TextEncoder(Protocol):
    """Text to numbers, as `tokenizer.Tokenizer`."""

    def encode(self, texts: Sequence[str], /) -> Tensor:
        """B texts -> (B, L) int64."""


class Collection(Protocol):
    """What a loader draws from: a `Manifest`, or the samples of shards."""

    @property
    def rows(self) -> Sequence[Sample]:
        """The samples."""

    @property
    def source(self) -> Path | str:
        """Where they come from, for messages."""

    @property
    def fingerprint(self) -> str:
        """Tells this collection from any other."""

    def __len__(self) -> int: ...


class Reader(Protocol):
    """Decodes clips of a collection, as `ClipReader`."""

    @property
    def manifest(self) -> Collection:
        """What it reads."""

    @property
    def labelled(self) -> bool:
        """Whether any sample has a label."""

    def clips(self, sample: Sample, choose: Callable[[NDArray[np.float64]], Sequence[Indices]], /) -> list[Tensor]:
        """Frames of one sample. Raises VideoError."""

    def late(self) -> tuple[str, ...]:
        """What to tell of samples whose span ends behind their video, each once."""


@dataclass(frozen=True)
class Unreadable:
    """A sample whose clip could not be read, and why."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """What a worker sends: a batch (None for none), view numbers (B,), what was unreadable, an error, late ends."""

    batch: Batch | None = None
    views: tuple[int, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    error: InternVideoError | None = None
    late: tuple[str, ...] = ()

    def pin_memory(self) -> Loaded:
        """Page-locked copy (called by the data loader when it pins)."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


def random_stream(
    purpose: int, seed: int, epoch: int, index: int = 0, attempt: int = 0, repeat: int = 0
) -> np.random.RandomState:
    """Random numbers that depend on these keys alone, so that any batch can be made again by itself."""
    key = np.random.SeedSequence([purpose, seed, epoch, index, attempt, repeat])
    return np.random.RandomState(np.random.MT19937(key))


ORDER, FRAMES, AUGMENT = range(3)  # purposes of random streams


class ClipReader:
    """Decode clips, with an optional bounded cache of whole decoded videos (their spans) in memory.

    Args:
        manifest: where the videos lie.
        short_side: scale in the decoder so that the shorter side has this many pixels; None keeps the size.
        cache_bytes: a video is kept, decoded, as long as all kept ones fit in here; what is kept stays (every epoch
            reads everything once, so that replacing the oldest would never hit).
    """

    def __init__(self, manifest: Manifest, *, short_side: int | None = None, cache_bytes: int = 0) -> None:
        self.manifest, self.short_side, self.cache_bytes = manifest, short_side, cache_bytes
        self.cached_bytes = 0
        self._kept: dict[str, tuple[NDArray[np.uint8], NDArray[np.float64]]] = {}
        self._damaged: set[str] = set()
        self._late: dict[str, str | None] = {}  # sample -> what to tell, None once it was told
        self.labelled = any(row.label is not None for row in manifest.rows)

    def clips(self, sample: Sample, choose: Callable[[NDArray[np.float64]], Sequence[Indices]]) -> list[Tensor]:
        """The frames that `choose` picks, given the times (n,) in seconds of the frames in the sample's span.

        Returns:
            for each index array (T,) in [0, n) the frames, (T, H, W, 3) uint8.

        Raises:
            VideoError: the video cannot be read, or has no frame inside the span.
        """
        kept = self._kept.get(sample.id)
        if kept is None:
            with borrow(self.manifest.video_path(sample), short_side=self.short_side, fps=sample.frame_rate) as video:
                inside = _inside(video.info, sample)
                if sample.span is not None and sample.span[1] > (end := video.info.duration) + SLACK:
                    self._late.setdefault(sample.id, f"'{sample.id}' to {sample.span[1]:g} s of {end:.3f} s")
                times = video.info.times[inside]
                frames = self._keep(sample, video, inside)
                if frames is None:
                    shown = video.info.times
                    chosen, decoded = video.sample(inside, lambda left: [left[part] for part in choose(shown[left])])
                    ends = np.cumsum([len(indices) for indices in chosen])[:-1]
                    return [torch.from_numpy(part) for part in np.split(decoded, ends)]
                self._kept[sample.id] = kept = (frames, times)
        return [torch.from_numpy(kept[0][indices]) for indices in choose(kept[1])]

    def late(self) -> tuple[str, ...]:
        """What to tell of samples whose span ends behind their video, each once."""
        told = tuple(line for line in self._late.values() if line)
        self._late = dict.fromkeys(self._late)
        return told

    def _keep(self, sample: Sample, video: Video, inside: Indices) -> NDArray[np.uint8] | None:
        """The decoded span, counted as kept; None where it does not fit."""
        info = video.info
        scale = min(1.0, (self.short_side or info.width) / min(info.width, info.height))
        # A pixel more on each side than the decoder could round to.
        size = len(inside) * 3 * (int(info.width * scale) + 2) * (int(info.height * scale) + 2)
        if size > self.cache_bytes - self.cached_bytes or sample.id in self._damaged:
            return None
        try:
            frames = video.frames(inside)
        except VideoError:  # a damaged frame that the sampler may never ask for
            self._damaged.add(sample.id)
            return None
        self.cached_bytes += frames.nbytes
        return frames


def _inside(info: VideoInfo, sample: Sample) -> Indices:
    """Indices of the frames of the sample's span, whose end may lie behind that of the video."""
    if sample.span is None:
        return np.arange(info.frames, dtype=np.int64)
    start, end = sample.span
    inside = info.within(start, end)
    if not len(inside):
        raise VideoError(
            info.path, f"no frame from {start:g} s to {end:g} s (sample '{sample.id}')", f"0 to {info.duration:.3f} s"
        )
    return inside


@dataclass(frozen=True)
class EpochPlan:
    """Which samples stand in which batch of this rank.

    A global batch is `batch_size * world_size` successive samples of the epoch's order, cut into one piece a rank, so
    that all ranks together see what one process with the joined batch would see. Every rank has the same number of
    batches of the same sizes; what is left over (all that does not fill a batch, with `drop_last`) changes from epoch
    to epoch with the order.
    """

    samples: int
    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    rank: int
    world_size: int

    @property
    def batches(self) -> int:
        """Batches per epoch, the same on every rank."""
        whole, rest = divmod(self.samples, self.batch_size * self.world_size)
        return whole + (not self.drop_last and rest >= self.world_size)

    def order(self, epoch: int) -> Sequence[int] | Indices:
        """(samples,) a permutation that depends on seed and epoch."""
        if not self.shuffle:
            return np.arange(self.samples, dtype=np.int64)
        return random_stream(ORDER, self.seed, epoch).permutation(self.samples).astype(np.int64)

    def places(self, batch: int) -> range:
        """Places in the epoch's order that make up batch number `batch` of this rank."""
        first = batch * self.batch_size * self.world_size
        size = min(self.batch_size, (self.samples - first) // self.world_size)
        return range(first + self.rank * size, first + (self.rank + 1) * size)

    def substitutes(self, place: int) -> list[int]:
        """Places tried in turn for an unreadable clip: from the same place of the next batch on, in epoch order."""
        first = place + self.batch_size * self.world_size
        walk = [(first + step) % self.samples for step in range(min(self.samples, MOST_SUBSTITUTES + 1))]
        return [other for other in walk if other != place][:MOST_SUBSTITUTES]


class TrainingBatches(Dataset[Loaded]):
    """Batch number b of epoch k, for the key (k, b); each sample is decoded once and augmented `repeats` times."""

    def __init__(
        self,
        reader: Reader,
        plan: EpochPlan,
        sampler: FrameSampler,
        transform: ClipTransform,
        *,
        repeats: int,
        tokenizer: TextEncoder | None,
        caption: Captions,
    ) -> None:
        self.reader, self.plan, self.sampler, self.transform = reader, plan, sampler, transform
        self.repeats, self.tokenizer, self.caption = repeats, tokenizer, caption
        self.labelled = reader.labelled
        self._order: tuple[int, Sequence[int] | Indices] | None = None

    def __getitem__(self, key: tuple[int, int]) -> Loaded:
        epoch, number = key
        try:
            return self._make(epoch, number)
        except InternVideoError as error:
            return Loaded(error=error)

    def _make(self, epoch: int, number: int) -> Loaded:
        clips: list[Tensor] = []
        captions: list[str] = []
        rows: list[Sample] = []
        unreadable: list[Unreadable] = []
        for place in self.plan.places(number):
            index, attempt, clip = self._read(epoch, place, unreadable)
            row = self.reader.manifest.rows[index]
            for repeat in range(self.repeats):
                rng = random_stream(AUGMENT, self.plan.seed, epoch, index, attempt, repeat)
                captions.append(choose_caption(row, self.caption, rng))
                clips.append(self.transform(clip, rng))
                rows.append(row)
        video, frame_mask = stacked(clips, self.sampler)
        return Loaded(
            Batch(
                video,
                tuple(row.id for row in rows),
                label_tensor(rows) if self.labelled else None,
                None if self.tokenizer is None or self.caption == "none" else self.tokenizer.encode(captions),
                frame_mask,
            ),
            unreadable=tuple(unreadable),
            late=self.reader.late(),
        )

    def _read(self, epoch: int, place: int, unreadable: list[Unreadable]) -> tuple[int, int, Tensor]:
        """Index of the sample that is used for a place, which try it is, and its frames (T, H, W, 3)."""
        order = self._epoch_order(epoch)
        for attempt, candidate in enumerate([place, *self.plan.substitutes(place)]):
            index = int(order[candidate])
            rng = random_stream(FRAMES, self.plan.seed, epoch, index, attempt)
            row = self.reader.manifest.rows[index]
            try:
                (clip,) = self.reader.clips(row, partial(_one_clip, with_stride_of(row, self.sampler), rng))
            except VideoError as error:
                unreadable.append(Unreadable(row.id, row.path, str(error)))
            else:
                return index, attempt, clip
        raise VideoError(
            self.reader.manifest.source,
            f"{len(unreadable)} clips in succession cannot be read, the last one because: {unreadable[-1].reason}",
            "",
            "check that the videos lie where the manifest says",
        )

    def _epoch_order(self, epoch: int) -> Sequence[int] | Indices:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self.plan.order(epoch))
        return self._order[1]


def with_stride_of(row: Sample, sampler: FrameSampler) -> FrameSampler:
    """The sampler with the row's own stride (attribute "stride", of mixtures) instead of its own, where it has one.

    Raises:
        ManifestError: the attribute is no number of frames.
    """
    own = row.attributes.get(STRIDE)
    if own is None or not hasattr(sampler, "stride") or not is_dataclass(sampler):
        return sampler
    if not (own.isascii() and own.isdecimal() and int(own)):
        found = f"'{own}'"
        raise ManifestError(f"sample '{row.id}' attributes.stride", found, "frames from one to the next, 1 or more")
    return cast(FrameSampler, replace(sampler, stride=int(own)))


def with_rate_of(times: NDArray[np.float64], sampler: FrameSampler) -> FrameSampler:
    """The sampler with the average frame rate of the frames at these seconds (n,), where it asks for one."""
    if not isinstance(sampler, OnePerSecond) or len(times) < 2 or times[-1] <= times[0]:
        return sampler
    return replace(sampler, rate=float((len(times) - 1) / (times[-1] - times[0])))


def _one_clip(sampler: FrameSampler, rng: np.random.RandomState, times: NDArray[np.float64]) -> list[Indices]:
    return [with_rate_of(times, sampler).train(len(times), rng)]


def stacked(clips: Sequence[Tensor], sampler: FrameSampler) -> tuple[Tensor, Tensor | None]:
    """Clips (3, k, S, S) as one (B, 3, T, S, S), and where its frames are real (B, T) if the sampler may give fewer."""
    if not isinstance(sampler, OnePerSecond):
        return torch.stack(list(clips)), None
    video = clips[0].new_zeros((len(clips), 3, sampler.frames, *clips[0].shape[2:]))
    for place, clip in zip(video, clips, strict=True):
        place[:, : clip.shape[1]] = clip
    lengths = torch.tensor([clip.shape[1] for clip in clips])
    return video, torch.arange(sampler.frames)[None] < lengths[:, None]


class EvaluationViews(Dataset[Loaded]):
    """All views (temporal x spatial) of the sample with the given index; an unreadable one has no batch."""

    def __init__(
        self,
        reader: ClipReader,
        sampler: FrameSampler,
        transform: ViewTransform,
        *,
        tokenizer: TextEncoder | None,
    ) -> None:
        self.reader, self.sampler, self.transform, self.tokenizer = reader, sampler, transform, tokenizer
        self.labelled = any(row.label is not None for row in reader.manifest.rows)

    def __getitem__(self, index: int) -> Loaded:
        row = self.reader.manifest.rows[index]
        try:
            clips = self.reader.clips(row, lambda times: with_rate_of(times, self.sampler).test(len(times)))
            views = [view for clip in clips for view in self.transform.views(clip)]
            rows = [row] * len(views)
            tokens = None if self.tokenizer is None else self.tokenizer.encode([row.captions[0]]).repeat(len(views), 1)
        except VideoError as error:
            return Loaded(unreadable=(Unreadable(row.id, row.path, str(error)),))
        except InternVideoError as error:
            return Loaded(error=error)
        labels = label_tensor(rows) if self.labelled else None
        video, frame_mask = stacked(views, self.sampler)
        batch = Batch(video, (row.id,) * len(views), labels, tokens, frame_mask)
        return Loaded(batch, views=tuple(range(len(views))), late=self.reader.late())


def label_tensor(rows: Sequence[Sample]) -> Tensor:
    """(B,) int64 class indices, NO_LABEL where a row has none."""
    return torch.tensor([NO_LABEL if row.label is None else row.label for row in rows])


def choose_caption(row: Sample, caption: Captions, rng: np.random.RandomState) -> str:
    """The first caption, a random one, or "" where none is asked for."""
    if caption == "none" or not row.captions:
        return ""
    return row.captions[int(rng.randint(len(row.captions))) if caption == "random" else 0]
