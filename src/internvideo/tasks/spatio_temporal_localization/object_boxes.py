"""Read object boxes at key frames, annotated or detected, with the interaction of each (arXiv 2211.09529).

A row is one key frame: all its boxes have one time; without boxes the attribute "time" gives it. Detection files are
JSON in pixels: `{"results": {ROW: [{"box": [x1, y1, x2, y2], "noun_category_id": N, "score": S}]}}` (the challenge's
form of predictions; other fields are ignored) or COCO's list `[{"image_id": ROW, "bbox": [x, y, w, h], "category_id":
N, "score": S}]`. ROW is the id of a manifest's row, or its "uid".
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

MATCH = 0.5
"""Smallest IoU at which a detected box matches an annotated object."""


@dataclass(frozen=True)
class Detected:
    """Detections of a frame: box (R, 4) pixels, class (R,) int64, score (R,)."""

    box: Floats
    label: Ints
    score: Floats


NOTHING = Detected(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))


def read_detections(path: Path) -> dict[str, Detected]:
    """Read a detection file: frame name -> detections. Raises ManifestError."""
    try:
        content = untrusted.parse_json(read_text(path))
    except ValueError as error:
        raise ManifestError(path, f"is no JSON ({error})", "boxes of a detector") from error
    found: dict[str, list[tuple[list[float], int, float]]] = {}
    try:
        if isinstance(content, list):
            for entry in content:
                x, y, width, height = entry["bbox"]
                box = [x, y, x + width, y + height]
                found.setdefault(str(entry["image_id"]), []).append((box, entry["category_id"], entry["score"]))
        else:
            for name, entries in content["results"].items():
                found[name] = [(entry["box"], entry.get("noun_category_id", 0), entry["score"]) for entry in entries]
        return {name: _columns(entries) for name, entries in found.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        expected = '{"results": {ROW: [{"box", "noun_category_id", "score"}]}} or a list in the form of COCO'
        raise ManifestError(path, f"an entry that cannot be read ({error!r})", expected) from error


def _columns(entries: Sequence[tuple[list[float], int, float]]) -> Detected:
    made = Detected(
        np.asarray([box for box, _, _ in entries], dtype=np.float64).reshape(-1, 4),
        np.asarray([label for _, label, _ in entries], dtype=np.int64),
        np.asarray([score for _, _, score in entries], dtype=np.float64),
    )
    if len(made.box) != len(entries) or not (np.isfinite(made.box).all() and np.isfinite(made.score).all()):
        raise ValueError("four finite corners and a finite score")
    return made


@dataclass(frozen=True)
class ObjectFrame:
    """A row with its annotated objects.

    Attributes:
        size: width and height in pixels. time: seconds.
        boxes: (G, 4) fractions. labels: of each box. contact: (G, 2) verb and seconds to contact, NaN if unknown.
    """

    row: Sample
    size: tuple[int, int]
    time: float
    boxes: Floats
    labels: tuple[tuple[int, ...], ...]
    contact: Floats


def object_frames(manifest: Manifest) -> list[ObjectFrame]:
    """Convert rows to key frames.

    Raises:
        ManifestError: boxes of several times, or invalid numbers. VideoError: a video's frame size cannot be read.
    """
    probed: dict[str, tuple[int, int]] = {}
    found = []
    for row in manifest.rows:
        where = f"{manifest.source}: row '{row.id}'"
        times = {box.time for box in row.boxes}
        if len(times) > 1:
            raise ManifestError(where, f"boxes of {len(times)} times", "one key frame per row")
        if "size" in row.attributes:
            size = frame_size(row, where)
        else:
            if row.path not in probed:
                info = read_video_info(manifest.video_path(row), fps=row.frame_rate)
                probed[row.path] = (info.width, info.height)
            size = probed[row.path]
        time = times.pop() if times else _numbers(row, "time", where, 1)[0]
        boxes = np.asarray([(box.x1, box.y1, box.x2, box.y2) for box in row.boxes], dtype=np.float64).reshape(-1, 4)
        contact = np.full((len(boxes), 2), np.nan)
        for column, name in enumerate(("verbs", "times_to_contact")):
            if row.boxes and name in row.attributes:
                contact[:, column] = _numbers(row, name, where, len(boxes))
        found.append(ObjectFrame(row, size, float(time), boxes, tuple(box.labels for box in row.boxes), contact))
    return found


def _numbers(row: Sample, name: str, where: object, count: int) -> Floats:
    text = row.attributes.get(name, "0")
    try:
        values = np.asarray([float(part) for part in text.split()])
    except ValueError as error:
        raise ManifestError(where, f"attribute '{name}' is '{text}'", f"{count} numbers") from error
    if len(values) != count or not np.isfinite(values).all():
        raise ManifestError(where, f"attribute '{name}' is '{text}'", f"{count} numbers")
    return values


def of_frame(frame: ObjectFrame, detections: Mapping[str, Detected]) -> Detected:
    """Return a frame's detections, looked up by the row's id or "uid"."""
    return detections.get(frame.row.id) or detections.get(frame.row.attributes.get("uid", "")) or NOTHING


def annotated(frame: ObjectFrame) -> KeyFrame:
    """Return the annotated boxes as test boxes."""
    scores, unknown = np.ones(len(frame.boxes)), np.zeros((len(frame.boxes), 0))
    return KeyFrame(frame.row, frame.row.id, frame.time, frame.boxes, scores, frame.labels, unknown)


def detected(frame: ObjectFrame, found: Detected) -> KeyFrame:
    """Return the detected boxes with their classes as test boxes."""
    boxes = (found.box / np.tile(frame.size, 2)).clip(0.0, 1.0)
    good = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    labels = tuple((int(label),) for label in found.label[good])
    unknown = np.zeros((len(labels), 0))
    return KeyFrame(frame.row, frame.row.id, frame.time, boxes[good], found.score[good], labels, unknown)


def learned(frame: ObjectFrame, found: Detected | None, *, background: int | None = None) -> KeyFrame:
    """Return annotated and (if given) detected boxes with their training targets.

    A detected box has the labels of the annotated box with IoU >= `MATCH`, or none. With `background` the targets are
    verb and seconds to contact, (background, NaN) for an unmatched box.
    """
    boxes, owner = frame.boxes, np.arange(len(frame.boxes))
    if found is not None:
        others = detected(frame, found).boxes
        boxes, owner = np.concatenate([boxes, others]), np.concatenate([owner, matched(others, frame.boxes)])
    labels = tuple(frame.labels[own] if own >= 0 else () for own in owner)
    targets = None
    if background is not None:
        targets = np.concatenate([frame.contact, [[background, np.nan]]])[owner]
    return KeyFrame(frame.row, frame.row.id, frame.time, boxes, np.ones(len(boxes)), labels, targets)


def matched(boxes: Floats, truths: Floats) -> Ints:
    """Return the index (R,) of the annotated box (G, 4) with the largest IoU per box (R, 4), -1 below `MATCH`."""
    if not len(truths):
        return np.full(len(boxes), -1)
    low = np.maximum(boxes[:, None, :2], truths[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truths[None, :, 2:])
    inside = (high - low).clip(min=0).prod(axis=2)
    areas = [(corners[:, 2:] - corners[:, :2]).prod(axis=1) for corners in (boxes, truths)]
    share = inside / np.maximum(areas[0][:, None] + areas[1][None] - inside, 1e-12)
    best = share.argmax(axis=1)
    result: Ints = np.where(share[np.arange(len(boxes)), best] >= MATCH, best, -1)
    return result


def class_list(path: Path, expected: str) -> tuple[str, ...]:
    """Read names from a file, one per line. Raises ManifestError."""
    names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    if not names or len(set(names)) != len(names):
        raise ManifestError(path, f"{len(names)} names, {len(set(names))} different", expected)
    return names


def of_results(results: Mapping[str, Sequence[Mapping[str, Any]]], **head: str) -> str:
    """Serialize results by frame as JSON."""
    return json.dumps({**head, "results": results}) + "\n"
