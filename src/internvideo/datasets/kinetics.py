"""Read Kinetics-400, 600 and 700 (official csv files, or lists of `path label`) and merge them into Kinetics-710.

Official csv: `label,youtube_id,time_start,time_end,split[,is_cc]`, times in whole seconds of the uploaded video. A
trimmed clip is named ID_SSSSSS_EEEEEE; a file named ID is taken for the trimmed clip too, as in the released lists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from internvideo.data.sample import Sample
from internvideo.datasets.annotations import Annotations, ClassList, InvalidRows
from internvideo.datasets.class_names import same_name
from internvideo.datasets.clip_lists import names_beside, read_lists
from internvideo.datasets.reading import (
    AnnotationSource,
    Name,
    Record,
    SplitName,
    csv_records,
    header_of,
    read_json,
    split_of,
)
from internvideo.errors import ManifestError

EXPECTED = "csv files with the header label,youtube_id,time_start,time_end,split, or lists of 'path label'"
_SETS = (400, 600, 700)
_TRIMMED = re.compile(r"_\d{6}_\d{6}$")


class _Row(Record):
    label: Name | None = None  # the test sets were first released without labels
    youtube_id: Name
    time_start: NonNegativeFloat
    time_end: NonNegativeFloat
    split: SplitName | None = None


def read(source: AnnotationSource, classes: int) -> Annotations:
    """Read Kinetics with `classes` classes from csv files, or from lists if there is no csv file.

    Lists beside csv files are skipped and noted.
    Raises ManifestError: no annotation file, a malformed row, a duplicate clip in a split, an unknown class.
    """
    tables = source.find(r"\.(csv|txt|list)$")
    official = [path for path in tables if "youtube_id" in header_of(path)]
    annotations = _official(source, official, classes) if official else Annotations()
    lists = [path for path in tables if path not in official and split_of(path)]
    other_splits = [path for path in lists if split_of(path) not in annotations.splits]
    annotations.notes += [
        f"{path.name} skipped: a csv file has that split" for path in lists if path not in other_splits
    ]
    if official and other_splits:
        names = ", ".join(path.name for path in other_splits)
        annotations.notes.append(f"{names} skipped: give lists and csv files by themselves")
    if not official:
        if not lists:
            raise ManifestError(source.path, "no annotation file of Kinetics", EXPECTED)
        splits = [split_of(path) for path in lists]
        duplicate = next((path for path in lists if splits.count(split_of(path)) > 1), None)
        if duplicate is not None:
            hint = "give a folder without the other"
            raise ManifestError(duplicate, "a second list of the same split", "one list per split", hint)
        annotations = read_lists(source, lists, classes)
    return annotations


def _official(source: AnnotationSource, files: list[Path], count: int) -> Annotations:
    rows: list[tuple[str, str, _Row]] = []
    invalid = InvalidRows("clips")
    for path in files:
        for where, row in csv_records(path, _Row):
            times = f"{row.time_end:g} after time_start {row.time_start:g}"
            reversed_times = row.time_end <= row.time_start
            if invalid.skip(reversed_times, f"{where} time_end", times, "an end after time_start"):
                continue
            split = row.split or split_of(path)
            if split is None:
                raise ManifestError(f"{where} split", "missing", "train, val or test")
            rows.append((where, split, row))
    # A class that the training set lacks is an error; without a training set the names of all rows are the classes.
    training_labels = {row.label for _, split, row in rows if split == "train" and row.label}
    names = names_beside(source) or tuple(sorted(training_labels or {row.label for *_, row in rows if row.label}))
    if len(names) > count:
        raise ManifestError(files[0], f"{len(names)} class names in all", f"{count} classes")
    annotations, known = Annotations(names), ClassList(names)
    for where, split, row in rows:
        clip = f"{row.youtube_id}_{row.time_start:06.0f}_{row.time_end:06.0f}"
        label = None if row.label is None else known.index_of(row.label, where)
        sample = Sample(id=clip, path=f"{clip}.mp4", label=label, split=split, group=row.youtube_id)
        annotations.add(split, sample, where, clip, row.youtube_id)
    invalid.finish(annotations)
    return annotations


def read_400(source: AnnotationSource) -> Annotations:
    """Read Kinetics-400. Raises ManifestError."""
    return read(source, 400)


def read_600(source: AnnotationSource) -> Annotations:
    """Read Kinetics-600. Raises ManifestError."""
    return read(source, 600)


def read_700(source: AnnotationSource) -> Annotations:
    """Read Kinetics-700. Raises ManifestError."""
    return read(source, 700)


def read_zero_shot(source: AnnotationSource) -> Annotations:
    """Read the Kinetics-400 test list of multi-modalities-downstream: `path<TAB>label`, and a file of 400 class names.

    Raises ManifestError: as `read`, or no class names (needed for the prompts).
    """
    if not names_beside(source):
        raise ManifestError(source.path, "no class names", "a file kinetics_label_map.txt, one name per line")
    return read_lists(source, [source.one(r"\.(list|csv)$", "k400_test_tsm.list")], 400, one="test")


def read_710(source: AnnotationSource) -> Annotations:
    """Read Kinetics-710: lists of it, or the folders kinetics400, kinetics600 and kinetics700, which are merged.

    Raises ManifestError: as `read`, or a label map with an unknown class.
    """
    parts = {count: source.below(rf"(kinetics|k)[-_]?{count}") for count in _SETS}
    given = {count: part for count, part in parts.items() if part is not None}
    if len(given) == len(parts):
        return merge({count: read(part, count) for count, part in given.items()}, _maps(source))
    lists = [path for path in source.find(r"\.(csv|txt|list)$") if split_of(path)]
    if given or not lists:
        found = f"folders of {', '.join(map(str, given))} only" if given else "neither lists nor the folders to merge"
        raise ManifestError(source.path, found, "kinetics400, kinetics600 and kinetics700, or lists of 'path label'")
    return read_lists(source, lists, 710)


_LabelMap = dict[NonNegativeInt, Annotated[int, Field(ge=0, lt=710)]]


def _maps(source: AnnotationSource) -> dict[int, dict[int, int]]:
    """Read the released label maps: N -> class of Kinetics-N -> class of Kinetics-710."""
    paths = {count: source.maybe(rf"label_map_k{count}_to_710\.json$") for count in _SETS}
    return {count: read_json(path, _LabelMap) for count, path in paths.items() if path is not None}


def merge(parts: Mapping[int, Annotations], maps: Mapping[int, Mapping[int, int]] | None = None) -> Annotations:
    """Merge three Kinetics sets into Kinetics-710: classes by name, without training clips of held-out videos.

    A clip is dropped if a larger set has its video in the same split; a training clip also if any of the three has its
    video in the validation or test set. `lists["dropped"]` has set, split, clip and reason.

    Args:
        parts: number of classes -> annotations. maps: released label maps; unless all three are given, the classes are
            the sorted union of the names.

    Raises ManifestError: a class that a label map lacks.
    """
    annotations = Annotations()
    label_maps = maps if maps and len(maps) == len(parts) else None
    annotations.classes = _mapped_names(parts, label_maps) if label_maps else _union(parts)
    if label_maps is None:
        count = len(annotations.classes)
        annotations.notes.append(f"the classes are the {count} distinct names of the {len(parts)} sets, sorted")
    index = {same_name(name): number for number, name in enumerate(annotations.classes)}
    held_out = {
        _video(row): f"{split} set of kinetics{count}"
        for count, part in parts.items()
        for split in ("test", "val")
        for row in part.splits.get(split, ())
    }
    dropped: list[tuple[str, ...]] = []
    used: dict[tuple[str, str], str] = {}
    for count in sorted(parts, reverse=True):
        part = parts[count]
        by_name = {old: index[same_name(name)] for old, name in enumerate(part.classes)} if not label_maps else {}
        new_label = label_maps[count] if label_maps else by_name
        for split in ("train", "val"):
            for row in part.splits.get(split, ()):
                reason = held_out.get(_video(row)) if split == "train" else None
                reason = reason or used.get((split, _video(row)))
                if reason:
                    dropped.append((f"kinetics{count}", split, row.id, f"in the {reason}"))
                    continue
                used[split, _video(row)] = f"{split} set of kinetics{count}"
                label = None if row.label is None else new_label[row.label]
                path = f"k{count}/{row.path}"
                copy = row.model_copy(update={"id": f"k{count}/{row.id}", "path": path, "label": label})
                annotations.add(split, copy, f"kinetics{count}", path, *part.names.get(row.path, ()))
    annotations.lists["dropped"] = dropped
    for split in ("val", "test"):
        num_dropped = sum(f"in the {split}" in reason and part == "train" for _, part, _, reason in dropped)
        annotations.note(num_dropped, f"training clips dropped because a {split} set has their video")
    num_dropped = sum("in the train" in reason for *_, reason in dropped)
    annotations.note(num_dropped, "training clips dropped that a larger set has")
    return annotations


def _video(row: Sample) -> str:
    """Return the id of the uploaded video of a clip; for rows of lists it is in the file name."""
    return row.group or _TRIMMED.sub("", Path(row.path).stem)


def _union(parts: Mapping[int, Annotations]) -> tuple[str, ...]:
    spelled: dict[str, str] = {}
    for count in sorted(parts, reverse=True):
        for name in parts[count].classes:
            spelled.setdefault(same_name(name), name)
    return tuple(sorted(spelled.values()))


def _mapped_names(parts: Mapping[int, Annotations], maps: Mapping[int, Mapping[int, int]]) -> tuple[str, ...]:
    names = [f"class {number}" for number in range(710)]
    for count in sorted(parts):  # the spelling of the largest set wins
        for old, name in enumerate(parts[count].classes):
            if old not in maps[count]:
                file = f"label_map_k{count}_to_710.json"
                raise ManifestError(file, f"nothing for class {old} ({name})", "every class")
            names[maps[count][old]] = name
    return tuple(names)
