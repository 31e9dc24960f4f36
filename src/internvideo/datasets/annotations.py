"""The output of an annotation reader: rows per split, class names, file names of the videos, notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import NonNegativeInt

from internvideo.data.sample import Sample, did_you_mean
from internvideo.datasets.reading import numbered_lines, read_json
from internvideo.errors import ManifestError

NUM_EXAMPLES = 3
"""Invalid rows that a report quotes."""


@dataclass
class Annotations:
    """Rows and class names of a benchmark.

    Attributes:
        classes: names in order; a row's labels are indices into them.
        splits: name of a manifest ("train", "val", "test", "train1", ...) -> its rows.
        notes: rows that were left out or look wrong, one sentence per kind.
        names: path of a row -> file names that its video may have, the best first; a name without folder or extension
            matches files in any folder or with any extension. A path without an entry is the only name.
        vocabularies: other lists of names (answers, verbs), each written to NAME.txt.
        frame_rate: frames per second, for data sets published as folders of frames; None for video files.
        lists: tables that are written to NAME.tsv beside the manifests, such as the clips that a merge dropped.
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
        """Add a row, read from `where`, to a split; `names` are file names that its video may have.

        Raises ManifestError: the split already has a row of this id.
        """
        key = (split, row.id)
        if key in self._first:
            found = f"'{row.id}', which {self._first[key]} has too"
            raise ManifestError(f"{where} id", found, "each clip once in a split")
        self._first[key] = where
        self.splits.setdefault(split, []).append(row)
        if names:
            self.names[row.path] = names

    def ensure_rows(self, where: object, found: str, expected: str) -> Annotations:
        """Return these annotations. Raises ManifestError: they have no row."""
        if not self.splits:
            raise ManifestError(where, found, expected)
        return self

    def note(self, count: int, what: str) -> None:
        """Add a note that starts with a count, unless the count is 0."""
        if count:
            self.notes.append(f"{count:,} {what}")


class InvalidRows:
    """Count invalid rows, such as segments that end before they start, and report the first ones.

    Published loaders skip such rows too. If more than half of the rows are invalid, the file probably has another
    format, and `finish` raises the error of the first invalid row.

    Args:
        what: noun for the rows in the report, such as "segments".
    """

    def __init__(self, what: str = "rows") -> None:
        self.what, self.rows, self.count = what, 0, 0
        self._first: list[ManifestError] = []

    def skip(self, invalid: bool, where: object, found: str, expected: str) -> bool:
        """Count a row, read from `where`; return `invalid`, whether the caller must skip it."""
        self.rows += 1
        self.count += invalid
        if invalid and len(self._first) < NUM_EXAMPLES:
            self._first.append(ManifestError(where, found, expected))
        return invalid

    def finish(self, annotations: Annotations) -> None:
        """Add a note with the number of invalid rows. Raises ManifestError: more than half of the rows are."""
        if self.count * 2 > self.rows:
            raise self._first[0]
        examples = "; ".join(f"{error.where}: {error.found}" for error in self._first)
        more = "; ..." if self.count > len(self._first) else ""
        annotations.note(self.count, f"of {self.rows:,} {self.what} skipped: {examples}{more}")


class ClassList:
    """Map class names of a benchmark to indices.

    Args:
        names: all class names in order. If empty, names are collected from the rows and sorted by `finish`.
        count: maximum number of classes, 0 for no limit.
    """

    def __init__(self, names: Sequence[str] = (), count: int = 0) -> None:
        self.fixed, self.count = bool(names), count or len(names)
        self.index = {name: index for index, name in enumerate(names)}

    def index_of(self, name: str, where: object, *, field: str = "label") -> int:
        """Return the index of a name; provisional until `finish` if names are collected.

        Raises ManifestError: an unknown class, or more classes than `count`.
        """
        if name not in self.index:
            if self.fixed:
                found = f"unknown class '{name}'{did_you_mean(name, self.index)}"
                raise ManifestError(f"{where} {field}", found, f"{len(self.index)} class names")
            if self.count and len(self.index) == self.count:
                raise ManifestError(f"{where} {field}", f"one class more, '{name}'", f"{self.count} classes")
            self.index[name] = len(self.index)
        return self.index[name]

    def check_index(self, index: int, where: object) -> int:
        """Return a class index (from 0) after checking its range. Raises ManifestError: there is no such class."""
        if index < 0 or (self.count and index >= self.count):
            raise ManifestError(f"{where} label", f"unknown class {index}", f"0 to {self.count - 1}")
        return index

    def finish(self, annotations: Annotations) -> None:
        """Store the names in the annotations; collected names are sorted and the labels of the rows remapped."""
        names = list(self.index) if self.fixed else sorted(self.index)
        if not self.fixed and names != list(self.index):
            new_index = {self.index[name]: index for index, name in enumerate(names)}
            for rows in annotations.splits.values():
                rows[:] = [row.with_class_indices(new_index) for row in rows]
        annotations.classes = tuple(names)


def read_names(path: Path) -> tuple[str, ...]:
    """Read class names, one per line, without surrounding quotes. Raises ManifestError: a duplicate name."""
    names: dict[str, str] = {}
    for where, text in numbered_lines(path):
        name = text.strip("\"'")
        if name in names:
            raise ManifestError(f"{where} label", f"'{name}', which {names[name]} has too", "each name once")
        names[name] = where
    return tuple(names)


def read_indexed_names(path: Path) -> tuple[str, ...]:
    """Read a JSON object name -> index; return the names by index. Raises ManifestError: not 0, 1, 2, ..."""
    index = read_json(path, dict[str, NonNegativeInt])
    if sorted(index.values()) != list(range(len(index))):
        raise ManifestError(path, "the indices of the names are not 0, 1, 2, ...", "each once")
    return tuple(sorted(index, key=index.__getitem__))


def corners_of(box: tuple[float, float, float, float], size: tuple[float, float]) -> tuple[float, float, float, float]:
    """Convert x, y, width, height to x1, y1, x2, y2 as fractions of the image's `size` (width, height)."""
    x, y, width, height = box
    return x / size[0], y / size[1], (x + width) / size[0], (y + height) / size[1]


def index_names(count: int) -> tuple[str, ...]:
    """Return the names "0", "1", ... for classes without names."""
    return tuple(str(index) for index in range(count))
