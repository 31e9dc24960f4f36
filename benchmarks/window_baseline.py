"""The plain way to find actions: a classifier's score of every sliding window, thresholded and merged.

The measure for a detector that learns to localise on the same classifier's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RunError
from internvideo.tasks.table import Predictions
from internvideo.tasks.temporal_localization.data import FeatureSet, FeatureVideo, load_features
from internvideo.tasks.temporal_localization.nms import SuppressionSettings, soft_nms
from internvideo.tasks.temporal_localization.predict import FEATURE_PROTOCOL_KEYS, Segments, make_table

Floats = NDArray[np.floating[Any]]

LEVELS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SMOOTHED = 3
"""Windows over which a score is averaged."""
SHORTEST, WHOLE = 4, 7
"""Windows of the shortest segment, and of the shortest whose score counts in full: without them single windows win."""


def merge_windows(scores: Floats, levels: Sequence[float] = LEVELS) -> Segments:
    """Runs of windows whose score is at least a level, for every class and level.

    Args:
        scores: (T, C) of windows in a row, 0..1.

    Returns:
        spans (N, 2) in windows (a run of windows i..j is from i - 0.5 to j + 0.5), mean score in each, class.
    """
    spans, values, labels = [], [], []
    total = np.concatenate([np.zeros((1, scores.shape[1])), np.cumsum(scores, axis=0)])
    for level in levels:
        over = np.pad(scores >= level, ((1, 1), (0, 0))).astype(np.int8)
        label, first = np.nonzero(np.diff(over, axis=0).T == 1)
        last = np.nonzero(np.diff(over, axis=0).T == -1)[1]  # one past the end; in the same order
        spans.append(np.stack([first - 0.5, last - 0.5], axis=1))
        values.append((total[last, label] - total[first, label]) / np.maximum(last - first, 1))
        labels.append(label.astype(np.int64))
    return Segments(np.concatenate(spans), np.concatenate(values), np.concatenate(labels))


def smoothed(scores: Floats, windows: int) -> Floats:
    """Mean over an odd number of windows around each of (T, C); the first and last stand for what is beyond them."""
    half = windows // 2
    wide = np.pad(scores, ((half, half), (0, 0)), mode="edge")
    result: Floats = np.mean([wide[at : at + len(scores)] for at in range(windows)], axis=0)
    return result


def find(video: FeatureVideo, scores: Floats, settings: SuppressionSettings, ignored: Sequence[int] = ()) -> Segments:
    """Segments in seconds, thinned out, from the class scores (T, C) of a video; `ignored` classes are no actions."""
    scores = scores.astype(np.float64)
    scores[:, list(ignored)] = 0.0
    found = merge_windows(smoothed(scores, SMOOTHED))
    lengths = found.spans[:, 1] - found.spans[:, 0]
    long = lengths >= SHORTEST
    weighted = found.scores * np.minimum(lengths / WHOLE, 1.0)
    spans, values, labels = soft_nms(found.spans[long], weighted[long], found.labels[long], settings)
    seconds = np.clip((spans * video.stride + 0.5 * video.window) / video.fps, 0.0, video.duration)
    return Segments(seconds, values, labels)


def predict(
    scores: FeatureSet,
    *,
    tiou_thresholds: Sequence[float],
    classify: Callable[[Floats], Floats] | None = None,
    settings: SuppressionSettings | None = None,
    background: Sequence[str] = (),
) -> Predictions:
    """The table of this baseline, scored like a detector's.

    Args:
        scores: made with `internvideo extract --layer scores`, one channel a class; with `classify` any features.
        tiou_thresholds: tIoU thresholds. classify: features (T, width) -> class scores (T, C) in 0..1.
        settings: of suppression. background: classes that are no actions.

    Raises:
        RunError: features that are no scores of these classes.
    """
    if classify is None and scores.width != len(scores.classes):
        allowed = f"scores of the {len(scores.classes)} classes"
        raise RunError(scores.source, f"features of {scores.width} channels", allowed, "extract with --layer scores")
    settings = settings or SuppressionSettings(max_segments=100)
    ignored = [scores.classes.index(name) for name in background]
    found = []
    for video in scores.videos:
        values = load_features(video)
        found.append(find(video, values if classify is None else classify(values), settings, ignored))
    protocol = {
        "model": "sliding windows",
        "weights_sha256": scores.protocol.get("weights_sha256", ""),
        "split_sha256": scores.fingerprint,
        "splits": sorted({video.subset for video in scores.videos}),
        "source": str(scores.source),
        "features": {key: scores.protocol.get(key) for key in FEATURE_PROTOCOL_KEYS if key in scores.protocol},
        "tiou": list(tiou_thresholds),
        "levels": list(LEVELS),
        "smoothed": SMOOTHED,
        "shortest": SHORTEST,
        "background": list(background),
    }
    return make_table(scores, found, scores.classes, protocol)
