"""Percentile bootstrap over samples, seeded and vectorized.

A statistic is a function of weights (b, n), the count of each sample in b resamples, that returns (b,) or (b, k):
a block of resamples is one matrix product instead of a Python loop. NumPy only.
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
_BLOCK_ENTRIES = 4_000_000  # weights computed at a time: 32 MB


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
        groups: (n,) any labels; the samples of a group are resampled together (captions of one video are dependent).
        draws: number of resamples. seed: of the resamples; with equal seeds two statistics use equal resamples.
        level: confidence level; 0.95 gives the 2.5 % and 97.5 % points.

    Returns:
        (2,) or (2, k): low and high.

    Raises:
        ValueError: no samples, no draws, or a level outside 0..1.
    """
    if num_samples < 1 or draws < 1 or not 0 < level < 1:
        raise ValueError(f"{num_samples} samples, {draws} draws, level {level}: need at least 1, 1 and 0 < level < 1")
    group_index = None if groups is None else np.unique(groups, return_inverse=True)[1]
    num_units = num_samples if group_index is None else int(group_index.max()) + 1
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ENTRIES // max(num_samples, num_units))
    values = []
    for start in range(0, draws, block):
        counts = resample_counts(num_units, min(block, draws - start), rng)
        weights = counts if group_index is None else counts[:, group_index]
        values.append(statistic(weights.astype(np.float64)))
    tail = (1 - level) / 2
    result: Floats = np.quantile(np.concatenate(values), [tail, 1 - tail], axis=0)
    return result


def mean(values: NDArray[Any]) -> Statistic:
    """Return the statistic that is the mean of values (n,), or of each column of (n, k)."""
    columns = np.asarray(values, dtype=np.float64)

    def statistic(weights: Floats) -> Floats:
        total = weights.sum(axis=1)
        result: Floats = weights @ columns / (total if columns.ndim == 1 else total[:, None])
        return result

    return statistic


def median(values: NDArray[Any]) -> Statistic:
    """Return the statistic that is the median of values (n,); of an even number the mean of the two middle ones."""
    order = np.argsort(values, kind="stable")
    ordered = np.asarray(values, dtype=np.float64)[order]

    def statistic(weights: Floats) -> Floats:
        cumulative = np.cumsum(weights[:, order], axis=1)
        total = cumulative[:, -1:]
        # The element at 0-based position p is the first whose cumulative count exceeds p.
        low = (cumulative > (total - 1) // 2).argmax(axis=1)
        high = (cumulative > total // 2).argmax(axis=1)
        result: Floats = (ordered[low] + ordered[high]) / 2
        return result

    return statistic


def class_mean(hits: NDArray[Any], labels: Ints) -> Statistic:
    """Return the statistic that is the mean accuracy of the classes in a resample; hits and labels are (n,)."""
    group_index = np.unique(labels, return_inverse=True)[1]
    one_hot = np.zeros((len(labels), int(group_index.max()) + 1))
    one_hot[np.arange(len(labels)), group_index] = 1
    class_hits = one_hot * np.asarray(hits, dtype=np.float64)[:, None]

    def statistic(weights: Floats) -> Floats:
        total = weights @ one_hot
        fraction = np.divide(weights @ class_hits, total, out=np.zeros_like(total), where=total > 0)
        result: Floats = fraction.sum(axis=1) / (total > 0).sum(axis=1)
        return result

    return statistic
