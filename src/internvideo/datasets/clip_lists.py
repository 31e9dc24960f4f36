"""List files of labeled clips: `path label` with a space, a comma or a tab between."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from internvideo.data.sample import Sample
from internvideo.datasets.annotations import Annotations, ClassList, numbers_as_names, read_names
from internvideo.datasets.reading import AnnotationSource, numbered_lines, split_of
from internvideo.errors import ManifestError

_LINE = re.compile(r"(?P<path>.+?)(?:\s*,\s*|\s+)(?P<label>[+-]?\w+)$")
_LABEL_MAP = r"label_?map[^/]*\.txt$|/classes\.txt$|categories[^/]*\.txt$"


def list_lines(path: Path, classes: ClassList) -> Iterable[tuple[str, str, int]]:
    """(where, path, label) of every line. Raises ManifestError: a line of another form, an unknown class."""
    for number, line in numbered_lines(path):
        where = f"{path}:{number}"
        found = _LINE.match(line)
        if found is None:
            raise ManifestError(f"{where} label", f"'{line[:80]}' has no label", "'path label'")
        if not found["label"].lstrip("+-").isdecimal():
            raise ManifestError(f"{where} label", f"'{found['label']}'", "a class number")
        yield where, found["path"].strip("\"'"), classes.numbered(int(found["label"]), where)


def read_lists(source: AnnotationSource, files: Iterable[Path], count: int, *, one: str | None = None) -> Annotations:
    """Lists, one a split; the split stands in the file's name.

    Args:
        source: where class names may lie.
        files: the lists. count: number of classes. one: the split of a list whose name tells none.

    Raises:
        ManifestError: a malformed line, an unknown class, a path twice in a split, a list of no known split.
    """
    names = names_beside(source)
    classes, made, labels = ClassList(names, max(count, len(names))), Annotations(), {-1}
    for path in files:
        split = split_of(path) or one
        if split is None:
            raise ManifestError(path, "the name of the list tells no split", "train, val or test in the name")
        for where, video, label in list_lines(path, classes):
            labels.add(label)
            made.add(split, Sample(id=video, path=video, label=label, split=split), where, video)
    made.classes = names if len(names) > max(labels) else numbers_as_names(max(count, max(labels) + 1))
    return made


def names_beside(source: AnnotationSource) -> tuple[str, ...]:
    """Class names of a label map among the files, () where there is none. Raises ManifestError."""
    found = source.find(_LABEL_MAP)
    if not found:
        return ()
    names = read_names(found[0])
    numbered = [re.fullmatch(r"(.+),(\d+)", name) for name in names]
    if not all(numbered):
        return names
    pairs = sorted((int(pair[2]), pair[1]) for pair in numbered if pair)
    if [number for number, _ in pairs] != list(range(len(pairs))):
        raise ManifestError(found[0], "the numbers of the classes have gaps", "0, 1, 2, ...")
    return tuple(name for _, name in pairs)
