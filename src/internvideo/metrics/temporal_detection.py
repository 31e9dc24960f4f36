"""Figures of temporal localisation: tIoU, mAP, recall at k x, grounded spans (eval_detection.py, arXiv 2211.09529).

NumPy only. Times are seconds. Legend: N predictions, G ground truths, I tIoU thresholds, C classes, K choices of k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

SAME_SEGMENT = 1e-3
"""Two ground truths of a class whose ends differ by no more than this (seconds) are one."""


@dataclass(frozen=True)
class Detections:
    """Segments in columns, in file order.

    Attributes:
        video: (N,) index of the video.
        label: (N,) class index.
        span: (N, 2) start and end, seconds.
        score: (N,) higher is surer; zeros for ground truth.

    Raises:
        ValueError: columns of different lengths, or values that are not finite.
    """

    video: Ints
    label: Ints
    span: Floats
    score: Floats

    def __post_init__(self) -> None:
        n = len(self.video)
        if self.label.shape != (n,) or self.span.shape != (n, 2) or self.score.shape != (n,):
            raise ValueError(
                f"columns do not fit: video {self.video.shape}, label {self.label.shape}, "
                f"span {self.span.shape}, score {self.score.shape}"
            )
        if not (np.isfinite(self.span).all() and np.isfinite(self.score).all()):
            raise ValueError("spans or scores hold NaN or infinity")

    def __len__(self) -> int:
        return len(self.video)

    def take(self, rows: Ints | Bools) -> Detections:
        """The same columns for some rows."""
        return Detections(self.video[rows], self.label[rows], self.span[rows], self.score[rows])

    def best_first(self) -> Detections:
        """Sorted by score, equal scores in file order: the published sort is unstable on ties."""
        return self.take(np.argsort(-self.score, kind="stable"))


def detections(rows: Sequence[tuple[int, int, float, float, float]]) -> Detections:
    """Columns from rows (video, label, start, end, score)."""
    table = np.asarray(rows, dtype=np.float64).reshape(-1, 5)
    return Detections(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2:4], table[:, 4])


def tiou(spans: Floats, truths: Floats, *, union: Literal["true", "hull"] = "true") -> Floats:
    """Temporal intersection over union of every pair, (N, 2), (G, 2) -> (N, G).

    Args:
        spans, truths: starts and ends.
        union: "hull" divides by the distance between the outermost ends, as the Ego4D evaluators do.
    """
    left = np.maximum(spans[:, None, 0], truths[None, :, 0])
    right = np.minimum(spans[:, None, 1], truths[None, :, 1])
    inside = np.maximum(right - left, 0.0)
    if union == "hull":
        whole = np.maximum(spans[:, None, 1], truths[None, :, 1]) - np.minimum(spans[:, None, 0], truths[None, :, 0])
    else:
        whole = (spans[:, 1] - spans[:, 0])[:, None] + (truths[:, 1] - truths[:, 0])[None] - inside
    result: Floats = np.divide(inside, whole, out=np.zeros_like(inside), where=whole > 0)
    return result


def distinct(truth: Detections, tolerance: float = SAME_SEGMENT) -> Detections:
    """Ground truth without repeats: of equal segments (video, class, both ends within `tolerance`) the first stays."""
    kept: list[int] = []
    for rows in _groups(truth.video, truth.label):
        chosen: list[int] = []
        for row in rows:
            known = truth.span[chosen]
            if not len(known) or not (np.abs(known - truth.span[row]) <= tolerance).all(axis=1).any():
                chosen.append(int(row))
        kept += chosen
    return truth.take(np.asarray(sorted(kept), dtype=np.int64))


def _groups(*columns: Ints) -> Iterator[Ints]:
    """Row indices of every group of equal values, in file order within a group."""
    if not len(columns[0]):
        return
    order = np.lexsort(columns)  # stable
    changes = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    yield from np.split(order, np.flatnonzero(changes) + 1)


def _hits(overlap: Floats, thresholds: Floats) -> Bools:
    """Which predictions (N, best first) find a ground truth (G), for every threshold: (I, N).

    A prediction takes the unmatched ground truth of highest overlap, so it may fall through to the second best; of
    equal overlaps the last in file order (activitynet/ActivityNet, Evaluation/eval_detection.py: `argsort()[::-1]`).
    """
    found = np.zeros((len(thresholds), len(overlap)), dtype=bool)
    free = np.ones((len(thresholds), overlap.shape[1]), dtype=bool)
    every = np.arange(len(thresholds))
    for row in np.flatnonzero(overlap.max(axis=1) >= thresholds.min()):
        open_to = np.where(free, overlap[row], -1.0)
        best = open_to.shape[1] - 1 - open_to[:, ::-1].argmax(axis=1)
        found[:, row] = open_to[every, best] >= thresholds
        free[every, best] &= ~found[:, row]
    return found


def interpolated_average_precision(hits: Bools, truths: int) -> Floats:
    """Area under the precision envelope, all points.

    Args:
        hits: (..., N) whether each prediction, best first, is a true positive.
        truths: number of ground truths, at least 1.

    Returns:
        (...) in 0..1.
    """
    true = hits.cumsum(axis=-1)
    precision = true / np.arange(1, hits.shape[-1] + 1)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    result: Floats = (envelope * hits).sum(axis=-1) / truths  # recall grows by 1 / truths at every hit, else stays
    return result


def average_precision(
    truth: Detections, predicted: Detections, thresholds: Sequence[float], *, released: bool = False
) -> tuple[Floats, Ints]:
    """AP of every class that has ground truth.

    Args:
        truth: repeats are dropped; scores are not read. predicted: other classes and videos may occur.
        thresholds: tIoU, ">=".
        released: the published evaluator numbers the classes of the ground truth anew, and a predicted class that has
            none keeps its number: where that is another's new number, it counts as the other's.

    Returns:
        (I, C) in 0..1, and the C class indices. A class without predictions has 0.

    Raises:
        ValueError: no ground truth.
    """
    if not len(truth):
        raise ValueError("no ground truth: a mAP of nothing is undefined")
    parts = list(_by_class(truth, predicted, thresholds, released))
    result = np.zeros((len(thresholds), len(parts)))
    for column, (own, found, hits) in enumerate(parts):
        if len(found):
            result[:, column] = interpolated_average_precision(hits, len(own))
    return result, np.unique(truth.label)


def _by_class(
    truth: Detections, predicted: Detections, thresholds: Sequence[float], released: bool = False
) -> Iterator[tuple[Detections, Detections, Bools]]:
    """For every class of the ground truth: that, its predictions best first, and which of these are right (I, N)."""
    truth, predicted = distinct(truth), predicted.best_first()
    levels = np.asarray(thresholds, dtype=np.float64)
    classes = np.unique(truth.label)
    for column, label in enumerate(classes):
        named = predicted.label == label
        if released and column not in classes:
            named |= predicted.label == column
        own, found = truth.take(truth.label == label), predicted.take(named)
        hits = np.zeros((len(levels), len(found)), dtype=bool)
        spans = {int(own.video[rows[0]]): own.span[rows] for rows in _groups(own.video)}
        for rows in _groups(found.video):
            known = spans.get(int(found.video[rows[0]]))
            if known is not None:
                hits[:, rows] = _hits(tiou(found.span[rows], known), levels)
        yield own, found, hits


def map_statistic(
    truth: Detections, predicted: Detections, thresholds: Sequence[float], videos: int
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """mAP of videos drawn with replacement, for `bootstrap.interval`; matching, inside a video, is done once.

    Args:
        truth, predicted, thresholds: as in `average_precision`. videos: V; all indices are below it.

    Returns:
        weights (b, V), how often each video counts -> (b, I + 1): mAP of the classes drawn at every tIoU, and its mean.
    """
    parts = [
        (np.bincount(own.video, minlength=videos).astype(np.float64), found.video, hits)
        for own, found, hits in _by_class(truth, predicted, thresholds)
    ]

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.zeros((len(weights), len(thresholds)))
        drawn = np.zeros(len(weights))
        for truths, video, hits in parts:
            there = weights @ truths
            drawn += there > 0
            if not len(video):
                continue
            each = weights[:, video]
            behind = np.maximum(each.cumsum(axis=1), 1e-12)
            for level, hit in enumerate(hits):
                right = each * hit
                precision = right.cumsum(axis=1) / behind
                envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
                area = (envelope * right).sum(axis=1)
                total[:, level] += np.divide(area, there, out=np.zeros_like(area), where=there > 0)
        values = total / np.maximum(drawn, 1)[:, None]
        return np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)

    return statistic


def recall_at_multiples(
    truth: Detections,
    predicted: Detections,
    thresholds: Sequence[float],
    multiples: Sequence[int] = (1, 5),
    *,
    average: Literal["classes", "instances"] = "classes",
    strict: bool = False,
    union: Literal["true", "hull"] = "true",
) -> Floats:
    """Recall when k times as many predictions as ground truths of a class and video count, (I, K).

    Args:
        truth, predicted, thresholds: as in `average_precision`.
        multiples: the k's.
        average: over classes of their recalls, or over all instances (Ego4D moments).
        strict: ">" in place of ">=" (Ego4D). union: see `tiou`.
    """
    truth, predicted = distinct(truth), predicted.best_first()
    levels = np.asarray(thresholds, dtype=np.float64)[:, None]
    classes = np.unique(truth.label)
    found = np.zeros((len(classes), len(levels), len(multiples)))
    known = {
        (int(predicted.video[rows[0]]), int(predicted.label[rows[0]])): predicted.span[rows]
        for rows in _groups(predicted.video, predicted.label)
    }
    for rows in _groups(truth.video, truth.label):
        video, label = int(truth.video[rows[0]]), int(truth.label[rows[0]])
        spans = known.get((video, label))
        if spans is None:
            continue
        overlap = tiou(spans, truth.span[rows], union=union)
        for column, k in enumerate(multiples):
            best = overlap[: k * len(rows)].max(axis=0)
            reached = best > levels if strict else best >= levels
            found[np.searchsorted(classes, label), :, column] += reached.sum(axis=1)
    counts = np.asarray([(truth.label == label).sum() for label in classes])
    result: Floats
    if average == "instances":
        result = found.sum(axis=0) / counts.sum()
    else:
        result = (found / counts[:, None, None]).mean(axis=0)
    return result


def grounded_hits(
    truths: Floats, predicted: Sequence[Floats], thresholds: Sequence[float], ks: Sequence[int]
) -> tuple[Bools, list[Floats]]:
    """Ego4D language queries, recall@k at tIoU is the mean of: (Q, I, K), and the tIoU (N,) of every query's spans."""
    hits = np.zeros((len(truths), len(thresholds), len(ks)), dtype=bool)
    overlaps: list[Floats] = []
    levels = np.asarray(thresholds, dtype=np.float64)
    for query, (truth, spans) in enumerate(zip(truths, predicted, strict=True)):
        overlap = tiou(np.asarray(spans, dtype=np.float64).reshape(-1, 2), truth[None], union="hull")[:, 0]
        overlaps.append(overlap)
        for column, k in enumerate(ks):
            hits[query, :, column] = overlap[:k].max() > levels
    return hits, overlaps
