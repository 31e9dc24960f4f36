"""Sets of short labeled clips: HMDB51, UCF101, Moments in Time 2, and the two open-set benchmarks made of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from internvideo.data.sample import Sample
from internvideo.datasets.annotations import Annotations, ClassList
from internvideo.datasets.clip_lists import names_beside, read_lists
from internvideo.datasets.reading import AnnotationSource, Name, Record, csv_records, numbered_lines, split_of
from internvideo.errors import ManifestError

_HMDB = re.compile(r"^(?P<label>.+)_test_split(?P<split>\d+)\.txt$")
_UCF = re.compile(r"^(?P<part>train|test)list0?(?P<split>\d+)\.txt$", re.IGNORECASE)
_HMDB_CODES = {"1": "train", "2": "test", "0": ""}


class _Moment(Record):
    path: Name
    label: Name
    agree: Annotated[int, Field(ge=0)]
    disagree: Annotated[int, Field(ge=0)]


def read_hmdb51(source: AnnotationSource) -> Annotations:
    """HMDB51: `CLASS_test_splitN.txt` with `name.avi 1|2|0` (train, test, neither), splits train1, test1, ..., test3.

    Without these files, lists of `path label`.

    Raises:
        ManifestError: neither, a malformed line, a clip twice in a split.
    """
    files = _numbered(source, _HMDB)
    if not files:
        return _lists(source, 51, "CLASS_test_split1.txt and so on")
    names = tuple(sorted({found["label"] for _, found in files}))
    made, known = Annotations(names), ClassList(names)
    for path, found in files:
        label = known.named(found["label"], path)
        for number, line in numbered_lines(path):
            where, cells = f"{path}:{number}", line.split()
            if len(cells) != 2 or cells[1] not in _HMDB_CODES:
                raise ManifestError(f"{where} split", f"'{line[:80]}'", "'name.avi 1' (train), 2 (test) or 0 (neither)")
            part = _HMDB_CODES[cells[1]]
            if part:
                video = f"{found['label']}/{cells[0]}"
                sample = Sample(id=video, path=video, label=label, split=part, group=_source_film(cells[0]))
                made.add(f"{part}{found['split']}", sample, where, video)
    return made


def _numbered(source: AnnotationSource, name: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    """The files of three splits. Raises ManifestError for another number."""
    files = [(path, found) for path in source.files if (found := name.match(path.name))]
    for path, found in files:
        if found["split"] not in ("1", "2", "3"):
            raise ManifestError(path, f"split {found['split']}", "1, 2 or 3")
    return files


def _source_film(name: str) -> str:
    """Clips of one film differ in the number at the end: they belong together (70 % of a film's clips train)."""
    return re.sub(r"_\d+\.\w+$", "", name)


def read_ucf101(source: AnnotationSource) -> Annotations:
    """UCF101: `classInd.txt` (`N Name`, from 1), `trainlist0N.txt` (`path N`) and `testlist0N.txt`; train1, test1, ...

    Without these files, lists of `path label`. Clips of one group (gNN) show the same person and place.

    Raises:
        ManifestError: neither, a malformed line, a number that is not the class of the folder.
    """
    files = _numbered(source, _UCF)
    if not files:
        return _lists(source, 101, "classInd.txt, trainlist01.txt and testlist01.txt")
    names = _ucf_names(source.one(r"/classInd\.txt$", "classInd.txt"))
    made, known = Annotations(names), ClassList(names)
    for path, found in files:
        part = found["part"].lower()
        for number, line in numbered_lines(path):
            where, (video, _, told) = f"{path}:{number}", line.partition(" ")
            label = known.named(video.split("/")[0], where, field="path")
            if told and told.strip() != str(label + 1):
                raise ManifestError(
                    f"{where} label", f"'{told}' for {names[label]}", f"{label + 1}, as in classInd.txt"
                )
            if part == "train" and not told:
                raise ManifestError(f"{where} label", "missing", f"{label + 1}, as in classInd.txt")
            group = re.sub(r"_c\d+\.\w+$", "", video)
            sample = Sample(id=video, path=video, label=label, split=part, group=group)
            made.add(f"{part}{found['split']}", sample, where, video)
    return made


def _ucf_names(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for number, line in numbered_lines(path):
        cells = line.split()
        if len(cells) != 2 or cells[0] != str(len(names) + 1):
            raise ManifestError(f"{path}:{number} label", f"'{line[:80]}'", f"'{len(names) + 1} Name'")
        names.append(cells[1])
    return tuple(names)


def read_moments(source: AnnotationSource) -> Annotations:
    """Moments in Time 2, 305 classes: `trainingSet.csv`, `validationSet.csv` (path,label,agree,disagree, no header) and
    `moments_categories.txt` (`name,number`); without the csv files, lists of `path label`.

    Raises:
        ManifestError: neither, a malformed row, an unknown class, a path twice.
    """
    files = source.find(r"(training|validation)Set\.csv$")
    if not files:
        return _lists(source, 305, "validationSet.csv and moments_categories.txt")
    names = names_beside(source)
    made, known = Annotations(), ClassList(names, len(names) or 305)
    for path in files:
        split = "train" if "training" in path.name.lower() else "val"
        for line, row in csv_records(path, _Moment, columns=("path", "label", "agree", "disagree")):
            where = f"{path}:{line}"
            label = known.named(row.label, where)
            votes = {"agree": str(row.agree), "disagree": str(row.disagree)}
            sample = Sample(id=row.path, path=row.path, label=label, split=split, attributes=votes)
            made.add(split, sample, where, row.path)
    known.settle(made)
    return made


def _lists(source: AnnotationSource, count: int, expected: str) -> Annotations:
    files = [path for path in source.find(r"\.(csv|txt|list)$") if split_of(path)]
    if not files:
        raise ManifestError(
            source.path, "no annotation file of this benchmark", f"{expected}, or lists of 'path label'"
        )
    return read_lists(source, files, count)


def read_open_hmdb(source: AnnotationSource) -> Annotations:
    """UCF101 split 1 as known, the test clips of HMDB51's split 1 as unknown (DEAR). Raises ManifestError."""
    return _open_set(source, read_hmdb51, r"hmdb-?51?", ("test1", "test", "val"))


def read_open_moments(source: AnnotationSource) -> Annotations:
    """UCF101 split 1 as known, the validation clips of Moments in Time 2 as unknown. Raises ManifestError."""
    return _open_set(source, read_moments, r"(mit|moments).*", ("val",))


def _open_set(
    source: AnnotationSource, read: Callable[[AnnotationSource], Annotations], folder: str, splits: tuple[str, ...]
) -> Annotations:
    """Splits train and test of the known classes, and unknown.

    Unknown rows have no label but the attributes "known", which is "no", and "class".
    """
    known, unknown = source.below(r"ucf-?101"), source.below(folder)
    if known is None or unknown is None:
        raise ManifestError(source.path, "not both sets", f"a folder ucf101 and a folder like {folder.strip('?')}")
    made, other = read_ucf101(known), read(unknown)
    told = {"train1": "train", "test1": "test", "val": "test"}
    made.splits = {told.get(split, split): rows for split, rows in made.splits.items() if split[-1] not in "23"}
    split = next((name for name in splits if name in other.splits), None)
    if split is None:
        raise ManifestError(unknown.path, "no test clips in it", " or ".join(splits))
    for row in other.splits[split]:
        name = "" if row.label is None else other.classes[row.label]
        changed = {"label": None, "split": "unknown", "attributes": {**row.attributes, "known": "no", "class": name}}
        made.add("unknown", row.model_copy(update=changed), unknown.path, *other.names.get(row.path, ()))
    return made
