"""Data loaders of manifests: deterministic batches, independent of the number of workers and resumable at any batch.

All random numbers are seeded by (seed, epoch, sample, repeat), so a batch depends only on its position.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
    CaptionRule,
    ClipDecoder,
    EvaluationViews,
    SampleSource,
    TextEncoder,
    TrainingBatches,
    ViewTransform,
    WorkerResult,
)
from internvideo.data.decoding.clip_decoder import ManifestClipDecoder
from internvideo.data.epoch_plan import AlikeBatches, EpochPlan, Indices, alike_groups
from internvideo.data.manifest import Manifest
from internvideo.data.sampling import FrameSampler, Sparse
from internvideo.data.skipped import SkippedClips
from internvideo.data.transforms import ClipTransform
from internvideo.errors import RecipeError, RunError, shown
from internvideo.terminal import LOGGER

_LIMITS = {
    "batch_size": (1, 2**20), "workers": (0, 1024), "threads": (1, 256), "repeated_augmentation": (1, 1024),
    "seed": (0, 2**63 - 1), "cache_megabytes": (0, 2**30), "prefetch": (1, 1024), "short_side": (1, 8192),
    "alike": (0, 2**20), "alike_from": (0, 2**20),
}  # fmt: skip
"""Minimum and maximum of settings, to reject implausible recipes."""


@dataclass(frozen=True)
class LoaderSettings:
    """Settings of a data loader.

    Attributes:
        batch_size: videos per batch and rank; a training batch has batch_size * repeated_augmentation clips, an
            evaluation batch at most batch_size views.
        workers: number of worker processes; 0 decodes in the main process.
        repeated_augmentation: number of augmentations of each decoded clip, consecutive in the batch.
        seed: seed of order, frames, captions and augmentation.
        shuffle: a new order every epoch. drop_last: drop the last, incomplete batch.
        max_unreadable: training stops when more than this fraction of the manifest cannot be read, by any process in
            any session of the run.
        threads: threads of each worker (of the main process with 0) that decode and augment the clips of a batch.
        cache_megabytes: MiB (2^20 bytes) of the cache for decoded videos in temporary files, for small sets of small
            clips; all workers share it, so that a set that fits is decoded once.
        short_side: pixels of the shorter side after decoding; None keeps the video's size.
        single_frame: clips of one random frame (T = 1), the middle one in evaluation, instead of the sampler's.
        prefetch: number of batches that each worker prepares in advance.
        pin_memory: page-locked batches, for copying to a GPU.
        alike: size of groups of clips with equal attributes `alike_by`, hard negatives of a contrastive loss. A
            fraction `alike_share` of the batches from epoch `alike_from` on (0 is the first) consists of such groups;
            every clip still occurs once per epoch. 0 or 1: no groups.
        alike_by: names of attributes of the rows; "group" is a row's group, for clips of one source video.
    """

    batch_size: int
    workers: int = 0
    threads: int = 1
    repeated_augmentation: int = 1
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = True
    max_unreadable: float = 0.01
    cache_megabytes: float = 0.0
    short_side: int | None = None
    single_frame: bool = False
    prefetch: int = 2
    pin_memory: bool = False
    alike: int = 0
    alike_by: tuple[str, ...] = ()
    alike_share: float = 0.5
    alike_from: int = 0

    # Inside a recipe (a pydantic model) an unknown key is an error.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        faults = [
            f"data.loader.{name} is {value}, {lowest} to {highest} are the limits"
            for name, (lowest, highest) in _LIMITS.items()
            if (value := getattr(self, name)) is not None and not lowest <= value <= highest
        ]
        if not 0 <= self.max_unreadable <= 1:
            faults.append(f"data.loader.max_unreadable is {self.max_unreadable}, must be a fraction from 0 to 1")
        if not 0 < self.alike_share <= 1:
            faults.append(f"data.loader.alike_share is {self.alike_share}, must be above 0 and at most 1")
        fits = self.alike < 2 or (self.alike <= self.batch_size and self.shuffle)
        if (self.alike > 1) != bool(self.alike_by) or not fits:
            found = f"data.loader.alike is {self.alike}, data.loader.alike_by is {', '.join(self.alike_by) or 'empty'}"
            expected = f"at most data.loader.batch_size {self.batch_size}, and with data.loader.shuffle"
            faults.append(f"{found}: both or none, {expected}")
        if faults:
            raise ValueError("; ".join(faults))


def check_batches(batches: int, settings: LoaderSettings, count: int, what: str) -> None:
    """Raise RecipeError if an epoch of `count` samples has no batch: `batches`, of each process, is 0."""
    if batches < 1:
        world_size = distributed.world_size()
        found = f"{settings.batch_size} on {world_size} processes, but there are {count} {what}: fewer than one batch"
        expected = f"at most {count // world_size}" if count >= world_size else "more data or fewer processes"
        raise RecipeError("data.loader.batch_size", found, expected)


class ResumableLoader:
    """Deterministic, resumable loader of the training batches of one rank. `Loader` is the one for manifests.

    Args:
        samples: the dataset. plan: assignment of samples to batches. decoder: decodes the clips.
        sampler, transform, settings, tokenizer, caption, skipped: see `Loader`.

    Raises:
        RecipeError: the dataset is smaller than one batch.
    """

    def __init__(
        self,
        samples: SampleSource,
        plan: EpochPlan,
        decoder: ClipDecoder,
        sampler: FrameSampler,
        transform: ClipTransform,
        settings: LoaderSettings,
        *,
        tokenizer: TextEncoder | None,
        caption: CaptionRule,
        skipped: Path | None,
    ) -> None:
        self.settings, self.samples = settings, samples
        self.data_time = 0.0
        self._plan = plan
        check_batches(plan.batches, settings, len(samples), f"clips of {samples.source}")
        self._skipped = SkippedClips(samples, settings.max_unreadable, skipped)
        self.unreadable = self._skipped.unreadable
        self._batches = TrainingBatches(
            decoder,
            plan,
            Sparse(frames=1, num_clips=1) if settings.single_frame else sampler,
            transform,
            repeated_augmentation=settings.repeated_augmentation,
            tokenizer=tokenizer,
            caption=caption,
            threads=settings.threads,
        )
        self._data_loader = PersistentDataLoader(self._batches, settings)

    def __len__(self) -> int:
        """Number of batches per epoch, the same on every rank."""
        return self._plan.batches

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches `start`, `start + 1`, ... of epoch `k`, equal to those of the uninterrupted epoch.
        With a transform `on_device` each is a `DecodedBatch`, of which `to` makes the batch.

        Raises:
            VideoError: more than the fraction `max_unreadable` of the clips, or too many in succession, cannot be read.
            RunError: a worker died.
        """
        if k < 0 or not 0 <= start <= len(self):
            raise ValueError(f"epoch {k}, batch {start} of {len(self)}")
        for result in self._data_loader.read(
            [(k, batch_index) for batch_index in range(start, len(self))], self._add_data_time
        ):
            self._skipped.count(result.unreadable, k)
            yield cast(Batch, result.batch)

    def _add_data_time(self, seconds: float) -> None:
        self.data_time += seconds


class Loader(ResumableLoader):
    """Load the training batches of one rank from a manifest.

    An unreadable clip is replaced by a readable one of the same epoch (`EpochPlan.fallback_positions`), so that batch
    sizes stay equal on all ranks; it is counted and written to `skipped` once.

    Args:
        manifest: the samples. sampler: frame sampler. transform: augmentation. settings: see there.
        tokenizer: for captions; with None, `Batch.text_ids` is None. caption: which caption of a sample.
        skipped: JSONL file of the unreadable clips, shared by all processes and sessions of a run so that they are
            counted together; None counts those of this process.

    Attributes:
        data_time: seconds spent waiting for batches. unreadable: unreadable clips so far, by id.

    Raises:
        RecipeError: the dataset is smaller than one batch. ManifestError: a sample lacks a required caption.
    """

    def __init__(
        self,
        manifest: Manifest,
        sampler: FrameSampler,
        transform: ClipTransform,
        settings: LoaderSettings,
        *,
        tokenizer: TextEncoder | None = None,
        caption: CaptionRule = "random",
        skipped: Path | None = None,
    ) -> None:
        if tokenizer is not None and caption != "none":
            manifest.require("captions")
        self.manifest = manifest
        super().__init__(
            manifest, epoch_plan(len(manifest), settings, alike_groups(manifest, settings.alike_by)),
            clip_decoder(manifest, settings), sampler, transform, settings,
            tokenizer=tokenizer, caption=caption, skipped=skipped,
        )  # fmt: skip


class EvalLoader:
    """Yield (Batch, view indices (B,) int64) of all views of all samples, each exactly once over all ranks.

    Each block of `batch_size` successive samples is batched separately and assigned to the ranks in turn: which clips
    share a batch, and with it the rounding of the model's outputs, does not depend on the number of processes. View v
    of a sample with c crops is crop v % c of temporal clip v // c. The views of a sample are consecutive and may
    continue in the next batch.

    Args:
        manifest, sampler, settings: as for `Loader` (shuffle, repeats and fallbacks are not used).
        transform: evaluation transform. tokenizer: encodes the first caption of each sample.

    Attributes:
        unreadable: (id, path, reason) of the samples without views, complete after the iteration.
        data_time: seconds spent waiting for batches.
        samples: number of samples of this rank.
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
            manifest.require("captions")
        self.unreadable: list[tuple[str, str, str]] = []
        self.data_time = 0.0
        self._batch_size = settings.batch_size
        rank, world_size = distributed.rank(), distributed.world_size()
        self._indices = [index for index in range(len(manifest)) if index // self._batch_size % world_size == rank]
        self.samples = len(self._indices)
        frame_sampler: FrameSampler = Sparse(frames=1, num_clips=1) if settings.single_frame else sampler
        views = EvaluationViews(clip_decoder(manifest, settings), frame_sampler, transform, tokenizer=tokenizer)
        self._data_loader = PersistentDataLoader(views, settings)

    def __iter__(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        self.unreadable = []
        pending: list[tuple[Batch, tuple[int, ...]]] = []
        for count, result in enumerate(self._data_loader.read(self._indices, self._add_data_time), 1):
            self.unreadable += [(clip.id, clip.path, clip.reason) for clip in result.unreadable]
            if isinstance(result.batch, Batch):
                pending.append((result.batch, result.views))
            while sum(len(batch) for batch, _ in pending) >= self._batch_size:
                full_batch, pending = _take_batch(pending, self._batch_size)
                yield full_batch
            if pending and (count % self._batch_size == 0 or count == self.samples):
                yield _take_batch(pending, self._batch_size)[0]
                pending = []

    def _add_data_time(self, seconds: float) -> None:
        self.data_time += seconds


class _KeySampler:
    """Sampler of the DataLoader that yields the keys set before each iteration."""

    def __init__(self) -> None:
        self.keys: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class PersistentDataLoader:
    """Read given keys of a dataset in order through a torch DataLoader with persistent workers."""

    def __init__(self, dataset: Dataset[WorkerResult], settings: LoaderSettings) -> None:
        self._keys = _KeySampler()
        self._reported_spans: set[str] = set()
        self._loader: DataLoader[WorkerResult] = DataLoader(
            dataset,
            batch_size=None,
            sampler=self._keys,
            num_workers=settings.workers,
            collate_fn=_identity,
            persistent_workers=settings.workers > 0,
            prefetch_factor=settings.prefetch if settings.workers else None,
            pin_memory=settings.pin_memory and torch.cuda.is_available(),  # nothing to pin for elsewhere
            # A separate, unused generator: otherwise every epoch would advance the global one and break exact resume.
            generator=torch.Generator(),
        )

    def read(self, keys: Sequence[object], on_wait: Callable[[float], None]) -> Iterator[WorkerResult]:
        """Yield the result for each key; `on_wait` is called with the seconds spent waiting.

        Raises:
            InternVideoError: as in the worker. RunError: a worker died.
        """
        self._keys.keys = list(keys)
        truncated_spans: set[str] = set()
        try:
            began = time.perf_counter()
            with warnings.catch_warnings():
                # Python 3.12 warns of fork beside threads; the workers use none of the parent's.
                warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
                stream = iter(self._loader)
            while (result := next(stream, None)) is not None:
                on_wait(time.perf_counter() - began)
                if result.error is not None:
                    raise result.error
                truncated_spans |= set(result.truncated_spans) - self._reported_spans
                yield result
                began = time.perf_counter()
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            hint = (
                "it may have run out of memory or of shared memory: lower data.loader.workers or data.loader.prefetch"
            )
            raise RunError("data.loader.workers", f"a worker died ({error})", "", hint) from error
        finally:
            self._reported_spans |= truncated_spans
            if truncated_spans:
                message = "%d spans end behind their video and are read up to its end, such as %s"
                LOGGER.warning(message, len(truncated_spans), shown(min(truncated_spans)))


def _identity(loaded: Any) -> Any:
    return loaded


def epoch_plan(samples: int, settings: LoaderSettings, groups: Indices | None = None) -> EpochPlan:
    """Return the assignment of `samples` samples to the batches of this process; `groups` (samples,) are alike."""
    rank, world_size = distributed.rank(), distributed.world_size()
    alike = None
    if groups is not None:
        alike = AlikeBatches(groups, settings.alike, settings.alike_share, settings.alike_from)
    return EpochPlan(
        samples, settings.batch_size, settings.seed, settings.shuffle, settings.drop_last, rank, world_size, alike=alike
    )


def clip_decoder(manifest: Manifest, settings: LoaderSettings) -> ManifestClipDecoder:
    """Return the clip decoder of a loader, with the cache for decoded videos that its workers share."""
    cache_bytes = int(settings.cache_megabytes * 2**20)
    return ManifestClipDecoder(manifest, short_side=settings.short_side, cache_bytes=cache_bytes)


def _take_batch(
    pending: list[tuple[Batch, tuple[int, ...]]], size: int
) -> tuple[tuple[Batch, NDArray[np.int64]], list[tuple[Batch, tuple[int, ...]]]]:
    """Take the first `size` views of `pending` as one batch; return it and the remaining views."""
    batches = [batch for batch, _ in pending]
    views = [view for _, indices in pending for view in indices]
    concatenated = Batch(
        torch.cat([batch.video for batch in batches]),
        tuple(name for batch in batches for name in batch.ids),
        _concatenate([batch.labels for batch in batches]),
        _concatenate([batch.text_ids for batch in batches]),
        _concatenate([batch.frame_mask for batch in batches]),
    )
    first, rest = _slice(concatenated, 0, size), _slice(concatenated, size, len(concatenated))
    return (first, np.array(views[:size], dtype=np.int64)), ([(rest, tuple(views[size:]))] if len(rest) else [])


def _concatenate(tensors: list[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None


def _slice(batch: Batch, start: int, end: int) -> Batch:
    return replace(batch.each(lambda tensor: tensor[start:end]), ids=batch.ids[start:end])
