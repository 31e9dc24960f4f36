"""Interpret the columns of a csv manifest: each is used, kept as an attribute, skipped with a note, or rejected."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from internvideo.errors import ManifestError

Row = dict[str, str]  # column -> its cell

_SINGLE_COLUMNS = ("id", "label", "split", "group")
_REPEATED_COLUMNS = ("caption", "question", "answer")
_BOUNDS = {
    "start": frozenset(("start", "beg", "begin", "onset")),
    "end": frozenset(("end", "stop", "finish", "offset")),
}
_SECONDS = frozenset(("time", "t", "s", "sec", "secs", "second", "seconds", "in"))
_AMBIGUOUS_WORDS = frozenset((
    "frame", "frames", "ms", "msec", "milliseconds", "min", "minute", "minutes", "hour", "hours", "pts", "timestamp",
    "ts", "index", "idx", "gt", "temporal", "segment", "clip", "action", "event", "video", "window", "interval",
    "narration",
))  # fmt: skip
_GLUED = re.compile(rf"({'|'.join(word for words in _BOUNDS.values() for word in words)})(\w{{2,}})")
"""Words without a separator: starttime, endsec."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
FPS = "fps"
STRIDE = "stride"
"""An attribute that changes which frames are read (`data/dataset.py`); a csv column of this name must not set it."""
MAX_NAMES_SHOWN = 8


@dataclass
class CsvColumns:
    """Columns of one file by role.

    Attributes:
        names: names of all columns, in order. path: name of the column of video paths.
        column_by_field: "id", "label", "split", "group", "start", "end" -> column, for those that exist.
        captions: names of the caption columns. pairs: names of (question column, answer column).
        attributes: names of the columns that become attributes.
        num_incomplete_pairs: questions without an answer and answers without a question, in the rows read so far.
    """

    names: tuple[str, ...]
    path: str
    column_by_field: dict[str, str]
    captions: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    attributes: tuple[str, ...]
    num_incomplete_pairs: int = 0

    def fields(self, values: Row, where: str) -> dict[str, Any]:
        """Convert a row to the fields of a `Sample`.

        Raises ManifestError: a start without an end, or an end without a start.
        """
        cell = {field: values[column] or None for field, column in self.column_by_field.items()}
        path = values[self.path]
        fields: dict[str, Any] = {"id": cell.get("id") or path, "path": path}
        fields |= {name: cell.get(name) for name in ("label", "split", "group")}
        start, end = cell.get("start"), cell.get("end")
        if start and end:
            fields["span"] = (start, end)
        elif start or end:
            empty, given = ("end", f"start {start}") if start else ("start", f"end {end}")
            raise ManifestError(
                f"{where} {self.column_by_field[empty]}", f"empty beside {given}", "both, in s, or neither"
            )
        fields["captions"] = tuple(values[name] for name in self.captions if values[name])
        pairs = [(values[question], values[answer]) for question, answer in self.pairs]
        self.num_incomplete_pairs += sum(bool(question) != bool(answer) for question, answer in pairs)
        fields["qa"] = tuple(
            {"question": question, "answer": answer} for question, answer in pairs if question and answer
        )
        fields["attributes"] = {name: values[name] for name in self.attributes if values[name]}
        return fields

    def notes(self) -> list[str]:
        """Return notes for the user, complete once all rows are read."""
        notes = []
        unknown = [name for name in self.attributes if name != FPS]
        if unknown:
            more = f" and {len(unknown) - MAX_NAMES_SHOWN} more" if len(unknown) > MAX_NAMES_SHOWN else ""
            names = ", ".join(f"'{name}'" for name in unknown[:MAX_NAMES_SHOWN])
            notes.append(f"columns that a manifest does not define, kept as attributes: {names}{more}")
        if FPS in self.attributes:
            notes.append("column 'fps' is used only for folders of frames; video files have their own frame rate")
        if STRIDE in self.names:
            notes.append("column 'stride' skipped: a csv file cannot set the stride")
        if "" in self.names:
            notes.append("a column without a name skipped")
        if self.num_incomplete_pairs:
            notes.append(
                f"{self.num_incomplete_pairs} questions without an answer, or answers without a question, left out"
            )
        return notes


def read_columns(where: str, cells: Sequence[str], path_column: str, label_column: str) -> CsvColumns:
    """Interpret the header of a csv file, case-insensitively unless that is ambiguous.

    Args:
        where: file and line. cells: cells of the header. path_column, label_column: as for `read_manifest`.

    Raises ManifestError: a duplicate column, no column `label_column`, two columns of one meaning, time columns of
    unclear unit, a start without an end.
    """
    names = tuple(cell.strip() for cell in cells)
    duplicates = sorted(name for name, times in Counter(names).items() if times > 1)
    if duplicates:
        raise ManifestError(where, f"duplicate column '{duplicates[0]}'", "each column once")
    if label_column != "label" and label_column not in names:
        raise ManifestError(where, f"no column '{label_column}'", f"the columns {', '.join(names)}")
    free = [name for name in names if name not in (path_column, label_column)]
    column_by_field = {"label": label_column} if label_column in names else {}
    for meaning in _SINGLE_COLUMNS:
        matching = [name for name in free if name.casefold() == meaning]
        if meaning not in column_by_field and matching:
            column_by_field[meaning] = _pick_column(where, matching, meaning)
    column_by_field |= _time_columns(where, free)
    many = {
        name.casefold(): name for name in free if re.fullmatch(rf"({'|'.join(_REPEATED_COLUMNS)})\d*", name.casefold())
    }
    captions = tuple(column for name, column in many.items() if name.startswith("caption"))
    questions = [(name, name.replace("question", "answer")) for name in many if name.startswith("question")]
    pairs = tuple((many[question], many[answer]) for question, answer in questions if answer in many)
    used = {path_column, STRIDE, "", *column_by_field.values(), *captions, *(name for pair in pairs for name in pair)}
    return CsvColumns(
        names, path_column, column_by_field, captions, pairs, tuple(name for name in names if name not in used)
    )


def _pick_column(where: str, matching: Sequence[str], meaning: str) -> str:
    """Return the column spelled exactly as the field, else the only match. Raises ManifestError: several match."""
    if meaning in matching:
        return meaning
    if len(matching) > 1:
        raise ManifestError(where, f"columns '{matching[0]}' and '{matching[1]}'", f"one column '{meaning}'")
    return matching[0]


def _time_columns(where: str, names: Sequence[str]) -> dict[str, str]:
    """Find the columns of start and end in seconds: start, time_start, start_time, Start, begin_sec, ..."""
    found: dict[str, list[str]] = {bound: [] for bound in _BOUNDS}
    for name in names:
        words = _words(name)
        for bound, bound_words in _BOUNDS.items():
            other_words = words - bound_words - _SECONDS
            if not words & bound_words or any(not word.isdecimal() for word in other_words - _AMBIGUOUS_WORDS):
                continue
            if other_words:
                expected = "times in s: 'start' and 'end'"
                raise ManifestError(where, f"column '{name}' may be a time in another unit", expected, "rename it")
            found[bound].append(name)
    column_by_field = {bound: _pick_column(where, names, bound) for bound, names in found.items() if names}
    if len(column_by_field) == 1:
        ((bound, name),) = column_by_field.items()
        reason = f"column '{name}' without its counterpart"
        raise ManifestError(where, reason, "both 'start' and 'end', in s, or neither")
    return column_by_field


def _words(name: str) -> set[str]:
    """Split a column name into lower-case words."""
    words = {word.casefold() for word in _WORD.findall(name)}
    for word in [*words]:
        glued = _GLUED.fullmatch(word)
        if glued and glued[2] in _SECONDS | _AMBIGUOUS_WORDS:
            words = words - {word} | {glued[1], glued[2]}
    return words
