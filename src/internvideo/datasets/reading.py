"""Annotation files as checked records. Whatever is wrong with one is told in one line: file, line, field.

A byte order mark and any line ending are read as if they were not there; an empty file is a mistake.
"""

from __future__ import annotations

import csv
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
from internvideo.data.manifest import explained
from internvideo.errors import ManifestError

SHORTEST_SECONDS = 1e-3
"""Shorter segments are no segments to the published evaluators (eval_detection.py)."""
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("val", "valid", "validate", "validation"), "val")
SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|training|test|testing|val|valid|validate|validation)(?![a-z])", re.I)

T = TypeVar("T")
R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """What is read of one row or object; fields that it does not name are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


def _split(value: str) -> str:
    if value.strip().lower() not in _SPLITS:
        raise ValueError(f"one of {', '.join(_SPLITS)}")
    return _SPLITS[value.strip().lower()]


def _one_line(value: str) -> str:
    if any(ord(character) < 32 for character in value):
        raise ValueError("a name without control characters")
    return value


SplitName = Annotated[str, AfterValidator(_split)]
"""train, val or test, in any of the usual spellings."""
Name = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
"""A name or path: one line without control characters."""


@dataclass(frozen=True)
class AnnotationSource:
    """The annotation files that were given: one file, or a folder with all that lies below it.

    Attributes:
        path: file or folder.
        unpickle: opens a pickle as plain data without running it; None where nobody offers it.
        frame_rate: frames a second of a film, by its name; None where no films are at hand.
    """

    path: Path
    unpickle: Callable[[Path], object] | None = None
    frame_rate: Callable[[str], float | None] | None = None

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """All files, sorted. Raises ManifestError where there is nothing."""
        if self.path.is_file():
            return (self.path,)
        if not self.path.is_dir():
            raise ManifestError(self.path, "no such file or folder", "the annotation files of the benchmark")
        found = (path for path in self.path.rglob("*") if path.is_file())
        return tuple(sorted(path for path in found if not path.name.startswith(".")))

    def find(self, pattern: str) -> list[Path]:
        """Files whose name (from the given folder on, with /) holds the pattern, in any case."""
        wanted = re.compile(pattern, re.IGNORECASE)
        folder = self.path if self.path.is_dir() else self.path.parent
        return [path for path in self.files if wanted.search("/" + path.relative_to(folder).as_posix())]

    def maybe(self, pattern: str) -> Path | None:
        """The file of that name, None where there is none. Raises ManifestError where there are several."""
        found = self.find(pattern)
        if len(found) > 1:
            names = " and ".join(str(path) for path in found[:2])
            raise ManifestError(
                self.path, f"{len(found)} files could be meant: {names}", "one of them", "give that file"
            )
        return found[0] if found else None

    def one(self, pattern: str, expected: str) -> Path:
        """The file of that name. Raises ManifestError saying what is expected where there is not exactly one."""
        found = self.maybe(pattern)
        if found is None:
            present = ", ".join(path.name for path in self.files[:6]) or "nothing"
            raise ManifestError(self.path, f"no annotation file of this benchmark (there is {present})", expected)
        return found

    def below(self, pattern: str) -> AnnotationSource | None:
        """The first folder directly inside whose name matches, as a source of its own; None where there is none."""
        if not self.path.is_dir():
            return None
        folders = sorted(path for path in self.path.iterdir() if path.is_dir())
        chosen = next((path for path in folders if re.fullmatch(pattern, path.name, re.IGNORECASE)), None)
        return None if chosen is None else AnnotationSource(chosen, self.unpickle, self.frame_rate)


@dataclass(frozen=True)
class Spot:
    """A value of a JSON file; its line is looked up when somebody wants to read it, that is for a mistake."""

    path: Path
    location: tuple[str | int, ...]

    def at(self, *more: str | int) -> Spot:
        """A value inside this one."""
        return Spot(self.path, (*self.location, *more))

    def __str__(self) -> str:
        return f"{self.path}:{line_of(read_text(self.path), self.location)} {'.'.join(map(str, self.location))}"


def split_of(path: Path) -> str | None:
    """The split that a file's name tells, None where it tells none."""
    found = SPLIT_IN_NAME.findall(path.stem.replace("_", " "))
    return _SPLITS[found[-1].lower()] if found else None


def read_text(path: Path) -> str:
    """The text of a file, gunzipped where its name ends in .gz. Raises ManifestError: unreadable or empty."""
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


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their number. Raises ManifestError as `read_text`."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def csv_records(
    path: Path, record: type[R], *, columns: Sequence[str] = (), delimiter: str = ",", quoted: bool = True
) -> Iterator[tuple[int, R]]:
    """Rows with their line numbers. An empty cell is a field that is not there.

    Args:
        path: the file. record: its fields are columns.
        columns: their names where the file has no header; else the first line names them.
        delimiter: between cells. quoted: whether " encloses cells.

    Raises:
        ManifestError: a missing column, a wrong number of cells, a cell that does not fit, an empty file.
    """
    stream = io.StringIO(read_text(path), newline="")
    reader = untrusted.CsvReader(stream, delimiter, quoted=quoted)
    names = list(columns)
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                _check_columns(path, names, record)
                continue
            if len(cells) != len(names):
                raise ManifestError(
                    f"{path}:{reader.line_num}", f"{len(cells)} cells", f"{len(names)}: {', '.join(names)}"
                )
            filled = {name: cell.strip() for name, cell in zip(names, cells, strict=True) if cell.strip()}
            yield reader.line_num, checked(record, filled, f"{path}:{reader.line_num}")
    except csv.Error as error:
        raise ManifestError(f"{path}:{reader.line_num}", f"not csv ({error})") from None


def _check_columns(path: Path, names: list[str], record: type[Record]) -> None:
    wanted = {field.alias or name: field.is_required() for name, field in record.model_fields.items()}
    for name, needed in wanted.items():
        if needed and name not in names:
            raise ManifestError(
                f"{path}:1 {name}", f"no such column; there are {', '.join(names)[:120]}", "a header line"
            )


def header_of(path: Path) -> list[str]:
    """Cells of the first line. Raises ManifestError as `read_text`."""
    _, line = next(numbered_lines(path))
    try:
        return [cell.strip() for cell in next(untrusted.CsvReader([line], ",", strict=False))]
    except csv.Error as error:
        raise ManifestError(f"{path}:1", f"not csv ({error})") from None


def checked(record: type[R], content: object, where: str) -> R:
    """One record. Raises ManifestError with `where` and the field."""
    try:
        return record.model_validate(content)
    except ValidationError as error:
        raise explained(where, error) from None


def read_json(path: Path, expected: type[T]) -> T:
    """The checked content of a JSON file.

    Raises:
        ManifestError: no JSON, a key twice in one object, a value that does not fit, with its line.
    """
    text = read_text(path)
    return _checked_json(path, expected, _parsed(path, text), text)


def json_records(path: Path, record: type[R]) -> Iterator[tuple[int, R]]:
    """Objects of a JSON list, or of a file with one object a line, with their line numbers. Raises ManifestError."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        rows: list[Any] = _checked_json(path, list[record], _parsed(path, text), text)  # type: ignore[valid-type]  # at run time
        starts = list_lines(text)
        yield from zip(starts, rows, strict=True)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, checked(record, _parsed(path, line, number - 1), f"{path}:{number}")


def list_lines(text: str) -> list[int]:
    """The line on which each item of a JSON list starts."""
    decoder, at, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    places: list[int] = []
    while True:
        found = re.compile(r"[\s,]*").match(text, at)
        at = found.end() if found else at
        if text[at] == "]":
            return places
        line, counted = line + text.count("\n", counted, at), at
        places.append(line)
        _, at = decoder.raw_decode(text, at)


def _parsed(path: Path, text: str, above: int = 0) -> object:
    """JSON; `above` lines stand before the text in its file."""
    try:
        return untrusted.parse_json(text)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}:{error.lineno + above}", f"not JSON: {error.msg}", "a whole JSON file") from None
    except untrusted.KeyTwiceError:
        seen: dict[tuple[str | int, ...], int] = {}
        for place, at in _places(text):
            if place in seen:
                line, first = (text.count("\n", 0, spot) + 1 + above for spot in (at, seen[place]))
                field = ".".join(map(str, place))
                raise ManifestError(
                    f"{path}:{line} {field}", f"stands a second time, first in line {first}", "each key once"
                ) from None
            seen[place] = at
        raise
    except ValueError as error:
        raise ManifestError(f"{path}:{above + 1}", str(error), "JSON") from None


def _checked_json(path: Path, expected: type[T], content: object, text: str) -> T:
    try:
        return TypeAdapter(expected).validate_python(content)
    except ValidationError as error:
        location = error.errors(include_url=False)[0]["loc"]
        raise explained(f"{path}:{line_of(text, location)}", error) from None


def line_of(text: str, location: Sequence[str | int]) -> int:
    """The line of a JSON text on which the value at a location starts, or of what should hold it."""
    lines = {place: at for place, at in _places(text) if place == tuple(location[: len(place)])}
    return text.count("\n", 0, lines[max(lines, key=len)]) + 1 if lines else 1


def _places(text: str) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Location and place in the text of every value. Only called to tell where a mistake is."""
    location: list[str | int] = []
    containers: list[str] = []
    is_key = False
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token in ("{", "["):
            yield tuple(location), found.start()
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
            yield tuple(location), found.start()
