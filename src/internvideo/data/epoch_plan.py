"""Assign the samples of an epoch to batches: shuffled, resumable at any batch, some with several samples per group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from internvideo.data.manifest import Manifest
from internvideo.errors import RecipeError

Indices = NDArray[np.int64]
MAX_FALLBACKS = 32  # samples that may replace an unreadable one before the run stops


def random_stream(
    purpose: int, seed: int, epoch: int, index: int = 0, attempt: int = 0, repeat: int = 0
) -> np.random.RandomState:
    """Return a generator seeded only by these keys, so that any batch can be reproduced independently."""
    key = np.random.SeedSequence([purpose, seed, epoch, index, attempt, repeat])
    return np.random.RandomState(np.random.MT19937(key))


ORDER, FRAMES, AUGMENT = range(3)  # purposes of random streams


@dataclass(frozen=True, eq=False)
class AlikeBatches:
    """Batches that are composed of runs: several samples of one group.

    Attributes:
        groups: (N,) group index of each sample.
        size: samples per run. share: fraction of the batches that are composed of runs. first_epoch: the first epoch
            with such batches.
    """

    groups: Indices
    size: int
    share: float
    first_epoch: int

    def arrange(self, order: Indices, batch_size: int, rng: np.random.RandomState) -> Indices:
        """Return a permutation of `order` (N,) in which a fraction `share` of the batches is composed of runs.

        Runs take the samples of a group in the order of `order`; samples that do not fill a run are in other batches.
        If there are too few runs, fewer batches are composed of them.
        """
        per_batch, num_batches = batch_size // self.size, len(order) // batch_size
        runs: list[Indices] = []
        by_group = order[np.argsort(self.groups[order], kind="stable")]
        ends = np.flatnonzero(np.diff(self.groups[by_group])) + 1
        for members in np.split(by_group, ends):
            runs += [members[start : start + self.size] for start in range(0, len(members) - self.size + 1, self.size)]
        num_alike = min(round(self.share * num_batches), len(runs) // per_batch)
        selected = [runs[index] for index in rng.permutation(len(runs))[: num_alike * per_batch]]
        used = np.isin(order, np.concatenate(selected)) if selected else np.zeros(len(order), dtype=bool)
        num_filler = batch_size - per_batch * self.size  # samples of such a batch that are not in runs
        remaining = order[~used]
        alike_batches = set(rng.permutation(num_batches)[:num_alike].tolist())
        chunks: list[Indices] = []
        position = 0
        for batch_index in range(num_batches):
            num_single = num_filler if batch_index in alike_batches else batch_size
            if batch_index in alike_batches:
                chunks += selected[:per_batch]
                selected = selected[per_batch:]
            chunks.append(remaining[position : position + num_single])
            position += num_single
        return np.concatenate([*chunks, remaining[position:]])


def alike_groups(manifest: Manifest, alike_by: Sequence[str]) -> Indices | None:
    """Group rows by the values of attributes: return group indices (N,), None without attributes.

    Raises RecipeError: a row lacks one of the attributes.
    """
    if not alike_by:
        return None
    keys = []
    for row in manifest.rows:
        values = {**row.attributes, **({} if row.group is None else {"group": row.group})}
        absent = [name for name in alike_by if name not in values]
        if absent:
            found = f"row '{row.id}' has no '{absent[0]}'"
            raise RecipeError("data.loader.alike_by", found, ", ".join(sorted(values)) or "none")
        keys.append("\0".join(values[name] for name in alike_by))
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class EpochPlan:
    """Assign the samples of an epoch to the batches of this rank.

    A global batch has `batch_size * world_size` successive samples of the order of the epoch, divided among the ranks,
    so that all ranks together process the batch of a single process. All ranks have the same number of batches, of
    equal sizes; the remaining samples (with `drop_last`, an incomplete batch) differ in every epoch.
    """

    samples: int
    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    rank: int
    world_size: int
    alike: AlikeBatches | None = field(default=None, kw_only=True)

    @property
    def batches(self) -> int:
        """Number of batches per epoch, the same on every rank."""
        full_batches, rest = divmod(self.samples, self.batch_size * self.world_size)
        return full_batches + (not self.drop_last and rest >= self.world_size)

    def order(self, epoch: int) -> Sequence[int] | Indices:
        """Return the order of the epoch, (N,): a permutation that depends on seed and epoch."""
        if not self.shuffle:
            return np.arange(self.samples, dtype=np.int64)
        rng = random_stream(ORDER, self.seed, epoch)
        order = rng.permutation(self.samples).astype(np.int64)
        if self.alike is not None and epoch >= self.alike.first_epoch:
            return self.alike.arrange(order, self.batch_size * self.world_size, rng)
        return order

    def positions(self, batch: int) -> range:
        """Return the positions, in the order of the epoch, of the samples of batch `batch` of this rank."""
        first = batch * self.batch_size * self.world_size
        size = min(self.batch_size, (self.samples - first) // self.world_size)
        return range(first + self.rank * size, first + (self.rank + 1) * size)

    def fallback_positions(self, position: int) -> list[int]:
        """Return the positions of the samples that may replace an unreadable one: from the next global batch on."""
        first = position + self.batch_size * self.world_size
        candidates = [(first + step) % self.samples for step in range(min(self.samples, MAX_FALLBACKS + 1))]
        return [other for other in candidates if other != position][:MAX_FALLBACKS]
