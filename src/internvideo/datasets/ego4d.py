"""Read four Ego4D tracks (arXiv 2211.09529): moments, language queries, short-term anticipation, future hands.

The fifth track, state-change objects, is in ego4d_objects.py.

Ego4D cuts its videos to "clips", files CLIP_UID.mp4 whose times and frames start at 0. The name of an annotation file
contains the split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from internvideo.data.sample import Box, Sample, Segment
from internvideo.datasets.annotations import Annotations, ClassList, InvalidRows
from internvideo.datasets.reading import (
    MIN_SEGMENT_SECONDS,
    AnnotationSource,
    JsonLocation,
    Name,
    Record,
    read_json,
    split_in_name,
)
from internvideo.errors import ManifestError

HAND_FRAMES = ("pre_45", "pre_30", "pre_15", "pre_frame", "contact_frame")
HANDS = ("left_hand", "right_hand")


class _MomentLabel(Record):
    start: NonNegativeFloat = Field(alias="start_time")
    end: NonNegativeFloat = Field(alias="end_time")
    label: Name
    primary: bool = True


class _Query(Record):
    start: NonNegativeFloat | None = Field(None, alias="clip_start_sec")
    end: NonNegativeFloat | None = Field(None, alias="clip_end_sec")
    query: str | None = None
    template: str | None = None


class _Annotator(Record):
    annotation_uid: str = ""
    labels: tuple[_MomentLabel, ...] = ()
    language_queries: tuple[_Query, ...] = ()


class _Clip(Record):
    clip_uid: Name
    annotations: tuple[_Annotator, ...] = ()


class _Video(Record):
    video_uid: Name
    clips: tuple[_Clip, ...]


class _Clips(Record):
    videos: tuple[_Video, ...]


class Category(Record):
    """A class name with its id."""

    id: NonNegativeInt
    name: Name


class _Size(Record):
    width: Annotated[int, Field(gt=0, alias="frame_width")]
    height: Annotated[int, Field(gt=0, alias="frame_height")]
    fps: PositiveFloat = 30.0


class _Info(Record):
    video_metadata: dict[str, _Size]


class _Object(Record):
    box: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]
    verb: NonNegativeInt = Field(alias="verb_category_id")
    noun: NonNegativeInt = Field(alias="noun_category_id")
    time_to_contact: NonNegativeFloat


class _Anticipation(Record):
    uid: Name
    video_id: Name
    frame: NonNegativeInt
    clip_uid: Name
    clip_frame: NonNegativeInt
    objects: tuple[_Object, ...] = ()


class _ShortTerm(Record):
    info: _Info
    verbs: tuple[Category, ...] = Field(alias="verb_categories")
    nouns: tuple[Category, ...] = Field(alias="noun_categories")
    annotations: tuple[_Anticipation, ...]


class _HandFrame(Record):
    frame: NonNegativeInt
    clip_frame: NonNegativeInt | None = None
    boxes: tuple[dict[str, tuple[float, float]], ...] = ()


class _Contact(Record):
    pre_45: _HandFrame | None = None
    pre_30: _HandFrame | None = None
    pre_15: _HandFrame | None = None
    pre_frame: _HandFrame | None = None
    contact_frame: _HandFrame | None = None


class _HandClip(Record):
    clip_id: NonNegativeInt | None = None
    clip_uid: Name
    video_uid: Name
    frames: tuple[_Contact, ...] = ()


class _Hands(Record):
    clips: tuple[_HandClip, ...]


def annotation_files(source: AnnotationSource, pattern: str, expected: str) -> Iterator[tuple[Path, str]]:
    """Yield the annotation files of a track with their splits. Raises ManifestError: there is none."""
    files = source.find(pattern)
    if not files:
        raise ManifestError(source.path, "no annotation file of this track", expected)
    for path in files:
        yield path, split_in_name(path) or "test"


def _clips(path: Path) -> Iterator[tuple[_Video, _Clip, tuple[str | int, ...]]]:
    for i, video in enumerate(read_json(path, _Clips).videos):
        for j, clip in enumerate(video.clips):
            yield video, clip, ("videos", i, "clips", j)


def read_moments(source: AnnotationSource) -> Annotations:
    """Read moments (MQ), 110 classes, `moments_train.json` and so on: one row per clip, all annotators' primary labels.

    Raises ManifestError: no such file, a malformed entry, mostly reversed moments, a duplicate clip.
    """
    annotations, known, num_dropped = Annotations(), ClassList((), 110), 0
    invalid = InvalidRows("labels")
    for path, split in annotation_files(source, r"moments[^/]*\.json$", "moments_train.json, moments_val.json"):
        for video, clip, location in _clips(path):
            segments = []
            for k, annotator in enumerate(clip.annotations):
                for n, moment in enumerate(annotator.labels):
                    where = JsonLocation(path, (*location, "annotations", k, "labels", n))
                    if invalid.skip(*_reversed_segment(where.at("end_time"), moment.start, moment.end)):
                        continue
                    if not moment.primary or moment.end - moment.start < MIN_SEGMENT_SECONDS:
                        num_dropped += 1
                        continue
                    label = known.index_of(moment.label, where)
                    segments.append(Segment(start=moment.start, end=moment.end, label=label))
            sample = clip_row(clip.clip_uid, clip.clip_uid, split, video.video_uid, segments=tuple(segments))
            annotations.add(split, sample, JsonLocation(path, location), clip.clip_uid)
    annotations.note(num_dropped, "labels that are not primary or have no duration left out")
    known.finish(annotations)
    invalid.finish(annotations)
    return annotations


def _reversed_segment(where: JsonLocation, start: float, end: float) -> tuple[bool, JsonLocation, str, str]:
    """Return the arguments of `InvalidRows.skip` for a segment: invalid if it ends before it starts."""
    return end < start, where, f"{end:g} before the start {start:g}", "start before end"


def clip_row(name: str, clip: str, split: str, video: str, **fields: Any) -> Sample:
    """Return the row of the file of an Ego4D clip; `fields` are further fields of the sample."""
    return Sample(id=name, path=f"{clip}.mp4", group=video, split=split, **fields)


def read_queries(source: AnnotationSource) -> Annotations:
    """Read language queries (NLQ), `nlq_train.json` and so on: one row per query; its answer is a segment of class 0.

    Queries without text or with an answer of no duration are left out and counted; test queries have no answer.
    Raises ManifestError: no such file, a malformed entry, mostly reversed answers.
    """
    annotations, num_dropped, invalid = Annotations(("answer",)), 0, InvalidRows("queries")
    for path, split in annotation_files(source, r"nlq[^/]*\.json$", "nlq_train.json, nlq_val.json"):
        for video, clip, location in _clips(path):
            for k, annotator in enumerate(clip.annotations):
                for n, query in enumerate(annotator.language_queries):
                    where = JsonLocation(path, (*location, "annotations", k, "language_queries", n))
                    answer: tuple[Segment, ...] = ()
                    if query.start is not None and query.end is not None:
                        if invalid.skip(*_reversed_segment(where.at("clip_end_sec"), query.start, query.end)):
                            continue
                        if query.end - query.start >= MIN_SEGMENT_SECONDS:
                            answer = (Segment(start=query.start, end=query.end, label=0),)
                    if not (query.query or "").strip() or (not answer and query.end is not None):
                        num_dropped += 1
                        continue
                    attributes = {"clip_uid": clip.clip_uid, "annotation_uid": annotator.annotation_uid}
                    attributes |= {"query_idx": str(n)} | ({"template": query.template} if query.template else {})
                    row = clip_row(
                        f"{clip.clip_uid}_{k}_{n}", clip.clip_uid, split, video.video_uid,
                        captions=(query.query,), segments=answer, attributes=attributes,
                    )  # fmt: skip
                    annotations.add(split, row, where, clip.clip_uid)
    invalid.finish(annotations)
    annotations.note(num_dropped, "queries without text or whose answer has no duration left out")
    return annotations


def read_anticipation(source: AnnotationSource) -> Annotations:
    """Read short-term anticipation (STA), 87 nouns, 74 verbs, `fho_sta_train.json` and so on: one row per key frame.

    The label of a box is its noun; the attributes "verbs" and "times_to_contact" (s) have one number per box, in order;
    "uid", "frame", "time" (s) and "size" describe the key frame. The vocabulary "verbs" lists the verb classes.
    Raises ManifestError: no such file, a malformed entry, an unknown noun, verb or video, a box outside the frame.
    """
    annotations = Annotations()
    for path, split in annotation_files(source, r"fho_sta[^/]*\.json$", "fho_sta_train.json, fho_sta_val.json"):
        content = read_json(path, _ShortTerm)
        nouns, verbs = (
            _names_by_id(path, "noun_categories", content.nouns),
            _names_by_id(path, "verb_categories", content.verbs),
        )
        if annotations.classes not in ((), nouns):
            raise ManifestError(f"{path}:1 noun_categories", "other nouns than in the other files", "the same")
        if annotations.vocabularies.get("verbs", verbs) != verbs:
            raise ManifestError(f"{path}:1 verb_categories", "other verbs than in the other files", "the same")
        annotations.classes, annotations.vocabularies["verbs"] = nouns, verbs
        for number, entry in enumerate(content.annotations):
            size = content.info.video_metadata.get(entry.video_id)
            spot = JsonLocation(path, ("annotations", number))
            if size is None:
                found = f"no size of video '{entry.video_id}'"
                raise ManifestError(spot.at("video_id"), found, "one of info.video_metadata")
            seconds, limits = entry.clip_frame / size.fps, (len(nouns), len(verbs))
            boxes = tuple(
                _box_of_object(item, size, seconds, limits, spot.at("objects", n))
                for n, item in enumerate(entry.objects)
            )
            attributes = {
                "uid": entry.uid, "frame": str(entry.clip_frame), "size": f"{size.width}x{size.height}",
                "time": f"{seconds:.4f}",
                "verbs": " ".join(str(item.verb) for item in entry.objects),
                "times_to_contact": " ".join(f"{item.time_to_contact:g}" for item in entry.objects),
            }  # fmt: skip
            attributes = {key: value for key, value in attributes.items() if value}
            row = clip_row(entry.uid, entry.clip_uid, split, entry.video_id, boxes=boxes, attributes=attributes)
            annotations.add(split, row, spot, entry.clip_uid)
    return annotations


def _names_by_id(path: Path, field: str, categories: tuple[Category, ...]) -> tuple[str, ...]:
    """Return category names in the order of their ids. Raises ManifestError: the ids are not 0, 1, 2, ..."""
    ordered = sorted(categories, key=lambda category: category.id)
    if [category.id for category in ordered] != list(range(len(ordered))):
        raise ManifestError(JsonLocation(path, (field,)), "the ids are not 0, 1, 2, ...", "each once")
    return tuple(category.name for category in ordered)


def _box_of_object(item: _Object, size: _Size, seconds: float, limits: tuple[int, int], where: JsonLocation) -> Box:
    for kind, number, limit in (("noun", item.noun, limits[0]), ("verb", item.verb, limits[1])):
        if number >= limit:
            raise ManifestError(where.at(f"{kind}_category_id"), f"unknown class {number}", f"0 to {limit - 1}")
    x1, y1, x2, y2 = item.box
    corners = (x1 / size.width, y1 / size.height, x2 / size.width, y2 / size.height)
    return clamp_box(corners, seconds, item.noun, where.at("box"))


def clamp_box(corners: tuple[float, float, float, float], seconds: float, label: int, where: object) -> Box:
    """Return a box of corners as fractions, clamped to the frame.

    Raises ManifestError: a box without area, or more than 0.0005 (rounding error) outside the frame.
    """
    x1, y1, x2, y2 = corners
    if min(corners) < -5e-4 or max(corners) > 1 + 5e-4:
        found = f"a box that leaves the frame: {tuple(round(corner, 4) for corner in corners)}"
        raise ManifestError(where, found, "0 to 1 of the frame")
    if x2 <= x1 or y2 <= y1:
        raise ManifestError(where, f"a box from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g})", "x1 < x2 and y1 < y2")
    x1, y1, x2, y2 = (min(max(corner, 0.0), 1.0) for corner in corners)
    return Box(time=seconds, x1=x1, y1=y1, x2=x2, y2=y2, labels=(label,))


def read_hands(source: AnnotationSource) -> Annotations:
    """Read future hands (FHP), `fho_hands_train.json` and so on: one row per interaction.

    The attribute "hands" is JSON: for each annotated frame of pre_45, pre_30, pre_15, pre_frame and contact_frame its
    index in the clip (in the video, if the file gives no other) and the positions (pixels) of the visible hands. The
    attribute "uid" is the row's id in the challenge, CLIP_ID_FRAME, where FRAME is the last video frame before pre_45.
    Raises ManifestError: no such file, a malformed entry, a hand other than left_hand and right_hand.
    """
    annotations = Annotations()
    for path, split in annotation_files(source, r"fho_hands[^/]*\.json$", "fho_hands_train.json, fho_hands_val.json"):
        for i, clip in enumerate(read_json(path, _Hands).clips):
            for j, contact in enumerate(clip.frames):
                where = JsonLocation(path, ("clips", i, "frames", j))
                key_frames: dict[str, dict[str, object]] = {}
                for name in HAND_FRAMES:
                    frame: _HandFrame | None = getattr(contact, name)
                    if frame is None:
                        continue
                    hands = {hand: position for box in frame.boxes for hand, position in box.items()}
                    if not set(hands) <= set(HANDS):
                        raise ManifestError(where.at(name, "boxes"), f"a hand {sorted(hands)}", " or ".join(HANDS))
                    frame_index = frame.frame if frame.clip_frame is None else frame.clip_frame
                    key_frames[name] = {"frame": frame_index, **hands}
                attributes = {"hands": json.dumps(key_frames)}
                if clip.clip_id is not None and contact.pre_45 is not None:
                    attributes["uid"] = f"{clip.clip_id}_{contact.pre_45.frame - 1}"
                name = f"{clip.clip_uid}_{j}"
                row = clip_row(name, clip.clip_uid, split, clip.video_uid, attributes=attributes)
                annotations.add(split, row, where, clip.clip_uid)
    return annotations
