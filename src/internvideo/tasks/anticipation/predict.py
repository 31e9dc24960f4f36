"""Short-term anticipation: which object will be touched, how and when; top-5 mAP (arXiv 2211.09529)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from internvideo.metrics import bootstrap
from internvideo.metrics.frame_detection import StaObjects, anticipation_average_precision, anticipation_statistic
from internvideo.tasks.anticipation.model import Anticipator
from internvideo.tasks.spatio_temporal_localization.data import KeyFrameViews
from internvideo.tasks.spatio_temporal_localization.object_boxes import ObjectFrame, results_json
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.views import evaluation_mode

NAME = "anticipation"
CHALLENGE = "ego4d_short_term_object_interaction_anticipation"
REQUIRED_BY_METRIC: Mapping[str, tuple[bool, bool]] = {
    "noun": (False, False), "noun_verb": (True, False), "noun_time": (False, True), "all": (True, True),
}  # fmt: skip
"""Suffix of a metric -> whether the verb, and whether the time, must be correct besides box and noun."""

Arrays = dict[str, NDArray[Any]]
ContactPredictions = dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]


def predict_contacts(model: Anticipator, views: KeyFrameViews, device: torch.device) -> ContactPredictions:
    """Predict the contacts of the boxes of all readable key frames.

    Returns:
        index of the key frame -> probabilities (R, C + 1) of the verbs, the last one for no contact, and seconds (R,).
    """
    predictions_by_index: ContactPredictions = {}
    with evaluation_mode(model, device, "float32"):
        for (index,), batch in views:
            on_device = batch.to(device)
            logits, seconds = model(model.normalize(on_device.video), on_device.clip_index, on_device.boxes)
            predictions_by_index[index] = (logits.float().softmax(1).cpu().numpy(), seconds.float().cpu().numpy())
    return predictions_by_index


def make_table(
    frames: Sequence[ObjectFrame],
    views: KeyFrameViews,
    predictions_by_index: ContactPredictions,
    names: tuple[Sequence[str], Sequence[str]],
    protocol: Mapping[str, Any],
    *,
    prior: Sequence[float] = (),
    discount: bool = False,
) -> Predictions:
    """Build the table with one row per box, in pixels.

    Args:
        frames: annotated key frames. views: test boxes of the same frames.
        predictions_by_index: from `predict_contacts`. names: of nouns and verbs.
        prior: most frequent verb and mean time of training, a baseline. discount: multiply a box's score by its
            probability of contact.
    """
    read_indices = sorted(predictions_by_index)
    columns: dict[str, list[Any]] = {name: [] for name in ("frame", "box", "noun", "verb", "seconds", "score")}
    truth_columns: dict[str, list[Any]] = {name: [] for name in ("frame", "box", "noun", "contact")}
    for frame_index, index in enumerate(read_indices):
        frame, test_frame, (verbs, seconds) = frames[index], views.frames[index], predictions_by_index[index]
        scale = np.tile(frame.size, 2)
        columns["frame"].append(np.full(len(test_frame.boxes), frame_index))
        columns["box"].append(test_frame.boxes * scale)
        columns["noun"].append([labels[0] if labels else 0 for labels in test_frame.labels])
        columns["verb"].append(verbs[:, :-1].argmax(axis=1))
        columns["seconds"].append(seconds)
        columns["score"].append(test_frame.scores * (1 - verbs[:, -1] if discount else 1))
        truth_columns["frame"].append(np.full(len(frame.boxes), frame_index))
        truth_columns["box"].append(frame.boxes * scale)
        truth_columns["noun"].append([labels[0] if labels else 0 for labels in frame.labels])
        truth_columns["contact"].append(frame.contact)
    empty = {"box": np.zeros((0, 4)), "contact": np.zeros((0, 2))}
    arrays: Arrays = {
        "nouns": np.asarray(names[0]),
        "verbs": np.asarray(names[1]),
        "frame_id": np.asarray(
            [frames[index].row.attributes.get("uid", frames[index].row.id) for index in read_indices]
        ),
        "frame_group": np.asarray([frames[index].row.group or frames[index].row.path for index in read_indices]),
        "guess": np.asarray(prior, dtype=np.float64),
        **{name: np.concatenate([empty.get(name, np.zeros(0)), *parts]) for name, parts in columns.items()},
        **{
            f"truth_{name}": np.concatenate([empty.get(name, np.zeros(0)), *parts])
            for name, parts in truth_columns.items()
        },
    }
    for name in ("frame", "noun", "verb", "truth_frame", "truth_noun"):
        arrays[name] = arrays[name].astype(np.int64)
    unreadable = [{"id": clip.id, "path": clip.path, "reason": clip.reason} for clip in views.unreadable]
    return Predictions(
        NAME, arrays, dict(protocol), {"asked": len(frames), "read": len(read_indices), "unreadable": unreadable}
    )


def _sta_objects(table: Predictions, prior: bool) -> list[tuple[StaObjects, StaObjects, NDArray[np.float64]]]:
    objects = []
    for frame_index in range(len(table["frame_id"])):
        is_truth, is_prediction = table["truth_frame"] == frame_index, table["frame"] == frame_index
        contact = table["truth_contact"][is_truth]
        truth = StaObjects(
            table["truth_box"][is_truth], table["truth_noun"][is_truth], contact[:, 0].astype(np.int64), contact[:, 1]
        )
        verb, seconds = table["verb"][is_prediction], table["seconds"][is_prediction]
        if prior:
            verb, seconds = (np.full(len(verb), value) for value in table["guess"])
        predicted = StaObjects(
            table["box"][is_prediction], table["noun"][is_prediction], verb.astype(np.int64), seconds
        )
        objects.append((truth, predicted, table["score"][is_prediction]))
    return objects


def score(table: Predictions) -> Result:
    """Compute the top-5 mAP over the nouns with ground truth; intervals resample clips.

    As in the published code, frames without predictions, and their ground truth, are left out.
    """
    metrics = MetricValues()
    names, group = np.unique(table["frame_group"], return_inverse=True)
    for prior in (False, True) if len(table["guess"]) else (False,):
        frames = _sta_objects(table, prior)
        for name, (verb, seconds) in REQUIRED_BY_METRIC.items():
            if prior and not (verb or seconds):
                continue
            precision = anticipation_average_precision(frames, verb=verb, seconds=seconds)
            values = [value for value in precision.values() if value is not None]
            statistic = anticipation_statistic(frames, group, verb=verb, seconds=seconds)
            bounds = bootstrap.interval(statistic, len(names))
            metrics.add(f"top5_mAP_{name}{'_of_guess' * prior}", float(np.mean(values)) if values else 0.0, bounds)
    empty = len(table["frame_id"]) - len(np.unique(table["frame"]))
    return metrics.result(table, clips=len(names), key_frames=len(table["frame_id"]), without_predictions=empty)


def predictions(table: Predictions) -> str:
    """Return the predictions in the format of the challenge, JSON."""
    results: dict[str, list[dict[str, Any]]] = {str(name): [] for name in table["frame_id"]}
    for row, frame_index in enumerate(table["frame"]):
        results[str(table["frame_id"][frame_index])].append(
            {
                "box": table["box"][row].round(2).tolist(),
                "noun_category_id": int(table["noun"][row]),
                "verb_category_id": int(table["verb"][row]),
                "time_to_contact": round(float(table["seconds"][row]), 4),
                "score": round(float(table["score"][row]), 6),
            }
        )
    return results_json(results, version="1.0", challenge=CHALLENGE)
