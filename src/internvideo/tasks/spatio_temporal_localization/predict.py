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
    """Score every box: index of a key frame -> (R, C), probability of each action times the person's score.

    Boxes are widened by 10 % of their width and 5 % of their height. Unreadable frames are left out. With several
    processes each returns the results of all.
    """
    model.eval()
    found = {}
    for (index,), batch in views:
        moved = batch.to(device)
        height, width = moved.video.shape[-2:]
        boxes = widen_boxes(moved.boxes, (float(width), float(height)))
        logits = model(model.normalize(moved.video), moved.clip, boxes).float()
        person = torch.from_numpy(views.frames[index].scores).float()[:, None]
        found[index] = (logits.sigmoid().cpu() * person).numpy()
    return views.collected(found)


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
        truths: annotated key frames. frames: key frames with the tested boxes. scores: index in `frames` -> (R, C).
        scored: names of the evaluated classes; empty for all.
    """
    number: dict[tuple[str, float], int] = {}
    named = [*truths, *(frames[index] for index in scores)]
    for frame in named:
        number.setdefault(frame_key(frame.video, frame.time), len(number))
    first = {number[frame_key(frame.video, frame.time)]: frame for frame in reversed(named)}
    ordered, count = [first[index] for index in range(len(number))], len(classes)
    own, box, label, score = [], [], [], []
    for index, values in scores.items():
        frame = frames[index]
        own.append(np.full(values.size, number[frame_key(frame.video, frame.time)]))
        box.append(np.repeat(frame.boxes, count, axis=0))
        label.append(np.tile(np.arange(count), len(values)))
        score.append(values.reshape(-1))
    true = [
        (number[frame_key(frame.video, frame.time)], corners, action)
        for frame in truths
        for corners, actions in zip(frame.boxes, frame.labels, strict=True)
        for action in actions
    ]
    arrays: Arrays = {
        "classes": np.asarray(classes),
        "scored": np.asarray([not scored or name in scored for name in classes]),
        "frame_video": np.asarray([frame.video for frame in ordered]),
        "frame_time": np.asarray([frame.time for frame in ordered]),
        "frame_source": np.asarray([frame.row.attributes.get("source", "") for frame in ordered]),
        "frame": np.concatenate([np.zeros(0), *own]).astype(np.int64),
        "box": np.concatenate([np.zeros((0, 4)), *box]),
        "label": np.concatenate([np.zeros(0), *label]).astype(np.int64),
        "score": np.concatenate([np.zeros(0), *score]),
        "truth_frame": np.asarray([row[0] for row in true], dtype=np.int64),
        "truth_box": np.asarray([row[1] for row in true], dtype=np.float64).reshape(-1, 4),
        "truth_label": np.asarray([row[2] for row in true], dtype=np.int64),
    }
    lost = [dict(clip) for clip in unreadable]
    coverage = {"asked": len(frames), "read": len(scores), "unreadable": lost}
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
        truths: its annotated key frames. views: clips with the tested boxes.
        model_name: for the protocol. persons: source of the boxes, for the protocol. scored: as in `make_table`.
    """
    scores = action_scores(model, views, device)
    form = views.form
    protocol = {
        "model": model_name,
        "weights_sha256": weights_hash(model),
        "split_sha256": manifest.fingerprint,
        "splits": sorted({row.split for row in manifest.rows if row.split is not None}),
        "source": str(manifest.source),
        "frames": form.frames,
        "stride": form.stride,
        "short_side": form.transform.short,
        **({} if form.transform.around is None else {"around": form.transform.around}),
        "persons": persons,
        "iou": IOU,
    }
    lost = [{"id": clip.id, "path": clip.path, "reason": clip.reason} for clip in views.unreadable]
    return make_table(truths, views.frames, scores, manifest.classes, protocol, lost, scored=scored)


def columns(table: Predictions, kept: NDArray[np.bool_] | None = None) -> tuple[Boxes, Boxes]:
    """Return ground truth and predictions of the evaluated classes, only of the frames `kept` (F,)."""
    scored = table["scored"]
    truth = Boxes(table["truth_frame"], table["truth_label"], table["truth_box"], np.zeros(len(table["truth_frame"])))
    found = Boxes(table["frame"], table["label"], table["box"], table["score"])
    if kept is None:
        kept = np.ones(len(table["frame_video"]), dtype=bool)
    return tuple(part.take(scored[part.label] & kept[part.frame]) for part in (truth, found))  # type: ignore[return-value]  # two of them


def score(table: Predictions) -> Result:
    """Compute the mean AP over the classes with ground truth; for mixed sets also per source.

    The interval resamples videos. Raises RunError for a table without ground truth.
    """
    truth, found = columns(table)
    if not len(truth):
        raise RunError("table", "no key frame has an action", "", "evaluate on a split with boxes")
    names, video = np.unique(table["frame_video"], return_inverse=True)
    precision = frame_average_precision(truth, found, IOU)
    bounds = bootstrap.interval(frame_map_statistic(truth, found, video, IOU), len(names))
    metrics = MetricValues()
    metrics.add(f"frame_mAP@{IOU:g}", float(np.mean(list(precision.values()))), bounds)
    sources = [name for name in np.unique(table["frame_source"]).tolist() if name]
    for source in sources if len(sources) > 1 else ():
        own, seen = columns(table, table["frame_source"] == source)
        if len(own):
            values = frame_average_precision(own, seen, IOU)
            metrics.add(f"frame_mAP@{IOU:g}_{source}", float(np.mean(list(values.values()))))
    return metrics.result(
        table,
        videos=len(names),
        key_frames=len(np.unique(truth.frame)),
        classes_scored=len(precision),
        matching=MATCHING,
    )


def results_csv(table: Predictions) -> str:
    """Format the predictions as AVA's results file; action ids are class indices + 1."""
    frame = table["frame"]
    videos, times = table["frame_video"][frame].tolist(), table["frame_time"][frame].tolist()
    rows = result_lines(videos, times, table["box"], (table["label"] + 1).tolist(), table["score"].tolist())
    return "".join(f"{row}\n" for row in rows)


def table_of_files(truth: Path, results: Path, labels: Path, excluded: Path | None = None) -> Predictions:
    """Build a table from AVA's own files, for `score`.

    Args:
        truth, results: csv. labels: label map (.pbtxt) with the evaluated classes. excluded: frames not evaluated.

    Raises:
        ManifestError: a malformed file.
    """
    names = read_label_map(labels)
    left_out = read_exclusions(excluded) if excluded is not None else frozenset()
    true, found = read_rows(truth, scored=False, excluded=left_out), read_rows(results, scored=True, excluded=left_out)
    number: dict[tuple[str, int], int] = {}

    def frames(rows: AvaRows) -> NDArray[np.int64]:
        return np.asarray([number.setdefault(key, len(number)) for key in rows.frame], dtype=np.int64)

    own, seen = frames(true), frames(found)
    count = int(max([*names, *true.action, *found.action], default=0))
    arrays: Arrays = {
        "classes": np.asarray([names.get(action, f"action {action}") for action in range(1, count + 1)]),
        "scored": np.asarray([action in names for action in range(1, count + 1)]),
        "frame_video": np.asarray([video for video, _ in number]),
        "frame_time": np.asarray([float(second) for _, second in number]),
        "frame_source": np.asarray([""] * len(number)),
        "frame": seen,
        "box": found.box,
        "label": found.action - 1,
        "score": found.score,
        "truth_frame": own,
        "truth_box": true.box,
        "truth_label": true.action - 1,
    }
    annotated = set(true.frame)
    protocol = {
        "source": str(truth), "results": str(results), "labels": str(labels), "iou": IOU,
        "annotated_frames_with_results": len(annotated & set(found.frame)),
        "other_frames_with_results": len(set(found.frame) - annotated),
    }  # fmt: skip
    coverage: dict[str, Any] = {"asked": len(annotated), "read": len(annotated), "unreadable": []}
    return Predictions(NAME, arrays, protocol, coverage)
