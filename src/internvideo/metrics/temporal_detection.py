"""Metrics of temporal localization: tIoU, mAP, recall@kx, grounded spans (eval_detection.py, arXiv 2211.09529).

NumPy only. Times are seconds. Legend: N predictions, G ground truths, I tIoU thresholds, C classes, K values of k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

SAME_SEGMENT = 1e-3
"""Ground truths of a class are duplicates if starts and ends differ by at most so many seconds."""


class Columns:
    """Struct of arrays: base of frozen dataclasses of equally long columns (N,), or (N, k) with k in `WIDTHS`.

    Raises ValueError for columns of different lengths, NaN or infinity.
    """

    WIDTHS: ClassVar[dict[str, int]] = {}

    def __post_init__(self) -> None:
        columns = vars(self)
        if any(column.shape != (len(self), *self._width(name)) for name, column in columns.items()):
            shapes = ", ".join(f"{name} {column.shape}" for name, column in columns.items())
            raise ValueError(f"columns do not fit: {shapes}")
        for name, column in columns.items():
            if not np.isfinite(column).all():
                raise ValueError(f"{name} holds NaN or infinity")

    def _width(self, name: str) -> tuple[int, ...]:
        return (self.WIDTHS[name],) if name in self.WIDTHS else ()

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def take(self, rows: Ints | Bools) -> Self:
        """Select rows."""
        return type(self)(**{name: column[rows] for name, column in vars(self).items()})


@dataclass(frozen=True)
class Detections(Columns):
    """Segments as columns, in file order.

    Attributes:
        video: (N,) index of the video.
        label: (N,) class index.
        span: (N, 2) start and end, seconds.
        score: (N,) higher is more confident; zeros for ground truth.
    """

    WIDTHS = {"span": 2}  # noqa: RUF012  # a ClassVar of the base
    video: Ints
    label: Ints
    span: Floats
    score: Floats

    def best_first(self) -> Detections:
        """Sort by score, equal scores in file order (the published sort is unstable on ties)."""
        return self.take(np.argsort(-self.score, kind="stable"))


def detections(rows: Sequence[tuple[int, int, float, float, float]]) -> Detections:
    """Build the columns from rows (video, label, start, end, score)."""
    table = np.asarray(rows, dtype=np.float64).reshape(-1, 5)
    return Detections(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2:4], table[:, 4])


def tiou(spans: Floats, truths: Floats, *, union: Literal["true", "hull"] = "true") -> Floats:
    """Compute the temporal intersection over union of every pair, (N, 2), (G, 2) -> (N, G).

    Args:
        spans, truths: starts and ends.
        union: "hull" divides by the length of the convex hull of both segments, as the Ego4D evaluators do.
    """
    left = np.maximum(spans[:, None, 0], truths[None, :, 0])
    right = np.minimum(spans[:, None, 1], truths[None, :, 1])
    intersection = np.maximum(right - left, 0.0)
    if union == "hull":
        first = np.minimum(spans[:, None, 0], truths[None, :, 0])
        union_length = np.maximum(spans[:, None, 1], truths[None, :, 1]) - first
    else:
        union_length = (spans[:, 1] - spans[:, 0])[:, None] + (truths[:, 1] - truths[:, 0])[None] - intersection
    result: Floats = np.divide(intersection, union_length, out=np.zeros_like(intersection), where=union_length > 0)
    return result


def deduplicate(truth: Detections, tolerance: float = SAME_SEGMENT) -> Detections:
    """Remove duplicate ground truth: keep the first of equal segments (video, class, both ends within `tolerance`)."""
    unique_rows: list[int] = []
    for rows in groups(truth.video, truth.label):
        group_rows: list[int] = []
        for row in rows:
            earlier = truth.span[group_rows]
            if not len(earlier) or not (np.abs(earlier - truth.span[row]) <= tolerance).all(axis=1).any():
                group_rows.append(int(row))
        unique_rows += group_rows
    return truth.take(np.asarray(sorted(unique_rows), dtype=np.int64))


def groups(*columns: Ints) -> Iterator[Ints]:
    """Yield the row indices of each group of rows with equal values in all columns, in file order within a group."""
    if not len(columns[0]):
        return
    order = np.lexsort(columns)  # stable
    changes = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    yield from np.split(order, np.flatnonzero(changes) + 1)


def _match_greedily(overlap: Floats, thresholds: Floats) -> Bools:
    """Match predictions to ground truths greedily; return (I, N) bool, whether each prediction is a hit.

    A prediction is matched to the ground truth of highest overlap among those not matched yet; of equal overlaps to the
    last in file order (activitynet/ActivityNet, Evaluation/eval_detection.py: `argsort()[::-1]`).

    Args:
        overlap: (N, G) tIoU of predictions, best first, and ground truths. thresholds: (I,).
    """
    hits = np.zeros((len(thresholds), len(overlap)), dtype=bool)
    unmatched = np.ones((len(thresholds), overlap.shape[1]), dtype=bool)
    rows_of_thresholds = np.arange(len(thresholds))
    for row in np.flatnonzero(overlap.max(axis=1) >= thresholds.min()):
        candidates = np.where(unmatched, overlap[row], -1.0)
        best = candidates.shape[1] - 1 - candidates[:, ::-1].argmax(axis=1)
        hits[:, row] = candidates[rows_of_thresholds, best] >= thresholds
        unmatched[rows_of_thresholds, best] &= ~hits[:, row]
    return hits


def interpolated_average_precision(hits: Bools, num_truths: int) -> Floats:
    """Compute the area under the precision envelope (all-point interpolation).

    Args:
        hits: (..., N) whether each prediction, best first, is a true positive.
        num_truths: number of ground truths, at least 1.

    Returns:
        (...) in 0..1.
    """
    true_positives = hits.cumsum(axis=-1)
    precision = true_positives / np.arange(1, hits.shape[-1] + 1)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    result: Floats = (envelope * hits).sum(axis=-1) / num_truths  # recall increases by 1 / num_truths at each hit
    return result


def average_precision(
    truth: Detections, predicted: Detections, thresholds: Sequence[float], *, match_official_evaluator: bool = False
) -> tuple[Floats, Ints]:
    """Compute the AP of every class that has ground truth.

    Args:
        truth: duplicates are removed; scores are not used. predicted: may have further classes and videos.
        thresholds: of tIoU; a hit has tIoU >= threshold.
        match_official_evaluator: reproduce a bug of the published evaluator, which renumbers the classes that have
            ground truth to 0..C-1: a predicted class index without ground truth keeps its index, and so is scored as
            whichever class was renumbered to that index.

    Returns:
        (I, C) in 0..1, and the C class indices. A class without predictions has 0.

    Raises:
        ValueError: no ground truth.
    """
    if not len(truth):
        raise ValueError("no ground truth: a mAP of nothing is undefined")
    per_class = list(_by_class(truth, predicted, thresholds, match_official_evaluator))
    result = np.zeros((len(thresholds), len(per_class)))
    for column, (class_truth, class_predictions, hits) in enumerate(per_class):
        if len(class_predictions):
            result[:, column] = interpolated_average_precision(hits, len(class_truth))
    return result, np.unique(truth.label)


def _by_class(
    truth: Detections, predicted: Detections, thresholds: Sequence[float], match_official_evaluator: bool = False
) -> Iterator[tuple[Detections, Detections, Bools]]:
    """Yield (truths, predictions best first, hits (I, N)) of each class of the ground truth."""
    truth, predicted = deduplicate(truth), predicted.best_first()
    tiou_thresholds = np.asarray(thresholds, dtype=np.float64)
    classes = np.unique(truth.label)
    for column, label in enumerate(classes):
        selected = predicted.label == label
        if match_official_evaluator and column not in classes:
            selected |= predicted.label == column
        class_truth, class_predictions = truth.take(truth.label == label), predicted.take(selected)
        hits = np.zeros((len(tiou_thresholds), len(class_predictions)), dtype=bool)
        spans = {int(class_truth.video[rows[0]]): class_truth.span[rows] for rows in groups(class_truth.video)}
        for rows in groups(class_predictions.video):
            truth_spans = spans.get(int(class_predictions.video[rows[0]]))
            if truth_spans is not None:
                hits[:, rows] = _match_greedily(tiou(class_predictions.span[rows], truth_spans), tiou_thresholds)
        yield class_truth, class_predictions, hits


def map_statistic(
    truth: Detections, predicted: Detections, thresholds: Sequence[float], num_videos: int
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the mAP of resampled videos as a statistic for `bootstrap.interval`; matching is done once.

    Args:
        truth, predicted, thresholds: as in `average_precision`. num_videos: V, above all indices of videos.

    Returns:
        function of weights (b, V), the count of each video in a resample -> (b, I + 1): mAP over the classes in the
        resample at each threshold, and their mean.
    """
    per_class = [
        (np.bincount(truths.video, minlength=num_videos).astype(np.float64), predictions.video, hits)
        for truths, predictions, hits in _by_class(truth, predicted, thresholds)
    ]

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.zeros((len(weights), len(thresholds)))
        num_present = np.zeros(len(weights))
        for truths, video, hits in per_class:
            truth_weight = weights @ truths
            num_present += truth_weight > 0
            if not len(video):
                continue
            prediction_weight = weights[:, video]
            cumulative_weight = np.maximum(prediction_weight.cumsum(axis=1), 1e-12)
            for level, hit in enumerate(hits):
                hit_weight = prediction_weight * hit
                precision = hit_weight.cumsum(axis=1) / cumulative_weight
                envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
                area = (envelope * hit_weight).sum(axis=1)
                total[:, level] += np.divide(area, truth_weight, out=np.zeros_like(area), where=truth_weight > 0)
        values = total / np.maximum(num_present, 1)[:, None]
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
    """Compute the recall of the top k x G predictions per class and video with G ground truths, (I, K).

    Args:
        truth, predicted, thresholds: as in `average_precision`.
        multiples: values of k.
        average: "classes": mean of the recalls of the classes; "instances": recall of all instances (Ego4D moments).
        strict: a hit has tIoU > threshold instead of >= (Ego4D). union: see `tiou`.
    """
    truth, predicted = deduplicate(truth), predicted.best_first()
    tiou_thresholds = np.asarray(thresholds, dtype=np.float64)[:, None]
    classes = np.unique(truth.label)
    num_hits = np.zeros((len(classes), len(tiou_thresholds), len(multiples)))
    predicted_spans = {
        (int(predicted.video[rows[0]]), int(predicted.label[rows[0]])): predicted.span[rows]
        for rows in groups(predicted.video, predicted.label)
    }
    for rows in groups(truth.video, truth.label):
        video, label = int(truth.video[rows[0]]), int(truth.label[rows[0]])
        spans = predicted_spans.get((video, label))
        if spans is None:
            continue
        overlap = tiou(spans, truth.span[rows], union=union)
        for column, k in enumerate(multiples):
            best = overlap[: k * len(rows)].max(axis=0)
            is_hit = best > tiou_thresholds if strict else best >= tiou_thresholds
            num_hits[np.searchsorted(classes, label), :, column] += is_hit.sum(axis=1)
    counts = np.asarray([(truth.label == label).sum() for label in classes])
    result: Floats
    if average == "instances":
        result = num_hits.sum(axis=0) / counts.sum()
    else:
        result = (num_hits / counts[:, None, None]).mean(axis=0)
    return result


def grounded_hits(
    truths: Floats, predicted: Sequence[Floats], thresholds: Sequence[float], ks: Sequence[int]
) -> tuple[Bools, list[Floats]]:
    """Return whether each query is answered, as the Ego4D NLQ evaluator counts: tIoU (hull union) > threshold.

    Args:
        truths: (Q, 2). predicted: (N, 2) spans of each query, best first. thresholds: of tIoU. ks: values of k.

    Returns:
        hits (Q, I, K), whose mean over the queries is recall@k, and the tIoU (N,) of the spans of each query.
    """
    hits = np.zeros((len(truths), len(thresholds), len(ks)), dtype=bool)
    overlaps: list[Floats] = []
    tiou_thresholds = np.asarray(thresholds, dtype=np.float64)
    for query, (truth, spans) in enumerate(zip(truths, predicted, strict=True)):
        overlap = tiou(np.asarray(spans, dtype=np.float64).reshape(-1, 2), truth[None], union="hull")[:, 0]
        overlaps.append(overlap)
        for column, k in enumerate(ks):
            hits[query, :, column] = overlap[:k].max() > tiou_thresholds
    return hits, overlaps
