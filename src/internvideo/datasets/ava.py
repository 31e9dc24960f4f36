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

from pydantic import Field

from internvideo.data.sample import Box, Fraction, Sample
from internvideo.datasets.annotations import Annotations, InvalidRows
from internvideo.datasets.reading import (
    AnnotationSource,
    Name,
    Record,
    Spot,
    csv_records,
    json_records,
    read_json,
    read_text,
    split_of,
)
from internvideo.errors import ManifestError

CLASSES = 80
COLUMNS = ("video", "time", "x1", "y1", "x2", "y2", "action", "person")
PERSON_COLUMNS = ("video", "time", "x1", "y1", "x2", "y2", "empty", "score")
_ITEM = re.compile(r"(?P<kind>item|label)\s*\{(?P<body>[^{}]*)\}")
_FIELD = re.compile(r'(?P<key>\w+)\s*:\s*(?:"(?P<text>[^"]*)"|(?P<word>\w+))')

Time = Annotated[float, Field(ge=0)]


class _Row(Record):
    video: Name
    time: Time
    x1: Fraction | None = None
    y1: Fraction | None = None
    x2: Fraction | None = None
    y2: Fraction | None = None
    action: Annotated[int, Field(ge=1)] | None = None
    person: Annotated[int, Field(ge=-1)] | None = None

    def corners(self) -> tuple[float, float, float, float] | None:
        """Return x1, y1, x2, y2; None for a frame without persons."""
        if self.x1 is None or self.y1 is None or self.x2 is None or self.y2 is None:
            return None
        return self.x1, self.y1, self.x2, self.y2


class _Excluded(Record):
    video: Name
    time: Time


class _Person(Record):
    video: Name
    time: Time
    x1: Fraction
    y1: Fraction
    x2: Fraction
    y2: Fraction
    score: Fraction


class _Image(Record):
    id: str | int
    movie: Name
    timestamp: Time
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]


class _Actions(Record):
    image_id: str | int
    bbox: tuple[float, float, float, float]
    action_ids: tuple[Annotated[int, Field(ge=1)], ...]


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

    Raises:
        ManifestError: no annotation file, a malformed row, a box outside 0..1 or with x2 < x1, an unknown action.
    """
    annotations, pattern = _labels(source), r"ava_(train|val|test)_v[\d.]+\.csv$"
    excluded = _excluded(source)
    files = source.find(pattern)
    for path in files:
        _read_csv(path, split_of(path) or "", annotations, excluded)
    if not files:
        for path in source.find(r"ava_(train|val)[^/]*_min\.json$"):
            _read_coco(path, split_of(path) or "", annotations, excluded)
    if not annotations.splits:
        raise ManifestError(source.path, "no annotation file of AVA", "ava_train_v2.2.csv and ava_val_v2.2.csv")
    return annotations


def read_ava_kinetics(source: AnnotationSource) -> Annotations:
    """Read AVA-Kinetics: `kinetics_train_v1.0.csv`, `kinetics_val_v1.0.csv`, and AVA's files if present.

    Rows with empty fields are clips without persons: they are left out and counted. A row's attribute "source" is "ava"
    or "kinetics". Timestamps are seconds of the uploaded video.

    Raises:
        ManifestError: as `read_ava`.
    """
    files = source.find(r"kinetics_(train|val|test)_v[\d.]+\.csv$")
    excluded = _excluded(source)
    annotations = _labels(source)
    for path in files:
        _read_csv(path, split_of(path) or "", annotations, excluded, origin="kinetics")
    if not files:
        for path in source.find(r"kinetics_(train|val)_v[\d.]+\.json$"):
            _read_coco(path, split_of(path) or "", annotations, excluded, origin="kinetics", relative=True)
    if not annotations.splits:
        raise ManifestError(source.path, "no annotation file of AVA-Kinetics", "kinetics_train_v1.0.csv and so on")
    for path in source.find(r"ava_(train|val|test)_v[\d.]+\.csv$"):
        _read_csv(path, split_of(path) or "", annotations, excluded, origin="ava")
    return annotations


def _read_csv(
    path: Path, split: str, annotations: Annotations, excluded: set[tuple[str, float]], *, origin: str = ""
) -> None:
    frames: dict[tuple[str, float], _Frame] = {}
    empty = repeated = flat = 0
    invalid = InvalidRows(f"rows of {path.name}")
    for line, row in csv_records(path, _Row, columns=COLUMNS):
        where = f"{path}:{line}"
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
        _check(where, corners, (row.action,))
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
    _add(path, split, annotations, frames, excluded, origin)


def _check(where: object, corners: tuple[float, ...], actions: tuple[int, ...]) -> None:
    x1, y1, x2, y2 = corners
    if x2 <= x1 or y2 <= y1:
        raise ManifestError(f"{where} x2", _box(corners), "x1 < x2 and y1 < y2")
    for action in actions:
        if action > CLASSES:
            raise ManifestError(f"{where} action_id", f"unknown action {action}", f"1 to {CLASSES}")


def _box(corners: tuple[float, ...]) -> str:
    x1, y1, x2, y2 = corners
    return f"a box from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g})"


def _add(
    path: Path, split: str, annotations: Annotations, frames: dict[tuple[str, float], _Frame],
    excluded: set[tuple[str, float]], origin: str,
) -> None:  # fmt: skip
    left_out = 0
    for (video, time), frame in frames.items():
        if (video, float(int(time))) in excluded and origin != "kinetics":
            left_out += 1
            continue
        boxes = tuple(
            Box(
                time=time,
                x1=key[0],
                y1=key[1],
                x2=key[2],
                y2=key[3],
                labels=tuple(n - 1 for n in actions),
                actor=int(key[4]),
            )
            for key, actions in frame.persons.items()
        )
        name = f"{video}_{time:04.0f}" if float(time).is_integer() else f"{video}_{time:.6f}"
        attributes = {"timestamp": f"{time:g}" if float(time).is_integer() else f"{time:.6f}"} | (
            {"source": origin} if origin else {}
        )
        sample = Sample(id=name, path=f"{video}.mp4", boxes=boxes, group=video, split=split, attributes=attributes)
        annotations.add(split, sample, frame.where, video)
    annotations.note(left_out, f"key frames of {path.name} are on the list of exclusions and left out")


def _read_coco(
    path: Path, split: str, annotations: Annotations, excluded: set[tuple[str, float]], *, origin: str = "",
    relative: bool = False,
) -> None:  # fmt: skip
    """Read the JSON of the released code: boxes as x, y, width, height in pixels, or as fractions if `relative`."""
    content = read_json(path, _Coco)
    images: dict[str, _Image] = {}
    for number, image in enumerate(content.images):
        if str(image.id) in images:
            raise ManifestError(Spot(path, ("images", number, "id")), f"'{image.id}' a second time", "each image once")
        images[str(image.id)] = image
    frames = {(image.movie, image.timestamp): _Frame(f"{path} images") for image in images.values()}
    for number, person in enumerate(content.annotations):
        image = images.get(str(person.image_id)) or _no_image(path, number, str(person.image_id))
        scale = (1.0, 1.0) if relative else (float(image.width), float(image.height))
        x, y, width, height = person.bbox
        corners = (x / scale[0], y / scale[1], (x + width) / scale[0], (y + height) / scale[1])
        where = Spot(path, ("annotations", number, "bbox"))
        if min(corners) < -1e-6 or max(corners) > 1 + 1e-6:
            raise ManifestError(where, f"{person.bbox} leaves the image", "a box inside 0..1 of the image")
        inside = (max(corners[0], 0.0), max(corners[1], 0.0), min(corners[2], 1.0), min(corners[3], 1.0))
        _check(where, inside, person.action_ids)
        frames[image.movie, image.timestamp].persons[(*inside, number)] = list(person.action_ids)
    _add(path, split, annotations, {key: frame for key, frame in frames.items() if frame.persons}, excluded, origin)


def _no_image(path: Path, number: int, name: str) -> _Image:
    raise ManifestError(Spot(path, ("annotations", number, "image_id")), f"no image '{name}'", "one of images")


def _excluded(source: AnnotationSource) -> set[tuple[str, float]]:
    return {
        (row.video, row.time)
        for path in source.find(r"excluded_timestamps[^/]*\.csv$")
        for _, row in csv_records(path, _Excluded, columns=("video", "time"))
    }


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

    Raises:
        ManifestError: no entry, an entry without name or id, a duplicate id or one above 80.
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

    Raises:
        ManifestError: a malformed row, a box outside 0..1, a video that `sizes` lacks.
    """
    boxes: defaultdict[tuple[str, float], list[tuple[float, float, float, float, float]]] = defaultdict(list)
    if path.suffix.lower() != ".json":
        for line, row in csv_records(path, _Person, columns=PERSON_COLUMNS):
            _check(f"{path}:{line}", (row.x1, row.y1, row.x2, row.y2), ())
            boxes[row.video, row.time].append((row.x1, row.y1, row.x2, row.y2, row.score))
        return dict(boxes)
    for line, person in json_records(path, _Detection):
        video, _, time = person.image_id.rpartition("_")
        width, height = sizes.get(video, (0, 0)) if sizes is not None else (1, 1)
        where = f"{path}:{line}"
        if not width or not re.fullmatch(r"\d+(\.\d+)?", time) or not video:
            raise ManifestError(
                f"{where} image_id", f"'{person.image_id}'", "VIDEO_TIME of a video whose size is known"
            )
        x, y, wide, high = person.bbox
        corners = (x / width, y / height, (x + wide) / width, (y + high) / height)
        if min(corners) < -1e-6 or max(corners) > 1 + 1e-6:
            raise ManifestError(f"{where} bbox", f"{person.bbox} leaves the image", "a box inside the image")
        inside = (max(corners[0], 0.0), max(corners[1], 0.0), min(corners[2], 1.0), min(corners[3], 1.0))
        _check(where, inside, ())
        boxes[video, float(time)].append((*inside, person.score))
    return dict(boxes)


class _Detection(Record):
    image_id: Name
    bbox: tuple[float, float, float, float]
    score: Fraction
