"""Read list files of labeled clips: `path label`, separated by a space, a comma or a tab."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from internvideo.data.sample import Sample
from internvideo.datasets.annotations import Annotations, ClassList, index_names, read_names
from internvideo.datasets.reading import AnnotationSource, numbered_lines, split_in_name
from internvideo.errors import ManifestError

_LINE = re.compile(r"(?P<path>.+?)(?:\s*,\s*|\s+)(?P<label>[+-]?\w+)$")
_LABEL_MAP = r"label_?map[^/]*\.txt$|/classes\.txt$|categories[^/]*\.txt$"


def list_lines(path: Path, classes: ClassList) -> Iterable[tuple[str, str, int]]:
    """Yield ("FILE:LINE", path, class index) per line. Raises ManifestError: a malformed line, an unknown class."""
    for where, line in numbered_lines(path):
        match = _LINE.match(line)
        if match is None:
            raise ManifestError(f"{where} label", f"'{line[:80]}' has no label", "'path label'")
        if not match["label"].lstrip("+-").isdecimal():
            raise ManifestError(f"{where} label", f"'{match['label']}'", "a class number")
        yield where, match["path"].strip("\"'"), classes.check_index(int(match["label"]), where)


def read_lists(
    source: AnnotationSource, files: Iterable[Path], num_classes: int, *, default_split: str | None = None
) -> Annotations:
    """Read one list per split; the name of a list contains the split.

    Args:
        source: searched for a file of class names.
        files: the lists. num_classes: number of classes. default_split: split of a list whose name contains none.

    Raises ManifestError: a malformed line, an unknown class, a duplicate path in a split, a list without a split.
    """
    names = read_label_map_names(source)
    classes, annotations, labels = ClassList(names, max(num_classes, len(names))), Annotations(), {-1}
    for path in files:
        split = split_in_name(path) or default_split
        if split is None:
            raise ManifestError(path, "the name of the list contains no split", "train, val or test in the name")
        for where, video, label in list_lines(path, classes):
            labels.add(label)
            annotations.add(split, Sample(id=video, path=video, label=label, split=split), where, video)
    annotations.classes = names if len(names) > max(labels) else index_names(max(num_classes, max(labels) + 1))
    return annotations


def read_label_map_names(source: AnnotationSource) -> tuple[str, ...]:
    """Read the class names of a label map among the files; () if there is none. Raises ManifestError."""
    files = source.find(_LABEL_MAP)
    if not files:
        return ()
    names = read_names(files[0])
    numbered = [re.fullmatch(r"(.+),(\d+)", name) for name in names]
    if not all(numbered):
        return names
    pairs = sorted((int(pair[2]), pair[1]) for pair in numbered if pair)
    if [number for number, _ in pairs] != list(range(len(pairs))):
        raise ManifestError(files[0], "the indices of the classes have gaps", "0, 1, 2, ...")
    return tuple(name for _, name in pairs)
