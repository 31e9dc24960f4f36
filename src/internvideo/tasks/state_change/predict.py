"""State-change objects: detect the object that changes its state; COCO AP of one class (arXiv 2211.09529)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RunError
from internvideo.metrics import bootstrap
from internvideo.metrics.frame_detection import Boxes, coco_average_precision, coco_statistic
from internvideo.tasks.spatio_temporal_localization.data import KeyFrameViews
from internvideo.tasks.spatio_temporal_localization.object_boxes import ObjectFrame
from internvideo.tasks.table import MetricValues, Predictions, Result

NAME = "state_change"


def make_table(
    frames: Sequence[ObjectFrame],
    views: KeyFrameViews,
    scores: Mapping[int, NDArray[np.float32]],
    protocol: Mapping[str, Any],
) -> Predictions:
    """Build the table with one row per box, in pixels.

    Args:
        frames: annotated rows. views: tested boxes, one key frame per row.
        scores: index -> (R, 1) probability of a change times the detector's score, of readable frames.
    """
    read = sorted(scores)
    parts = [(views.frames[index], frames[index]) for index in read]
    scale = [np.tile(frame.size, 2) for _, frame in parts]
    counts, truths = [len(tested.boxes) for tested, _ in parts], [len(frame.boxes) for _, frame in parts]
    boxes = [tested.boxes * side for (tested, _), side in zip(parts, scale, strict=True)]
    true = [frame.boxes * side for (_, frame), side in zip(parts, scale, strict=True)]
    arrays: dict[str, NDArray[Any]] = {
        "frame_id": np.asarray([frame.row.id for _, frame in parts]),
        "frame_group": np.asarray([frame.row.group or frame.row.path for _, frame in parts]),
        "frame": np.repeat(np.arange(len(read)), counts).astype(np.int64),
        "box": np.concatenate([np.zeros((0, 4)), *boxes]),
        "score": np.concatenate([np.zeros(0), *(scores[index][:, 0] for index in read)]).astype(np.float64),
        "detector": np.concatenate([np.zeros(0), *(tested.scores for tested, _ in parts)]),
        "truth_frame": np.repeat(np.arange(len(read)), truths).astype(np.int64),
        "truth_box": np.concatenate([np.zeros((0, 4)), *true]),
    }
    lost = [{"id": clip.id, "path": clip.path, "reason": clip.reason} for clip in views.unreadable]
    return Predictions(NAME, arrays, dict(protocol), {"asked": len(frames), "read": len(read), "unreadable": lost})


def _boxes(frame: NDArray[Any], box: NDArray[Any], score: NDArray[Any] | None = None) -> Boxes:
    return Boxes(frame, np.zeros(len(frame), np.int64), box, np.zeros(len(frame)) if score is None else score)


def score(table: Predictions) -> Result:
    """Compute AP (IoU .5 to .95), AP50 and AP75 with the model's and the detector's scores; clips are resampled.

    Raises:
        RunError: no ground truth.
    """
    truth = _boxes(table["truth_frame"], table["truth_box"])
    if not len(truth):
        raise RunError("table", "no object changes", "", "evaluate on a split with boxes")
    metrics = MetricValues()
    names, group = np.unique(table["frame_group"], return_inverse=True)
    for suffix, scores in (("", table["score"]), ("_of_detector_alone", table["detector"])):
        found = _boxes(table["frame"], table["box"], scores)
        precision = coco_average_precision(truth, found)[0]
        bounds = bootstrap.interval(coco_statistic(truth, found, group), len(names))
        for place, (name, value) in enumerate(
            {"AP": precision.mean(), "AP50": precision[0], "AP75": precision[5]}.items()
        ):
            metrics.add(f"{name}{suffix}", float(value), bounds[:, place])
    return metrics.result(table, clips=len(names), frames=len(table["frame_id"]))


def detections(table: Predictions) -> str:
    """Return the scored boxes as COCO's list of results, JSON; numeric frame ids stay numbers."""
    corners = table["box"]
    wide = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).round(2).tolist()
    numbers = [
        int(name) if name.isdecimal() and str(int(name)) == name else name for name in map(str, table["frame_id"])
    ]
    names = [numbers[frame] for frame in table["frame"].tolist()]
    rows = zip(names, wide, table["score"].tolist(), strict=True)
    made = [{"image_id": name, "category_id": 1, "bbox": box, "score": round(value, 6)} for name, box, value in rows]
    return json.dumps(made) + "\n"
