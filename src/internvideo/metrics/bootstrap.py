"""Percentile bootstrap over samples, seeded and vectorised.

A statistic here is a function of weights: (b, n) counts of how often each sample was drawn -> (b,) or (b, k) values.
So a whole block of draws is one matrix product instead of a Python loop. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Statistic = Callable[[Floats], Floats]

_BLOCK_ENTRIES = 4_000_000  # weights held at a time: 32 MB


def drawn_counts(groups: int, draws: int, rng: np.random.Generator) -> Ints:
    """How often each of `groups` units is drawn with replacement, (draws, groups); each row sums to `groups`."""
    picks = rng.integers(groups, size=(draws, groups))
    picks += np.arange(draws)[:, None] * groups
    return np.bincount(picks.ravel(), minlength=draws * groups).reshape(draws, groups)


def interval(
    statistic: Statistic,
    samples: int,
    *,
    groups: NDArray[Any] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Floats:
    """Percentile interval of a statistic.

    Args:
        statistic: weights (b, n) float64 -> (b,) or (b, k).
        samples: n.
        groups: (n,) any labels; samples of one group are drawn together (captions of one video are not independent).
        draws: number of resamples.
        level: coverage, 0.95 gives the 2.5 % and 97.5 % points.
        seed: the same seed gives the same draws, so that two statistics of the same samples are comparable.

    Returns:
        (2,) or (2, k): low and high.

    Raises:
        ValueError: no samples, no draws, or a level outside 0..1.
    """
    if samples < 1 or draws < 1 or not 0 < level < 1:
        raise ValueError(f"{samples} samples, {draws} draws, level {level}: need at least 1, 1 and 0 < level < 1")
    member = None if groups is None else np.unique(groups, return_inverse=True)[1]
    units = samples if member is None else int(member.max()) + 1
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ENTRIES // max(samples, units))
    values = []
    for start in range(0, draws, block):
        counts = drawn_counts(units, min(block, draws - start), rng)
        weights = counts if member is None else counts[:, member]
        values.append(statistic(weights.astype(np.float64)))
    tail = (1 - level) / 2
    result: Floats = np.quantile(np.concatenate(values), [tail, 1 - tail], axis=0)
    return result


def mean(values: NDArray[Any]) -> Statistic:
    """Mean of values (n,) or of each column of (n, k)."""
    numbers = np.asarray(values, dtype=np.float64)

    def statistic(weights: Floats) -> Floats:
        total = weights.sum(axis=1)
        result: Floats = weights @ numbers / (total if numbers.ndim == 1 else total[:, None])
        return result

    return statistic


def median(values: NDArray[Any]) -> Statistic:
    """Median of values (n,): the mean of the two middle ones where the count is even."""
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
    """Mean over the classes drawn of their fraction of hits; hits and labels are (n,)."""
    member = np.unique(labels, return_inverse=True)[1]
    one_hot = np.zeros((len(labels), int(member.max()) + 1))
    one_hot[np.arange(len(labels)), member] = 1
    found = one_hot * np.asarray(hits, dtype=np.float64)[:, None]

    def statistic(weights: Floats) -> Floats:
        total = weights @ one_hot
        fraction = np.divide(weights @ found, total, out=np.zeros_like(total), where=total > 0)
        result: Floats = fraction.sum(axis=1) / (total > 0).sum(axis=1)
        return result

    return statistic
