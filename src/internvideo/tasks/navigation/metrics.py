"""Compute navigation metrics: distance to the goal, success, path length, fidelity to the reference path.

Source: Visual-Language-Navigation.

NumPy only. Shapes: n positions of a walk, m positions of a reference path, each (x, y) or (x, y, z) in meters; `up` is
the index of the height.
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

SUCCESS = 3.0
"""Success radius around the goal, m."""

SPACING = 0.25
"""Distance between points of a densified reference path, m."""


@dataclass(frozen=True)
class Walked:
    """The walk of one episode.

    Attributes:
        path: (n, 2) or (n, 3) all positions, starting with the start.
        decisions: (k,) geodesic distance to the goal at each decision, from start to end.
        stopped: whether the agent chose to stop.
        steps: (n,) geodesic distance at every position, None if measured only at decisions.
    """

    path: Floats
    decisions: Floats
    stopped: bool
    steps: Floats | None = None


def navigation_error(walked: Walked) -> float:
    """Return NE: geodesic distance from the end to the goal, m."""
    return float(walked.decisions[-1])


def success(walked: Walked, radius: float = SUCCESS) -> float:
    """Return SR: 1 if the agent stopped within the radius (inclusive)."""
    return float(walked.stopped and navigation_error(walked) <= radius)


def oracle_success(walked: Walked, radius: float = SUCCESS) -> float:
    """Return OSR: 1 if any decision was made within the radius (inclusive)."""
    return float((walked.decisions <= radius).any())


def oracle_success_of_steps(walked: Walked, radius: float = SUCCESS) -> float:
    """Return VLN-CE's OSR: 1 if any step, not only a decision, ended strictly inside the radius.

    Raises:
        ValueError: the steps were not measured.
    """
    if walked.steps is None:
        raise ValueError("the walk has no distances of its steps")
    return float((walked.steps < radius).any())


def path_length(walked: Walked) -> float:
    """Compute PL, also called TL: length of the walk including height, m."""
    return float(np.linalg.norm(np.diff(walked.path, axis=0), axis=1).sum())


def success_by_path_length(walked: Walked, radius: float = SUCCESS) -> float:
    """Compute SPL: success * d0 / max(d0, PL) with the geodesic distance d0 at the start."""
    reached = success(walked, radius)
    if not reached:
        return 0.0
    shortest = float(walked.decisions[0])
    longest = max(shortest, path_length(walked))
    return reached * shortest / longest if longest > 0 else reached


def densify(path: Floats, spacing: float = SPACING, up: int | None = 1) -> Floats:
    """Densify a reference path to one point every `spacing` meters.

    A leg gets floor(length / spacing) points from its start, so its last gap is the longest; the length is measured on
    the floor plan. A shorter leg gives no point (as released), except the end of the path.

    Args:
        path: (m, 2) or (m, 3).
        spacing: meters.
        up: column of the height; None for 2-D.
    """
    flat = path if up is None else np.delete(path, up, axis=1)
    lengths = np.linalg.norm(np.diff(flat, axis=0), axis=1)
    points = [
        start + (end - start) * (spacing / max(length, spacing)) * np.arange(math.floor(length / spacing))[:, None]
        for start, end, length in zip(path, path[1:], lengths, strict=False)
    ]
    return np.concatenate([*points, path[-1:]])


def ndtw(walked: Floats, reference: Floats, *, fast: bool = True, radius: float = SUCCESS) -> float:
    """Compute nDTW: exp(-DTW / (m * radius)).

    Args:
        walked: (n, D). reference: (m, D), densified or not.
        fast: approximate DTW with radius 1 (released evaluation) instead of exact DTW.
        radius: mean deviation at which nDTW is 1/e, m.
    """
    cost = fast_dtw(walked, reference) if fast else exact_dtw(walked, reference)
    return math.exp(-cost / (len(reference) * radius))


def exact_dtw(a: Floats, b: Floats) -> float:
    """Compute dynamic time warping with Euclidean costs: the cost of the cheapest monotone alignment."""
    return _align(a, b, None)[0]


def fast_dtw(a: Floats, b: Floats, radius: int = 1) -> float:
    """Approximate DTW: align at half resolution, then only within `radius` of that alignment.

    Never below the exact cost (Salvador and Chan, 2007).
    """
    return _fast(a, b, radius)[0]


def _fast(a: Floats, b: Floats, radius: int) -> tuple[float, list[Cell]]:
    if min(len(a), len(b)) < radius + 2:
        return _align(a, b, None)
    # Pairs of points are averaged; an odd last point is dropped.
    half_a, half_b = (path[: len(path) // 2 * 2].reshape(len(path) // 2, 2, -1).mean(axis=1) for path in (a, b))
    _, coarse = _fast(half_a, half_b, radius)
    return _align(a, b, _widened(coarse, len(a), len(b), radius))


def _widened(coarse: Sequence[Cell], rows: int, columns: int, radius: int) -> list[tuple[int, int]]:
    """Return the allowed columns (first, end) of each row of the full table.

    Each aligned pair of the coarse level allows (2 radius + 1)^2 coarse cells around it, each 2 x 2 cells here.
    """
    low, high = np.full(rows, columns), np.zeros(rows, dtype=np.int64)
    for i, j in coarse:
        first, end = max(0, 2 * (i - radius)), min(rows, 2 * (i + radius) + 2)
        low[first:end] = np.minimum(low[first:end], max(0, 2 * (j - radius)))
        high[first:end] = np.maximum(high[first:end], min(columns, 2 * (j + radius) + 2))
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _align(a: Floats, b: Floats, window: Sequence[tuple[int, int]] | None) -> tuple[float, list[Cell]]:
    """Return cost and cells of the cheapest alignment; ties prefer steps along a, then along b, then both."""
    spans = window if window is not None else [(0, len(b))] * len(a)
    costs: Any = np.linalg.norm(a[:, None] - b[None], axis=2).tolist()
    best: dict[Cell, tuple[float, Cell]] = {(-1, -1): (0.0, (-1, -1))}
    far = (math.inf, (-1, -1))
    for i, (first, end) in enumerate(spans):
        for j in range(first, end):
            before = min(((i - 1, j), (i, j - 1), (i - 1, j - 1)), key=lambda cell: best.get(cell, far)[0])
            best[i, j] = (best.get(before, far)[0] + costs[i][j], before)
    cell = (len(a) - 1, len(b) - 1)
    total = best[cell][0]
    cells: list[Cell] = []
    while cell != (-1, -1):
        cells.append(cell)
        cell = best[cell][1]
    return total, cells[::-1]
