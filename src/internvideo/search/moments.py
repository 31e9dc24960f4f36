"""Turn scores of overlapping windows of several lengths into moments: spans with a start, an end and a score.

All windows of a video are laid on one time axis. Each scale gives a curve: at every time the score of its windows
there, interpolated between their centers. The mean of the curves peaks where the query fits at most scales; a moment is
the part around a peak where the mean curve stays in the upper part of what it rises to above the rest of the video.
Moments that overlap a better one are suppressed (non-maximum suppression in time).

Shapes: n windows of one video, K steps of the time axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class MomentSettings:
    """How moments are found.

    Attributes:
        step_seconds: of the time axis.
        edge: a moment ends where the mean curve falls below this fraction of the way from its median to the peak.
        max_overlap: of two moments with a larger temporal IoU the one with the smaller score is dropped.
        shortest: of a moment, in lengths of the shortest window. max_peaks: of a video; only the highest are followed.
    """

    step_seconds: float = 0.25
    edge: float = 0.7
    max_overlap: float = 0.3
    shortest: float = 1.25
    max_peaks: int = 64


@dataclass(frozen=True)
class ScoredSpan:
    """A part of a video: seconds, the score of its best window, and that of the mean curve at its peak."""

    start: float
    end: float
    score: float
    peak: float


def mean_curve(windows: Floats, scores: Floats, step: float) -> tuple[Floats, Floats]:
    """Lay the scores of the windows of a video on one time axis.

    Args:
        windows: (n, 3 or more): start, end, scale. scores: (n,). step: seconds.

    Returns:
        (K,) centers of the steps in seconds, and (K,) the mean of the scales' curves, weighted by 1 / scale: short
        windows tell where something happens, long ones whether.
    """
    begin, end = float(windows[:, 0].min()), float(windows[:, 1].max())
    times = begin + step * (np.arange(max(1, int(np.ceil((end - begin) / step - 1e-6)))) + 0.5)
    curves, weights = [], []
    for scale in np.unique(windows[:, 2]):
        own = windows[:, 2] == scale
        centers = windows[own, :2].mean(axis=1)
        order = np.argsort(centers)
        curves.append(np.interp(times, centers[order], scores[own][order]))
        weights.append(1 / scale)
    return times, np.average(curves, axis=0, weights=weights)


def find_moments(
    windows: Floats, scores: Floats, settings: MomentSettings | None = None, *, limit: int | None = None
) -> list[ScoredSpan]:
    """Find the moments of a video, best first.

    Args:
        windows: (n, 3 or more): start, end, scale in seconds. scores: (n,), higher is better.
        limit: at most so many.
    """
    settings = settings or MomentSettings()
    if len(windows) == 0:
        return []
    times, curve = mean_curve(windows, scores, settings.step_seconds)
    base = float(np.median(curve))
    half = settings.step_seconds / 2
    first, last = float(windows[:, 0].min()), float(windows[:, 1].max())
    centers, shortest = windows[:, :2].mean(axis=1), settings.shortest * float(windows[:, 2].min())
    made = []
    for peak in _peaks(curve)[: settings.max_peaks]:
        border = base + settings.edge * (curve[peak] - base)
        below = np.flatnonzero(curve < border)
        left, right = below[below < peak], below[below > peak]
        start = times[left[-1]] + half if len(left) else first
        end = times[right[0]] - half if len(right) else last
        if (lacking := shortest - (end - start)) > 0:
            start, end = start - lacking / 2, end + lacking / 2
        start, end = max(start, first), min(end, last)
        inside = _about(windows, start, end)
        best = scores[inside].max() if inside.any() else scores[np.abs(centers - times[peak]).argmin()]
        made.append(ScoredSpan(float(start), float(end), float(best), float(curve[peak])))
    return suppress(made, settings.max_overlap)[:limit]


def _about(windows: Floats, start: float, end: float) -> NDArray[np.bool_]:
    """Return which windows (n,) are about a span: their center lies in it, or a quarter of their union is common."""
    centers = windows[:, :2].mean(axis=1)
    common = np.minimum(windows[:, 1], end) - np.maximum(windows[:, 0], start)
    union = np.maximum(windows[:, 1], end) - np.minimum(windows[:, 0], start)
    return np.asarray(((centers >= start) & (centers <= end)) | (common >= 0.25 * union), bool)


def _peaks(curve: Floats) -> list[int]:
    """Return the local maxima of a curve, one per plateau, the highest first."""
    rising = np.concatenate([[True], np.diff(curve) > 0])
    peaks, start = [], 0
    for index in range(1, len(curve) + 1):
        if index < len(curve) and curve[index] == curve[start]:
            continue
        if rising[start] and (index == len(curve) or curve[index] < curve[start]):
            peaks.append((start + index - 1) // 2)
        start = index
    return sorted(peaks, key=lambda peak: -curve[peak])


def suppress(spans: list[ScoredSpan], max_overlap: float) -> list[ScoredSpan]:
    """Keep the best spans of which no two have a larger temporal IoU; ordered by peak."""
    kept: list[ScoredSpan] = []
    for span in sorted(spans, key=lambda span: -span.peak):
        if all(_tiou(span, other) <= max_overlap for other in kept):
            kept.append(span)
    return kept


def _tiou(one: ScoredSpan, other: ScoredSpan) -> float:
    common = min(one.end, other.end) - max(one.start, other.start)
    return max(common, 0.0) / max(max(one.end, other.end) - min(one.start, other.start), 1e-9)
