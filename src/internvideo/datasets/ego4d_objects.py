"""Read Ego4D's state-change objects (arXiv 2211.09529): the official annotations, or a COCO export of the frames."""

from __future__ import annotations

from collections import Counter

from pydantic import Field, NonNegativeInt, PositiveInt

from internvideo.data.sample import Box, Sample
from internvideo.datasets.annotations import Annotations, corners_of
from internvideo.datasets.ego4d import Category, annotation_files, clamp_box, clip_row
from internvideo.datasets.reading import AnnotationSource, JsonLocation, Name, Record, read_json
from internvideo.errors import ManifestError

CHANGED = "object_of_change"
MOMENTS = ("pre_frame", "pnr_frame", "post_frame")
"""Before the change, at its point of no return, after it."""
FRAME_RATE = 30.0
"""Frames per second of Ego4D's clips."""
OFFICIAL = r"fho_scod_(?!coco)[^/]*\.json$"
EXPORTED = r"coco[^/]*(/(train|val|test)(_[^/]*)?)?\.json$"


class _Corner(Record):
    x: float
    y: float
    width: float
    height: float


class _ObjectBox(Record):
    object_type: Name
    noun: str | None = Field(None, alias="structured_noun")
    bbox: _Corner


class _Frame(Record):
    frame_number: NonNegativeInt
    clip_frame_number: NonNegativeInt
    width: PositiveInt
    height: PositiveInt
    items: tuple[_ObjectBox, ...] = Field((), alias="bbox")


class _Change(Record):
    video_uid: Name
    clip_uid: Name
    pre_frame: _Frame
    pnr_frame: _Frame
    post_frame: _Frame


class _Changes(Record):
    clips: tuple[_Change, ...]


class _Image(Record):
    id: int
    file_name: Name
    width: PositiveInt
    height: PositiveInt


class _ImageBox(Record):
    image_id: int
    category_id: NonNegativeInt
    bbox: tuple[float, float, float, float]


class _Coco(Record):
    images: tuple[_Image, ...]
    annotations: tuple[_ImageBox, ...] = ()
    categories: tuple[Category, ...]


def read_state_change(source: AnnotationSource) -> Annotations:
    """Read state-change objects (SCOD), one class: `fho_scod_train.json` and so on, else a COCO export of the frames.

    Raises ManifestError: neither, or as `read_changes` and `read_exported`.
    """
    return read_changes(source) if source.find(OFFICIAL) else read_exported(source)


def read_changes(source: AnnotationSource) -> Annotations:
    """Read the official annotations, `fho_scod_train.json` and so on: one row for each of the three frames of a change.

    A row is a key frame of the clip CLIP_UID.mp4 with the boxes of the object of change; boxes of hands and tools are
    skipped. Attributes: "uid" is VIDEO_UID/FRAME, the name of the published frame; "moment" is pre, pnr or post; "noun"
    names the object; "frame", "time" (s) and "size" refer to the clip.
    Raises ManifestError: no such file, a malformed entry, a box outside the frame.
    """
    annotations, num_without_box = Annotations((CHANGED,)), 0
    for path, split in annotation_files(source, OFFICIAL, "fho_scod_train.json, fho_scod_val.json"):
        changes_per_clip: Counter[str] = Counter()
        for index, change in enumerate(read_json(path, _Changes).clips):
            for name in MOMENTS:
                where, frame = JsonLocation(path, ("clips", index, name)), getattr(change, name)
                change_id = f"{change.clip_uid}_{changes_per_clip[change.clip_uid]}"
                row = _key_frame(change, name, frame, change_id, split, where)
                num_without_box += not row.boxes
                annotations.add(split, row, where, change.clip_uid)
            changes_per_clip[change.clip_uid] += 1
    annotations.note(num_without_box, "frames without a box of the object of change")
    return annotations


def _key_frame(change: _Change, name: str, frame: _Frame, change_id: str, split: str, where: JsonLocation) -> Sample:
    seconds, boxes, nouns = frame.clip_frame_number / FRAME_RATE, [], []
    for index, item in enumerate(frame.items):
        if item.object_type == CHANGED:
            box = item.bbox
            corners = corners_of((box.x, box.y, box.width, box.height), (frame.width, frame.height))
            boxes.append(clamp_box(corners, seconds, 0, where.at("bbox", index, "bbox")))
            nouns += [item.noun] if item.noun else []
    moment = name.removesuffix("_frame")
    attributes = {
        "uid": f"{change.video_uid}/{frame.frame_number}", "moment": moment, "noun": ", ".join(dict.fromkeys(nouns)),
        "frame": str(frame.clip_frame_number), "time": f"{seconds:.4f}", "size": f"{frame.width}x{frame.height}",
    }  # fmt: skip
    attributes = {key: value for key, value in attributes.items() if value}
    name = f"{change_id}_{moment}"
    return clip_row(name, change.clip_uid, split, change.video_uid, boxes=tuple(boxes), attributes=attributes)


def read_exported(source: AnnotationSource) -> Annotations:
    """Read a COCO export of one class, `train_coco.json`, `coco_annotations/train.json` and so on: one row per frame.

    Paths are the file names of the exported images.
    Raises ManifestError: no such file, a malformed entry, an unknown image or class, a box outside the image.
    """
    annotations = Annotations()
    expected = "fho_scod_train.json, fho_scod_val.json or a COCO export train_coco.json"
    for path, split in annotation_files(source, EXPORTED, expected):
        content = read_json(path, _Coco)
        index = {category.id: change_id for change_id, category in enumerate(content.categories)}
        annotations.classes = tuple(category.name for category in content.categories)
        boxes: dict[int, list[Box]] = {image.id: [] for image in content.images}
        images = {image.id: image for image in content.images}
        for change_id, box in enumerate(content.annotations):
            where = JsonLocation(path, ("annotations", change_id))
            if box.image_id not in images:
                raise ManifestError(where.at("image_id"), f"no image {box.image_id}", "one of images")
            if box.category_id not in index:
                raise ManifestError(where.at("category_id"), f"unknown class {box.category_id}", "one of categories")
            image = images[box.image_id]
            corners = corners_of(box.bbox, (image.width, image.height))
            boxes[image.id].append(clamp_box(corners, 0.0, index[box.category_id], where.at("bbox")))
        for change_id, image in enumerate(content.images):
            sample = Sample(
                id=str(image.id), path=image.file_name, boxes=tuple(boxes[image.id]), split=split,
                attributes={"size": f"{image.width}x{image.height}"},
            )  # fmt: skip
            annotations.add(split, sample, JsonLocation(path, ("images", change_id)))
    return annotations
