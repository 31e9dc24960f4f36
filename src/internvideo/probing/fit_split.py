"""Split videos into stratified group folds: no group is divided, and classes are spread evenly.

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
from internvideo.metrics.classification import l2_normalize

Ints = NDArray[np.int64]

NUM_ATTEMPTS = 10
"""Maximum number of random splits tried until every class has training videos in all folds."""

DUPLICATE_COSINE = 0.999
"""Cosine of standardized features above which two videos count as duplicates."""

BLOCK_SIZE = 1024
MAX_REPORTED = 20


@dataclass(frozen=True)
class VideoGroups:
    """Groups of videos that come from one source, such as the pieces of one recording.

    Attributes:
        ids: (n,) index of each video's group. count: number of groups. notes: messages for the user.
    """

    ids: Ints
    count: int
    notes: tuple[str, ...]


def assign_groups(manifest: Manifest, pattern: str | None = None) -> VideoGroups:
    """Assign a group to every row.

    Args:
        manifest: its column `group` is used; without one every video file is a group of its own.
        pattern: a regular expression whose first group, or whole match, in a path is the group. It takes precedence
            over the column.

    Raises:
        RecipeError: not a regular expression, or one that matches no path.
    """
    if pattern is None:
        names = [row.path if row.group is None else f"group {row.group}" for row in manifest.rows]
        alone = sum(row.group is None for row in manifest.rows)
        who = "every video" if alone == len(names) else f"each of {alone} videos without a group"
        note = (
            f"{who} counts as a group of its own; if several were cut from one recording, give the manifest's "
            "column 'group' or --group-pattern, or the metrics will be too good"
        )
        return _index_groups(names, [note] if alone else [])
    try:
        search = re.compile(pattern)
    except re.error as error:
        expected = r"a regular expression such as '(.+)_part\d+'"
        raise RecipeError("--group-pattern", f"'{pattern}': {error}", expected) from error
    found = [search.search(row.path) for row in manifest.rows]
    missed = [row.path for row, match in zip(manifest.rows, found, strict=True) if match is None]
    if len(missed) == len(found):
        raise RecipeError("--group-pattern", f"'{pattern}' matches no path", f"paths such as '{missed[0]}'")
    notes = [f"--group-pattern does not match {len(missed)} paths, such as '{missed[0]}'"] if missed else []
    names = [
        row.path if match is None else f"group {match[1] if search.groups and match[1] is not None else match[0]}"
        for row, match in zip(manifest.rows, found, strict=True)
    ]
    return _index_groups(names, notes)


def _index_groups(names: list[str], notes: list[str]) -> VideoGroups:
    unique, ids = np.unique(names, return_inverse=True)
    messages = [f"{len(names)} videos of {len(unique)} groups", *notes]
    return VideoGroups(ids.astype(np.int64), len(unique), tuple(messages))


def groups_per_class(labels: Ints, groups: Ints, classes: int) -> Ints:
    """Count the groups of each class -> (C,)."""
    return np.asarray([len(np.unique(groups[labels == label])) for label in range(classes)], dtype=np.int64)


def check_classes(manifest: Manifest, labels: Ints, groups: Ints, unreadable: int = 0) -> None:
    """Check that a classifier can be trained and evaluated.

    Raises:
        ManifestError: fewer than 2 classes, a class of one video or of one group, a class called "unknown".
    """
    names = manifest.classes
    unreadable_note = f" ({unreadable} videos cannot be read)" if unreadable else ""
    if len(names) < 2:
        found = (f"1 class, '{names[0]}'" if names else "no class") + unreadable_note
        raise ManifestError(manifest.source, found, "2 or more", "put each class in a folder of its own")
    if "unknown" in names:
        hint = "rename it: rejected videos have that label"
        raise ManifestError(manifest.source, "a class called 'unknown'", "any other name", hint)
    videos = np.bincount(labels, minlength=len(names))
    smallest = int(videos.argmin())
    if videos[smallest] < 2:
        found = f"class '{names[smallest]}' has {'one video' if videos[smallest] else 'no video'}{unreadable_note}"
        raise ManifestError(manifest.source, found, "2 or more", "add videos or leave the class out")
    group_counts = groups_per_class(labels, groups, len(names))
    smallest = int(group_counts.argmin())
    if group_counts[smallest] < 2:
        found = f"all {videos[smallest]} videos of class '{names[smallest]}' are of one group{unreadable_note}"
        raise ManifestError(manifest.source, found, "2 or more groups", "add videos from another recording")


def folds(labels: Ints, groups: Ints, max_folds: int, seed: int) -> Ints:
    """Assign each video to a fold 0..K-1 -> (n,): groups stay whole, classes are spread evenly.

    K is `max_folds`, or the fewest groups of a class, but at least 2; 1 where no class has two videos. Of several
    random splits the first in which all classes have training videos in every fold is taken, else the one with the
    fewest missing classes.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    present = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    count = int(np.clip(groups_per_class(present, groups, int(present.max()) + 1).min(), 2, max_folds))
    if np.bincount(present).max() < count:
        return np.zeros(len(labels), dtype=np.int64)
    best: tuple[int, Ints] | None = None
    for attempt in range(NUM_ATTEMPTS):
        splitter: Any = StratifiedGroupKFold(count, shuffle=True, random_state=seed + attempt)
        fold_ids = np.zeros(len(labels), dtype=np.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class with fewer videos than folds
            for index, (_, held_out) in enumerate(splitter.split(present, present, groups)):
                fold_ids[held_out] = index
        num_trained = [len(np.unique(present[fold_ids != index])) for index in np.unique(fold_ids)]
        gaps = len(np.unique(present)) * len(num_trained) - sum(num_trained)
        if best is None or gaps < best[0]:
            best = (gaps, fold_ids)
        if gaps == 0:
            break
    assert best is not None
    return best[1]


def near_duplicates(features: NDArray[Any], groups: Ints) -> list[tuple[int, int, float]]:
    """Find pairs of videos of different groups whose features are nearly equal (index, index, cosine), closest first.

    Such a pair may be split between training and held-out data, which makes the metrics too good.

    Args:
        features: (n, E) standardized, so that the mean of all videos does not count. groups: (n,).
    """
    unit_features = l2_normalize(np.asarray(features, dtype=np.float32))
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(unit_features), BLOCK_SIZE):
        cosines = unit_features[start : start + BLOCK_SIZE] @ unit_features.T
        for i, j in np.argwhere(cosines > DUPLICATE_COSINE):
            first, second = start + int(i), int(j)
            if first < second and groups[first] != groups[second]:
                found.append((first, second, float(cosines[i, j])))
    return sorted(found, key=lambda pair: -pair[2])
