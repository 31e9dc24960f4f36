"""Read data sets of short labeled clips: HMDB51, UCF101, Moments in Time 2, and the two open-set benchmarks of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pydantic import NonNegativeInt

from internvideo.data.sample import Sample
from internvideo.datasets.annotations import Annotations, ClassList
from internvideo.datasets.clip_lists import read_label_map_names, read_lists
from internvideo.datasets.reading import AnnotationSource, Name, Record, csv_records, numbered_lines, split_in_name
from internvideo.errors import ManifestError

_HMDB = re.compile(r"^(?P<label>.+)_test_split(?P<split>\d+)\.txt$")
_UCF = re.compile(r"^(?P<part>train|test)list0?(?P<split>\d+)\.txt$", re.IGNORECASE)
_HMDB_CODES = {"1": "train", "2": "test", "0": ""}


class _Moment(Record):
    path: Name
    label: Name
    agree: NonNegativeInt
    disagree: NonNegativeInt


def read_hmdb51(source: AnnotationSource) -> Annotations:
    """Read HMDB51: `CLASS_test_splitN.txt` with `name.avi 1|2|0` (train, test, neither); splits train1, ..., test3.

    Without these files, lists of `path label` are read.
    Raises ManifestError: no annotation file, a malformed line, a duplicate clip in a split.
    """
    files = _numbered(source, _HMDB)
    if not files:
        return _lists(source, 51, "CLASS_test_split1.txt and so on")
    names = tuple(sorted({match["label"] for _, match in files}))
    annotations, known = Annotations(names), ClassList(names)
    for path, match in files:
        label = known.index_of(match["label"], path)
        for where, line in numbered_lines(path):
            cells = line.split()
            if len(cells) != 2 or cells[1] not in _HMDB_CODES:
                raise ManifestError(f"{where} split", f"'{line[:80]}'", "'name.avi 1' (train), 2 (test) or 0 (neither)")
            part = _HMDB_CODES[cells[1]]
            if part:
                video, movie = f"{match['label']}/{cells[0]}", re.sub(r"_\d+\.\w+$", "", cells[0])
                sample = Sample(id=video, path=video, label=label, split=part, group=movie)
                annotations.add(f"{part}{match['split']}", sample, where, video)
    return annotations


def _numbered(source: AnnotationSource, name: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    """Return the files of the three splits whose name matches. Raises ManifestError: a split other than 1, 2, 3."""
    files = [(path, match) for path in source.files if (match := name.match(path.name))]
    for path, match in files:
        if match["split"] not in ("1", "2", "3"):
            raise ManifestError(path, f"split {match['split']}", "1, 2 or 3")
    return files


def read_ucf101(source: AnnotationSource) -> Annotations:
    """Read UCF101: `classInd.txt` (`N Name`, from 1), `trainlist0N.txt` (`path N`) and `testlist0N.txt`; train1, ...

    Without these files, lists of `path label` are read. Clips of one group (gNN) show the same person and place.
    Raises ManifestError: no annotation file, a malformed line, a number that contradicts the class of the folder.
    """
    files = _numbered(source, _UCF)
    if not files:
        return _lists(source, 101, "classInd.txt, trainlist01.txt and testlist01.txt")
    names = _ucf_names(source.find_one(r"/classInd\.txt$", "classInd.txt"))
    annotations, known = Annotations(names), ClassList(names)
    for path, match in files:
        part = match["part"].lower()
        for where, line in numbered_lines(path):
            video, _, class_number = line.partition(" ")
            label = known.index_of(video.split("/")[0], where, field="path")
            wrong = class_number.strip() != str(label + 1) if class_number else part == "train"
            if wrong:
                found = f"'{class_number}' for {names[label]}" if class_number else "missing"
                raise ManifestError(f"{where} label", found, f"{label + 1}, as in classInd.txt")
            group = re.sub(r"_c\d+\.\w+$", "", video)
            sample = Sample(id=video, path=video, label=label, split=part, group=group)
            annotations.add(f"{part}{match['split']}", sample, where, video)
    return annotations


def _ucf_names(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for where, line in numbered_lines(path):
        cells = line.split()
        if len(cells) != 2 or cells[0] != str(len(names) + 1):
            raise ManifestError(f"{where} label", f"'{line[:80]}'", f"'{len(names) + 1} Name'")
        names.append(cells[1])
    return tuple(names)


def read_moments(source: AnnotationSource) -> Annotations:
    """Read Moments in Time 2, 305 classes: `trainingSet.csv`, `validationSet.csv`, `moments_categories.txt`.

    Columns without header: path,label,agree,disagree, and name,number for the classes. Without the csv files, lists of
    `path label` are read.
    Raises ManifestError: no annotation file, a malformed row, an unknown class, a duplicate path.
    """
    files = source.find(r"(training|validation)Set\.csv$")
    if not files:
        return _lists(source, 305, "validationSet.csv and moments_categories.txt")
    names = read_label_map_names(source)
    annotations, known = Annotations(), ClassList(names, len(names) or 305)
    for path in files:
        split = "train" if "training" in path.name.lower() else "val"
        for where, row in csv_records(path, _Moment, columns=("path", "label", "agree", "disagree")):
            label = known.index_of(row.label, where)
            votes = {"agree": str(row.agree), "disagree": str(row.disagree)}
            sample = Sample(id=row.path, path=row.path, label=label, split=split, attributes=votes)
            annotations.add(split, sample, where, row.path)
    known.finish(annotations)
    return annotations


def _lists(source: AnnotationSource, count: int, expected: str) -> Annotations:
    files = [path for path in source.find(r"\.(csv|txt|list)$") if split_in_name(path)]
    found, expected = "no annotation file of this benchmark", f"{expected}, or lists of 'path label'"
    return read_lists(source, files, count).ensure_rows(source.path, found, expected)


def read_open_hmdb(source: AnnotationSource) -> Annotations:
    """Read UCF101 split 1 as known, the test clips of HMDB51 split 1 as unknown (DEAR). Raises ManifestError."""
    return _open_set(source, read_hmdb51, r"hmdb-?51?", ("test1", "test", "val"))


def read_open_moments(source: AnnotationSource) -> Annotations:
    """Read UCF101 split 1 as known, the validation clips of Moments in Time 2 as unknown. Raises ManifestError."""
    return _open_set(source, read_moments, r"(mit|moments).*", ("val",))


def _open_set(
    source: AnnotationSource, read: Callable[[AnnotationSource], Annotations], folder: str, splits: tuple[str, ...]
) -> Annotations:
    """Read the splits train and test of the known classes, and a split "unknown".

    Rows of unknown classes have no label but the attributes "known", always "no", and "class".
    """
    known, unknown = source.subfolder(r"ucf-?101"), source.subfolder(folder)
    if known is None or unknown is None:
        found = "no folder of the known classes" if known is None else "no folder of the unknown classes"
        raise ManifestError(source.path, found, f"a folder ucf101 and a folder like {folder.strip('?')}")
    annotations, other = read_ucf101(known), read(unknown)
    split_names = {"train1": "train", "test1": "test", "val": "test"}
    annotations.splits = {
        split_names.get(split, split): rows for split, rows in annotations.splits.items() if split[-1] not in "23"
    }
    split = next((name for name in splits if name in other.splits), None)
    if split is None:
        raise ManifestError(unknown.path, "no test clips in it", " or ".join(splits))
    for row in other.splits[split]:
        name = "" if row.label is None else other.classes[row.label]
        fields = {"label": None, "split": "unknown", "attributes": {**row.attributes, "known": "no", "class": name}}
        annotations.add("unknown", row.model_copy(update=fields), unknown.path, *other.names.get(row.path, ()))
    return annotations
