"""Read Something-Something V1 (`id;label` csv) and V2 (JSON): 174 templates; the name of a video is its id."""

from __future__ import annotations

import re

from internvideo.data.sample import Sample
from internvideo.datasets.annotations import Annotations, ClassList, index_names, read_indexed_names, read_names
from internvideo.datasets.reading import (
    AnnotationSource,
    Name,
    Record,
    csv_records,
    json_records,
    numbered_lines,
    split_in_name,
)
from internvideo.errors import ManifestError

CLASSES = 174
V1_FPS = 12.0
"""Frames per second of the JPEG frames of version 1 (its download page)."""
_FRAMES = re.compile(r"(?P<folder>.+)\s+(?P<frames>\d+)\s+(?P<label>\d+)$")


class _V1Row(Record):
    id: Name
    label: Name | None = None


class _V2Row(Record):
    id: Name
    label: str | None = None
    template: Name | None = None


def read_v1(source: AnnotationSource) -> Annotations:
    """Read Something-Something V1: `*-labels.csv` and `*-train.csv`, `*-validation.csv`, `*-test.csv` without header.

    Without csv files, lists of `folder frames label` are read. The data set is published as folders of frames
    (ID/00001.jpg, 12 per second); ID.mp4 or ID.webm, made from them, are found as well.
    Raises ManifestError: no annotation file, a malformed line, an unknown class, a duplicate id.
    """
    names_file = source.find_optional(r"labels\.csv$")
    files = [path for path in source.find(r"\.csv$") if path != names_file and split_in_name(path)]
    if not files:
        return _frame_lists(source)
    known, annotations = ClassList(read_names(names_file) if names_file else ()), Annotations(frame_rate=V1_FPS)
    for path in files:
        split = split_in_name(path) or ""
        columns = ("id",) if split == "test" and ";" not in next(numbered_lines(path))[1] else ("id", "label")
        for where, row in csv_records(path, _V1Row, columns=columns, delimiter=";", quoted=False):
            if row.label is None and split != "test":
                raise ManifestError(f"{where} label", "missing", "a template")
            label = None if row.label is None else known.index_of(row.label, where)
            annotations.add(split, Sample(id=row.id, path=f"{row.id}.webm", label=label, split=split), where, row.id)
    known.finish(annotations)
    return annotations


def _frame_lists(source: AnnotationSource) -> Annotations:
    annotations, known = Annotations(index_names(CLASSES), frame_rate=V1_FPS), ClassList(count=CLASSES)
    files = source.find(r"list[^/]*\.txt$")
    if not files:
        raise ManifestError(source.path, "no annotation file of Something-Something V1", "id;label csv files")
    for path in files:
        split = split_in_name(path) or "val"
        for where, line in numbered_lines(path):
            match = _FRAMES.match(line)
            if match is None:
                raise ManifestError(where, f"'{line[:80]}'", "'folder frames label'")
            label, name = known.check_index(int(match["label"]), where), match["folder"]
            frames = {"frames": match["frames"]}
            sample = Sample(id=name, path=f"{name}.webm", label=label, split=split, attributes=frames)
            annotations.add(split, sample, where, name)
    return annotations


def read_v2(source: AnnotationSource) -> Annotations:
    """Read Something-Something V2: `labels.json` (template -> index), `train.json`, `validation.json`, `test.json`.

    The template with its objects filled in is the row's caption.
    Raises ManifestError: no annotation file, a malformed entry, an unknown template, a duplicate id.
    """
    known = ClassList(read_indexed_names(source.find_one(r"labels\.json$", "labels.json and validation.json")))
    annotations = Annotations(tuple(known.index))
    for path in source.find(r"(train|validation|test)\.json$"):
        split = split_in_name(path) or ""
        for where, row in json_records(path, _V2Row):
            if row.template is None and split != "test":
                raise ManifestError(f"{where} template", "missing", "a template of labels.json")
            template = (row.template or "").replace("[", "").replace("]", "")
            label = known.index_of(template, where, field="template") if template else None
            captions = (row.label,) if row.label else ()
            sample = Sample(id=row.id, path=f"{row.id}.webm", label=label, captions=captions, split=split)
            annotations.add(split, sample, where, row.id)
    return annotations.ensure_rows(source.path, "no train.json, validation.json or test.json", "one of them")
