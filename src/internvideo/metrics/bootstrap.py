"""Percentile bootstrap over samples, seeded and vectorized.

A statistic is a function of weights: counts (b, n) of each sample in a resample -> (b,) or (b, k) values, so that a
block of resamples is one matrix product instead of a Python loop. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Statistic = Callable[[Floats], Floats]

DRAWS, LEVEL, SEED = 1000, 0.95, 0
_BLOCK_ENTRIES = 4_000_000  # weights held at a time: 32 MB


def resample_counts(num_units: int, num_resamples: int, rng: np.random.Generator) -> Ints:
    """Count how often each unit is drawn with replacement, (num_resamples, num_units); each row sums to `num_units`."""
    indices = rng.integers(num_units, size=(num_resamples, num_units))
    indices += np.arange(num_resamples)[:, None] * num_units
    return np.bincount(indices.ravel(), minlength=num_resamples * num_units).reshape(num_resamples, num_units)


def interval(
    statistic: Statistic,
    num_samples: int,
    *,
    groups: NDArray[Any] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = SEED,
) -> Floats:
    """Compute the percentile bootstrap interval of a statistic.

    Args:
        statistic: weights (b, n) float64 -> (b,) or (b, k). num_samples: n.
        groups: (n,) any labels; a group is resampled as a whole (captions of one video are not independent).
        draws: number of resamples. seed: of the resamples; two statistics of the same samples use the same ones.
        level: coverage, 0.95 gives the 2.5 % and 97.5 % points.

    Returns:
        (2,) or (2, k): low and high.

    Raises:
        ValueError: no samples, no draws, or a level outside 0..1.
    """
    if num_samples < 1 or draws < 1 or not 0 < level < 1:
        raise ValueError(f"{num_samples} samples, {draws} draws, level {level}: need at least 1, 1 and 0 < level < 1")
    member = None if groups is None else np.unique(groups, return_inverse=True)[1]
    num_units = num_samples if member is None else int(member.max()) + 1
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ENTRIES // max(num_samples, num_units))
    values = []
    for start in range(0, draws, block):
        counts = resample_counts(num_units, min(block, draws - start), rng)
        weights = counts if member is None else counts[:, member]
        values.append(statistic(weights.astype(np.float64)))
    tail = (1 - level) / 2
    result: Floats = np.quantile(np.concatenate(values), [tail, 1 - tail], axis=0)
    return result


def mean(values: NDArray[Any]) -> Statistic:
    """Return the mean of values (n,) or of each column of (n, k) as a statistic."""
    columns = np.asarray(values, dtype=np.float64)

    def statistic(weights: Floats) -> Floats:
        total = weights.sum(axis=1)
        result: Floats = weights @ columns / (total if columns.ndim == 1 else total[:, None])
        return result

    return statistic


def median(values: NDArray[Any]) -> Statistic:
    """Return the median of values (n,) as a statistic: the mean of the two middle ones for an even count."""
    order = np.argsort(values, kind="stable")
    ordered = np.asarray(values, dtype=np.float64)[order]

    def statistic(weights: Floats) -> Floats:
        below = np.cumsum(weights[:, order], axis=1)
        total = below[:, -1:]
        # The element at 0-based position p is the first whose cumulated count exceeds p.
        low = (below > (total - 1) // 2).argmax(axis=1)
        high = (below > total // 2).argmax(axis=1)
        result: Floats = (ordered[low] + ordered[high]) / 2
        return result

    return statistic


def class_mean(hits: NDArray[Any], labels: Ints) -> Statistic:
    """Return the mean over the classes present of their fraction of hits as a statistic; hits and labels are (n,)."""
    member = np.unique(labels, return_inverse=True)[1]
    one_hot = np.zeros((len(labels), int(member.max()) + 1))
    one_hot[np.arange(len(labels)), member] = 1
    class_hits = one_hot * np.asarray(hits, dtype=np.float64)[:, None]

    def statistic(weights: Floats) -> Floats:
        total = weights @ one_hot
        fraction = np.divide(weights @ class_hits, total, out=np.zeros_like(total), where=total > 0)
        result: Floats = fraction.sum(axis=1) / (total > 0).sum(axis=1)
        return result

    return statistic
