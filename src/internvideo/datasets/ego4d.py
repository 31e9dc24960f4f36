"""Ego4D (arXiv 2211.09529), four tracks of the paper's figure 1: moments, language queries, anticipation, future hands.

The fifth, state-change objects, is in ego4d_objects.py.

Clips are files CLIP_UID.mp4, whose times and frames start at 0. Splits are told by the names of the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from internvideo.data.sample import Box, Sample, Segment
from internvideo.datasets.annotations import Annotations, ClassList, OddRows
from internvideo.datasets.reading import SHORTEST_SECONDS, AnnotationSource, Name, Record, Spot, read_json, split_of
from internvideo.errors import ManifestError

Seconds = Annotated[float, Field(ge=0)]
Whole = Annotated[int, Field(ge=0)]
HAND_FRAMES = ("pre_45", "pre_30", "pre_15", "pre_frame", "contact_frame")
HANDS = ("left_hand", "right_hand")


class _MomentLabel(Record):
    start: Seconds = Field(alias="start_time")
    end: Seconds = Field(alias="end_time")
    label: Name
    primary: bool = True


class _Query(Record):
    start: Seconds | None = Field(None, alias="clip_start_sec")
    end: Seconds | None = Field(None, alias="clip_end_sec")
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
    """A class with its number."""

    id: Whole
    name: Name


class _Size(Record):
    width: Annotated[int, Field(gt=0, alias="frame_width")]
    height: Annotated[int, Field(gt=0, alias="frame_height")]
    fps: Annotated[float, Field(gt=0)] = 30.0


class _Info(Record):
    video_metadata: dict[str, _Size]


class _Object(Record):
    box: tuple[Seconds, Seconds, Seconds, Seconds]
    verb: Whole = Field(alias="verb_category_id")
    noun: Whole = Field(alias="noun_category_id")
    time_to_contact: Seconds


class _Anticipation(Record):
    uid: Name
    video_id: Name
    frame: Whole
    clip_uid: Name
    clip_frame: Whole
    objects: tuple[_Object, ...] = ()


class _ShortTerm(Record):
    info: _Info
    verbs: tuple[Category, ...] = Field(alias="verb_categories")
    nouns: tuple[Category, ...] = Field(alias="noun_categories")
    annotations: tuple[_Anticipation, ...]


class _HandFrame(Record):
    frame: Whole
    clip_frame: Whole | None = None
    boxes: tuple[dict[str, tuple[float, float]], ...] = ()


class _Contact(Record):
    pre_45: _HandFrame | None = None
    pre_30: _HandFrame | None = None
    pre_15: _HandFrame | None = None
    pre_frame: _HandFrame | None = None
    contact_frame: _HandFrame | None = None


class _HandClip(Record):
    clip_id: Whole | None = None
    clip_uid: Name
    video_uid: Name
    frames: tuple[_Contact, ...] = ()


class _Hands(Record):
    clips: tuple[_HandClip, ...]


def annotation_files(source: AnnotationSource, pattern: str, expected: str) -> Iterator[tuple[Path, str]]:
    """The files of a track, with their splits. Raises ManifestError: there is none."""
    files = source.find(pattern)
    if not files:
        raise ManifestError(source.path, "no annotation file of this track", expected)
    for path in files:
        yield path, split_of(path) or "test"


def _clips(path: Path) -> Iterator[tuple[_Video, _Clip, tuple[str | int, ...]]]:
    for i, video in enumerate(read_json(path, _Clips).videos):
        for j, clip in enumerate(video.clips):
            yield video, clip, ("videos", i, "clips", j)


def read_moments(source: AnnotationSource) -> Annotations:
    """Moments (MQ), 110 classes: `moments_train.json` and so on; a row a clip with all annotators' primary labels.

    Raises:
        ManifestError: no such file, a malformed entry, mostly reversed moments, a clip twice.
    """
    made, known, left_out = Annotations(), ClassList((), 110), 0
    odd = OddRows("labels")
    for path, split in annotation_files(source, r"moments[^/]*\.json$", "moments_train.json, moments_val.json"):
        for video, clip, place in _clips(path):
            segments = []
            for k, annotator in enumerate(clip.annotations):
                for n, moment in enumerate(annotator.labels):
                    where = Spot(path, (*place, "annotations", k, "labels", n))
                    if odd.passed(*_turned(where.at("end_time"), moment.start, moment.end)):
                        continue
                    if not moment.primary or moment.end - moment.start < SHORTEST_SECONDS:
                        left_out += 1
                        continue
                    label = known.named(moment.label, where)
                    segments.append(Segment(start=moment.start, end=moment.end, label=label))
            sample = clip_row(clip.clip_uid, clip.clip_uid, split, video.video_uid).model_copy(
                update={"segments": tuple(segments)}
            )
            made.add(split, sample, Spot(path, place), clip.clip_uid)
    made.note(left_out, "labels that are not primary, or have no length, left out")
    known.settle(made)
    odd.settle(made)
    return made


def _turned(where: Spot, start: float, end: float) -> tuple[bool, Spot, str, str]:
    """Whether times run backwards, and how that is told."""
    return end < start, where, f"{end:g} before the start {start:g}", "start before end"


def clip_row(name: str, clip: str, split: str, video: str) -> Sample:
    """A row of the file of a clip."""
    return Sample(id=name, path=f"{clip}.mp4", group=video, split=split)


def read_queries(source: AnnotationSource) -> Annotations:
    """Language queries (NLQ): `nlq_train.json` and so on; a row a query, its answer the segment, class "answer".

    A query without text or without length is left out, and noted; test queries have no answer.

    Raises:
        ManifestError: no such file, a malformed entry, mostly reversed answers.
    """
    made, left_out, odd = Annotations(("answer",)), 0, OddRows("queries")
    for path, split in annotation_files(source, r"nlq[^/]*\.json$", "nlq_train.json, nlq_val.json"):
        for video, clip, place in _clips(path):
            for k, annotator in enumerate(clip.annotations):
                for n, query in enumerate(annotator.language_queries):
                    where = Spot(path, (*place, "annotations", k, "language_queries", n))
                    answer: tuple[Segment, ...] = ()
                    if query.start is not None and query.end is not None:
                        if odd.passed(*_turned(where.at("clip_end_sec"), query.start, query.end)):
                            continue
                        if query.end - query.start >= SHORTEST_SECONDS:
                            answer = (Segment(start=query.start, end=query.end, label=0),)
                    if not (query.query or "").strip() or (not answer and query.end is not None):
                        left_out += 1
                        continue
                    row = clip_row(f"{clip.clip_uid}_{k}_{n}", clip.clip_uid, split, video.video_uid)
                    told = {"clip_uid": clip.clip_uid, "annotation_uid": annotator.annotation_uid, "query_idx": str(n)}
                    told |= {"template": query.template} if query.template else {}
                    changed = {"captions": (query.query,), "segments": answer, "attributes": told}
                    made.add(split, row.model_copy(update=changed), where, clip.clip_uid)
    odd.settle(made)
    made.note(left_out, "queries without text or whose answer has no length left out")
    return made


def read_anticipation(source: AnnotationSource) -> Annotations:
    """Short-term anticipation (STA), 87 nouns and 74 verbs: `fho_sta_train.json` and so on; a row a key frame.

    Boxes carry the noun; the attributes "verbs" and "times_to_contact" (s) have a number for each box, in their order,
    and "uid", "frame", "time" and "size" name the key frame. The vocabulary "verbs" names the verbs.

    Raises:
        ManifestError: no such file, a malformed entry, an unknown noun, verb or video, a box outside the frame.
    """
    made = Annotations()
    for path, split in annotation_files(source, r"fho_sta[^/]*\.json$", "fho_sta_train.json, fho_sta_val.json"):
        content = read_json(path, _ShortTerm)
        nouns, verbs = _named(path, "noun_categories", content.nouns), _named(path, "verb_categories", content.verbs)
        if made.classes not in ((), nouns):
            raise ManifestError(f"{path}:1 noun_categories", "other nouns than in the other files", "the same")
        if made.vocabularies.get("verbs", verbs) != verbs:
            raise ManifestError(f"{path}:1 verb_categories", "other verbs than in the other files", "the same")
        made.classes, made.vocabularies["verbs"] = nouns, verbs
        for number, entry in enumerate(content.annotations):
            size = content.info.video_metadata.get(entry.video_id)
            if size is None:
                where = Spot(path, ("annotations", number, "video_id"))
                raise ManifestError(where, f"no size of video '{entry.video_id}'", "one of info.video_metadata")
            seconds, limits = entry.clip_frame / size.fps, (len(nouns), len(verbs))
            spot = Spot(path, ("annotations", number))
            boxes = tuple(
                _object_box(thing, size, seconds, limits, spot.at("objects", n))
                for n, thing in enumerate(entry.objects)
            )
            told = {
                "uid": entry.uid, "frame": str(entry.clip_frame), "size": f"{size.width}x{size.height}",
                "time": f"{seconds:.4f}",
                "verbs": " ".join(str(thing.verb) for thing in entry.objects),
                "times_to_contact": " ".join(f"{thing.time_to_contact:g}" for thing in entry.objects),
            }  # fmt: skip
            row = clip_row(entry.uid, entry.clip_uid, split, entry.video_id)
            kept = {"boxes": boxes, "attributes": {key: value for key, value in told.items() if value}}
            made.add(split, row.model_copy(update=kept), spot, entry.clip_uid)
    return made


def _named(path: Path, field: str, categories: tuple[Category, ...]) -> tuple[str, ...]:
    """Names in the order of their numbers. Raises ManifestError: numbers with gaps."""
    ordered = sorted(categories, key=lambda category: category.id)
    if [category.id for category in ordered] != list(range(len(ordered))):
        raise ManifestError(Spot(path, (field,)), "the ids are not 0, 1, 2, ...", "each once")
    return tuple(category.name for category in ordered)


def _object_box(thing: _Object, size: _Size, seconds: float, limits: tuple[int, int], where: Spot) -> Box:
    for field, number, limit in (
        ("noun_category_id", thing.noun, limits[0]),
        ("verb_category_id", thing.verb, limits[1]),
    ):
        if number >= limit:
            raise ManifestError(where.at(field), f"unknown class {number}", f"0 to {limit - 1}")
    x1, y1, x2, y2 = thing.box
    corners = (x1 / size.width, y1 / size.height, x2 / size.width, y2 / size.height)
    return box_inside(corners, seconds, thing.noun, where.at("box"))


def box_inside(corners: tuple[float, float, float, float], seconds: float, label: int, where: object) -> Box:
    """A box in fractions; half a per mille outside is rounding. Raises ManifestError."""
    x1, y1, x2, y2 = corners
    if min(corners) < -5e-4 or max(corners) > 1 + 5e-4:
        raise ManifestError(
            where, f"a box that leaves the frame: {tuple(round(c, 4) for c in corners)}", "0 to 1 of the frame"
        )
    if x2 <= x1 or y2 <= y1:
        raise ManifestError(where, f"a box from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g})", "x1 < x2 and y1 < y2")
    x1, y1, x2, y2 = (min(max(corner, 0.0), 1.0) for corner in corners)
    return Box(time=seconds, x1=x1, y1=y1, x2=x2, y2=y2, labels=(label,))


def read_hands(source: AnnotationSource) -> Annotations:
    """Future hands (FHP): `fho_hands_train.json` and so on; a row an interaction.

    The attribute "hands" is JSON: for each of pre_45, pre_30, pre_15, pre_frame and contact_frame that is annotated its
    frame number in the clip (in the video, where no other is told) and the positions (pixels) of the visible hands. The
    attribute "uid" is the challenge's name of the row: CLIP_ID_FRAME, the last video frame before pre_45.

    Raises:
        ManifestError: no such file, a malformed entry, a hand of another name.
    """
    made = Annotations()
    for path, split in annotation_files(source, r"fho_hands[^/]*\.json$", "fho_hands_train.json, fho_hands_val.json"):
        for i, clip in enumerate(read_json(path, _Hands).clips):
            for j, contact in enumerate(clip.frames):
                where = Spot(path, ("clips", i, "frames", j))
                told: dict[str, dict[str, object]] = {}
                for name in HAND_FRAMES:
                    moment: _HandFrame | None = getattr(contact, name)
                    if moment is None:
                        continue
                    hands = {hand: place for box in moment.boxes for hand, place in box.items()}
                    if not set(hands) <= set(HANDS):
                        raise ManifestError(where.at(name, "boxes"), f"a hand {sorted(hands)}", " or ".join(HANDS))
                    inside = moment.frame if moment.clip_frame is None else moment.clip_frame
                    told[name] = {"frame": inside, **hands}
                row = clip_row(f"{clip.clip_uid}_{j}", clip.clip_uid, split, clip.video_uid)
                kept = {"hands": json.dumps(told)}
                if clip.clip_id is not None and contact.pre_45 is not None:
                    kept["uid"] = f"{clip.clip_id}_{contact.pre_45.frame - 1}"
                made.add(split, row.model_copy(update={"attributes": kept}), where, clip.clip_uid)
    return made
