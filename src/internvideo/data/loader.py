"""Loader: rows of a manifest -> batches, the same ones whatever the number of workers and wherever a run resumes.

Everything random is drawn from (seed, epoch, sample, repeat), so a batch depends on its place alone.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.data.dataset import (
    Captions,
    ClipReader,
    Collection,
    EpochPlan,
    EvaluationViews,
    Loaded,
    Reader,
    TextEncoder,
    TrainingBatches,
    ViewTransform,
)
from internvideo.data.manifest import Manifest
from internvideo.data.sampling import FrameSampler, Sparse
from internvideo.data.skipped import SkippedClips
from internvideo.data.transforms import ClipTransform
from internvideo.errors import ManifestError, RecipeError, RunError, shown

_LIMITS = {
    "batch_size": (1, 2**20), "workers": (0, 1024), "repeats": (1, 1024), "seed": (0, 2**63 - 1),
    "cache_megabytes": (0, 2**30), "prefetch": (1, 1024), "short_side": (1, 8192),
}  # fmt: skip
"""Least and most of settings: a recipe is asked for no more processes or clips than any machine has."""


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made.

    Attributes:
        batch_size: videos per batch and rank; a training batch has batch_size * repeats clips, an evaluation batch at
            most batch_size views.
        workers: processes that decode; 0 decodes in this one.
        repeats: augmentations of each decoded clip, standing one after another in the batch.
        seed: of order, frames, captions and augmentation.
        shuffle: a new order every epoch. drop_last: leave out the last, incomplete batch.
        max_unreadable: training stops when more than this fraction of the manifest cannot be read, by any process in
            any session of the run.
        cache_megabytes: memory for decoded videos, for small sets of small clips. Each worker keeps its own share and
            meets any clip, so a set that fits is decoded once with 0 workers, once per worker otherwise.
        short_side: pixels of the shorter side after decoding; None keeps the video's size.
        single_frame: clips of one random frame (T = 1), the middle one in evaluation, whatever the sampler.
        prefetch: batches that each worker makes in advance.
        pin_memory: page-locked batches, for copying to a GPU.
    """

    batch_size: int
    workers: int = 0
    repeats: int = 1
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = True
    max_unreadable: float = 0.01
    cache_megabytes: float = 0.0
    short_side: int | None = None
    single_frame: bool = False
    prefetch: int = 2
    pin_memory: bool = False

    # Inside a recipe (a pydantic model) an unknown key is an error.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        for name, (lowest, highest) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                raise ValueError(f"{name} is {value}, {lowest} to {highest} are the limits")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable is {self.max_unreadable}, must be a fraction from 0 to 1")


def check_batches(batches: int, settings: LoaderSettings, count: int, what: str) -> None:
    """Raise RecipeError where `count` of something do not fill one batch on each process."""
    if batches < 1:
        world_size = distributed.world_size()
        found = f"{settings.batch_size} on {world_size} processes, but there are {count} {what}: fewer than one batch"
        allowed = f"at most {count // world_size}" if count >= world_size else "more data or fewer processes"
        raise RecipeError("data.loader.batch_size", found, allowed)


class EpochLoader:
    """Training batches of one rank, of any collection: the walk through an epoch. `Loader` is that of a manifest.

    Args:
        collection: the samples. plan: which of them stand in which batch. reader: decodes them.
        sampler, transform, settings, tokenizer, caption, skipped: see `Loader`.

    Raises:
        RecipeError: not one batch in an epoch.
    """

    def __init__(
        self,
        collection: Collection,
        plan: EpochPlan,
        reader: Reader,
        sampler: FrameSampler,
        transform: ClipTransform,
        settings: LoaderSettings,
        *,
        tokenizer: TextEncoder | None,
        caption: Captions,
        skipped: Path | None,
    ) -> None:
        self.settings, self.collection = settings, collection
        self.data_time = 0.0
        self._plan = plan
        check_batches(plan.batches, settings, len(collection), f"clips of {collection.source}")
        self._skipped = SkippedClips(collection, settings.max_unreadable, skipped)
        self.unreadable = self._skipped.known
        self._batches = TrainingBatches(
            reader,
            plan,
            Sparse(frames=1, views=1) if settings.single_frame else sampler,
            transform,
            repeats=settings.repeats,
            tokenizer=tokenizer,
            caption=caption,
        )
        self._source = Source(self._batches, settings)

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return self._plan.batches

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of epoch `k`, exactly as in the uninterrupted epoch.

        Raises:
            VideoError: more clips than `max_unreadable` cannot be read. RunError: a worker died.
        """
        if k < 0 or not 0 <= start <= len(self):
            raise ValueError(f"epoch {k}, batch {start} of {len(self)}")
        for loaded in self._source.read([(k, number) for number in range(start, len(self))], self._wait):
            self._skipped.count(loaded.unreadable, k)
            yield cast(Batch, loaded.batch)

    def _wait(self, seconds: float) -> None:
        self.data_time += seconds


class Loader(EpochLoader):
    """Training batches of one rank.

    An unreadable clip is replaced by a readable one of the same epoch (`EpochPlan.substitutes`), so that batch sizes
    stay equal on all ranks; it is counted and, once, written to `skipped`.

    Args:
        manifest: the samples. sampler: which frames. transform: augmentation. settings: see there.
        tokenizer: for captions; None leaves `Batch.tokens` None. caption: which caption of a sample.
        skipped: JSONL file that names unreadable clips, one for all processes and sessions of a run, so that they
            are counted together; None counts those of this process.

    Attributes:
        data_time: seconds that the consumer has waited for batches. unreadable: what could not be read so far, by id.

    Raises:
        RecipeError: not one batch in an epoch. ManifestError: a sample without caption where captions are asked for.
    """

    def __init__(
        self,
        manifest: Manifest,
        sampler: FrameSampler,
        transform: ClipTransform,
        settings: LoaderSettings,
        *,
        tokenizer: TextEncoder | None = None,
        caption: Captions = "random",
        skipped: Path | None = None,
    ) -> None:
        if tokenizer is not None and caption != "none":
            _check_captions(manifest)
        self.manifest = manifest
        super().__init__(
            manifest, epoch_plan(len(manifest), settings), clip_reader(manifest, settings), sampler, transform,
            settings, tokenizer=tokenizer, caption=caption, skipped=skipped,
        )  # fmt: skip


class EvalLoader:
    """All views of all samples, each exactly once over all ranks; iterate for (Batch, view numbers (B,) int64).

    Each `batch_size` samples in a row are batched for themselves and belong to one rank, in turn: which clips share a
    batch, and with it the last digit of what a model says of them, does not depend on the number of processes. View v
    of a sample with c crops is crop v % c of temporal clip v // c. The views of a sample follow one another and may
    continue in the next batch.

    Args:
        manifest, sampler, settings: as for `Loader` (order, repeats and substitutes play no part).
        transform: crops of a clip. tokenizer: encodes the first caption of each sample.

    Attributes:
        unreadable: (id, path, reason) of this iteration's samples without views, complete after it.
        data_time: seconds that the consumer has waited.
        samples: how many samples this rank has.
    """

    def __init__(
        self,
        manifest: Manifest,
        sampler: FrameSampler,
        transform: ViewTransform,
        settings: LoaderSettings,
        *,
        tokenizer: TextEncoder | None = None,
    ) -> None:
        if tokenizer is not None:
            _check_captions(manifest)
        self.unreadable: list[tuple[str, str, str]] = []
        self.data_time = 0.0
        self._batch_size = settings.batch_size
        rank, world_size = distributed.rank(), distributed.world_size()
        self._indices = [index for index in range(len(manifest)) if index // self._batch_size % world_size == rank]
        self.samples = len(self._indices)
        chosen: FrameSampler = Sparse(frames=1, views=1) if settings.single_frame else sampler
        views = EvaluationViews(clip_reader(manifest, settings), chosen, transform, tokenizer=tokenizer)
        self._source = Source(views, settings)

    def __iter__(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        self.unreadable = []
        pending: list[tuple[Batch, tuple[int, ...]]] = []
        for number, loaded in enumerate(self._source.read(self._indices, self._wait), 1):
            self.unreadable += [(clip.id, clip.path, clip.reason) for clip in loaded.unreadable]
            if loaded.batch is not None:
                pending.append((loaded.batch, loaded.views))
            while sum(len(batch) for batch, _ in pending) >= self._batch_size:
                whole, pending = _cut(pending, self._batch_size)
                yield whole
            if pending and (number % self._batch_size == 0 or number == self.samples):
                yield _cut(pending, self._batch_size)[0]
                pending = []

    def _wait(self, seconds: float) -> None:
        self.data_time += seconds


class _Keys:
    """The sampler of the DataLoader: whatever keys it holds when an iteration begins."""

    def __init__(self) -> None:
        self.keys: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class Source:
    """Reads keys of a data set in order through torch's DataLoader, whose workers live as long as this object."""

    def __init__(self, dataset: Dataset[Loaded], settings: LoaderSettings) -> None:
        self._keys = _Keys()
        self._late: set[str] = set()
        self._loader: DataLoader[Loaded] = DataLoader(
            dataset,
            batch_size=None,
            sampler=self._keys,
            num_workers=settings.workers,
            collate_fn=_as_it_is,
            persistent_workers=settings.workers > 0,
            prefetch_factor=settings.prefetch if settings.workers else None,
            pin_memory=settings.pin_memory and torch.cuda.is_available(),  # nothing to pin for elsewhere
            # Its own, unused: otherwise every epoch would draw from the global one and disturb a resumed run.
            generator=torch.Generator(),
        )

    def read(self, keys: Sequence[object], wait: Callable[[float], None]) -> Iterator[Loaded]:
        """What the data set has for each key; `wait` is told the seconds spent here.

        Raises:
            InternVideoError: as in the worker. RunError: a worker died.
        """
        self._keys.keys = list(keys)
        late: set[str] = set()
        try:
            began = time.perf_counter()
            with warnings.catch_warnings():
                # Python 3.12 warns of fork beside threads; the workers use none of the parent's.
                warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
                stream = iter(self._loader)
            while (loaded := next(stream, None)) is not None:
                wait(time.perf_counter() - began)
                if loaded.error is not None:
                    raise loaded.error
                late |= set(loaded.late) - self._late
                yield loaded
                began = time.perf_counter()
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunError(
                "data loader",
                f"a worker died ({error})",
                "",
                "it may have run out of memory or of shared memory: lower workers, prefetch or cache_megabytes",
            ) from error
        finally:
            self._late |= late
            if late:
                told = "%d spans end behind their video and are read up to its end, such as %s"
                logging.getLogger("internvideo").warning(told, len(late), shown(min(late)))


def _as_it_is(loaded: Any) -> Any:
    return loaded


def epoch_plan(samples: int, settings: LoaderSettings) -> EpochPlan:
    """Which of `samples` samples stand in which batch of this process."""
    rank, world_size = distributed.rank(), distributed.world_size()
    return EpochPlan(
        samples, settings.batch_size, settings.seed, settings.shuffle, settings.drop_last, rank, world_size
    )


def clip_reader(manifest: Manifest, settings: LoaderSettings) -> ClipReader:
    """The reader of a worker's clips, with its share of the memory for decoded videos."""
    share = int(settings.cache_megabytes * 2**20 / max(settings.workers, 1))
    return ClipReader(manifest, short_side=settings.short_side, cache_bytes=share)


def _check_captions(manifest: Manifest) -> None:
    without = [row.id for row in manifest.rows if not row.captions]
    if without:
        raise ManifestError(
            manifest.source,
            f"{len(without)} of {len(manifest)} samples have no caption, for instance '{without[0]}'",
            "at least one caption for every sample",
        )


def _cut(
    pieces: list[tuple[Batch, tuple[int, ...]]], size: int
) -> tuple[tuple[Batch, NDArray[np.int64]], list[tuple[Batch, tuple[int, ...]]]]:
    """The first `size` views of the pieces as one batch, and what remains."""
    batches = [batch for batch, _ in pieces]
    views = [view for _, numbers in pieces for view in numbers]
    joined = Batch(
        torch.cat([batch.video for batch in batches]),
        tuple(name for batch in batches for name in batch.ids),
        _joined([batch.labels for batch in batches]),
        _joined([batch.tokens for batch in batches]),
        _joined([batch.frame_mask for batch in batches]),
    )
    first, rest = _sliced(joined, 0, size), _sliced(joined, size, len(joined))
    numbers = np.array(views[:size], dtype=np.int64)
    return (first, numbers), ([(rest, tuple(views[size:]))] if len(rest) else [])


def _joined(tensors: list[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None


def _sliced(batch: Batch, start: int, end: int) -> Batch:
    return Batch(
        batch.video[start:end],
        batch.ids[start:end],
        None if batch.labels is None else batch.labels[start:end],
        None if batch.tokens is None else batch.tokens[start:end],
        None if batch.frame_mask is None else batch.frame_mask[start:end],
    )
