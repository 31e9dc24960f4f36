"""Kinetics-400, 600 and 700: the official csv files, or lists of `path label`; and Kinetics-710, merged of the three.

Official csv: `label,youtube_id,time_start,time_end,split[,is_cc]`, times in whole seconds of the uploaded video. A
trimmed clip is named ID_SSSSSS_EEEEEE; ID alone is taken for the trimmed clip too, as in the released lists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from internvideo.data.sample import Sample
from internvideo.datasets.annotations import Annotations, ClassList, OddRows
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
    label: Name | None = None  # the test sets were first given without
    youtube_id: Name
    time_start: Annotated[float, Field(ge=0)]
    time_end: Annotated[float, Field(ge=0)]
    split: SplitName | None = None


def read(source: AnnotationSource, classes: int) -> Annotations:
    """Kinetics of so many classes.

    Csv files are read before lists: a list of a split that a csv file has is passed over, and noted.

    Raises:
        ManifestError: no annotation file, a malformed row, a clip twice in a split, an unknown class.
    """
    tables = source.find(r"\.(csv|txt|list)$")
    official = [path for path in tables if "youtube_id" in header_of(path)]
    made = _official(source, official, classes) if official else Annotations()
    lists = [path for path in tables if path not in official and split_of(path)]
    more = [path for path in lists if split_of(path) not in made.splits]
    made.notes += [f"{path.name} passed over: a csv file has that split" for path in lists if path not in more]
    if official and more:
        made.notes.append(
            f"{', '.join(path.name for path in more)} passed over: give lists and csv files by themselves"
        )
    if not official:
        if not lists:
            raise ManifestError(source.path, "no annotation file of Kinetics", EXPECTED)
        splits = [split_of(path) for path in lists]
        twice = next((path for path in lists if splits.count(split_of(path)) > 1), None)
        if twice is not None:
            raise ManifestError(
                twice, "a second list of the same split", "one list a split", "give a folder of one kind"
            )
        made = read_lists(source, lists, classes)
    return made


def _official(source: AnnotationSource, files: list[Path], count: int) -> Annotations:
    rows: list[tuple[str, str, _Row]] = []
    odd = OddRows("clips")
    for path in files:
        for line, row in csv_records(path, _Row):
            times = f"{row.time_end:g} after time_start {row.time_start:g}"
            if odd.passed(row.time_end <= row.time_start, f"{path}:{line} time_end", times, "an end after time_start"):
                continue
            split = row.split or split_of(path)
            if split is None:
                raise ManifestError(f"{path}:{line} split", "missing", "train, val or test")
            rows.append((f"{path}:{line}", split, row))
    # A class that the training set lacks is a mistake; without a training set all names count.
    trained = {row.label for _, split, row in rows if split == "train" and row.label}
    names = names_beside(source) or tuple(sorted(trained or {row.label for *_, row in rows if row.label}))
    if len(names) > count:
        raise ManifestError(files[0], f"{len(names)} class names in all", f"{count} classes")
    made, known = Annotations(names), ClassList(names)
    for where, split, row in rows:
        clip = f"{row.youtube_id}_{row.time_start:06.0f}_{row.time_end:06.0f}"
        label = None if row.label is None else known.named(row.label, where)
        sample = Sample(id=clip, path=f"{clip}.mp4", label=label, split=split, group=row.youtube_id)
        made.add(split, sample, where, clip, row.youtube_id)
    odd.settle(made)
    return made


def read_400(source: AnnotationSource) -> Annotations:
    """Kinetics-400. Raises ManifestError."""
    return read(source, 400)


def read_600(source: AnnotationSource) -> Annotations:
    """Kinetics-600. Raises ManifestError."""
    return read(source, 600)


def read_700(source: AnnotationSource) -> Annotations:
    """Kinetics-700. Raises ManifestError."""
    return read(source, 700)


def read_zero_shot(source: AnnotationSource) -> Annotations:
    """The Kinetics-400 list of multi-modalities-downstream: `path<TAB>label` and a file of 400 names.

    Raises:
        ManifestError: as `read`, or no class names, which the prompts need.
    """
    if not names_beside(source):
        raise ManifestError(source.path, "no class names", "a file kinetics_label_map.txt, one name a line")
    return read_lists(source, [source.one(r"\.(list|csv)$", "k400_test_tsm.list")], 400, one="test")


def read_710(source: AnnotationSource) -> Annotations:
    """Kinetics-710: a ready list, or the merge of folders kinetics400, kinetics600 and kinetics700.

    Raises:
        ManifestError: as `read`; a label map that names an unknown class.
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


_LabelMap = dict[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0, lt=710)]]


def _maps(source: AnnotationSource) -> dict[int, dict[int, int]]:
    """Class of Kinetics-N -> class of Kinetics-710, as the released label maps say it."""
    paths = {count: source.maybe(rf"label_map_k{count}_to_710\.json$") for count in _SETS}
    return {count: read_json(path, _LabelMap) for count, path in paths.items() if path is not None}


def merge(parts: Mapping[int, Annotations], maps: Mapping[int, Mapping[int, int]] | None = None) -> Annotations:
    """Kinetics-710 of the three sets: classes of one name are one class, and no training clip is in any test.

    A training clip is dropped when its video is in the validation or test set of any of the three, or when a set before
    has it (the largest goes first). `lists["dropped"]` says set, clip and why.

    Args:
        parts: number of classes -> what was read. maps: published class maps; without all three of them the classes are
            the union of the names, sorted.

    Raises:
        ManifestError: a class that a map does not have.
    """
    made = Annotations()
    table = maps if maps and len(maps) == len(parts) else None
    made.classes = _mapped_names(parts, table) if table else _union(parts)
    if table is None:
        made.notes.append(f"the classes are the {len(made.classes)} different names of the {len(parts)} sets, sorted")
    index = {same_name(name): number for number, name in enumerate(made.classes)}
    held = {
        _video(row): f"{split} set of kinetics{count}"
        for count, part in parts.items()
        for split in ("test", "val")
        for row in part.splits.get(split, ())
    }
    dropped: list[tuple[str, ...]] = []
    taken: dict[tuple[str, str], str] = {}
    for count in sorted(parts, reverse=True):
        part = parts[count]
        moved = table[count] if table else {old: index[same_name(name)] for old, name in enumerate(part.classes)}
        for split in ("train", "val"):
            for row in part.splits.get(split, ()):
                reason = held.get(_video(row)) if split == "train" else None
                reason = reason or taken.get((split, _video(row)))
                if reason:
                    dropped.append((f"kinetics{count}", split, row.id, f"in the {reason}"))
                    continue
                taken[split, _video(row)] = f"{split} set of kinetics{count}"
                label = None if row.label is None else moved[row.label]
                path = f"k{count}/{row.path}"
                copy = row.model_copy(update={"id": f"k{count}/{row.id}", "path": path, "label": label})
                made.add(split, copy, f"kinetics{count}", path, *part.names.get(row.path, ()))
    made.lists["dropped"] = dropped
    for split in ("val", "test"):
        told = sum(f"in the {split}" in reason and part == "train" for _, part, _, reason in dropped)
        made.note(told, f"training clips dropped because a {split} set has their video")
    made.note(sum("in the train" in reason for *_, reason in dropped), "training clips dropped that a larger set has")
    return made


def _video(row: Sample) -> str:
    """The uploaded video that a clip is of; lists tell it by the name of the file."""
    return row.group or _TRIMMED.sub("", Path(row.path).stem)


def _union(parts: Mapping[int, Annotations]) -> tuple[str, ...]:
    spelled: dict[str, str] = {}
    for count in sorted(parts, reverse=True):
        for name in parts[count].classes:
            spelled.setdefault(same_name(name), name)
    return tuple(sorted(spelled.values()))


def _mapped_names(parts: Mapping[int, Annotations], maps: Mapping[int, Mapping[int, int]]) -> tuple[str, ...]:
    names = [f"class {number}" for number in range(710)]
    for count in sorted(parts):  # the largest set's spelling stays
        for old, name in enumerate(parts[count].classes):
            if old not in maps[count]:
                raise ManifestError(
                    f"label_map_k{count}_to_710.json", f"nothing for class {old} ({name})", "every class"
                )
            names[maps[count][old]] = name
    return tuple(names)
