"""Manifest: which clips there are and what is known of them.

The own format is JSONL, one `Sample` a line, with the class names in `NAME.classes.txt` or `classes.txt` beside it (one
a line). List files (`path label`), csv files with a header and folders are read too (see `lists.py`); whatever the
source, every row passes the same checks.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from internvideo.data import lists
from internvideo.errors import ManifestError


class _Labels:
    """Class names met while reading; hands out indices and settles them at the end.

    With a given list of names a text is looked up there (a number written as text is an index). Without one the names
    are collected and, at the end, sorted; if all of them are numbers they are the indices themselves.
    """

    def __init__(self, classes: Sequence[str] | None) -> None:
        self.fixed = classes is not None
        self.names = {name: index for index, name in enumerate(classes or ())}
        self.highest = -1  # largest index that came as a number

    def index(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError("a class index or a class name")
        if isinstance(value, str) and not value.isdecimal():
            return self._named(value)
        if isinstance(value, str) and (value in self.names or not self.fixed):
            return self._named(value)
        number = int(value)
        if number < 0 or (self.fixed and number >= len(self.names)):
            limit = f"0 to {len(self.names) - 1}" if self.fixed else "0 or more"
            raise ValueError(f"a class index {limit} (leave the label out where there is none)")
        self.highest = max(self.highest, number)
        return number

    def _named(self, name: str) -> int:
        if name not in self.names:
            if self.fixed:
                raise ValueError(f"one of the {len(self.names)} class names{_did_you_mean(name, self.names)}")
            if not name.strip():
                raise ValueError("a class name that is not empty")
            self.names[name] = len(self.names)
        return self.names[name]

    def settle(self, source: Path) -> tuple[tuple[str, ...], dict[int, int]]:
        """The class names in order, and the final index of every provisional one (empty when nothing moves)."""
        if self.fixed:
            return tuple(self.names), {}
        if all(name.isdecimal() for name in self.names):
            highest = max([self.highest, *(int(name) for name in self.names)])
            return tuple(str(index) for index in range(highest + 1)), {at: int(name) for name, at in self.names.items()}
        if self.highest >= 0:
            example = next(name for name in self.names if not name.isdecimal())
            raise ManifestError(
                source,
                f"label is the name '{example}' in some rows and the number {self.highest} in others",
                "names or numbers",
                "write names everywhere, or numbers and a classes.txt beside the manifest",
            )
        ordered = sorted(self.names)
        return tuple(ordered), {self.names[name]: index for index, name in enumerate(ordered)}


def _class_index(value: object, info: ValidationInfo) -> object:
    if isinstance(info.context, _Labels):
        return info.context.index(value)
    if isinstance(value, bool | str):
        raise ValueError("a class index")
    return value


ClassIndex = Annotated[int, BeforeValidator(_class_index), Field(ge=0)]
Second = Annotated[float, Field(ge=0.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


class Segment(_Part):
    """An action of class `label` from `start` to `end` (seconds in the video)."""

    start: Second
    end: Second
    label: ClassIndex

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end <= self.start:
            raise ValueError("start before end")
        return self


class Box(_Part):
    """An actor at `time` (seconds): corners as fractions of width and height, and all its action classes."""

    time: Second
    x1: Fraction
    y1: Fraction
    x2: Fraction
    y2: Fraction
    labels: tuple[ClassIndex, ...] = ()
    actor: int = 0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.x2 <= self.x1 or self.y2 <= self.y1:
            raise ValueError("x1 < x2 and y1 < y2")
        return self


class QA(_Part):
    """A question about the clip and its answer."""

    question: Text
    answer: Text


class Choice(_Part):
    """Candidate sentences of which number `answer` (from 0) is right."""

    options: tuple[Text, ...] = Field(min_length=2)
    answer: int = Field(ge=0)

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.answer >= len(self.options):
            raise ValueError(f"an answer from 0 to {len(self.options) - 1}")
        return self


class Sample(_Part):
    """One row of a manifest: a video, or the part of it inside `span`, and what is known of it.

    Attributes:
        id: unique name in the manifest.
        path: video file, as written; relative paths start at the manifest's folder.
        span: (start, end) in seconds of the part that is meant; None for the whole video.
        label: class index; None where unknown.
        captions: sentences that describe the clip.
        segments: actions with their times; boxes: actors with their actions; both count from the start of the video.
        qa: questions with answers; choices: a multiple choice.
        group: clips of one group (scene, signer, source video) must not be divided between splits.
        split: "train", "test", ...
        attributes: anything else, as text.
    """

    id: Text
    path: Text
    span: tuple[Second, Second] | None = None
    label: ClassIndex | None = None
    captions: tuple[Text, ...] = ()
    segments: tuple[Segment, ...] = ()
    boxes: tuple[Box, ...] = ()
    qa: tuple[QA, ...] = ()
    choices: Choice | None = None
    group: str | None = None
    split: str | None = None
    attributes: dict[str, str] = Field(default_factory=dict)

    @field_validator("span")
    @classmethod
    def _ordered(cls, span: tuple[float, float] | None) -> tuple[float, float] | None:
        if span is not None and span[1] <= span[0]:
            raise ValueError("start before end")
        return span

    @field_validator("path")
    @classmethod
    def _printable(cls, path: str) -> str:
        if "\0" in path:
            raise ValueError("a path without a NUL character")
        return path

    def class_indices(self) -> Iterator[int]:
        """All class indices of the row: its label, its segments' and its boxes'."""
        if self.label is not None:
            yield self.label
        for segment in self.segments:
            yield segment.label
        for box in self.boxes:
            yield from box.labels


_ADAPTER = TypeAdapter(Sample)


@dataclass(frozen=True)
class Manifest:
    """Checked rows and their class names.

    Attributes:
        rows: the samples, in the order of the source.
        classes: C class names; a label is an index into them.
        root: folder that relative paths start from; source: the file or folder that was read.
        notes: what a reader should know, such as rows that were left out.
    """

    rows: tuple[Sample, ...]
    classes: tuple[str, ...]
    root: Path
    source: Path
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change whenever a row, the order of the rows or a class name changes."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for row in self.rows:
            digest.update(b"\n" + row.model_dump_json(exclude_defaults=True).encode())
        return digest.hexdigest()[:16]

    def video_path(self, sample: Sample) -> Path:
        """Where the sample's video lies."""
        return self.root / sample.path

    def subset(
        self, split: str | Sequence[str] | None = None, *, where: Callable[[Sample], bool] | None = None
    ) -> Manifest:
        """The rows of a split (or of several) for which `where` holds, under the same classes.

        Raises:
            ManifestError: when no row is left.
        """
        splits = None if split is None else {split} if isinstance(split, str) else set(split)
        rows = tuple(
            row for row in self.rows if (splits is None or row.split in splits) and (where is None or where(row))
        )
        if not rows:
            present = ", ".join(sorted({row.split for row in self.rows if row.split is not None})) or "no split at all"
            asked = "no row fits the condition" if splits is None else f"no row of split {', '.join(sorted(splits))}"
            raise ManifestError(self.source, asked, f"splits of this manifest: {present}")
        return replace(self, rows=rows)


def read_manifest(
    path: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    path_column: str = "path",
    label_column: str = "label",
) -> Manifest:
    """Read a manifest: JSONL, a list file, a csv file with a header, or a folder (see `lists.py` for the last three).

    Args:
        path: the file or folder.
        classes: class names in order. Without them they come from `NAME.classes.txt` or `classes.txt` beside the file,
            else from the labels: sorted names, or 0..highest for numbers.
        path_column: csv column of the video file. label_column: csv column of the class.

    Raises:
        ManifestError: naming file, line and field, when anything in it cannot be used.
    """
    source = Path(path)
    if source.is_dir():
        known = next((source / name for name in lists.FOLDER_MANIFESTS if (source / name).is_file()), None)
        source = known or source
    if source.is_dir():
        root, listing = source, lists.read_folder(source)
    else:
        root, listing = source.parent, lists.read_file(source, path_column=path_column, label_column=label_column)
        classes = _classes_beside(source) if classes is None else classes
    labels = _Labels(classes)
    rows = tuple(_validated(source, listing.rows, labels))
    if not rows:
        raise ManifestError(source, "no sample in it", "at least one row", "; ".join(listing.notes))
    names, moved = labels.settle(source)
    if any(was != now for was, now in moved.items()):
        rows = tuple(_relabel(row, moved) for row in rows)
    return Manifest(rows, names, root, source, tuple(listing.notes))


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Sample], classes: Sequence[str]) -> None:
    """Write rows as JSONL and the class names beside it: in `classes.txt`, or in `NAME.classes.txt` where the folder's
    `classes.txt` holds other names. A reader never sees half a file.

    Raises:
        ManifestError: a duplicate id, a label outside the classes, no row, a folder that cannot be written.
    """
    target = Path(path)
    lines, seen = [], set()
    for row in rows:
        if row.id in seen:
            raise ManifestError(target, f"id '{row.id}' stands twice", "unique ids")
        highest = max(row.class_indices(), default=-1)
        if highest >= len(classes):
            raise ManifestError(target, f"sample '{row.id}' has class {highest}", f"{len(classes)} classes from 0")
        seen.add(row.id)
        lines.append(row.model_dump_json(exclude_defaults=True))
    if not lines:
        raise ManifestError(target, "no sample to write", "at least one row")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        own, shared = target.with_name(f"{target.stem}.classes.txt"), target.with_name("classes.txt")
        differs = shared.exists() and _read_classes(shared) != tuple(classes)
        if classes or own.exists() or differs:
            _write_text(own if own.exists() or differs else shared, "".join(f"{name}\n" for name in classes))
        _write_text(target, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise ManifestError(target, f"cannot be written ({error.strerror or error})") from error


def _write_text(target: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _classes_beside(source: Path) -> tuple[str, ...] | None:
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
            raise ManifestError(f"{path}:{number}", found, "one class name a line, each once")
        first[name] = number
    return tuple(names)


def _validated(source: Path, rows: Iterable[lists.RawRow], labels: _Labels) -> Iterator[Sample]:
    first: dict[str, int] = {}
    for line, content in rows:
        try:
            if isinstance(content, str):
                row = _ADAPTER.validate_json(content, context=labels)
            else:
                row = _ADAPTER.validate_python(content, context=labels)
        except ValidationError as error:
            raise _explained(f"{source}:{line}", error) from None
        if row.id in first:
            raise ManifestError(
                f"{source}:{line} id", f"'{row.id}', which line {first[row.id]} has too", "unique ids",
                "give each row its own id (a csv file takes it from the column 'id')",
            )  # fmt: skip
        first[row.id] = line
        yield row


def _explained(where: str, error: ValidationError) -> ManifestError:
    details = error.errors(include_url=False)
    detail = details[0]
    field = ".".join(str(part) for part in detail["loc"])
    found, allowed = json.dumps(detail["input"], ensure_ascii=False, default=str), str(detail["msg"])
    if len(found) > 80:
        found = found[:77] + "..."
    if detail["type"] == "json_invalid":
        found, allowed = allowed.replace("Invalid JSON: ", "not JSON: "), "one JSON object a line"
    elif detail["type"] == "extra_forbidden":
        known = _fields_of(detail["loc"])
        found, allowed = f"unknown key{_did_you_mean(str(detail['loc'][-1]), known)}", ", ".join(known)
    elif detail["type"] == "missing":
        found, allowed = "missing", "a value"
    elif detail["type"] == "value_error":
        allowed = str(detail["ctx"]["error"])
    more = f"({len(details) - 1} more in this line)" if len(details) > 1 else ""
    return ManifestError(f"{where} {field}".rstrip(), found, allowed, more)


def _fields_of(location: Sequence[str | int]) -> list[str]:
    parts: dict[object, type[BaseModel]] = {"segments": Segment, "boxes": Box, "qa": QA, "choices": Choice}
    model = parts.get(location[0], Sample) if len(location) > 1 else Sample
    return list(model.model_fields)


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _relabel(row: Sample, index: Mapping[int, int]) -> Sample:
    return row.model_copy(
        update={
            "label": None if row.label is None else index[row.label],
            "segments": tuple(part.model_copy(update={"label": index[part.label]}) for part in row.segments),
            "boxes": tuple(
                box.model_copy(update={"labels": tuple(index[label] for label in box.labels)}) for box in row.boxes
            ),
        }
    )
