"""Split videos into stratified group folds: each group is in one fold, each class is spread evenly over the folds.

Shapes: n videos, C classes, K folds.
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
"""Largest number of random splits that are tried until every class has training videos in all folds."""

DUPLICATE_COSINE = 0.999
"""Cosine of standardized features above which two videos count as duplicates."""

CHUNK_SIZE = 1024
MAX_REPORTED = 20
"""Largest number of pairs of duplicates in the report."""


@dataclass(frozen=True)
class VideoGroups:
    """Groups of videos that come from one source, such as the pieces of one recording.

    Attributes:
        ids: (n,) index of each video's group. num_groups: number of groups. notes: messages for the user.
    """

    ids: Ints
    num_groups: int
    notes: tuple[str, ...]


def assign_groups(manifest: Manifest, pattern: str | None = None) -> VideoGroups:
    """Assign a group to every row.

    Args:
        manifest: without `pattern`, its column `group` is used; a video file without a value is a group by itself.
        pattern: a regular expression; its first capture group in a path, or the match if it has none, is the group.

    Raises:
        RecipeError: not a regular expression, or one that matches no path.
    """
    if pattern is None:
        names = [row.path if row.group is None else f"group {row.group}" for row in manifest.rows]
        num_without_group = sum(row.group is None for row in manifest.rows)
        subject = (
            "every video" if num_without_group == len(names) else f"each of {num_without_group} videos without a group"
        )
        note = (
            f"{subject} counts as a separate group; if several were cut from one recording, give the manifest's "
            "column 'group' or --group-pattern, or the metrics will be too good"
        )
        return _index_groups(names, [note] if num_without_group else [])
    try:
        search = re.compile(pattern)
    except re.error as error:
        expected = r"a regular expression such as '(.+)_part\d+'"
        raise RecipeError("--group-pattern", f"'{pattern}': {error}", expected) from error
    matches = [search.search(row.path) for row in manifest.rows]
    unmatched = [row.path for row, match in zip(manifest.rows, matches, strict=True) if match is None]
    if len(unmatched) == len(matches):
        raise RecipeError("--group-pattern", f"'{pattern}' matches no path", f"paths such as '{unmatched[0]}'")
    notes = [f"--group-pattern does not match {len(unmatched)} paths, such as '{unmatched[0]}'"] if unmatched else []
    names = [
        row.path if match is None else f"group {match[1] if search.groups and match[1] is not None else match[0]}"
        for row, match in zip(manifest.rows, matches, strict=True)
    ]
    return _index_groups(names, notes)


def _index_groups(names: list[str], notes: list[str]) -> VideoGroups:
    unique, ids = np.unique(names, return_inverse=True)
    messages = [f"{len(names)} videos of {len(unique)} groups", *notes]
    return VideoGroups(ids.astype(np.int64), len(unique), tuple(messages))


def groups_per_class(labels: Ints, groups: Ints, num_classes: int) -> Ints:
    """Count the groups of each class -> (C,)."""
    return np.asarray([len(np.unique(groups[labels == label])) for label in range(num_classes)], dtype=np.int64)


def check_classes(manifest: Manifest, labels: Ints, groups: Ints, num_unreadable: int = 0) -> None:
    """Check that a classifier can be trained and evaluated.

    Raises:
        ManifestError: fewer than 2 classes, a class of one video or of one group, a class called "unknown".
    """
    names = manifest.classes
    unreadable_note = f" ({num_unreadable} videos cannot be read)" if num_unreadable else ""
    if len(names) < 2:
        found = (f"1 class, '{names[0]}'" if names else "no class") + unreadable_note
        raise ManifestError(manifest.source, found, "2 or more", "put each class in a folder of its own")
    if "unknown" in names:
        hint = "rename it: rejected videos have that label"
        raise ManifestError(manifest.source, "a class called 'unknown'", "any other name", hint)
    num_videos = np.bincount(labels, minlength=len(names))
    smallest = int(num_videos.argmin())
    if num_videos[smallest] < 2:
        found = f"class '{names[smallest]}' has {'one video' if num_videos[smallest] else 'no video'}{unreadable_note}"
        raise ManifestError(manifest.source, found, "2 or more", "add videos or leave the class out")
    num_groups = groups_per_class(labels, groups, len(names))
    smallest = int(num_groups.argmin())
    if num_groups[smallest] < 2:
        found = f"all {num_videos[smallest]} videos of class '{names[smallest]}' are of one group{unreadable_note}"
        raise ManifestError(manifest.source, found, "2 or more groups", "add videos from another recording")


def assign_folds(labels: Ints, groups: Ints, max_folds: int, seed: int) -> Ints:
    """Assign each video to a fold (n,), 0..K-1: each group is in one fold, classes are spread evenly.

    K is the smallest number of groups of a class, but 2 to `max_folds`. All videos are in fold 0 if each class has
    fewer than K videos. Several random splits are tried: the first one in which all classes have training videos for
    every fold is returned, else the one with the fewest missing classes.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    present = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    num_folds = int(np.clip(groups_per_class(present, groups, int(present.max()) + 1).min(), 2, max_folds))
    if np.bincount(present).max() < num_folds:
        return np.zeros(len(labels), dtype=np.int64)
    best: tuple[int, Ints] | None = None
    for attempt in range(NUM_ATTEMPTS):
        splitter: Any = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed + attempt)
        fold_ids = np.zeros(len(labels), dtype=np.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class with fewer videos than folds
            for index, (_, held_out) in enumerate(splitter.split(present, present, groups)):
                fold_ids[held_out] = index
        num_classes = [len(np.unique(present[fold_ids != index])) for index in np.unique(fold_ids)]
        num_missing = len(np.unique(present)) * len(num_classes) - sum(num_classes)
        if best is None or num_missing < best[0]:
            best = (num_missing, fold_ids)
        if num_missing == 0:
            break
    assert best is not None
    return best[1]


def near_duplicates(features: NDArray[Any], groups: Ints) -> list[tuple[int, int, float]]:
    """Find pairs of videos in different groups with nearly equal features: (index, index, cosine), closest first.

    Such a pair may be split between training and held-out data, which makes the metrics too good.

    Args:
        features: (n, E) standardized: the mean feature would make all cosines large. groups: (n,).
    """
    unit_features = l2_normalize(np.asarray(features, dtype=np.float32))
    pairs: list[tuple[int, int, float]] = []
    for start in range(0, len(unit_features), CHUNK_SIZE):
        cosines = unit_features[start : start + CHUNK_SIZE] @ unit_features.T
        for i, j in np.argwhere(cosines > DUPLICATE_COSINE):
            first, second = start + int(i), int(j)
            if first < second and groups[first] != groups[second]:
                pairs.append((first, second, float(cosines[i, j])))
    return sorted(pairs, key=lambda pair: -pair[2])
