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
from internvideo.datasets.clip_lists import read_label_map_names, read_lists
from internvideo.datasets.reading import (
    AnnotationSource,
    Name,
    Record,
    SplitName,
    csv_records,
    header_of,
    read_json,
    split_in_name,
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


def read(source: AnnotationSource, num_classes: int) -> Annotations:
    """Read Kinetics with `num_classes` classes from csv files, or from lists if there is no csv file.

    If there are csv files, all lists are skipped and noted.
    Raises ManifestError: no annotation file, a malformed row, a duplicate clip in a split, an unknown class.
    """
    tables = source.find(r"\.(csv|txt|list)$")
    csv_files = [path for path in tables if "youtube_id" in header_of(path)]
    annotations = _read_csv(source, csv_files, num_classes) if csv_files else Annotations()
    lists = [path for path in tables if path not in csv_files and split_in_name(path)]
    same_split = [path for path in lists if split_in_name(path) in annotations.splits]
    annotations.notes += [f"{path.name} skipped: a csv file has that split" for path in same_split]
    if csv_files and len(same_split) < len(lists):
        names = ", ".join(path.name for path in lists if path not in same_split)
        annotations.notes.append(f"{names} skipped: give lists and csv files separately")
    if not csv_files:
        if not lists:
            raise ManifestError(source.path, "no annotation file of Kinetics", EXPECTED)
        splits = [split_in_name(path) for path in lists]
        duplicate = next((path for path in lists if splits.count(split_in_name(path)) > 1), None)
        if duplicate is not None:
            hint = "give a folder without the other"
            raise ManifestError(duplicate, "a second list of the same split", "one list per split", hint)
        annotations = read_lists(source, lists, num_classes)
    return annotations


def _read_csv(source: AnnotationSource, files: list[Path], num_classes: int) -> Annotations:
    rows: list[tuple[str, str, _Row]] = []
    invalid = InvalidRows("clips")
    for path in files:
        for where, row in csv_records(path, _Row):
            times = f"{row.time_end:g} after time_start {row.time_start:g}"
            reversed_times = row.time_end <= row.time_start
            if invalid.skip(reversed_times, f"{where} time_end", times, "an end after time_start"):
                continue
            split = row.split or split_in_name(path)
            if split is None:
                raise ManifestError(f"{where} split", "missing", "train, val or test")
            rows.append((where, split, row))
    # The classes are the names of the training set, if there is one, else of all rows; other names are an error.
    training_labels = {row.label for _, split, row in rows if split == "train" and row.label}
    names = read_label_map_names(source) or tuple(
        sorted(training_labels or {row.label for *_, row in rows if row.label})
    )
    if len(names) > num_classes:
        raise ManifestError(files[0], f"{len(names)} class names in all", f"{num_classes} classes")
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
    if not read_label_map_names(source):
        raise ManifestError(source.path, "no class names", "a file kinetics_label_map.txt, one name per line")
    return read_lists(source, [source.find_one(r"\.(list|csv)$", "k400_test_tsm.list")], 400, default_split="test")


def read_710(source: AnnotationSource) -> Annotations:
    """Read Kinetics-710: lists of it, or the folders kinetics400, kinetics600 and kinetics700, which are merged.

    Raises ManifestError: as `read`, or a label map with an unknown class.
    """
    folders = {size: folder for size in _SETS if (folder := source.subfolder(rf"(kinetics|k)[-_]?{size}")) is not None}
    if len(folders) == len(_SETS):
        return merge({size: read(folder, size) for size, folder in folders.items()}, _read_label_maps(source))
    lists = [path for path in source.find(r"\.(csv|txt|list)$") if split_in_name(path)]
    if folders or not lists:
        sizes = ", ".join(map(str, folders))
        found = f"only folders of {sizes}" if folders else "neither lists nor the folders to merge"
        raise ManifestError(source.path, found, "kinetics400, kinetics600 and kinetics700, or lists of 'path label'")
    return read_lists(source, lists, 710)


_LabelMap = dict[NonNegativeInt, Annotated[int, Field(ge=0, lt=710)]]


def _read_label_maps(source: AnnotationSource) -> dict[int, dict[int, int]]:
    """Read the released label maps: {N: {class of Kinetics-N: class of Kinetics-710}}."""
    paths = {size: source.find_optional(rf"label_map_k{size}_to_710\.json$") for size in _SETS}
    return {size: read_json(path, _LabelMap) for size, path in paths.items() if path is not None}


def merge(sets: Mapping[int, Annotations], maps: Mapping[int, Mapping[int, int]] | None = None) -> Annotations:
    """Merge three Kinetics sets into Kinetics-710: classes by name, without training clips of held-out videos.

    A clip is dropped if a larger set has its video in the same split; a training clip also if any of the three has its
    video in the validation or test set. `lists["dropped"]` has set, split, clip and reason.

    Args:
        sets: size (400, 600, 700) -> annotations. maps: released label maps, {size: {old class: new class}}; unless all
            three are given, the classes are the sorted union of the names.

    Raises ManifestError: a class that a label map lacks.
    """
    annotations = Annotations()
    label_maps = maps if maps and len(maps) == len(sets) else None
    annotations.classes = _mapped_names(sets, label_maps) if label_maps else _union(sets)
    if label_maps is None:
        num_classes = len(annotations.classes)
        annotations.notes.append(f"the classes are the {num_classes} distinct names of the {len(sets)} sets, sorted")
    index_of = {same_name(name): index for index, name in enumerate(annotations.classes)}
    held_out = {
        _video(row): f"{split} set of kinetics{size}"
        for size, kinetics in sets.items()
        for split in ("test", "val")
        for row in kinetics.splits.get(split, ())
    }
    dropped: list[tuple[str, ...]] = []
    used: dict[tuple[str, str], str] = {}
    for size in sorted(sets, reverse=True):
        kinetics = sets[size]
        by_name = (
            {old: index_of[same_name(name)] for old, name in enumerate(kinetics.classes)} if not label_maps else {}
        )
        new_label = label_maps[size] if label_maps else by_name
        for split in ("train", "val"):
            for row in kinetics.splits.get(split, ()):
                reason = held_out.get(_video(row)) if split == "train" else None
                reason = reason or used.get((split, _video(row)))
                if reason:
                    dropped.append((f"kinetics{size}", split, row.id, f"in the {reason}"))
                    continue
                used[split, _video(row)] = f"{split} set of kinetics{size}"
                label = None if row.label is None else new_label[row.label]
                path = f"k{size}/{row.path}"
                copy = row.model_copy(update={"id": f"k{size}/{row.id}", "path": path, "label": label})
                annotations.add(split, copy, f"kinetics{size}", path, *kinetics.names.get(row.path, ()))
    annotations.lists["dropped"] = dropped
    for held_out_split in ("val", "test"):
        num_dropped = sum(f"in the {held_out_split}" in reason and split == "train" for _, split, _, reason in dropped)
        annotations.note(num_dropped, f"training clips dropped because a {held_out_split} set has their video")
    num_dropped = sum("in the train" in reason for *_, reason in dropped)
    annotations.note(num_dropped, "training clips dropped that a larger set has")
    return annotations


def _video(row: Sample) -> str:
    """Return the id of the uploaded video of a clip; for rows of lists it is in the file name."""
    return row.group or _TRIMMED.sub("", Path(row.path).stem)


def _union(sets: Mapping[int, Annotations]) -> tuple[str, ...]:
    """Return the sorted names of all classes; spellings of one name count once, as in the largest set."""
    spellings: dict[str, str] = {}
    for size in sorted(sets, reverse=True):
        for name in sets[size].classes:
            spellings.setdefault(same_name(name), name)
    return tuple(sorted(spellings.values()))


def _mapped_names(sets: Mapping[int, Annotations], maps: Mapping[int, Mapping[int, int]]) -> tuple[str, ...]:
    names = [f"class {index}" for index in range(710)]
    for size in sorted(sets):  # the spelling of the largest set is used
        for old, name in enumerate(sets[size].classes):
            if old not in maps[size]:
                file = f"label_map_k{size}_to_710.json"
                raise ManifestError(file, f"nothing for class {old} ({name})", "every class")
            names[maps[size][old]] = name
    return tuple(names)
