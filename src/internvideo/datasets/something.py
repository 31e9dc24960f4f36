"""Something-Something V1 (`id;label` csv) and V2 (JSON): 174 templates; a video is named by its number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from internvideo.data.sample import Sample
from internvideo.datasets.annotations import Annotations, ClassList, numbers_as_names, read_names
from internvideo.datasets.reading import (
    AnnotationSource,
    Name,
    Record,
    csv_records,
    json_records,
    numbered_lines,
    read_json,
    split_of,
)
from internvideo.errors import ManifestError

CLASSES = 174
FIRST_RATE = 12.0
"""Frames a second of the JPEG frames that version 1 is published as (its download page)."""
_FRAMES = re.compile(r"(?P<folder>.+)\s+(?P<frames>\d+)\s+(?P<label>\d+)$")


class _First(Record):
    id: Name
    label: Name | None = None


class _Second(Record):
    id: Name
    label: str | None = None
    template: Name | None = None


def read_v1(source: AnnotationSource) -> Annotations:
    """Something-Something V1: `*-labels.csv` and `*-train.csv`, `*-validation.csv`, `*-test.csv` without header.

    Alone, lists of `folder frames label` are read too. The data set comes as folders of frames (NUMBER/00001.jpg, 12 a
    second); NUMBER.mp4 or .webm, written from them, are found as well.

    Raises:
        ManifestError: no annotation file, a malformed line, an unknown class, an id twice.
    """
    names_file = source.maybe(r"labels\.csv$")
    files = [path for path in source.find(r"\.csv$") if path != names_file and split_of(path)]
    if not files:
        return _frame_lists(source)
    known, made = ClassList(read_names(names_file) if names_file else ()), Annotations(frame_rate=FIRST_RATE)
    for path in files:
        split = split_of(path) or ""
        columns = ("id",) if split == "test" and ";" not in next(numbered_lines(path))[1] else ("id", "label")
        for line, row in csv_records(path, _First, columns=columns, delimiter=";", quoted=False):
            where = f"{path}:{line}"
            if row.label is None and split != "test":
                raise ManifestError(f"{where} label", "missing", "a template")
            label = None if row.label is None else known.named(row.label, where)
            made.add(split, Sample(id=row.id, path=f"{row.id}.webm", label=label, split=split), where, row.id)
    known.settle(made)
    return made


def _frame_lists(source: AnnotationSource) -> Annotations:
    made, known = Annotations(numbers_as_names(CLASSES), frame_rate=FIRST_RATE), ClassList(count=CLASSES)
    files = source.find(r"list[^/]*\.txt$")
    if not files:
        raise ManifestError(source.path, "no annotation file of Something-Something V1", "id;label csv files")
    for path in files:
        split = split_of(path) or "val"
        for number, line in numbered_lines(path):
            where, found = f"{path}:{number}", _FRAMES.match(line)
            if found is None:
                raise ManifestError(where, f"'{line[:80]}'", "'folder frames label'")
            label, name = known.numbered(int(found["label"]), where), found["folder"]
            sample = Sample(
                id=name, path=f"{name}.webm", label=label, split=split, attributes={"frames": found["frames"]}
            )  # fmt: skip
            made.add(split, sample, where, name)
    return made


def read_v2(source: AnnotationSource) -> Annotations:
    """Something-Something V2: `labels.json` (template -> index), `train.json`, `validation.json`, `test.json`.

    The sentence with the objects filled in becomes the row's caption.

    Raises:
        ManifestError: no annotation file, a malformed entry, a template that is no class, an id twice.
    """
    known = ClassList(_second_labels(source.one(r"labels\.json$", "labels.json and validation.json")))
    made = Annotations(tuple(known.index))
    for path in source.find(r"(train|validation|test)\.json$"):
        split = split_of(path) or ""
        for line, row in json_records(path, _Second):
            where = f"{path}:{line}"
            if row.template is None and split != "test":
                raise ManifestError(f"{where} template", "missing", "a template of labels.json")
            template = (row.template or "").replace("[", "").replace("]", "")
            label = known.named(template, where, field="template") if template else None
            captions = (row.label,) if row.label else ()
            sample = Sample(id=row.id, path=f"{row.id}.webm", label=label, captions=captions, split=split)
            made.add(split, sample, where, row.id)
    if not made.splits:
        raise ManifestError(source.path, "no train.json, validation.json or test.json", "one of them")
    return made


def _second_labels(path: Path) -> tuple[str, ...]:
    index = read_json(path, dict[str, Annotated[int, Field(ge=0)]])
    if sorted(index.values()) != list(range(len(index))):
        raise ManifestError(path, "the indices of the templates are not 0, 1, 2, ...", "each once")
    return tuple(sorted(index, key=index.__getitem__))
