"""Read annotation files (csv, JSON, text) as validated records; errors name file, line and field.

A byte order mark is ignored, any line ending is accepted, an empty file is an error.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from internvideo import untrusted
from internvideo.data import lists
from internvideo.data.manifest import first_error
from internvideo.errors import ManifestError

MIN_SEGMENT_SECONDS = 1e-3
"""Shorter segments are ignored, as by the published evaluators (eval_detection.py)."""
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("val", "valid", "validate", "validation"), "val")
SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|training|test|testing|val|valid|validate|validation)(?![a-z])", re.I)

T = TypeVar("T")
R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """The fields that are read of a row or JSON object; other fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


def _parse_split(value: str) -> str:
    if value.strip().lower() not in _SPLITS:
        raise ValueError(f"one of {', '.join(_SPLITS)}")
    return _SPLITS[value.strip().lower()]


def _require_one_line(value: str) -> str:
    if any(ord(character) < 32 for character in value):
        raise ValueError("a name without control characters")
    return value


SplitName = Annotated[str, AfterValidator(_parse_split)]
"""train, val or test; other spellings such as "training" or "validation" are converted."""
Name = Annotated[str, Field(min_length=1), AfterValidator(_require_one_line)]
"""A name or path: one line without control characters."""


@dataclass(frozen=True)
class AnnotationSource:
    """The annotation files that the user gave: one file, or a folder with everything below it.

    Attributes:
        path: file or folder.
        unpickle: reads a pickle as plain data without executing it; None if pickles are not supported.
        frame_rate: name of a video -> its frames per second; None if there are no videos.
    """

    path: Path
    unpickle: Callable[[Path], object] | None = None
    frame_rate: Callable[[str], float | None] | None = None

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """All files, sorted. Raises ManifestError: there is no such file or folder."""
        if self.path.is_file():
            return (self.path,)
        if not self.path.is_dir():
            raise ManifestError(self.path, "no such file or folder", "the annotation files of the benchmark")
        found = (path for path in self.path.rglob("*") if path.is_file())
        return tuple(sorted(path for path in found if not path.name.startswith(".")))

    def find(self, pattern: str) -> list[Path]:
        """Return the files whose path below the folder, with a leading /, contains the pattern (ignoring case)."""
        compiled = re.compile(pattern, re.IGNORECASE)
        folder = self.path if self.path.is_dir() else self.path.parent
        return [path for path in self.files if compiled.search("/" + path.relative_to(folder).as_posix())]

    def find_optional(self, pattern: str) -> Path | None:
        """Return the file that matches, None if there is none. Raises ManifestError: several match."""
        found = self.find(pattern)
        if len(found) > 1:
            names = " and ".join(str(path) for path in found[:2])
            reason = f"{len(found)} files could be meant: {names}"
            raise ManifestError(self.path, reason, "one of them", "give that file")
        return found[0] if found else None

    def find_one(self, pattern: str, expected: str) -> Path:
        """Return the file that matches. Raises ManifestError, with `expected`: none or several match."""
        found = self.find_optional(pattern)
        if found is None:
            present = ", ".join(path.name for path in self.files[:6]) or "nothing"
            raise ManifestError(self.path, f"no annotation file of this benchmark (there is {present})", expected)
        return found

    def subfolder(self, pattern: str) -> AnnotationSource | None:
        """Return the first direct subfolder whose name matches as a source; None if there is none."""
        if not self.path.is_dir():
            return None
        folders = sorted(path for path in self.path.iterdir() if path.is_dir())
        folder = next((path for path in folders if re.fullmatch(pattern, path.name, re.IGNORECASE)), None)
        return None if folder is None else AnnotationSource(folder, self.unpickle, self.frame_rate)


@dataclass(frozen=True)
class JsonLocation:
    """The location of a value in a JSON file; its line is computed only when an error message needs it."""

    path: Path
    location: tuple[str | int, ...]

    def at(self, *more: str | int) -> JsonLocation:
        """Return the location of a value inside the value at this location."""
        return JsonLocation(self.path, (*self.location, *more))

    def __str__(self) -> str:
        return f"{self.path}:{line_of(read_text(self.path), self.location)} {'.'.join(map(str, self.location))}"


def split_in_name(path: Path) -> str | None:
    """Return the split in the name of a file, None if there is none."""
    names = SPLIT_IN_NAME.findall(path.stem.replace("_", " "))
    return _SPLITS[names[-1].lower()] if names else None


def read_text(path: Path) -> str:
    """Read a text file, decompressed if its name ends in .gz. Raises ManifestError: unreadable or empty."""
    if path.suffix == ".gz":
        try:
            content = untrusted.read_text(path)
        except (OSError, ValueError) as error:
            raise ManifestError(path, f"cannot be read: {error}", "a whole gzip file of UTF-8 text") from None
    else:
        content = lists.read_text(path)
    if not content.strip():
        raise ManifestError(f"{path}:1", "an empty file", "at least one row")
    return content


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield "FILE:LINE" and the text of the lines that are not blank. Raises ManifestError as `read_text`."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def csv_records(
    path: Path, record: type[R], *, columns: Sequence[str] = (), delimiter: str = ",", quoted: bool = True
) -> Iterator[tuple[str, R]]:
    """Yield "FILE:LINE" and record of the rows of a csv file. An empty cell is a missing field.

    Args:
        path: the file. record: its fields are the columns to read.
        columns: names of the columns of a file without header; by default the first line has them.
        delimiter: separator of cells. quoted: whether cells may be enclosed in ".

    Raises ManifestError: a missing column, a wrong number of cells, a cell that does not fit, an empty file.
    """
    stream, names = io.StringIO(read_text(path), newline=""), list(columns)
    for number, cells in lists.csv_cells(path, stream, delimiter, quoted=quoted):
        if not names:
            names = cells
            _check_columns(path, names, record)
            continue
        where = f"{path}:{number}"
        if len(cells) != len(names):
            raise ManifestError(where, f"{len(cells)} cells", f"{len(names)}: {', '.join(names)}")
        filled = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
        yield where, validate_record(record, filled, where)


def _check_columns(path: Path, names: list[str], record: type[Record]) -> None:
    fields = {field.alias or name: field.is_required() for name, field in record.model_fields.items()}
    for name, required in fields.items():
        if required and name not in names:
            found = f"no such column; there are {', '.join(names)[:120]}"
            raise ManifestError(f"{path}:1 {name}", found, "a header line")


def header_of(path: Path) -> list[str]:
    """Return the cells of the first line. Raises ManifestError as `read_text`."""
    _, line = next(numbered_lines(path))
    return lists.header_cells(path, line)


def validate_record(record: type[R], content: object, where: str) -> R:
    """Validate one record. Raises ManifestError with `where` and the field."""
    try:
        return record.model_validate(content)
    except ValidationError as error:
        raise first_error(where, error) from None


def read_json(path: Path, expected: type[T]) -> T:
    """Read and validate a JSON file.

    Raises ManifestError: no JSON, a duplicate key in an object, a value of another type; with its line.
    """
    text = read_text(path)
    return _validate_json(path, expected, _parse_json(path, text), text)


def json_records(path: Path, record: type[R]) -> Iterator[tuple[str, R]]:
    """Yield "FILE:LINE" and record of the objects of a JSON list or JSON lines file. Raises ManifestError."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        rows: list[Any] = _validate_json(path, list[record], _parse_json(path, text), text)  # type: ignore[valid-type]  # at run time
        yield from zip((f"{path}:{line}" for line in list_lines(text)), rows, strict=True)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{path}:{number}", validate_record(record, _parse_json(path, line, number - 1), f"{path}:{number}")


def list_lines(text: str) -> list[int]:
    """Return the line on which each item of a JSON list starts."""
    decoder, position, line, counted_to = json.JSONDecoder(), text.index("[") + 1, 1, 0
    lines: list[int] = []
    while True:
        separator = re.compile(r"[\s,]*").match(text, position)
        position = separator.end() if separator else position
        if text[position] == "]":
            return lines
        line, counted_to = line + text.count("\n", counted_to, position), position
        lines.append(line)
        _, position = decoder.raw_decode(text, position)


def _parse_json(path: Path, text: str, line_offset: int = 0) -> object:
    """Parse JSON; `line_offset` is the number of lines of the file before the text."""
    try:
        return untrusted.parse_json(text)
    except json.JSONDecodeError as error:
        raise ManifestError(
            f"{path}:{error.lineno + line_offset}", f"not JSON: {error.msg}", "a whole JSON file"
        ) from None
    except untrusted.DuplicateKeyError:
        first_offsets: dict[tuple[str | int, ...], int] = {}
        for key, offset in _offsets(text):
            if key in first_offsets:
                line, first = (text.count("\n", 0, start) + 1 + line_offset for start in (offset, first_offsets[key]))
                where, found = f"{path}:{line} {'.'.join(map(str, key))}", f"duplicate key, first in line {first}"
                raise ManifestError(where, found, "each key once") from None
            first_offsets[key] = offset
        raise
    except ValueError as error:
        raise ManifestError(f"{path}:{line_offset + 1}", str(error), "JSON") from None


def _validate_json(path: Path, expected: type[T], content: object, text: str) -> T:
    try:
        return TypeAdapter(expected).validate_python(content)
    except ValidationError as error:
        location = error.errors(include_url=False)[0]["loc"]
        raise first_error(f"{path}:{line_of(text, location)}", error) from None


def line_of(text: str, location: Sequence[str | int]) -> int:
    """Return the line of a JSON text where the value at a location starts, or else its innermost existing parent."""
    offsets = {parent: offset for parent, offset in _offsets(text) if parent == tuple(location[: len(parent)])}
    return text.count("\n", 0, offsets[max(offsets, key=len)]) + 1 if offsets else 1


def _offsets(text: str) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Yield location and character offset of every value of a JSON text. Called only for error messages."""
    location: list[str | int] = []
    containers: list[str] = []
    is_key = False
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in ("{", "["):
            yield tuple(location), match.start()
            containers.append(token)
            location.append("" if token == "{" else 0)
            is_key = token == "{"
        elif token in ("}", "]"):
            containers.pop()
            location.pop()
            is_key = False
        elif token == ",":
            last = location[-1]
            is_key = containers[-1] == "{"
            location[-1] = last + 1 if isinstance(last, int) and not is_key else last
        elif token == ":":
            is_key = False
        elif is_key:
            location[-1] = untrusted.parse_json(token)
        else:
            yield tuple(location), match.start()
