"""Metrics of boxes in frames: AVA frame mAP, COCO box AP, Ego4D short-term anticipation (ava_eval.py).

NumPy only. Boxes are (x1, y1, x2, y2). Legend: N predictions, G ground truths, I IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from internvideo.metrics.temporal_detection import Columns, groups, interpolated_average_precision

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
COCO_AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Boxes(Columns):
    """Boxes as columns, in file order.

    Attributes:
        frame: (N,) index of the image. label: (N,) class index. box: (N, 4). score: (N,), zeros for ground truth.
    """

    WIDTHS = {"box": 4}  # noqa: RUF012  # a ClassVar of the base
    frame: Ints
    label: Ints
    box: Floats
    score: Floats


def box_iou(boxes: Floats, truths: Floats, *, pixels: bool = False) -> Floats:
    """Compute the intersection over union of every pair, (N, 4), (G, 4) -> (N, G).

    Args:
        boxes, truths: corners.
        pixels: x2 and y2 are the last pixels of a box, so its width is x2 - x1 + 1 (Ego4D anticipation).
    """
    extra = 1.0 if pixels else 0.0
    low = np.maximum(boxes[:, None, :2], truths[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truths[None, :, 2:])
    intersection = np.maximum(high - low + extra, 0.0).prod(axis=2)
    areas = [(corners[:, 2:] - corners[:, :2] + extra).prod(axis=1) for corners in (boxes, truths)]
    union = areas[0][:, None] + areas[1][None] - intersection
    result: Floats = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return result


def frame_average_precision(truth: Boxes, predicted: Boxes, threshold: float = 0.5) -> dict[int, float]:
    """Compute the AVA frame AP of every class that has ground truth (PASCAL matching); mAP is the mean of the values.

    A prediction is compared only with the ground truth of highest IoU: a second hit on it is a false positive.
    Predicted boxes of zero width or height are dropped.

    Args:
        truth, predicted: one row per box and class. threshold: a hit has IoU >= threshold.

    Returns:
        class index -> AP in 0..1; 0 for a class without predictions.

    Raises:
        ValueError: no ground truth.
    """
    if not len(truth):
        raise ValueError("no ground truth: a mAP of nothing is undefined")
    return {
        int(truths.label[0]): float(interpolated_average_precision(hits, len(truths))) if len(predictions) else 0.0
        for truths, predictions, hits in _hits_by_class(truth, predicted, threshold)
    }


def _hits_by_class(truth: Boxes, predicted: Boxes, threshold: float) -> Iterator[tuple[Boxes, Boxes, Bools]]:
    """Yield (truths, predictions best first, hits (N,)) of each class of the ground truth."""
    has_area: Bools = np.all(predicted.box[:, 2:] > predicted.box[:, :2], axis=1)
    predicted = predicted.take(has_area)
    for label in np.unique(truth.label):
        truths, predictions = truth.take(truth.label == label), predicted.take(predicted.label == label)
        predictions = predictions.take(np.argsort(-predictions.score, kind="stable"))
        boxes = {int(truths.frame[rows[0]]): truths.box[rows] for rows in groups(truths.frame)}
        hits = np.zeros(len(predictions), dtype=bool)
        for rows in groups(predictions.frame):
            true_boxes = boxes.get(int(predictions.frame[rows[0]]))
            if true_boxes is None:
                continue
            overlap = box_iou(predictions.box[rows], true_boxes)
            best = overlap.argmax(axis=1)
            is_match = overlap[np.arange(len(rows)), best] >= threshold
            first = np.unique(best[is_match], return_index=True)[1]  # further matches of a truth are false positives
            hits[rows[is_match][first]] = True
        yield truths, predictions, hits


def frame_map_statistic(
    truth: Boxes, predicted: Boxes, video: Ints, threshold: float = 0.5
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the mAP of resampled videos as a statistic for `bootstrap.interval`; matching is done once.

    Args:
        truth, predicted, threshold: as in `frame_average_precision`. video: (F,) index of the video of each frame.

    Returns:
        function of weights (b, V), the count of each video in a resample -> (b,): mAP of the classes in the resample.
    """
    classes = _hits_by_class(truth, predicted, threshold)
    return _map_statistic([(video[truths.frame], video[boxes.frame], hits) for truths, boxes, hits in classes])


def _map_statistic(
    per_class: Sequence[tuple[Ints, Ints, Bools]],
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the mAP of resampled videos as a statistic.

    `per_class`: videos of the truths, videos of the predictions (best first) and hits, of each class.
    """

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        total, num_present = np.zeros(len(weights)), np.zeros(len(weights))
        for truth_video, predicted_video, hits in per_class:
            truth_weight = weights @ np.bincount(truth_video, minlength=weights.shape[1])
            num_present += truth_weight > 0
            if not hits.any():
                continue
            for row, weight in enumerate(weights[:, predicted_video]):  # one resample at a time limits the memory
                hit_weight = weight * hits
                precision = hit_weight.cumsum() / np.maximum(weight.cumsum(), 1e-12)
                envelope = np.maximum.accumulate(precision[::-1])[::-1]
                total[row] += (envelope * hit_weight).sum() / max(truth_weight[row], 1e-12)
        result: NDArray[np.float64] = total / np.maximum(num_present, 1)
        return result

    return statistic


@dataclass(frozen=True)
class StaObjects:
    """Objects of one image that will be touched: box (N, 4) in pixels; noun, verb and seconds to contact (N,)."""

    box: Floats
    noun: Ints
    verb: Ints
    seconds: Floats


def anticipation_average_precision(
    frames: Sequence[tuple[StaObjects, StaObjects, Floats]],
    *,
    verb: bool,
    seconds: bool,
    top: int | None = 5,
    iou: float = 0.5,
    tolerance: float = 0.25,
    skip_empty: bool = True,
) -> dict[int, float | None]:
    """Compute the AP of every noun of Ego4D short-term anticipation.

    Args:
        frames: ground truth, predictions and their scores (N,) of every image.
        verb, seconds: whether verb and time to contact must be correct as well as box and noun.
        top: of each image the (top - 1) x G best-scored false positives are ignored; None ignores none.
        iou: a hit has IoU > iou. tolerance: and an error of the time to contact <= tolerance, seconds.
        skip_empty: ignore the ground truth of images without predictions, as the published evaluator does.

    Returns:
        noun -> AP in 0..1, or None for a predicted noun without ground truth.
    """
    rule = {"verb": verb, "seconds": seconds, "iou": iou, "tolerance": tolerance}
    result: dict[int, float | None] = {}
    for noun, (true, _, hits) in _by_noun(frames, top, skip_empty, rule).items():
        total = len(true)
        result[noun] = (float(interpolated_average_precision(hits, total)) if len(hits) else 0.0) if total else None
    return result


def anticipation_statistic(
    frames: Sequence[tuple[StaObjects, StaObjects, Floats]], group: Ints, *, verb: bool, seconds: bool
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the top-5 mAP over the nouns with ground truth, of resampled groups of images, as a statistic.

    Args:
        frames, verb, seconds: as in `anticipation_average_precision`. group: (F,) index of the group of each image.

    Returns:
        function of weights (b, V), the count of each group in a resample -> (b,).
    """
    nouns = _by_noun(frames, 5, True, {"verb": verb, "seconds": seconds, "iou": 0.5, "tolerance": 0.25})
    per_noun = [(group[truths], group[images], hits) for truths, images, hits in nouns.values() if len(truths)]
    return _map_statistic(per_noun)


def _by_noun(
    frames: Sequence[tuple[StaObjects, StaObjects, Floats]], top: int | None, skip_empty: bool, rule: Mapping[str, Any]
) -> dict[int, tuple[Ints, Ints, Bools]]:
    """Return {noun: (images of the truths, images of the counted predictions best first, hits)}.

    `rule`: the keyword arguments of `_match_anticipated`.
    """
    empty: Ints = np.empty(0, dtype=np.int64)
    truths, rows = [(empty, empty)], [(empty.astype(float), empty.astype(bool), empty, empty)]
    for image_index, (truth, predicted, scores) in enumerate(frames):
        if not len(scores) and skip_empty:
            continue
        truths.append((truth.noun, np.full(len(truth.noun), image_index)))
        order = np.argsort(-scores, kind="stable")
        hits = _match_anticipated(truth, predicted, order, **rule)
        num_ignored = (top - 1) * len(truth.noun) if top else 0
        is_counted = hits | ((~hits).cumsum() > num_ignored)
        row = order[is_counted]
        rows.append((scores[row], hits[is_counted], predicted.noun[row], np.full(len(row), image_index)))
    true, true_image = (np.concatenate(column) for column in zip(*truths, strict=True))
    score, hit, noun, image = (np.concatenate(column) for column in zip(*rows, strict=True))
    best = np.argsort(-score, kind="stable")
    noun, image, hit = noun[best], image[best], hit[best]
    return {
        int(label): (true_image[true == label], image[noun == label], hit[noun == label])
        for label in np.union1d(true, noun)
    }


def _match_anticipated(
    truth: StaObjects, predicted: StaObjects, order: Ints, *, verb: bool, seconds: bool, iou: float, tolerance: float
) -> Bools:
    """Match predictions, in this order, to the unmatched fitting ground truth of highest IoU; return the hits (N,)."""
    overlap = box_iou(predicted.box, truth.box, pixels=True)
    fits = (overlap > iou) & (predicted.noun[:, None] == truth.noun[None])
    if verb:
        fits &= predicted.verb[:, None] == truth.verb[None]
    if seconds:
        fits &= np.abs(predicted.seconds[:, None] - truth.seconds[None]) <= tolerance
    unmatched, hits = np.ones(len(truth.noun), dtype=bool), np.zeros(len(order), dtype=bool)
    for position in np.flatnonzero(fits.any(axis=1)[order]):
        row = order[position]
        candidates = fits[row] & unmatched
        if candidates.any():
            unmatched[np.where(candidates, overlap[row], -1.0).argmax()] = False
            hits[position] = True
    return hits


def coco_average_precision(
    truth: Boxes,
    predicted: Boxes,
    *,
    truth_areas: Floats | None = None,
    area: Literal["all", "small", "medium", "large"] = "all",
    max_detections: int = 100,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
) -> tuple[Floats, Floats]:
    """Compute the COCO metrics of one class: (AP, maximum recall) for every IoU threshold, each (I,) in 0..1.

    Args:
        truth, predicted: labels are not read; crowd boxes are not supported.
        truth_areas: (G,) areas of the annotated shapes; None for box areas.
        area: only ground truth of this size counts; a prediction of another size counts only if it is a hit.
        max_detections: number of predictions per image that are used, best first.
        thresholds: a hit has IoU >= threshold.

    Returns:
        NaN if no ground truth has this size.
    """
    sizes = (truth.box[:, 2:] - truth.box[:, :2]).prod(axis=1) if truth_areas is None else truth_areas
    low, high = COCO_AREAS[area]
    counts = (sizes >= low) & (sizes <= high)
    if not counts.any():
        undefined = np.full(len(thresholds), np.nan)
        return undefined, undefined
    hit, miss, _ = _coco_rows(truth, predicted, counts, (low, high), max_detections, thresholds)
    if not hit.shape[1]:
        return np.zeros(len(thresholds)), np.zeros(len(thresholds))
    return _coco_curve(hit, miss, int(counts.sum()))


def coco_statistic(truth: Boxes, predicted: Boxes, group: Ints) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return AP, AP50 and AP75 of resampled groups of images as a statistic for `bootstrap.interval`.

    Args:
        truth, predicted: as in `coco_average_precision`. group: (F,) index of the group of each image.

    Returns:
        function of weights (b, V), the count of each group in a resample -> (b, 3); 0 without ground truth.
    """
    counts = np.ones(len(truth), dtype=bool)
    hit, miss, frame = _coco_rows(truth, predicted, counts, COCO_AREAS["all"], 100, COCO_THRESHOLDS)
    predicted_group, truth_group = group[frame], group[truth.frame]

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        values = np.zeros((len(weights), 3))
        for row, weight in enumerate(weights):
            total = weight[truth_group].sum()
            if hit.shape[1] and total:
                precision = _coco_curve(hit * weight[predicted_group], miss * weight[predicted_group], total)[0]
                values[row] = precision.mean(), precision[0], precision[5]
        return values

    return statistic


def _coco_rows(
    truth: Boxes,
    predicted: Boxes,
    counts: Bools,
    limits: tuple[float, float],
    max_detections: int,
    thresholds: Sequence[float],
) -> tuple[Bools, Bools, Ints]:
    """Return hits and misses (I, N) of all predictions, best first, at every threshold, and their images (N,)."""
    iou_thresholds, (low, high) = np.asarray(thresholds)[:, None], limits
    truth_rows = {int(truth.frame[rows[0]]): rows for rows in groups(truth.frame)}
    scores, hits, ignored, frames = [], [], [], []
    for rows in groups(predicted.frame):
        rows = rows[np.argsort(-predicted.score[rows], kind="stable")][:max_detections]
        boxes = predicted.box[rows]
        candidates = truth_rows.get(int(predicted.frame[rows[0]]), np.zeros(0, dtype=np.int64))
        candidates = candidates[np.argsort(~counts[candidates], kind="stable")]  # truth that counts is matched first
        matched = _coco_matches(box_iou(boxes, truth.box[candidates]), counts[candidates], iou_thresholds[:, 0])
        is_matched = matched >= 0
        to_ignored = is_matched & ~counts[candidates][matched] if len(candidates) else np.zeros_like(is_matched)
        box_area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        scores.append(predicted.score[rows])
        frames.append(predicted.frame[rows])
        hits.append(is_matched & ~to_ignored)
        ignored.append(to_ignored | (~is_matched & ((box_area < low) | (box_area > high))))
    if not scores:
        empty = np.zeros((len(iou_thresholds), 0), dtype=bool)
        return empty, empty, np.zeros(0, dtype=np.int64)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit, is_ignored = (np.concatenate(columns, axis=1)[:, order] for columns in (hits, ignored))
    return hit, ~hit & ~is_ignored, np.concatenate(frames)[order]


def _coco_matches(overlap: Floats, counts: Bools, thresholds: Floats) -> Ints:
    """Return the index of the ground truth matched to each prediction, -1 for none, (I, N); counted truths first."""
    matched = np.full((len(thresholds), len(overlap)), -1, dtype=np.int64)
    if not overlap.shape[1]:
        return matched
    for level, threshold in enumerate(thresholds):
        unmatched = np.ones(overlap.shape[1], dtype=bool)
        for row, values in enumerate(overlap):
            for subset in (counts, ~counts):
                candidates = unmatched & subset & (values >= min(threshold, 1 - 1e-10))
                if candidates.any():
                    masked = np.where(candidates, values, -1.0)
                    best = len(masked) - 1 - int(masked[::-1].argmax())  # the last of equal ones, as in pycocotools
                    matched[level, row] = best
                    unmatched[best] = False
                    break
    return matched


def _coco_curve(hits: NDArray[Any], misses: NDArray[Any], total: float) -> tuple[Floats, Floats]:
    true_positives, false_positives = hits.cumsum(axis=1), misses.cumsum(axis=1)
    recall = true_positives / total
    precision = true_positives / np.maximum(true_positives + false_positives, np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    area = np.zeros(len(hits))
    for level in range(len(hits)):
        position = np.searchsorted(recall[level], _RECALLS, side="left")
        reached = position < recall.shape[1]
        area[level] = envelope[level, position[reached]].sum() / len(_RECALLS)
    return area, recall[:, -1]
