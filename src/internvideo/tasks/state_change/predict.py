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
        frames: annotated key frames. views: test boxes of the same frames.
        scores: index of a readable key frame -> (R, 1), probability of a change times the detector's score.
    """
    read_indices = sorted(scores)
    frame_pairs = [(views.frames[index], frames[index]) for index in read_indices]
    sizes = [np.tile(frame.size, 2) for _, frame in frame_pairs]
    num_boxes, num_truths = (
        [len(test_frame.boxes) for test_frame, _ in frame_pairs],
        [len(frame.boxes) for _, frame in frame_pairs],
    )
    boxes = [test_frame.boxes * size for (test_frame, _), size in zip(frame_pairs, sizes, strict=True)]
    truth_boxes = [frame.boxes * size for (_, frame), size in zip(frame_pairs, sizes, strict=True)]
    arrays: dict[str, NDArray[Any]] = {
        "frame_id": np.asarray([frame.row.id for _, frame in frame_pairs]),
        "frame_group": np.asarray([frame.row.group or frame.row.path for _, frame in frame_pairs]),
        "frame": np.repeat(np.arange(len(read_indices)), num_boxes).astype(np.int64),
        "box": np.concatenate([np.zeros((0, 4)), *boxes]),
        "score": np.concatenate([np.zeros(0), *(scores[index][:, 0] for index in read_indices)]).astype(np.float64),
        "detector": np.concatenate([np.zeros(0), *(test_frame.scores for test_frame, _ in frame_pairs)]),
        "truth_frame": np.repeat(np.arange(len(read_indices)), num_truths).astype(np.int64),
        "truth_box": np.concatenate([np.zeros((0, 4)), *truth_boxes]),
    }
    unreadable = [{"id": clip.id, "path": clip.path, "reason": clip.reason} for clip in views.unreadable]
    return Predictions(
        NAME, arrays, dict(protocol), {"asked": len(frames), "read": len(read_indices), "unreadable": unreadable}
    )


def _boxes(frame: NDArray[Any], box: NDArray[Any], score: NDArray[Any] | None = None) -> Boxes:
    return Boxes(frame, np.zeros(len(frame), np.int64), box, np.zeros(len(frame)) if score is None else score)


def score(table: Predictions) -> Result:
    """Compute AP (IoU 0.5 to 0.95), AP50 and AP75 with the scores of the model, and of the detector alone.

    Intervals resample clips.

    Raises:
        RunError: no ground truth.
    """
    truth = _boxes(table["truth_frame"], table["truth_box"])
    if not len(truth):
        raise RunError("table", "no object changes", "", "evaluate on a split with boxes")
    metrics = MetricValues()
    names, group = np.unique(table["frame_group"], return_inverse=True)
    for suffix, scores in (("", table["score"]), ("_of_detector_alone", table["detector"])):
        predictions = _boxes(table["frame"], table["box"], scores)
        precision = coco_average_precision(truth, predictions)[0]
        bounds = bootstrap.interval(coco_statistic(truth, predictions, group), len(names))
        for column, (name, value) in enumerate(
            {"AP": precision.mean(), "AP50": precision[0], "AP75": precision[5]}.items()
        ):
            metrics.add(f"{name}{suffix}", float(value), bounds[:, column])
    return metrics.result(table, clips=len(names), frames=len(table["frame_id"]))


def detections(table: Predictions) -> str:
    """Return the boxes and scores in COCO's results format (JSON); numeric frame ids are written as numbers."""
    boxes_xyxy = table["box"]
    boxes_xywh = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1).round(2).tolist()
    image_ids = [
        int(name) if name.isdecimal() and str(int(name)) == name else name for name in map(str, table["frame_id"])
    ]
    names = [image_ids[frame] for frame in table["frame"].tolist()]
    rows = zip(names, boxes_xywh, table["score"].tolist(), strict=True)
    results = [{"image_id": name, "category_id": 1, "bbox": box, "score": round(value, 6)} for name, box, value in rows]
    return json.dumps(results) + "\n"
