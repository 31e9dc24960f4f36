"""Read object boxes at key frames, annotated or detected, with the interaction of each (arXiv 2211.09529).

A row of a manifest is one key frame: all its boxes have the same time; a row without boxes has the attribute "time".
Detection files are JSON with pixels: `{"results": {ROW: [{"box": [x1, y1, x2, y2], "noun_category_id": N, "score":
S}]}}` (the challenge's format of predictions; other fields are ignored), or COCO's list `[{"image_id": ROW, "bbox": [x,
y, w, h], "category_id": N, "score": S}]`. ROW is the id of a row, or its attribute "uid".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo import untrusted
from internvideo.data.manifest import Manifest
from internvideo.data.sample import Sample, frame_size
from internvideo.datasets.reading import read_text
from internvideo.errors import ManifestError
from internvideo.tasks.spatio_temporal_localization.data import KeyFrame
from internvideo.video.reader import read_video_info

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MATCH_IOU = 0.5
"""Smallest IoU at which a detected box matches an annotated object."""


@dataclass(frozen=True)
class Detections:
    """Detections of a frame: box (R, 4) pixels, class (R,) int64, score (R,)."""

    box: Floats
    label: Ints
    score: Floats


NO_DETECTIONS = Detections(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))


def read_detections(path: Path) -> dict[str, Detections]:
    """Read a detection file: frame name -> detections. Raises ManifestError."""
    try:
        content = untrusted.parse_json(read_text(path))
    except ValueError as error:
        raise ManifestError(path, f"is no JSON ({error})", "boxes of a detector") from error
    entries_by_frame: dict[str, list[tuple[list[float], int, float]]] = {}
    try:
        if isinstance(content, list):
            for entry in content:
                x, y, width, height = entry["bbox"]
                box = [x, y, x + width, y + height]
                entries_by_frame.setdefault(str(entry["image_id"]), []).append(
                    (box, entry["category_id"], entry["score"])
                )
        else:
            for name, entries in content["results"].items():
                entries_by_frame[name] = [
                    (entry["box"], entry.get("noun_category_id", 0), entry["score"]) for entry in entries
                ]
        return {name: _to_columns(entries) for name, entries in entries_by_frame.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        expected = '{"results": {ROW: [{"box", "noun_category_id", "score"}]}} or a list in COCO format'
        raise ManifestError(path, f"an entry that cannot be read ({error!r})", expected) from error


def _to_columns(entries: Sequence[tuple[list[float], int, float]]) -> Detections:
    detections = Detections(
        np.asarray([box for box, _, _ in entries], dtype=np.float64).reshape(-1, 4),
        np.asarray([label for _, label, _ in entries], dtype=np.int64),
        np.asarray([score for _, _, score in entries], dtype=np.float64),
    )
    if len(detections.box) != len(entries) or not (
        np.isfinite(detections.box).all() and np.isfinite(detections.score).all()
    ):
        raise ValueError("four finite corners and a finite score")
    return detections


@dataclass(frozen=True)
class ObjectFrame:
    """A key frame with its G annotated objects.

    Attributes:
        size: width and height of the frame in pixels. time: in seconds.
        boxes: (G, 4) fractions. labels: class indices of each box.
        contact: (G, 2) verb and seconds to contact of each box, NaN if unknown.
    """

    row: Sample
    size: tuple[int, int]
    time: float
    boxes: Floats
    labels: tuple[tuple[int, ...], ...]
    contact: Floats


def object_frames(manifest: Manifest) -> list[ObjectFrame]:
    """Convert the rows of a manifest to key frames.

    Raises:
        ManifestError: a row with boxes of several times, or with invalid numbers.
        VideoError: the frame size of a video cannot be read.
    """
    size_of_file: dict[str, tuple[int, int]] = {}
    frames = []
    for row in manifest.rows:
        where = f"{manifest.source}: row '{row.id}'"
        times = {box.time for box in row.boxes}
        if len(times) > 1:
            raise ManifestError(where, f"boxes of {len(times)} times", "one key frame per row")
        if "size" in row.attributes:
            size = frame_size(row, where)
        else:
            if row.path not in size_of_file:
                info = read_video_info(manifest.video_path(row), fps=row.frame_rate)
                size_of_file[row.path] = (info.width, info.height)
            size = size_of_file[row.path]
        time = times.pop() if times else _parse_numbers(row, "time", where, 1)[0]
        boxes = np.asarray([(box.x1, box.y1, box.x2, box.y2) for box in row.boxes], dtype=np.float64).reshape(-1, 4)
        contact = np.full((len(boxes), 2), np.nan)
        for column, name in enumerate(("verbs", "times_to_contact")):
            if row.boxes and name in row.attributes:
                contact[:, column] = _parse_numbers(row, name, where, len(boxes))
        frames.append(ObjectFrame(row, size, float(time), boxes, tuple(box.labels for box in row.boxes), contact))
    return frames


def _parse_numbers(row: Sample, name: str, where: object, count: int) -> Floats:
    text = row.attributes.get(name, "0")
    try:
        values = np.asarray([float(part) for part in text.split()])
    except ValueError as error:
        raise ManifestError(where, f"attribute '{name}' is '{text}'", f"{count} numbers") from error
    if len(values) != count or not np.isfinite(values).all():
        raise ManifestError(where, f"attribute '{name}' is '{text}'", f"{count} numbers")
    return values


def detections_of(frame: ObjectFrame, detections: Mapping[str, Detections]) -> Detections:
    """Return the detections of a frame, by the id or "uid" of its row."""
    return detections.get(frame.row.id) or detections.get(frame.row.attributes.get("uid", "")) or NO_DETECTIONS


def with_annotated_boxes(frame: ObjectFrame) -> KeyFrame:
    """Return the key frame with its annotated boxes as test boxes."""
    scores, unknown = np.ones(len(frame.boxes)), np.zeros((len(frame.boxes), 0))
    return KeyFrame(frame.row, frame.row.id, frame.time, frame.boxes, scores, frame.labels, unknown)


def with_detected_boxes(frame: ObjectFrame, detections: Detections) -> KeyFrame:
    """Return the key frame with detected boxes, and their classes, as test boxes."""
    boxes = (detections.box / np.tile(frame.size, 2)).clip(0.0, 1.0)
    is_valid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    labels = tuple((int(label),) for label in detections.label[is_valid])
    unknown = np.zeros((len(labels), 0))
    return KeyFrame(frame.row, frame.row.id, frame.time, boxes[is_valid], detections.score[is_valid], labels, unknown)


def with_training_targets(
    frame: ObjectFrame, detections: Detections | None, *, background: int | None = None
) -> KeyFrame:
    """Return the key frame with annotated and (if given) detected boxes, and their labels or targets for training.

    A detected box has the labels of the annotated box that `match_boxes` finds, or none.

    Args:
        background: class of boxes without a match, for anticipation: the targets are then verb and seconds to contact,
            (background, NaN) for a box without a match. None for targets from the labels.
    """
    boxes, truth_index = frame.boxes, np.arange(len(frame.boxes))
    if detections is not None:
        detected_boxes = with_detected_boxes(frame, detections).boxes
        boxes, truth_index = (
            np.concatenate([boxes, detected_boxes]),
            np.concatenate([truth_index, match_boxes(detected_boxes, frame.boxes)]),
        )
    labels = tuple(frame.labels[index] if index >= 0 else () for index in truth_index)
    targets = None
    if background is not None:
        targets = np.concatenate([frame.contact, [[background, np.nan]]])[truth_index]
    return KeyFrame(frame.row, frame.row.id, frame.time, boxes, np.ones(len(boxes)), labels, targets)


def match_boxes(boxes: Floats, truths: Floats) -> Ints:
    """Return, for each box (R, 4), the index (R,) of the true box (G, 4) with the largest IoU; -1 below MATCH_IOU."""
    if not len(truths):
        return np.full(len(boxes), -1)
    top_left = np.maximum(boxes[:, None, :2], truths[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], truths[None, :, 2:])
    intersection = (bottom_right - top_left).clip(min=0).prod(axis=2)
    areas = [(corners[:, 2:] - corners[:, :2]).prod(axis=1) for corners in (boxes, truths)]
    iou = intersection / np.maximum(areas[0][:, None] + areas[1][None] - intersection, 1e-12)
    best = iou.argmax(axis=1)
    result: Ints = np.where(iou[np.arange(len(boxes)), best] >= MATCH_IOU, best, -1)
    return result


def read_class_list(path: Path, expected: str) -> tuple[str, ...]:
    """Read names from a file, one per line. Raises ManifestError."""
    names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    if not names or len(set(names)) != len(names):
        raise ManifestError(path, f"{len(names)} names, {len(set(names))} different", expected)
    return names


def results_json(results: Mapping[str, Sequence[Mapping[str, Any]]], **head: str) -> str:
    """Serialize frame -> predictions as JSON, with further entries `head`."""
    return json.dumps({**head, "results": results}) + "\n"
