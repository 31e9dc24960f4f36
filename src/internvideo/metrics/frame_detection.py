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

    Raises:
        ValueError: columns of different lengths, or values that are not finite.
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
        pixels: a box ends behind its last pixel: sides are x2 - x1 + 1 (Ego4D anticipation).
    """
    more = 1.0 if pixels else 0.0
    low = np.maximum(boxes[:, None, :2], truths[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truths[None, :, 2:])
    inside = np.maximum(high - low + more, 0.0).prod(axis=2)
    areas = [(corners[:, 2:] - corners[:, :2] + more).prod(axis=1) for corners in (boxes, truths)]
    whole = areas[0][:, None] + areas[1][None] - inside
    result: Floats = np.divide(inside, whole, out=np.zeros_like(inside), where=whole > 0)
    return result


def frame_average_precision(truth: Boxes, predicted: Boxes, threshold: float = 0.5) -> dict[int, float]:
    """Compute the AVA frame AP of every class that has ground truth, PASCAL matching; mAP is the mean of the values.

    A prediction is compared only with the ground truth of highest IoU: a second hit is a false positive.
    Predicted boxes without extent are dropped.

    Args:
        truth, predicted: one row per box and class. threshold: IoU, ">=".

    Returns:
        class index -> AP in 0..1; 0 for a class without predictions.

    Raises:
        ValueError: no ground truth.
    """
    if not len(truth):
        raise ValueError("no ground truth: a mAP of nothing is undefined")
    return {
        int(own.label[0]): float(interpolated_average_precision(hits, len(own))) if len(found) else 0.0
        for own, found, hits in _hits_by_class(truth, predicted, threshold)
    }


def _hits_by_class(truth: Boxes, predicted: Boxes, threshold: float) -> Iterator[tuple[Boxes, Boxes, Bools]]:
    """Yield, per class of the ground truth, its truths, its predictions best first, and their hits (N,)."""
    extended: Bools = np.all(predicted.box[:, 2:] > predicted.box[:, :2], axis=1)
    predicted = predicted.take(extended)
    for label in np.unique(truth.label):
        own, found = truth.take(truth.label == label), predicted.take(predicted.label == label)
        found = found.take(np.argsort(-found.score, kind="stable"))
        boxes = {int(own.frame[rows[0]]): own.box[rows] for rows in groups(own.frame)}
        hits = np.zeros(len(found), dtype=bool)
        for rows in groups(found.frame):
            known = boxes.get(int(found.frame[rows[0]]))
            if known is None:
                continue
            overlap = box_iou(found.box[rows], known)
            best = overlap.argmax(axis=1)
            good = overlap[np.arange(len(rows)), best] >= threshold
            first = np.unique(best[good], return_index=True)[1]  # the first hit on a ground truth is the true one
            hits[rows[good][first]] = True
        yield own, found, hits


def frame_map_statistic(
    truth: Boxes, predicted: Boxes, video: Ints, threshold: float = 0.5
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the mAP of resampled videos as a statistic for `bootstrap.interval`; matching is done once.

    Args:
        truth, predicted, threshold: as in `frame_average_precision`. video: (F,) index of each frame's video, of V.

    Returns:
        weights (b, V), count of each video -> (b,): mAP of the classes present.
    """
    classes = _hits_by_class(truth, predicted, threshold)
    return _mean_precision([(video[own.frame], video[found.frame], hits) for own, found, hits in classes])


def _mean_precision(parts: Sequence[tuple[Ints, Ints, Bools]]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the mAP of resampled videos as a statistic.

    `parts` has, for each class, the videos of its truths, those of its predictions, best first, and their hits.
    """

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        total, num_present = np.zeros(len(weights)), np.zeros(len(weights))
        for true, found, hits in parts:
            truth_weight = weights @ np.bincount(true, minlength=weights.shape[1])
            num_present += truth_weight > 0
            if not hits.any():
                continue
            for row, weight in enumerate(weights[:, found]):  # one resample at a time: there may be millions of boxes
                hit_weight = weight * hits
                precision = hit_weight.cumsum() / np.maximum(weight.cumsum(), 1e-12)
                envelope = np.maximum.accumulate(precision[::-1])[::-1]
                total[row] += (envelope * hit_weight).sum() / max(truth_weight[row], 1e-12)
        result: NDArray[np.float64] = total / np.maximum(num_present, 1)
        return result

    return statistic


@dataclass(frozen=True)
class StaObjects:
    """Objects of one image that will be touched: box (N, 4) pixels; noun, verb, seconds to contact (N,)."""

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
        verb, seconds: whether verb and time to contact must be right as well as box and noun.
        top: of each image the (top - 1) x G best-scored false positives are not counted; None counts all.
        iou: ">". tolerance: of the time to contact, seconds, "<=".
        skip_empty: leave out images without predictions together with their ground truth, as published.

    Returns:
        noun -> AP in 0..1, or None for a noun that is predicted and never true.
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
        frames, verb, seconds: as in `anticipation_average_precision`. group: (F,) index of each image's group, of V.

    Returns:
        weights (b, V) -> (b,).
    """
    nouns = _by_noun(frames, 5, True, {"verb": verb, "seconds": seconds, "iou": 0.5, "tolerance": 0.25})
    return _mean_precision([(group[true], group[found], hits) for true, found, hits in nouns.values() if len(true)])


def _by_noun(
    frames: Sequence[tuple[StaObjects, StaObjects, Floats]], top: int | None, skip_empty: bool, rule: Mapping[str, Any]
) -> dict[int, tuple[Ints, Ints, Bools]]:
    """Return, per noun, the images of its truths, those of its counted predictions, best first, and their hits.

    `rule` has the keyword arguments of `_match_anticipated`.
    """
    none: Ints = np.empty(0, dtype=np.int64)
    truths, rows = [(none, none)], [(none.astype(float), none.astype(bool), none, none)]
    for number, (truth, found, scores) in enumerate(frames):
        if not len(scores) and skip_empty:
            continue
        truths.append((truth.noun, np.full(len(truth.noun), number)))
        order = np.argsort(-scores, kind="stable")
        hits = _match_anticipated(truth, found, order, **rule)
        num_ignored = (top - 1) * len(truth.noun) if top else 0
        counted = hits | ((~hits).cumsum() > num_ignored)
        row = order[counted]
        rows.append((scores[row], hits[counted], found.noun[row], np.full(len(row), number)))
    true, true_image = (np.concatenate(column) for column in zip(*truths, strict=True))
    score, hit, noun, image = (np.concatenate(column) for column in zip(*rows, strict=True))
    best = np.argsort(-score, kind="stable")
    noun, image, hit = noun[best], image[best], hit[best]
    return {
        int(label): (true_image[true == label], image[noun == label], hit[noun == label])
        for label in np.union1d(true, noun)
    }


def _match_anticipated(
    truth: StaObjects, found: StaObjects, order: Ints, *, verb: bool, seconds: bool, iou: float, tolerance: float
) -> Bools:
    """Match predictions, in the order given, to the best unmatched ground truth that fits; return the hits (N,)."""
    overlap = box_iou(found.box, truth.box, pixels=True)
    fits = (overlap > iou) & (found.noun[:, None] == truth.noun[None])
    if verb:
        fits &= found.verb[:, None] == truth.verb[None]
    if seconds:
        fits &= np.abs(found.seconds[:, None] - truth.seconds[None]) <= tolerance
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
        truth, predicted: labels are not read; no crowd boxes.
        truth_areas: (G,) of the annotated shapes; box areas when None.
        area: only ground truth of that size counts; a prediction of another size counts only if it is a hit.
        max_detections: predictions per image, best first.
        thresholds: IoU, ">=".

    Returns:
        NaN where no ground truth has that size.
    """
    sizes = (truth.box[:, 2:] - truth.box[:, :2]).prod(axis=1) if truth_areas is None else truth_areas
    low, high = COCO_AREAS[area]
    counts = (sizes >= low) & (sizes <= high)
    if not counts.any():
        nothing = np.full(len(thresholds), np.nan)
        return nothing, nothing
    hit, miss, _ = _coco_rows(truth, predicted, counts, (low, high), max_detections, thresholds)
    if not hit.shape[1]:
        return np.zeros(len(thresholds)), np.zeros(len(thresholds))
    return _coco_curve(hit, miss, int(counts.sum()))


def coco_statistic(truth: Boxes, predicted: Boxes, group: Ints) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return AP, AP50 and AP75 of resampled groups of images as a statistic for `bootstrap.interval`.

    Args:
        truth, predicted: as in `coco_average_precision`. group: (F,) index of each image's group, of V.

    Returns:
        weights (b, V) -> (b, 3); 0 where no ground truth is sampled.
    """
    counts = np.ones(len(truth), dtype=bool)
    hit, miss, frame = _coco_rows(truth, predicted, counts, COCO_AREAS["all"], 100, COCO_THRESHOLDS)
    owner, own = group[frame], group[truth.frame]

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.zeros((len(weights), 3))
        for row, weight in enumerate(weights):
            total = weight[own].sum()
            if hit.shape[1] and total:
                precision = _coco_curve(hit * weight[owner], miss * weight[owner], total)[0]
                found[row] = precision.mean(), precision[0], precision[5]
        return found

    return statistic


def _coco_rows(
    truth: Boxes,
    predicted: Boxes,
    counts: Bools,
    limits: tuple[float, float],
    max_detections: int,
    thresholds: Sequence[float],
) -> tuple[Bools, Bools, Ints]:
    """Return hits and misses of all predictions, best first, at every threshold (I, N), and their images (N,)."""
    levels, (low, high) = np.asarray(thresholds)[:, None], limits
    owned = {int(truth.frame[rows[0]]): rows for rows in groups(truth.frame)}
    scores, hits, ignored, frames = [], [], [], []
    for rows in groups(predicted.frame):
        rows = rows[np.argsort(-predicted.score[rows], kind="stable")][:max_detections]
        boxes = predicted.box[rows]
        own = owned.get(int(predicted.frame[rows[0]]), np.zeros(0, dtype=np.int64))
        own = own[np.argsort(~counts[own], kind="stable")]  # ground truth that counts is matched first
        matched = _coco_matches(box_iou(boxes, truth.box[own]), counts[own], levels[:, 0])
        found = matched >= 0
        aside = found & ~counts[own][matched] if len(own) else np.zeros_like(found)
        extent = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        scores.append(predicted.score[rows])
        frames.append(predicted.frame[rows])
        hits.append(found & ~aside)
        ignored.append(aside | (~found & ((extent < low) | (extent > high))))
    if not scores:
        nothing = np.zeros((len(levels), 0), dtype=bool)
        return nothing, nothing, np.zeros(0, dtype=np.int64)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit, aside = (np.concatenate(parts, axis=1)[:, order] for parts in (hits, ignored))
    return hit, ~hit & ~aside, np.concatenate(frames)[order]


def _coco_matches(overlap: Floats, counts: Bools, thresholds: Floats) -> Ints:
    """Return the matched ground truth (or -1) of every prediction, best first: (I, N); counted truths go first."""
    matched = np.full((len(thresholds), len(overlap)), -1, dtype=np.int64)
    if not overlap.shape[1]:
        return matched
    for level, threshold in enumerate(thresholds):
        unmatched = np.ones(overlap.shape[1], dtype=bool)
        for row, values in enumerate(overlap):
            for part in (counts, ~counts):
                candidates = unmatched & part & (values >= min(threshold, 1 - 1e-10))
                if candidates.any():
                    masked = np.where(candidates, values, -1.0)
                    best = len(masked) - 1 - int(masked[::-1].argmax())  # of equals the last, as published
                    matched[level, row] = best
                    unmatched[best] = False
                    break
    return matched


def _coco_curve(hits: NDArray[Any], misses: NDArray[Any], total: float) -> tuple[Floats, Floats]:
    true, false = hits.cumsum(axis=1), misses.cumsum(axis=1)
    recall = true / total
    precision = true / np.maximum(true + false, np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    area = np.zeros(len(hits))
    for level in range(len(hits)):
        position = np.searchsorted(recall[level], _RECALLS, side="left")
        inside = position < recall.shape[1]
        area[level] = envelope[level, position[inside]].sum() / len(_RECALLS)
    return area, recall[:, -1]
