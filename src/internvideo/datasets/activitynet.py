"""Read segments in ActivityNet's JSON (ActivityNet 1.3, HACS Segments, THUMOS14, FineAction), and HACS Clips.

`database.VIDEO.{subset, duration, fps?, annotations: [{label, segment: [start, end] s, label_id?}]}` (ActionFormer).
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from internvideo.data.sample import Sample, Segment
from internvideo.datasets.annotations import Annotations, ClassList, InvalidRows, read_names
from internvideo.datasets.reading import (
    MIN_SEGMENT_SECONDS,
    AnnotationSource,
    JsonLocation,
    Name,
    Record,
    SplitName,
    csv_records,
    numbered_lines,
    read_json,
    validate_record,
)
from internvideo.errors import ManifestError

THUMOS_CLASSES = (
    "BaseballPitch", "BasketballDunk", "Billiards", "CleanAndJerk", "CliffDiving", "CricketBowling", "CricketShot",
    "Diving", "FrisbeeCatch", "GolfSwing", "HammerThrow", "HighJump", "JavelinThrow", "LongJump", "PoleVault",
    "Shotput", "SoccerPenalty", "TennisSwing", "ThrowDiscus", "VolleyballSpiking",
)  # fmt: skip
"""In the order of the label ids. CliffDiving is part of Diving: its segments have both labels (ActionFormer)."""
AMBIGUOUS = "ambiguous"
"""Label of THUMOS14 segments that the evaluation ignores."""
_RAW = re.compile(r"(?:raw_class_file_)?(?P<label>[A-Za-z]+)_(?P<split>val|test)\.txt$", re.IGNORECASE)


class _Annotation(Record):
    label: Name
    segment: tuple[float, float]
    label_id: NonNegativeInt | None = None


class _Video(Record):
    subset: SplitName
    duration: NonNegativeFloat | None = None
    fps: PositiveFloat | None = None
    filename: Name | None = None
    annotations: tuple[_Annotation, ...] = ()


class _Taxon(Record):
    node_id: Annotated[int, Field(alias="nodeId")]
    node_name: Annotated[Name, Field(alias="nodeName")]
    parent_id: Annotated[int | None, Field(alias="parentId")] = None


class _File(Record):
    database: dict[Name, _Video]
    taxonomy: tuple[_Taxon, ...] = ()


class _HacsClip(Record):
    classname: Name
    youtube_id: Name
    subset: SplitName
    start: NonNegativeFloat
    end: PositiveFloat
    label: Annotated[int, Field(ge=-1, le=1)] | None = None


def read_activitynet(source: AnnotationSource) -> Annotations:
    """Read ActivityNet 1.3, 200 classes. Raises ManifestError."""
    path = source.find_optional(r"activity_?net[^/]*\.json$") or source.find_one(
        r"\.json$", "activity_net.v1-3.min.json"
    )
    return read_segments(path, count=200)


def read_hacs_segments(source: AnnotationSource) -> Annotations:
    """Read HACS Segments 1.1.1, 200 classes. Raises ManifestError."""
    return read_segments(source.find_one(r"segments[^/]*\.json$", "HACS_segments_v1.1.1.json"), count=200)


def read_hacs(source: AnnotationSource) -> Annotations:
    """Read HACS for recognition: HACS Segments (one class per video) if present, else HACS Clips. ManifestError."""
    return read_hacs_segments(source) if source.find(r"segments[^/]*\.json$") else read_hacs_clips(source)


def read_fineaction(source: AnnotationSource) -> Annotations:
    """Read FineAction, 106 classes. Raises ManifestError."""
    return read_segments(source.find_one(r"\.json$", "annotations_gt.json"), count=106)


def read_thumos14(source: AnnotationSource) -> Annotations:
    """Read THUMOS14, 20 classes, splits val (for training) and test: the JSON, or CLASS_val.txt and CLASS_test.txt.

    Raises ManifestError: no annotation file, or a malformed row.
    """
    path = source.find_optional(r"thumos[^/]*\.json$")
    return read_segments(path, THUMOS_CLASSES) if path else _raw_thumos(source)


def read_segments(path: Path, names: tuple[str, ...] = (), count: int = 0) -> Annotations:
    """Read a file of ActivityNet's format: one row per video, with its segments and its main class (None without any).

    The main class has the largest total duration. Class names are, in this order: `names`; the leaves of the taxonomy
    if there are `count` of them; the names by label id if the ids are 0, 1, 2, ... with one name each; the sorted
    names. More than `count` classes are an error.
    Raises ManifestError: a malformed entry, an unknown class, a duplicate video.
    """
    content = read_json(path, _File)
    if not content.database:
        raise ManifestError(f"{path} database", "no video in it", "at least one")
    annotations = Annotations()
    known = ClassList(names or _taxonomy(content, count) or _by_label_id(content, annotations), count)
    counts, invalid = {"short": 0, "late": 0, "classes": 0, "ambiguous": 0}, InvalidRows("segments")
    for video, entry in content.database.items():
        where = JsonLocation(path, ("database", video))
        valid = []
        for number, part in enumerate(entry.annotations):
            if names and part.label.casefold() == AMBIGUOUS:
                counts["ambiguous"] += 1
            elif not invalid.skip(*_reversed(part.segment, where.at("annotations", number, "segment"))):
                valid.append(part)
        num_ordered = len(valid)
        valid = [part for part in valid if part.segment[1] - part.segment[0] >= MIN_SEGMENT_SECONDS]
        counts["short"] += num_ordered - len(valid)
        counts["late"] += sum(part.segment[1] > (entry.duration or float("inf")) + 1 for part in valid)
        segments = tuple(_segment(*part.segment, known.index_of(part.label, where)) for part in valid)
        counts["classes"] += len({part.label for part in segments}) > 1
        attributes = {"duration": entry.duration, "fps": entry.fps}
        sample = Sample(
            id=video, path=entry.filename or f"{video}.mp4", label=main_class(segments), segments=segments,
            split=entry.subset, attributes={key: str(value) for key, value in attributes.items() if value is not None},
        )  # fmt: skip
        annotations.add(entry.subset, sample, where, Path(sample.path).stem, f"v_{video}", video)
    known.finish(annotations)
    invalid.finish(annotations)
    annotations.note(counts["ambiguous"], "ambiguous segments skipped: they are not evaluated")
    annotations.note(counts["short"], f"segments shorter than {MIN_SEGMENT_SECONDS} s left out")
    annotations.note(counts["late"], "segments end more than 1 s after their video (kept)")
    annotations.note(counts["classes"], "videos have several classes; their label is the one of the largest duration")
    return annotations


def _segment(start: float, end: float, label: int) -> Segment:
    return Segment(start=start, end=end, label=label)


def _reversed(segment: tuple[float, float], where: JsonLocation | str) -> tuple[bool, JsonLocation | str, str, str]:
    """Return the arguments of `InvalidRows.skip`: invalid if a segment ends before it starts, or starts before 0."""
    start, end = segment
    return end < start or start < 0, where, f"[{start:g}, {end:g}]", "0 <= start <= end"


def main_class(segments: tuple[Segment, ...]) -> int | None:
    """Return the class with the largest total duration; None without a segment."""
    seconds: defaultdict[int, float] = defaultdict(float)
    for part in segments:
        seconds[part.label] += part.end - part.start
    return max(seconds, key=seconds.__getitem__) if seconds else None


def _taxonomy(content: _File, count: int) -> tuple[str, ...]:
    """Return the sorted leaves of the taxonomy; () if there are not `count` of them."""
    parents = {node.parent_id for node in content.taxonomy}
    leaves = {node.node_name for node in content.taxonomy if node.node_id not in parents}
    return tuple(sorted(leaves)) if len(leaves) == count else ()


def _by_label_id(content: _File, annotations: Annotations) -> tuple[str, ...]:
    """Return the names in the order of their label ids; () unless ids and names map one to one, from 0 without gaps."""
    parts = [part for entry in content.database.values() for part in entry.annotations]
    pairs = {(part.label_id, part.label) for part in parts if part.label_id is not None}
    if not pairs or any(part.label_id is None for part in parts):
        return ()
    ids, names = {number for number, _ in pairs}, {name for _, name in pairs}
    if len(ids) == len(pairs) == len(names) and ids == set(range(len(ids))):
        return tuple(name for _, name in sorted((number or 0, name) for number, name in pairs))
    annotations.notes.append("label_id is not one number per class, from 0 without gaps; classes are ordered by name")
    return ()


class _RawSegment(Record):
    video: Name
    segment: tuple[float, float]


def _raw_thumos(source: AnnotationSource) -> Annotations:
    files = [(path, match) for path in source.files if (match := _RAW.search(path.name))]
    if not files:
        raise ManifestError(source.path, "no annotation file of THUMOS14", "thumos14.json, or CLASS_val.txt and so on")
    annotations, known = Annotations(THUMOS_CLASSES), ClassList(THUMOS_CLASSES)
    segments: defaultdict[tuple[str, str], list[Segment]] = defaultdict(list)
    short, invalid = 0, InvalidRows("segments")
    for path, match in files:
        if match["label"].lower() == AMBIGUOUS:
            annotations.notes.append(f"{path.name} skipped: ambiguous segments are not evaluated")
            continue
        label = known.index_of(match["label"], str(path))
        for where, line in numbered_lines(path):
            cells = line.split()
            if len(cells) != 3:
                raise ManifestError(f"{where} segment", f"{len(cells)} cells", "'video start end'")
            row = validate_record(_RawSegment, {"video": cells[0], "segment": cells[1:]}, where)
            if invalid.skip(*_reversed(row.segment, f"{where} segment")):
                continue
            if row.segment[1] - row.segment[0] < MIN_SEGMENT_SECONDS:
                short += 1
            else:
                segments[match["split"].lower(), row.video].append(_segment(*row.segment, label))
    invalid.finish(annotations)
    annotations.note(short, f"segments shorter than {MIN_SEGMENT_SECONDS} s left out")
    for (split, video), unordered in sorted(segments.items()):
        ordered = tuple(sorted(unordered, key=lambda segment: (segment.start, segment.end)))
        sample = Sample(id=video, path=f"{video}.mp4", label=main_class(ordered), segments=ordered, split=split)
        annotations.add(split, sample, str(source.path), video)
    return annotations


def read_hacs_clips(source: AnnotationSource) -> Annotations:
    """Read HACS Clips 1.1: `classname,youtube_id,subset,start,end,label`, 2-second clips.

    Label 1 marks a clip of the class, -1 a negative one (splits `train_negative`, `val_negative`, rows without label);
    test clips have no label.
    Raises ManifestError: no such file, a malformed row, a duplicate clip, an unknown class.
    """
    path = source.find_one(r"clips[^/]*\.csv$", "HACS_clips_v1.1.csv")
    names_file = source.find_optional(r"classes\.txt$")
    annotations, known = Annotations(), ClassList(read_names(names_file) if names_file else ())
    invalid = InvalidRows("clips")
    for where, row in csv_records(path, _HacsClip):
        times = f"{row.end:g} after start {row.start:g}"
        if invalid.skip(row.end <= row.start, f"{where} end", times, "start before end"):
            continue
        positive = row.label == 1
        split = row.subset if positive or row.subset == "test" else f"{row.subset}_negative"
        label = known.index_of(row.classname, where, field="classname")
        sample = Sample(
            id=f"{row.classname}/{row.youtube_id}_{row.start:g}_{row.end:g}",
            path=f"{row.youtube_id}.mp4", span=(row.start, row.end), label=label if positive else None,
            group=row.youtube_id, split=split, attributes={"class": row.classname},
        )  # fmt: skip
        annotations.add(split, sample, where, f"v_{row.youtube_id}", row.youtube_id)
    known.finish(annotations)
    invalid.finish(annotations)
    return annotations
