"""Read and write manifests: the samples of a data set with their annotations.

The native format is JSONL, one `Sample` per line, with the class names (one per line) in `NAME.classes.txt` or
`classes.txt` beside it. List files (`path label`), csv files with a header and folders are read too (see `lists.py`),
and Parquet and Arrow tables, lazily (`tables/`); rows of all formats are validated in the same way.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from internvideo import untrusted
from internvideo.data import lists
from internvideo.data.sample import QA, Box, Choice, ClassNames, Sample, Segment, did_you_mean
from internvideo.data.tables.reading import SUFFIXES, read_table
from internvideo.data.tables.rows import TableRows
from internvideo.errors import ManifestError, shown
from internvideo.storage import write_text
from internvideo.terminal import LOGGER

__all__ = ["QA", "Box", "Choice", "Manifest", "Sample", "Segment", "read_manifest", "write_manifest"]

NUM_EXAMPLES = 8
_ADAPTER = TypeAdapter(Sample)


_FIELD_NAMES = {"label": "a label", "captions": "a caption", "choices": "choices", "qa": "a question"}
"""Field that a task may require in every row -> its name in messages."""


@dataclass(frozen=True)
class Manifest:
    """Validated rows and their class names.

    Attributes:
        rows: the samples, in the order of the source; `TableRows` creates them on access.
        classes: C class names; a label is an index into them.
        root: folder of relative paths. source: the file or folder that was read.
        notes: messages for the user, such as the number of rows that were left out.
    """

    rows: Sequence[Sample]
    classes: tuple[str, ...]
    root: Path
    source: Path
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the rows, their order and the class names, 16 hex digits."""
        if isinstance(self.rows, TableRows):
            return self.rows.fingerprint()
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for row in self.rows:
            digest.update(b"\n" + row.model_dump_json(exclude_defaults=True).encode())
        return digest.hexdigest()[:16]

    def video_path(self, sample: Sample) -> Path:
        """Return the path of the sample's video."""
        return self.root / sample.path

    def with_notes_logged(self) -> Manifest:
        """Log the notes as warnings of the logger `internvideo`, and return the manifest."""
        for note in self.notes:
            LOGGER.warning("%s: %s", shown(str(self.source)), shown(note))
        return self

    def require(self, field: str) -> None:
        """Raise ManifestError if rows lack the field: "label", "captions", "choices" or "qa"."""
        if isinstance(self.rows, TableRows):
            without: Sequence[int] = self.rows.without(field).tolist()
        else:
            without = [index for index, row in enumerate(self.rows) if getattr(row, field) in (None, ())]
        if without:
            what, first = _FIELD_NAMES[field], self.rows[without[0]].id
            found = f"{len(without)} of {len(self)} rows have no {what.removeprefix('a ')}, first '{first}'"
            raise ManifestError(self.source, found, f"{what} in every row, or a split that has them")

    @property
    def labeled(self) -> bool:
        """Whether any row has a label."""
        if isinstance(self.rows, TableRows):
            return len(self.rows.without("label")) < len(self.rows)
        return any(row.label is not None for row in self.rows)

    def subset(
        self, split: str | Sequence[str] | None = None, *, where: Callable[[Sample], bool] | None = None
    ) -> Manifest:
        """Select the rows of a split (or of several) for which `where` is true, with the same classes.

        Raises ManifestError: no row is left.
        """
        splits = None if split is None else {split} if isinstance(split, str) else set(split)
        rows: Sequence[Sample]
        if isinstance(self.rows, TableRows) and where is None and splits is not None:
            rows = self.rows.with_split(splits)
        else:
            rows = tuple(
                row for row in self.rows if (splits is None or row.split in splits) and (where is None or where(row))
            )
        if not rows:
            present = ", ".join(self._splits()) or "none"
            found = "no row fits the condition" if splits is None else f"no row of split {', '.join(sorted(splits))}"
            raise ManifestError(self.source, found, f"splits of this manifest: {present}")
        return replace(self, rows=rows)

    def _splits(self) -> list[str]:
        if isinstance(self.rows, TableRows):
            return self.rows.splits()
        return sorted({row.split for row in self.rows if row.split is not None})


def read_manifest(
    path: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    path_column: str = "path",
    label_column: str = "label",
) -> Manifest:
    """Read a manifest: JSONL, a list file, a csv file with a header, a folder (see `lists.py` for these three), or a
    Parquet or Arrow table (`tables/`).

    Args:
        path: the file or folder.
        classes: class names in order. Without them they come from `NAME.classes.txt` or `classes.txt` beside the file,
            else from the labels: sorted names, or 0..maximum if the labels are numbers (a note lists unused ones).
        path_column: csv column of the video file. label_column: csv column of the class; only the default "label" may
            be absent. Both must be the defaults for formats without columns.

    Raises:
        ManifestError: an invalid row, with file, line and field. ExtraError: a table, and pyarrow is not installed.
    """
    source = Path(path)
    if source.is_dir():
        manifest_file = next((source / name for name in lists.FOLDER_MANIFESTS if (source / name).is_file()), None)
        source = manifest_file or source
    if source.suffix.lower() in SUFFIXES and source.is_file():
        lists.reject_columns(source, path_column, label_column)
        return _from_table(source, classes_beside(source) if classes is None else tuple(classes))
    if source.is_dir():
        lists.reject_columns(source, path_column, label_column)
        root, listing = source, lists.read_folder(source)
    else:
        root, listing = source.parent, lists.read_file(source, path_column=path_column, label_column=label_column)
        classes = classes_beside(source) if classes is None else classes
    return _from_rows(source, root, listing, ClassNames(classes, untyped=listing.untyped))


def _from_table(source: Path, classes: tuple[str, ...] | None) -> Manifest:
    table = read_table(source, classes)
    if table.rows is None:
        return _from_rows(source, source.parent, lists.Listing(table.raw), ClassNames(classes))
    notes = (
        ()
        if classes is not None
        else (*_note_empty_classes(table.used, table.classes), *_note_similar_names(table.classes))
    )
    return Manifest(table.rows, table.classes, source.parent, source, notes)


def _from_rows(source: Path, root: Path, listing: lists.Listing, labels: ClassNames) -> Manifest:
    rows = tuple(_validate_rows(source, listing.rows, labels))
    if not rows:
        raise ManifestError(source, "no sample in it", "at least one row", "; ".join(listing.notes))
    names, new_index = labels.finalize(source)
    if any(provisional != final for provisional, final in new_index.items()):
        rows = tuple(row.with_class_indices(new_index) for row in rows)
    used = {index for row in rows for index in row.class_indices()}
    notes = (
        listing.notes
        if labels.fixed
        else [*listing.notes, *_note_empty_classes(used, names), *_note_similar_names(names)]
    )
    return Manifest(rows, names, root, source, tuple(notes))


def _note_empty_classes(used: Collection[int], names: Sequence[str]) -> Iterator[str]:
    """Yield a note on classes without rows: numeric labels may have gaps, or not start at 0."""
    absent = len(names) - len(used)
    if absent:
        shown = ", ".join(str(index) for index in islice((i for i in range(len(names)) if i not in used), NUM_EXAMPLES))
        more = ", ..." if absent > NUM_EXAMPLES else ""
        first = f"; labels count from 0, these from {min(used)}" if 0 not in used else ""
        yield f"{absent} of {len(names)} classes have no clip: {shown}{more}{first}"


def _note_similar_names(names: Sequence[str]) -> Iterator[str]:
    """Yield a note on class names that differ only in case, blanks or Unicode normalization."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    if alike := [group for group in groups.values() if len(group) > 1]:
        first, second, *_ = alike[0]
        yield f"{len(alike)} classes have several spellings, which count as different classes: {first!a}, {second!a}"


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Sample], classes: Sequence[str]) -> None:
    """Write rows as JSONL, and the class names beside it: in `classes.txt`, or `NAME.classes.txt` if the former has
    other names. Both files are written atomically.

    Raises:
        ManifestError: a duplicate id, a label outside the classes, no row, a duplicate or multi-line class name.
        RunError: the disk is full or the folder cannot be written.
    """
    target = Path(path)
    for name in classes:
        if not name.strip() or name != name.strip() or len(name.splitlines()) > 1:
            raise ManifestError(target, f"class name '{name}'", "one line without blanks at start or end")
    if len(set(classes)) != len(classes):
        raise ManifestError(target, "a duplicate class name", "each name once")
    lines, ids = [], set()
    for row in rows:
        if row.id in ids:
            raise ManifestError(target, f"duplicate id '{row.id}'", "unique ids")
        highest = max(row.class_indices(), default=-1)
        if highest >= len(classes):
            raise ManifestError(target, f"sample '{row.id}' has class {highest}", f"{len(classes)} classes from 0")
        ids.add(row.id)
        lines.append(row.model_dump_json(exclude_defaults=True))
    if not lines:
        raise ManifestError(target, "no sample to write", "at least one row")
    file_classes, shared_classes = target.with_name(f"{target.stem}.classes.txt"), target.with_name("classes.txt")
    differs = shared_classes.exists() and _read_classes(shared_classes) != tuple(classes)
    if classes or file_classes.exists() or differs:
        file = file_classes if file_classes.exists() or differs else shared_classes
        write_text(file, "".join(f"{name}\n" for name in classes))
    write_text(target, "".join(f"{line}\n" for line in lines))


def classes_beside(source: Path) -> tuple[str, ...] | None:
    """Read the class names beside a manifest file; None if there are none. Raises ManifestError."""
    for name in (f"{source.stem}.classes.txt", "classes.txt"):
        candidate = source.with_name(name)
        if candidate.is_file() and candidate != source:
            return _read_classes(candidate) or None
    return None


def _read_classes(path: Path) -> tuple[str, ...]:
    names = [line.strip() for line in lists.read_text(path).splitlines()]
    while names and not names[-1]:
        names.pop()
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name or name in first:
            found = f"the name '{name}' of line {first[name]} again" if name else "an empty line"
            raise ManifestError(f"{path}:{number}", found, "one class name per line, each once")
        first[name] = number
    return tuple(names)


def _validate_rows(source: Path, rows: Iterable[lists.RawRow], labels: ClassNames) -> Iterator[Sample]:
    first: dict[str, int] = {}
    for line, content in rows:
        try:
            fields = untrusted.parse_json(content) if isinstance(content, str) else content
            row = _ADAPTER.validate_python(fields, context=labels)
        except ValidationError as error:
            raise first_error(f"{source}:{line}", error) from None
        except ValueError as error:
            raise ManifestError(f"{source}:{line}", f"not JSON: {error}", "one JSON object per line") from None
        if row.id in first:
            raise ManifestError(
                f"{source}:{line} id", f"'{row.id}', which line {first[row.id]} has too", "unique ids",
                "give each row its own id (a csv file takes it from the column 'id')",
            )  # fmt: skip
        first[row.id] = line
        yield row


_EXPECTED_OF_TYPE = {
    **dict.fromkeys(("model_type", "dict_type"), "an object {{...}}"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list [...]"),
    "too_long": "at most {max_length} of them",
    "too_short": "at least {min_length} of them",
}
"""Type of a pydantic error -> expected value, in terms of JSON."""


def first_error(where: str, error: ValidationError) -> ManifestError:
    """Return the first validation error of a record as a ManifestError that starts with `where` and the field."""
    details = error.errors(include_url=False)
    detail = details[0]
    field = ".".join(str(part) for part in detail["loc"])
    found = json.dumps(detail["input"], ensure_ascii=False, default=str)
    expected = str(detail["msg"]).removeprefix("Input should be ")
    if len(found) > 80:
        found = found[:77] + "..."
    if detail["type"] == "extra_forbidden":
        known = _known_fields(detail["loc"])
        found, expected = f"unknown key{did_you_mean(str(detail['loc'][-1]), known)}", ", ".join(known)
    elif detail["type"] == "missing":
        found, expected = "missing", "a value"
    elif detail["type"] == "value_error":
        expected = str(detail["ctx"]["error"])
    elif detail["type"] in _EXPECTED_OF_TYPE:
        expected = _EXPECTED_OF_TYPE[detail["type"]].format(**detail.get("ctx", {}))
    more = f"({len(details) - 1} more in this line)" if len(details) > 1 else ""
    return ManifestError(f"{where} {field}".rstrip(), found, expected, more)


def _known_fields(location: Sequence[str | int]) -> list[str]:
    parts: dict[object, type[BaseModel]] = {"segments": Segment, "boxes": Box, "qa": QA, "choices": Choice}
    model = parts.get(location[0], Sample) if len(location) > 1 else Sample
    return list(model.model_fields)
