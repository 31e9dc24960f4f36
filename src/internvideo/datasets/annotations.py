"""What a reader gives: rows by split, class names, the names of the videos, what the reader noticed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from internvideo.data.sample import Sample, did_you_mean
from internvideo.datasets.reading import numbered_lines
from internvideo.errors import ManifestError

SHOWN = 3


@dataclass
class Annotations:
    """Rows and class names of a benchmark.

    Attributes:
        classes: names in order; a row's labels are indices into them.
        splits: name of a manifest ("train", "val", "test", "train1", ...) -> its rows.
        notes: what was left out or looks odd, one sentence each.
        names: a row's path -> the names under which its video may lie, best first, without folders and extension where
            these may be any; the path itself when absent.
        vocabularies: other lists of names (answers, verbs), each to be written as NAME.txt.
        frame_rate: frames a second of the folders of frames that the videos are published as; None where they are not.
        lists: tables to be written beside the manifests as NAME.tsv, such as what a merge dropped.
    """

    classes: tuple[str, ...] = ()
    splits: dict[str, list[Sample]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    vocabularies: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lists: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    frame_rate: float | None = None
    _first: dict[tuple[str, str], object] = field(default_factory=dict, repr=False)

    def add(self, split: str, row: Sample, where: object, *names: str) -> None:
        """One row of a split, read from `where`; its video may lie under these names.

        Raises:
            ManifestError: the split has its id already.
        """
        key = (split, row.id)
        if key in self._first:
            found = f"'{row.id}', which {self._first[key]} has too"
            raise ManifestError(f"{where} id", found, "each clip once in a split")
        self._first[key] = where
        self.splits.setdefault(split, []).append(row)
        if names:
            self.names[row.path] = names

    def note(self, count: int, what: str) -> None:
        """A note that starts with a number, unless it is 0."""
        if count:
            self.notes.append(f"{count:,} {what}")


class OddRows:
    """Rows that cannot be meant, such as times that run backwards: passed over, counted, the first ones named.

    Published loaders pass them over too. More than half of them are no slips: then the file is another one than it
    seems, and the first of them is a mistake.

    Args:
        what: they are, in words, of all rows that are looked at.
    """

    def __init__(self, what: str = "rows") -> None:
        self.what, self.rows, self.count = what, 0, 0
        self._first: list[ManifestError] = []

    def passed(self, odd: bool, where: object, found: str, allowed: str) -> bool:
        """Whether a row, read from `where`, is to be passed over."""
        self.rows += 1
        self.count += odd
        if odd and len(self._first) < SHOWN:
            self._first.append(ManifestError(where, found, allowed))
        return odd

    def settle(self, annotations: Annotations) -> None:
        """Tell how many there were. Raises ManifestError: more than half of the rows."""
        if self.count * 2 > self.rows:
            raise self._first[0]
        named = "; ".join(f"{error.where}: {error.found}" for error in self._first)
        more = "; ..." if self.count > len(self._first) else ""
        annotations.note(self.count, f"of {self.rows:,} {self.what} passed over: {named}{more}")


class ClassList:
    """Class names of a benchmark.

    Args:
        names: all of them in order. Without them the names met are collected, and sorted in the end.
        count: how many there may be, 0 for any number.
    """

    def __init__(self, names: Sequence[str] = (), count: int = 0) -> None:
        self.fixed, self.count = bool(names), count or len(names)
        self.index = {name: number for number, name in enumerate(names)}

    def named(self, name: str, where: object, *, field: str = "label") -> int:
        """The index of a name; provisional unless the names were given. Raises ManifestError: an unknown class."""
        if name not in self.index:
            if self.fixed:
                hint = did_you_mean(name, self.index)
                raise ManifestError(
                    f"{where} {field}", f"unknown class '{name}'{hint}", f"{len(self.index)} class names"
                )
            if self.count and len(self.index) == self.count:
                raise ManifestError(f"{where} {field}", f"one class more, '{name}'", f"{self.count} classes")
            self.index[name] = len(self.index)
        return self.index[name]

    def numbered(self, number: int, where: object, *, field: str = "label") -> int:
        """A class given by number, from 0. Raises ManifestError: there is no such class."""
        if number < 0 or (self.count and number >= self.count):
            raise ManifestError(f"{where} {field}", f"unknown class {number}", f"0 to {self.count - 1}")
        return number

    def settle(self, annotations: Annotations) -> None:
        """Write the names into the annotations; collected ones are sorted and the rows follow."""
        names = list(self.index) if self.fixed else sorted(self.index)
        if not self.fixed and names != list(self.index):
            moved = {self.index[name]: number for number, name in enumerate(names)}
            for rows in annotations.splits.values():
                rows[:] = [row.with_class_indices(moved) for row in rows]
        annotations.classes = tuple(names)


def read_names(path: Path) -> tuple[str, ...]:
    """Class names, one a line; quotes around them are not part of them. Raises ManifestError: a name twice."""
    names: dict[str, int] = {}
    for line, text in numbered_lines(path):
        name = text.strip("\"'")
        if name in names:
            raise ManifestError(f"{path}:{line} label", f"'{name}', which line {names[name]} has too", "each name once")
        names[name] = line
    return tuple(names)


def numbers_as_names(count: int) -> tuple[str, ...]:
    """Names for classes that are known by number only: "0", "1", ..."""
    return tuple(str(number) for number in range(count))
