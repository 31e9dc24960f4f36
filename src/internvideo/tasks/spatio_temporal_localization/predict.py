"""Spatio-temporal localization: predict the actions of persons at key frames; frame mAP at IoU 0.5 (AlphAction)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from internvideo.data.manifest import Manifest
from internvideo.datasets.ava import read_label_map
from internvideo.errors import RunError
from internvideo.metrics import bootstrap
from internvideo.metrics.frame_detection import Boxes, frame_average_precision, frame_map_statistic
from internvideo.tasks.protocol import weights_hash
from internvideo.tasks.spatio_temporal_localization.ava_files import AvaRows, read_exclusions, read_rows, result_lines
from internvideo.tasks.spatio_temporal_localization.data import KeyFrame, KeyFrameViews, frame_key
from internvideo.tasks.spatio_temporal_localization.model import ActionDetector
from internvideo.tasks.spatio_temporal_localization.regions import widen_boxes
from internvideo.tasks.table import MetricValues, Predictions, Result

NAME = "spatio_temporal_localization"
IOU = 0.5
MATCHING = "each box with the annotated box of highest IoU alone; a second hit is false; equal scores in file order"
"""Matching rule of the mAP, as text of the protocol."""

Arrays = dict[str, NDArray[Any]]


@torch.no_grad()
def action_scores(model: ActionDetector, views: KeyFrameViews, device: torch.device) -> dict[int, NDArray[np.float32]]:
    """Compute the scores of all boxes: index of a key frame -> (R, C), action probability times the person's score.

    Boxes are widened by 10 % of their width and 5 % of their height. Unreadable frames are left out. Collective: every
    process returns the scores of all processes.
    """
    model.eval()
    scores = {}
    for (index,), batch in views:
        on_device = batch.to(device)
        height, width = on_device.video.shape[-2:]
        boxes = widen_boxes(on_device.boxes, (float(width), float(height)))
        logits = model(model.normalize(on_device.video), on_device.clip_index, boxes).float()
        person = torch.from_numpy(views.frames[index].scores).float()[:, None]
        scores[index] = (logits.sigmoid().cpu() * person).numpy()
    return views.gather_outputs(scores)


def make_table(
    truths: Sequence[KeyFrame],
    frames: Sequence[KeyFrame],
    scores: Mapping[int, NDArray[np.float32]],
    classes: Sequence[str],
    protocol: Mapping[str, Any],
    unreadable: Sequence[Mapping[str, str]] = (),
    *,
    scored: Sequence[str] = (),
) -> Predictions:
    """Build the table with one row per box and class.

    Args:
        truths: annotated key frames. frames: key frames with the test boxes. scores: index into `frames` -> (R, C).
        scored: names of the classes to evaluate; empty for all.
    """
    frame_index: dict[tuple[str, float], int] = {}
    all_frames = [*truths, *(frames[index] for index in scores)]
    for frame in all_frames:
        frame_index.setdefault(frame_key(frame.video, frame.time), len(frame_index))
    frame_of_index = {frame_index[frame_key(frame.video, frame.time)]: frame for frame in reversed(all_frames)}
    ordered_frames, num_classes = [frame_of_index[index] for index in range(len(frame_index))], len(classes)
    frames_of_boxes, box, label, score = [], [], [], []
    for index, values in scores.items():
        frame = frames[index]
        frames_of_boxes.append(np.full(values.size, frame_index[frame_key(frame.video, frame.time)]))
        box.append(np.repeat(frame.boxes, num_classes, axis=0))
        label.append(np.tile(np.arange(num_classes), len(values)))
        score.append(values.reshape(-1))
    truth_rows = [
        (frame_index[frame_key(frame.video, frame.time)], corners, action)
        for frame in truths
        for corners, actions in zip(frame.boxes, frame.labels, strict=True)
        for action in actions
    ]
    arrays: Arrays = {
        "classes": np.asarray(classes),
        "scored": np.asarray([not scored or name in scored for name in classes]),
        "frame_video": np.asarray([frame.video for frame in ordered_frames]),
        "frame_time": np.asarray([frame.time for frame in ordered_frames]),
        "frame_source": np.asarray([frame.row.attributes.get("source", "") for frame in ordered_frames]),
        "frame": np.concatenate([np.zeros(0), *frames_of_boxes]).astype(np.int64),
        "box": np.concatenate([np.zeros((0, 4)), *box]),
        "label": np.concatenate([np.zeros(0), *label]).astype(np.int64),
        "score": np.concatenate([np.zeros(0), *score]),
        "truth_frame": np.asarray([row[0] for row in truth_rows], dtype=np.int64),
        "truth_box": np.asarray([row[1] for row in truth_rows], dtype=np.float64).reshape(-1, 4),
        "truth_label": np.asarray([row[2] for row in truth_rows], dtype=np.int64),
    }
    unreadable_entries = [dict(clip) for clip in unreadable]
    coverage = {"asked": len(frames), "read": len(scores), "unreadable": unreadable_entries}
    return Predictions(NAME, arrays, dict(protocol), coverage)


def predict(
    model: ActionDetector,
    manifest: Manifest,
    truths: Sequence[KeyFrame],
    views: KeyFrameViews,
    device: torch.device,
    *,
    model_name: str = "",
    persons: str = "ground truth",
    scored: Sequence[str] = (),
) -> Predictions:
    """Predict the score of every action for every box.

    Args:
        model: on `device`; put into evaluation mode. manifest: with the model's classes.
        truths: its annotated key frames. views: clips with the test boxes.
        model_name, persons: name of the model and source of the boxes, for the protocol. scored: see `make_table`.
    """
    scores = action_scores(model, views, device)
    clip_settings = views.clip_settings
    protocol = {
        "model": model_name,
        "weights_sha256": weights_hash(model),
        "split_sha256": manifest.fingerprint,
        "splits": sorted({row.split for row in manifest.rows if row.split is not None}),
        "source": str(manifest.source),
        "frames": clip_settings.frames,
        "stride": clip_settings.stride,
        "short_side": clip_settings.transform.short,
        **({} if clip_settings.transform.around is None else {"around": clip_settings.transform.around}),
        "persons": persons,
        "iou": IOU,
    }
    unreadable_entries = [{"id": clip.id, "path": clip.path, "reason": clip.reason} for clip in views.unreadable]
    return make_table(truths, views.frames, scores, manifest.classes, protocol, unreadable_entries, scored=scored)


def evaluated_boxes(table: Predictions, frame_mask: NDArray[np.bool_] | None = None) -> tuple[Boxes, Boxes]:
    """Return ground truth and predictions of the evaluated classes, only of the frames `kept` (F,)."""
    scored = table["scored"]
    truth = Boxes(table["truth_frame"], table["truth_label"], table["truth_box"], np.zeros(len(table["truth_frame"])))
    predictions = Boxes(table["frame"], table["label"], table["box"], table["score"])
    if frame_mask is None:
        frame_mask = np.ones(len(table["frame_video"]), dtype=bool)
    return tuple(part.take(scored[part.label] & frame_mask[part.frame]) for part in (truth, predictions))  # type: ignore[return-value]  # two of them


def score(table: Predictions) -> Result:
    """Compute the mean AP over the classes with ground truth, and per source if the rows have several.

    The interval resamples videos. Raises RunError for a table without ground truth.
    """
    truth, predictions = evaluated_boxes(table)
    if not len(truth):
        raise RunError("table", "no key frame has an action", "", "evaluate on a split with boxes")
    names, video = np.unique(table["frame_video"], return_inverse=True)
    precision = frame_average_precision(truth, predictions, IOU)
    bounds = bootstrap.interval(frame_map_statistic(truth, predictions, video, IOU), len(names))
    metrics = MetricValues()
    metrics.add(f"frame_mAP@{IOU:g}", float(np.mean(list(precision.values()))), bounds)
    sources = [name for name in np.unique(table["frame_source"]).tolist() if name]
    for source in sources if len(sources) > 1 else ():
        source_truth, source_predictions = evaluated_boxes(table, table["frame_source"] == source)
        if len(source_truth):
            values = frame_average_precision(source_truth, source_predictions, IOU)
            metrics.add(f"frame_mAP@{IOU:g}_{source}", float(np.mean(list(values.values()))))
    return metrics.result(
        table,
        videos=len(names),
        key_frames=len(np.unique(truth.frame)),
        classes_scored=len(precision),
        matching=MATCHING,
    )


def results_csv(table: Predictions) -> str:
    """Format the predictions as a results file of AVA; action ids are class indices + 1."""
    frame = table["frame"]
    videos, times = table["frame_video"][frame].tolist(), table["frame_time"][frame].tolist()
    rows = result_lines(videos, times, table["box"], (table["label"] + 1).tolist(), table["score"].tolist())
    return "".join(f"{row}\n" for row in rows)


def make_table_from_files(truth: Path, results: Path, labels: Path, excluded: Path | None = None) -> Predictions:
    """Build a table for `score` from files in AVA's formats.

    Args:
        truth, results: csv. labels: label map (.pbtxt) of the classes to evaluate. excluded: frames to exclude.

    Raises:
        ManifestError: a malformed file.
    """
    names = read_label_map(labels)
    excluded_frames = read_exclusions(excluded) if excluded is not None else frozenset()
    truth_rows, result_rows = (
        read_rows(truth, has_scores=False, excluded=excluded_frames),
        read_rows(results, has_scores=True, excluded=excluded_frames),
    )
    frame_index: dict[tuple[str, int], int] = {}

    def frames(rows: AvaRows) -> NDArray[np.int64]:
        return np.asarray([frame_index.setdefault(key, len(frame_index)) for key in rows.frame], dtype=np.int64)

    truth_frames, result_frames = frames(truth_rows), frames(result_rows)
    num_classes = int(max([*names, *truth_rows.action, *result_rows.action], default=0))
    arrays: Arrays = {
        "classes": np.asarray([names.get(action, f"action {action}") for action in range(1, num_classes + 1)]),
        "scored": np.asarray([action in names for action in range(1, num_classes + 1)]),
        "frame_video": np.asarray([video for video, _ in frame_index]),
        "frame_time": np.asarray([float(second) for _, second in frame_index]),
        "frame_source": np.asarray([""] * len(frame_index)),
        "frame": result_frames,
        "box": result_rows.box,
        "label": result_rows.action - 1,
        "score": result_rows.score,
        "truth_frame": truth_frames,
        "truth_box": truth_rows.box,
        "truth_label": truth_rows.action - 1,
    }
    with_annotated_boxes = set(truth_rows.frame)
    protocol = {
        "source": str(truth), "results": str(results), "labels": str(labels), "iou": IOU,
        "annotated_frames_with_results": len(with_annotated_boxes & set(result_rows.frame)),
        "other_frames_with_results": len(set(result_rows.frame) - with_annotated_boxes),
    }  # fmt: skip
    coverage: dict[str, Any] = {"asked": len(with_annotated_boxes), "read": len(with_annotated_boxes), "unreadable": []}
    return Predictions(NAME, arrays, protocol, coverage)
