"""AVA 2.2 and AVA-Kinetics: boxes of persons at key frames with their actions (AlphAction).

`video_id,middle_frame_timestamp,x1,y1,x2,y2,action_id,person_id` without header, corners as fractions of the frame, one
row per box and action. Action ids start at 1; the class index is `action_id - 1`, for all 80 actions.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from internvideo.data.sample import Box, Fraction, Sample
from internvideo.datasets.annotations import Annotations, InvalidRows, corners_of
from internvideo.datasets.reading import (
    AnnotationSource,
    JsonLocation,
    Name,
    Record,
    csv_records,
    json_records,
    read_json,
    read_text,
    split_in_name,
)
from internvideo.errors import ManifestError

CLASSES = 80
COLUMNS = ("video", "time", "x1", "y1", "x2", "y2", "action", "person")
PERSON_COLUMNS = ("video", "time", "x1", "y1", "x2", "y2", "empty", "score")
_TABLES = r"ava_(train|val|test)_v[\d.]+\.csv$"
_ITEM = re.compile(r"(?P<kind>item|label)\s*\{(?P<body>[^{}]*)\}")
_FIELD = re.compile(r'(?P<key>\w+)\s*:\s*(?:"(?P<text>[^"]*)"|(?P<word>\w+))')

Corners = tuple[float, float, float, float]
"""x1, y1, x2, y2 as fractions of the frame."""


class _Row(Record):
    video: Name
    time: NonNegativeFloat
    x1: Fraction | None = None
    y1: Fraction | None = None
    x2: Fraction | None = None
    y2: Fraction | None = None
    action: PositiveInt | None = None
    person: Annotated[int, Field(ge=-1)] | None = None

    def corners(self) -> Corners | None:
        """Return the corners; None for a frame without persons."""
        if self.x1 is None or self.y1 is None or self.x2 is None or self.y2 is None:
            return None
        return self.x1, self.y1, self.x2, self.y2


class _Excluded(Record):
    video: Name
    time: NonNegativeFloat


class _Person(Record):
    video: Name
    time: NonNegativeFloat
    x1: Fraction
    y1: Fraction
    x2: Fraction
    y2: Fraction
    score: Fraction


class _Image(Record):
    id: str | int
    movie: Name
    timestamp: NonNegativeFloat
    width: PositiveInt
    height: PositiveInt


class _Actions(Record):
    image_id: str | int
    bbox: tuple[float, float, float, float]
    action_ids: tuple[PositiveInt, ...]


class _Coco(Record):
    images: tuple[_Image, ...]
    annotations: tuple[_Actions, ...]


@dataclass
class _Frame:
    """Action ids per (x1, y1, x2, y2, person id), in the order of the file."""

    where: str
    persons: dict[tuple[float, float, float, float, int], list[int]] = field(default_factory=dict)


def read_ava(source: AnnotationSource) -> Annotations:
    """Read AVA 2.2, `ava_train_v2.2.csv` and `ava_val_v2.2.csv`: one row per key frame.

    Key frames of `*_excluded_timestamps_*.csv` are left out. `ava_action_list*.pbtxt` holds the class names; those of
    the evaluated list (60 classes) become the vocabulary "scored_classes". Without csv files the JSON of the released
    code is read.
    Raises ManifestError: no annotation file, a malformed row, a box outside 0..1 or with x2 < x1, an unknown action.
    """
    annotations = _labels(source)
    _read_files(source, annotations, _TABLES, r"ava_(train|val)[^/]*_min\.json$")
    expected = "ava_train_v2.2.csv and ava_val_v2.2.csv"
    return annotations.ensure_rows(source.path, "no annotation file of AVA", expected)


def read_ava_kinetics(source: AnnotationSource) -> Annotations:
    """Read AVA-Kinetics: `kinetics_train_v1.0.csv`, `kinetics_val_v1.0.csv`, and AVA's files if present.

    Rows with empty fields are clips without persons: they are left out and counted. A row's attribute "source" is "ava"
    or "kinetics". Timestamps are seconds of the uploaded video.
    Raises ManifestError: as `read_ava`.
    """
    annotations = _labels(source)
    tables, released = r"kinetics_(train|val|test)_v[\d.]+\.csv$", r"kinetics_(train|val)_v[\d.]+\.json$"
    _read_files(source, annotations, tables, released, origin="kinetics")
    annotations.ensure_rows(source.path, "no annotation file of AVA-Kinetics", "kinetics_train_v1.0.csv and so on")
    _read_files(source, annotations, _TABLES, origin="ava")
    return annotations


def _read_files(
    source: AnnotationSource, annotations: Annotations, tables: str, released: str = "", *, origin: str = ""
) -> None:
    """Read the csv files that match `tables`; without any, the JSON files of the released code (`released`)."""
    excluded = {
        (row.video, row.time)
        for path in source.find(r"excluded_timestamps[^/]*\.csv$")
        for _, row in csv_records(path, _Excluded, columns=("video", "time"))
    }
    files = source.find(tables)
    for path in files:
        _read_csv(path, annotations, excluded, origin)
    for path in source.find(released) if released and not files else ():
        _read_coco(path, annotations, excluded, origin)


def _read_csv(path: Path, annotations: Annotations, excluded: set[tuple[str, float]], origin: str) -> None:
    frames: dict[tuple[str, float], _Frame] = {}
    empty = repeated = flat = 0
    invalid = InvalidRows(f"rows of {path.name}")
    for where, row in csv_records(path, _Row, columns=COLUMNS):
        corners = row.corners()
        if corners is None:
            if any(value is not None for value in (row.x1, row.y1, row.x2, row.y2, row.action)):
                raise ManifestError(f"{where} x1", "an incomplete box", "all of x1,y1,x2,y2, or none")
            empty += 1
            continue
        if row.action is None:
            raise ManifestError(f"{where} action_id", "missing", f"1 to {CLASSES}")
        if corners[0] == corners[2] or corners[1] == corners[3]:
            flat += 1
            continue
        reversed_corners = corners[2] < corners[0] or corners[3] < corners[1]
        if invalid.skip(reversed_corners, f"{where} x2", _box(corners), "x1 < x2 and y1 < y2"):
            continue
        _check_actions(where, (row.action,))
        frame = frames.setdefault((row.video, row.time), _Frame(where))
        actions = frame.persons.setdefault((*corners, -1 if row.person is None else row.person), [])
        if row.action in actions:
            repeated += 1
        else:
            actions.append(row.action)
    invalid.finish(annotations)
    annotations.note(flat, f"rows of {path.name} have a box without area and are left out")
    annotations.note(repeated, f"rows of {path.name} repeat an action of the same person and box and count once")
    annotations.note(empty, f"clips without persons in {path.name} left out")
    _add(path, annotations, frames, excluded, origin)


def _check_actions(where: object, actions: tuple[int, ...]) -> None:
    if max(actions, default=0) > CLASSES:
        raise ManifestError(f"{where} action_id", f"unknown action {max(actions)}", f"1 to {CLASSES}")


def _check_order(where: object, corners: Corners) -> Corners:
    x1, y1, x2, y2 = corners
    if x2 <= x1 or y2 <= y1:
        raise ManifestError(f"{where} x2", _box(corners), "x1 < x2 and y1 < y2")
    return corners


def _box(corners: Corners) -> str:
    x1, y1, x2, y2 = corners
    return f"a box from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g})"


def _clamped(where: object, box: Corners, size: tuple[float, float]) -> Corners:
    """Convert x, y, width, height to corners inside the image of `size`. Raises ManifestError: outside, or empty."""
    corners = corners_of(box, size)
    if min(corners) < -1e-6 or max(corners) > 1 + 1e-6:
        raise ManifestError(where, f"{box} leaves the image", "a box inside the image")
    x1, y1, x2, y2 = (min(max(corner, 0.0), 1.0) for corner in corners)
    return _check_order(where, (x1, y1, x2, y2))


def _add(
    path: Path, annotations: Annotations, frames: dict[tuple[str, float], _Frame], excluded: set[tuple[str, float]],
    origin: str,
) -> None:  # fmt: skip
    left_out, split = 0, split_in_name(path) or ""
    for (video, time), frame in frames.items():
        if (video, float(int(time))) in excluded and origin != "kinetics":
            left_out += 1
            continue
        boxes = tuple(
            Box(time=time, x1=x1, y1=y1, x2=x2, y2=y2, labels=tuple(n - 1 for n in actions), actor=int(actor))
            for (x1, y1, x2, y2, actor), actions in frame.persons.items()
        )
        name = f"{video}_{time:04.0f}" if float(time).is_integer() else f"{video}_{time:.6f}"
        attributes = {"timestamp": f"{time:g}" if float(time).is_integer() else f"{time:.6f}"}
        attributes |= {"source": origin} if origin else {}
        sample = Sample(id=name, path=f"{video}.mp4", boxes=boxes, group=video, split=split, attributes=attributes)
        annotations.add(split, sample, frame.where, video)
    annotations.note(left_out, f"key frames of {path.name} are on the list of exclusions and left out")


def _read_coco(path: Path, annotations: Annotations, excluded: set[tuple[str, float]], origin: str) -> None:
    """Read the JSON of the released code: boxes as x, y, width, height in pixels, of Kinetics as fractions."""
    content = read_json(path, _Coco)
    images: dict[str, _Image] = {}
    for number, image in enumerate(content.images):
        if str(image.id) in images:
            raise ManifestError(
                JsonLocation(path, ("images", number, "id")), f"'{image.id}' a second time", "each image once"
            )
        images[str(image.id)] = image
    frames = {(image.movie, image.timestamp): _Frame(f"{path} images") for image in images.values()}
    for number, person in enumerate(content.annotations):
        where = JsonLocation(path, ("annotations", number))
        if str(person.image_id) not in images:
            raise ManifestError(where.at("image_id"), f"no image '{person.image_id}'", "one of images")
        image, where = images[str(person.image_id)], where.at("bbox")
        corners = _clamped(where, person.bbox, (1, 1) if origin == "kinetics" else (image.width, image.height))
        _check_actions(where, person.action_ids)
        frames[image.movie, image.timestamp].persons[(*corners, number)] = list(person.action_ids)
    _add(path, annotations, {key: frame for key, frame in frames.items() if frame.persons}, excluded, origin)


def _labels(source: AnnotationSource) -> Annotations:
    """Return annotations with the names of all 80 actions; an action without a name in the label maps is "action N"."""
    annotations, names = Annotations(), {number: f"action {number}" for number in range(1, CLASSES + 1)}
    scored: dict[int, str] = {}
    for path in source.find(r"\.pbtxt$"):
        label_map = read_label_map(path)
        names |= label_map
        if "activitynet" in path.name:
            scored = label_map
    annotations.classes = tuple(names.values())
    if scored:
        annotations.vocabularies["scored_classes"] = tuple(scored.values())
    elif not source.find(r"\.pbtxt$"):
        annotations.notes.append("no label map (.pbtxt): the actions have numbers instead of names")
    return annotations


def read_label_map(path: Path) -> dict[int, str]:
    """Read action id (from 1) -> name from a text protobuf: `item { name id }` or `label { name label_id label_type }`.

    Raises ManifestError: no entry, an entry without name or id, a duplicate id or one above 80.
    """
    text = read_text(path)
    names: dict[int, str] = {}
    for item in _ITEM.finditer(text):
        where = f"{path}:{text.count(chr(10), 0, item.start()) + 1}"
        fields = {part["key"]: part["text"] or part["word"] for part in _FIELD.finditer(item["body"])}
        number = fields.get("id") or fields.get("label_id") or ""
        if not number.isdecimal() or not 1 <= int(number) <= CLASSES:
            raise ManifestError(f"{where} id", f"'{number}'", f"1 to {CLASSES}")
        if not fields.get("name"):
            raise ManifestError(f"{where} name", "missing", "the name of the action")
        if int(number) in names:
            raise ManifestError(f"{where} id", f"{number} a second time", "each id once")
        names[int(number)] = fields["name"]
    if not names:
        raise ManifestError(f"{path}:1", "no action in it", 'item { name: "stand" id: 12 }')
    return names


def read_person_boxes(
    path: Path, sizes: dict[str, tuple[int, int]] | None = None
) -> dict[tuple[str, float], list[tuple[float, float, float, float, float]]]:
    """Read (video, time) -> boxes of a person detector as x1, y1, x2, y2, score, corners as fractions.

    Args:
        path: `video,timestamp,x1,y1,x2,y2,,score` without header, or JSON `[{image_id, bbox, score}]` with
            `image_id` VIDEO_TIME and `bbox` x, y, width, height.
        sizes: video -> (width, height) in pixels, for JSON boxes in pixels; without it they must be fractions.

    Raises ManifestError: a malformed row, a box outside 0..1, a video that `sizes` lacks.
    """
    boxes: defaultdict[tuple[str, float], list[tuple[float, float, float, float, float]]] = defaultdict(list)
    if path.suffix.lower() != ".json":
        for where, row in csv_records(path, _Person, columns=PERSON_COLUMNS):
            corners = _check_order(where, (row.x1, row.y1, row.x2, row.y2))
            boxes[row.video, row.time].append((*corners, row.score))
        return dict(boxes)
    for where, person in json_records(path, _Detection):
        video, _, time = person.image_id.rpartition("_")
        width, height = sizes.get(video, (0, 0)) if sizes is not None else (1, 1)
        if not width or not re.fullmatch(r"\d+(\.\d+)?", time) or not video:
            expected = "VIDEO_TIME of a video whose size is known"
            raise ManifestError(f"{where} image_id", f"'{person.image_id}'", expected)
        corners = _clamped(f"{where} bbox", person.bbox, (width, height))
        boxes[video, float(time)].append((*corners, person.score))
    return dict(boxes)


class _Detection(Record):
    image_id: Name
    bbox: tuple[float, float, float, float]
    score: Fraction
