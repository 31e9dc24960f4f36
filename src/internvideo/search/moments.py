"""Turn scores of overlapping windows of several lengths into moments: spans with a start, an end and a score.

All windows of a video are laid on one time axis. Each scale gives a curve: at every time the score of its windows
there, interpolated between their centers. The mean of the curves peaks where the query fits at most scales; a moment is
the interval around a peak in which the mean curve exceeds median + relative_height (peak - median).
Moments that overlap a better one are suppressed (non-maximum suppression in time).

Shapes: n windows of one video, K steps of the time axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class MomentSettings:
    """How moments are found.

    Attributes:
        step_seconds: of the time axis.
        relative_height: a moment ends where the mean curve falls below this fraction of the way from its median to the
            peak.
        max_overlap: of two moments with a larger temporal IoU the one with the smaller score is dropped.
        min_windows: least length of a moment, in lengths of the shortest window.
        max_peaks: of a video; only the highest are followed.
    """

    step_seconds: float = 0.25
    relative_height: float = 0.7
    max_overlap: float = 0.3
    min_windows: float = 1.25
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
        windows: (n, 3 or more): start, end, seconds of a whole window of the scale. scores: (n,). step: seconds.

    Returns:
        (K,) centers of the steps in seconds, and (K,) the mean of the scales' curves, weighted by 1 / scale: short
        windows tell where something happens, long ones whether.
    """
    begin, end = float(windows[:, 0].min()), float(windows[:, 1].max())
    times = begin + step * (np.arange(max(1, int(np.ceil((end - begin) / step - 1e-6)))) + 0.5)
    curves, weights = [], []
    centers = _centers(windows)
    for scale in sorted(set(windows[:, 2].tolist())):
        own = np.flatnonzero(windows[:, 2] == scale)
        own = own[np.argsort(centers[own])]
        curves.append(np.interp(times, centers[own], scores[own]))
        weights.append(1 / scale)
    return times, np.array(weights) @ np.array(curves) / sum(weights)


def find_moments(
    windows: Floats, scores: Floats, settings: MomentSettings | None = None, *, limit: int | None = None
) -> list[ScoredSpan]:
    """Find the moments of a video, best first.

    Args:
        windows: (n, 3 or more): start, end, seconds of a whole window of the scale. scores: (n,), higher is better.
        limit: at most so many.
    """
    settings = settings or MomentSettings()
    if len(windows) <= 1:  # the whole video
        return [ScoredSpan(*windows[0, :2].tolist(), *[float(scores[0])] * 2)] if len(windows) else []
    times, curve = mean_curve(windows, scores, settings.step_seconds)
    base = float(np.median(curve))
    half = settings.step_seconds / 2
    first, last = float(windows[:, 0].min()), float(windows[:, 1].max())
    centers, least = _centers(windows), settings.min_windows * float(windows[:, 2].min())
    kept: list[ScoredSpan] = []
    for peak in _peaks(curve)[: settings.max_peaks]:
        if len(kept) == limit:
            break
        border = base + settings.relative_height * (curve[peak] - base)
        below = np.flatnonzero(curve < border)
        left, right = below[: np.searchsorted(below, peak)], below[np.searchsorted(below, peak, "right") :]
        start = times[left[-1]] + half if len(left) else first
        end = times[right[0]] - half if len(right) else last
        if (lacking := least - (end - start)) > 0:
            start, end = start - lacking / 2, end + lacking / 2
        span = ScoredSpan(float(max(start, first)), float(min(end, last)), 0.0, float(curve[peak]))
        if any(_tiou(span, other) > settings.max_overlap for other in kept):
            continue
        inside = _belongs_to(windows, centers, span)
        best = scores[inside].max() if inside.any() else scores[np.abs(centers - times[peak]).argmin()]
        kept.append(replace(span, score=float(best)))
    return kept


def _centers(windows: Floats) -> Floats:
    return (windows[:, 0] + windows[:, 1]) / 2


def _belongs_to(windows: Floats, centers: Floats, span: ScoredSpan) -> NDArray[np.bool_]:
    """Return which windows (n,) belong to a span: their center lies in it, or a quarter of their union is common."""
    common = np.minimum(windows[:, 1], span.end) - np.maximum(windows[:, 0], span.start)
    union = np.maximum(windows[:, 1], span.end) - np.minimum(windows[:, 0], span.start)
    return np.asarray(((centers >= span.start) & (centers <= span.end)) | (common >= 0.25 * union), bool)


def _peaks(curve: Floats) -> list[int]:
    """Return the local maxima of a curve, one per plateau, the highest first."""
    starts = np.flatnonzero(np.concatenate([[True], curve[1:] != curve[:-1]]))
    rising = np.diff(curve[starts]) > 0
    highest = np.concatenate([[True], rising]) & np.concatenate([~rising, [True]])
    middles = (starts + np.concatenate([starts[1:], [len(curve)]]) - 1) // 2
    peaks = middles[highest]
    ordered: list[int] = peaks[np.argsort(-curve[peaks], kind="stable")].tolist()
    return ordered


def _tiou(one: ScoredSpan, other: ScoredSpan) -> float:
    common = min(one.end, other.end) - max(one.start, other.start)
    return max(common, 0.0) / max(max(one.end, other.end) - min(one.start, other.start), 1e-9)
