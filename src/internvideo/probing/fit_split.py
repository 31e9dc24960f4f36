"""An honest split: what comes from one source stays on one side, and classes are spread evenly.

Legend: n videos, C classes, K folds.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.data.manifest import Manifest
from internvideo.errors import ManifestError, RecipeError
from internvideo.metrics.classification import unit

Ints = NDArray[np.int64]

TRIES = 10
"""Random splits that are tried until every class has training videos in all folds."""

NEAR = 0.999
"""Cosine of standardised features above which two videos are as good as the same."""

BLOCK = 1024
SHOWN = 20


@dataclass(frozen=True)
class Sources:
    """Where each video comes from.

    Attributes:
        group: (n,) number of its source. count: how many sources. notes: what a reader should know.
    """

    group: Ints
    count: int
    notes: tuple[str, ...]


def source_groups(manifest: Manifest, pattern: str | None = None) -> Sources:
    """The source of every row.

    Args:
        manifest: its column `group` counts; without one every video file is a source of its own.
        pattern: a regular expression that finds the source in a path: its first group, or all that it matches. It
            goes before the column.

    Raises:
        RecipeError: not a regular expression, or one that is found in no path.
    """
    if pattern is None:
        names = [row.path if row.group is None else f"group {row.group}" for row in manifest.rows]
        alone = sum(row.group is None for row in manifest.rows)
        notes = []
        if alone:
            who = "every video" if alone == len(names) else f"each of {alone} videos without a group"
            notes.append(
                f"{who} counts as a source of its own; if several were cut from one recording, tell it by the "
                "manifest's column 'group' or by --group-pattern, or the figures will be too good"
            )
        return _numbered(names, notes)
    try:
        search = re.compile(pattern)
    except re.error as error:
        allowed = r"a regular expression such as '(.+)_part\d+'"
        raise RecipeError("--group-pattern", f"'{pattern}': {error}", allowed) from error
    found = [search.search(row.path) for row in manifest.rows]
    missed = [row.path for row, match in zip(manifest.rows, found, strict=True) if match is None]
    if len(missed) == len(found):
        raise RecipeError("--group-pattern", f"'{pattern}' is found in no path", f"paths such as '{missed[0]}'")
    notes = [f"--group-pattern is not found in {len(missed)} paths, such as '{missed[0]}'"] if missed else []
    names = [
        row.path if match is None else f"group {match[1] if search.groups and match[1] is not None else match[0]}"
        for row, match in zip(manifest.rows, found, strict=True)
    ]
    return _numbered(names, notes)


def _numbered(names: list[str], notes: list[str]) -> Sources:
    different, number = np.unique(names, return_inverse=True)
    told = [f"{len(names)} videos of {len(different)} sources", *notes]
    return Sources(number.astype(np.int64), len(different), tuple(told))


def sources_per_class(labels: Ints, groups: Ints, classes: int) -> Ints:
    """(C,) from how many sources the videos of each class come."""
    return np.asarray([len(np.unique(groups[labels == label])) for label in range(classes)], dtype=np.int64)


def check_classes(manifest: Manifest, labels: Ints, groups: Ints, unreadable: int = 0) -> None:
    """Refuse what nothing can be learned from.

    Raises:
        ManifestError: fewer than 2 classes, a class of one video or of one source, a class called "unknown".
    """
    names = manifest.classes
    gone = f" ({unreadable} videos cannot be read)" if unreadable else ""
    if len(names) < 2:
        found = f"1 class, '{names[0]}'" if names else "no class"
        raise ManifestError(manifest.source, found + gone, "2 or more", "put each class in a folder of its own")
    if "unknown" in names:
        raise ManifestError(manifest.source, "a class called 'unknown'", "any other name", "that answer has the name")
    videos = np.bincount(labels, minlength=len(names))
    poor = int(videos.argmin())
    if videos[poor] < 2:
        found = f"class '{names[poor]}' has {'one video' if videos[poor] else 'no video'}{gone}"
        raise ManifestError(manifest.source, found, "2 or more", "add videos or leave the class out")
    sources = sources_per_class(labels, groups, len(names))
    poor = int(sources.argmin())
    if sources[poor] < 2:
        found = f"all {videos[poor]} videos of class '{names[poor]}' come from one source{gone}"
        raise ManifestError(manifest.source, found, "2 or more sources", "nobody could tell the class from its source")


def folds(labels: Ints, groups: Ints, most: int, seed: int) -> Ints:
    """(n,) the fold of each video, 0..K-1: sources whole, classes spread evenly.

    K is `most`, or the fewest sources of a class, or 2; 1 where no class has two videos. Of several random splits the
    first one is taken in which all classes have training videos in every fold, else the one with the fewest gaps.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    present = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    count = int(np.clip(sources_per_class(present, groups, int(present.max()) + 1).min(), 2, most))
    if np.bincount(present).max() < count:
        return np.zeros(len(labels), dtype=np.int64)
    best: tuple[int, Ints] | None = None
    for attempt in range(TRIES):
        splitter: Any = StratifiedGroupKFold(count, shuffle=True, random_state=seed + attempt)
        place = np.zeros(len(labels), dtype=np.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class with fewer videos than folds
            for number, (_, held) in enumerate(splitter.split(present, present, groups)):
                place[held] = number
        gaps = sum(len(np.unique(present)) - len(np.unique(present[place != number])) for number in np.unique(place))
        if best is None or gaps < best[0]:
            best = (gaps, place)
        if gaps == 0:
            break
    assert best is not None
    return best[1]


def near_duplicates(features: NDArray[Any], groups: Ints) -> list[tuple[int, int, float]]:
    """Pairs of videos of different sources whose features are as good as the same, the closest first.

    Such a pair may be divided between training and held-out part, which makes the figures too good.

    Args:
        features: (n, E) standardised, so that what all videos have in common does not count. groups: (n,) sources.
    """
    directions = unit(np.asarray(features, dtype=np.float32))
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(directions), BLOCK):
        cosines = directions[start : start + BLOCK] @ directions.T
        for i, j in np.argwhere(cosines > NEAR):
            first, second = start + int(i), int(j)
            if first < second and groups[first] != groups[second]:
                found.append((first, second, float(cosines[i, j])))
    return sorted(found, key=lambda pair: -pair[2])
