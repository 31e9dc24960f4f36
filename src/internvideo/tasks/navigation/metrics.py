"""Compute navigation metrics: distance to the goal, success, path length, fidelity to the reference path.

Source: Visual-Language-Navigation.

NumPy only. Shapes: n positions of a walk, m positions of a reference path, each (x, y) or (x, y, z) in meters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Cell = tuple[int, int]

SUCCESS_RADIUS = 3.0
"""Success radius around the goal, m."""

SPACING = 0.25
"""Distance between points of a densified reference path, m."""


@dataclass(frozen=True)
class WalkResult:
    """The walk of one episode.

    Attributes:
        path: (n, 2) or (n, 3) all positions, from the start to the end.
        decision_distances: (k,) geodesic distance to the goal in m at each decision, the start first, the end last.
        stopped: whether the walk counts as stopped; `success` is 0 otherwise.
        distances: (n,) geodesic distance to the goal in m at every position, None if measured only at decisions.
    """

    path: Floats
    decision_distances: Floats
    stopped: bool
    distances: Floats | None = None


def navigation_error(walk: WalkResult) -> float:
    """Return NE: geodesic distance from the last position to the goal, m."""
    return float(walk.decision_distances[-1])


def success(walk: WalkResult, radius: float = SUCCESS_RADIUS) -> float:
    """Return SR: 1 if the agent stopped within the radius (inclusive)."""
    return float(walk.stopped and navigation_error(walk) <= radius)


def oracle_success(walk: WalkResult, radius: float = SUCCESS_RADIUS) -> float:
    """Return OSR: 1 if any decision was made within the radius (inclusive)."""
    return float((walk.decision_distances <= radius).any())


def oracle_success_any_position(walk: WalkResult, radius: float = SUCCESS_RADIUS) -> float:
    """Return VLN-CE's OSR: 1 if any position, not only those of decisions, is strictly inside the radius.

    Raises:
        ValueError: `distances` is None.
    """
    if walk.distances is None:
        raise ValueError("the walk has no distances between its decisions")
    return float((walk.distances < radius).any())


def path_length(walk: WalkResult) -> float:
    """Compute PL, also called TL: length of the walk including height, m."""
    return float(np.linalg.norm(np.diff(walk.path, axis=0), axis=1).sum())


def success_by_path_length(walk: WalkResult, radius: float = SUCCESS_RADIUS) -> float:
    """Compute SPL: success * d0 / max(d0, PL) with the geodesic distance d0 from the start to the goal."""
    if not success(walk, radius):
        return 0.0
    shortest = float(walk.decision_distances[0])
    longest = max(shortest, path_length(walk))
    return shortest / longest if longest > 0 else 1.0


def densify(path: Floats, spacing: float = SPACING, height_axis: int | None = 1) -> Floats:
    """Densify a reference path to one point every `spacing` meters.

    Each segment gets floor(length / spacing) points from its start, so the last gap of a segment is the longest. The
    length is measured without the height. A segment shorter than `spacing` gets no point, as released. The end of the
    path is always a point.

    Args:
        path: (m, 2) or (m, 3).
        spacing: meters.
        height_axis: column of the height; None for (m, 2).
    """
    flat = path if height_axis is None else np.delete(path, height_axis, axis=1)
    lengths = np.linalg.norm(np.diff(flat, axis=0), axis=1)
    points = [
        start + (end - start) * (spacing / max(length, spacing)) * np.arange(math.floor(length / spacing))[:, None]
        for start, end, length in zip(path, path[1:], lengths, strict=False)
    ]
    return np.concatenate([*points, path[-1:]])


def ndtw(path: Floats, reference: Floats, *, fast: bool = True, radius: float = SUCCESS_RADIUS) -> float:
    """Compute nDTW: exp(-DTW / (m * radius)).

    Args:
        walked: (n, D). reference: (m, D), densified or not.
        fast: approximate DTW with radius 1 (released evaluation) instead of exact DTW.
        radius: mean deviation at which nDTW is 1/e, m.
    """
    cost = fast_dtw(path, reference) if fast else exact_dtw(path, reference)
    return math.exp(-cost / (len(reference) * radius))


def exact_dtw(a: Floats, b: Floats) -> float:
    """Compute dynamic time warping with Euclidean costs: the cost of the cheapest monotone alignment."""
    return _align(a, b, None)[0]


def fast_dtw(a: Floats, b: Floats, radius: int = 1) -> float:
    """Approximate DTW: align at half resolution, then align within `radius` cells of that alignment (FastDTW).

    The result is never below the exact cost (Salvador and Chan, 2007).
    """
    return _fast(a, b, radius)[0]


def _fast(a: Floats, b: Floats, radius: int) -> tuple[float, list[Cell]]:
    if min(len(a), len(b)) < radius + 2:
        return _align(a, b, None)
    # Two successive points are averaged; the last point of an odd number is dropped.
    half_a, half_b = (path[: len(path) // 2 * 2].reshape(len(path) // 2, 2, -1).mean(axis=1) for path in (a, b))
    _, coarse = _fast(half_a, half_b, radius)
    return _align(a, b, _widen_window(coarse, len(a), len(b), radius))


def _widen_window(coarse: Sequence[Cell], rows: int, columns: int, radius: int) -> list[tuple[int, int]]:
    """Return the allowed columns (first, end) of each row at full resolution; `end` is exclusive.

    A coarse cell of the alignment allows the (2 radius + 1)^2 coarse cells around it; each has 2 x 2 full cells.
    """
    low, high = np.full(rows, columns), np.zeros(rows, dtype=np.int64)
    for i, j in coarse:
        first, end = max(0, 2 * (i - radius)), min(rows, 2 * (i + radius) + 2)
        low[first:end] = np.minimum(low[first:end], max(0, 2 * (j - radius)))
        high[first:end] = np.maximum(high[first:end], min(columns, 2 * (j + radius) + 2))
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _align(a: Floats, b: Floats, window: Sequence[tuple[int, int]] | None) -> tuple[float, list[Cell]]:
    """Return cost and cells of the cheapest alignment; ties prefer advancing a, then b, then both."""
    window = window or [(0, len(b))] * len(a)
    costs: Any = np.linalg.norm(a[:, None] - b[None], axis=2).tolist()
    best: dict[Cell, tuple[float, Cell]] = {(-1, -1): (0.0, (-1, -1))}
    unreachable = (math.inf, (-1, -1))
    for i, (first, end) in enumerate(window):
        for j in range(first, end):
            previous = min(((i - 1, j), (i, j - 1), (i - 1, j - 1)), key=lambda cell: best.get(cell, unreachable)[0])
            best[i, j] = (best.get(previous, unreachable)[0] + costs[i][j], previous)
    cell = (len(a) - 1, len(b) - 1)
    total = best[cell][0]
    cells: list[Cell] = []
    while cell != (-1, -1):
        cells.append(cell)
        cell = best[cell][1]
    return total, cells[::-1]
