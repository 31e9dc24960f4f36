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
from internvideo.tasks.spatio_temporal_localization.object_boxes import ObjectFrame, of_results
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.views import evaluating

NAME = "anticipation"
CHALLENGE = "ego4d_short_term_object_interaction_anticipation"
FIGURES: Mapping[str, tuple[bool, bool]] = {
    "noun": (False, False), "noun_verb": (True, False), "noun_time": (False, True), "all": (True, True),
}  # fmt: skip
"""What must be right beside the box -> whether verb and time must be."""

Arrays = dict[str, NDArray[Any]]
Contacts = dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]


def contacts(model: Anticipator, views: KeyFrameViews, device: torch.device) -> Contacts:
    """Return index of a key frame -> probabilities (R, C + 1) of the verbs, the last: none, and seconds (R,)."""
    found: Contacts = {}
    with evaluating(model, device, "float32"):
        for (index,), batch in views:
            moved = batch.to(device)
            logits, seconds = model(model.normalize(moved.video), moved.clip, moved.boxes)
            found[index] = (logits.float().softmax(1).cpu().numpy(), seconds.float().cpu().numpy())
    return found


def make_table(
    frames: Sequence[ObjectFrame],
    views: KeyFrameViews,
    found: Contacts,
    names: tuple[Sequence[str], Sequence[str]],
    protocol: Mapping[str, Any],
    *,
    guess: Sequence[float] = (),
    discount: bool = False,
) -> Predictions:
    """Build the table with one row per box, in pixels.

    Args:
        frames: annotated rows. views: the boxes tested, a key frame a row. found: of those that could be read.
        names: nouns and verbs. guess: commonest verb and mean time of training, scored beside the model.
        discount: times the probability that anything is done to the box.
    """
    read = sorted(found)
    columns: dict[str, list[Any]] = {name: [] for name in ("frame", "box", "noun", "verb", "seconds", "score")}
    true: dict[str, list[Any]] = {name: [] for name in ("frame", "box", "noun", "contact")}
    for number, index in enumerate(read):
        frame, tested, (verbs, seconds) = frames[index], views.frames[index], found[index]
        scale = np.tile(frame.size, 2)
        columns["frame"].append(np.full(len(tested.boxes), number))
        columns["box"].append(tested.boxes * scale)
        columns["noun"].append([labels[0] if labels else 0 for labels in tested.labels])
        columns["verb"].append(verbs[:, :-1].argmax(axis=1))
        columns["seconds"].append(seconds)
        columns["score"].append(tested.scores * (1 - verbs[:, -1] if discount else 1))
        true["frame"].append(np.full(len(frame.boxes), number))
        true["box"].append(frame.boxes * scale)
        true["noun"].append([labels[0] if labels else 0 for labels in frame.labels])
        true["contact"].append(frame.contact)
    nothing = {"box": np.zeros((0, 4)), "contact": np.zeros((0, 2))}
    arrays: Arrays = {
        "nouns": np.asarray(names[0]),
        "verbs": np.asarray(names[1]),
        "frame_id": np.asarray([frames[index].row.attributes.get("uid", frames[index].row.id) for index in read]),
        "frame_group": np.asarray([frames[index].row.group or frames[index].row.path for index in read]),
        "guess": np.asarray(guess, dtype=np.float64),
        **{name: np.concatenate([nothing.get(name, np.zeros(0)), *parts]) for name, parts in columns.items()},
        **{f"truth_{name}": np.concatenate([nothing.get(name, np.zeros(0)), *parts]) for name, parts in true.items()},
    }
    for name in ("frame", "noun", "verb", "truth_frame", "truth_noun"):
        arrays[name] = arrays[name].astype(np.int64)
    lost = [{"id": clip.id, "path": clip.path, "reason": clip.reason} for clip in views.unreadable]
    return Predictions(NAME, arrays, dict(protocol), {"asked": len(frames), "read": len(read), "unreadable": lost})


def _frames(table: Predictions, guess: bool) -> list[tuple[StaObjects, StaObjects, NDArray[np.float64]]]:
    made = []
    for number in range(len(table["frame_id"])):
        own, rows = table["truth_frame"] == number, table["frame"] == number
        contact = table["truth_contact"][own]
        truth = StaObjects(
            table["truth_box"][own], table["truth_noun"][own], contact[:, 0].astype(np.int64), contact[:, 1]
        )
        verb, seconds = table["verb"][rows], table["seconds"][rows]
        if guess:
            verb, seconds = (np.full(len(verb), value) for value in table["guess"])
        found = StaObjects(table["box"][rows], table["noun"][rows], verb.astype(np.int64), seconds)
        made.append((truth, found, table["score"][rows]))
    return made


def score(table: Predictions) -> Result:
    """Compute the top-5 mAP over the nouns with ground truth; intervals resample clips.

    As published, frames without predictions are left out together with their ground truth.
    """
    metrics = MetricValues()
    names, group = np.unique(table["frame_group"], return_inverse=True)
    for guess in (False, True) if len(table["guess"]) else (False,):
        frames = _frames(table, guess)
        for name, (verb, seconds) in FIGURES.items():
            if guess and not (verb or seconds):
                continue
            precision = anticipation_average_precision(frames, verb=verb, seconds=seconds)
            values = [value for value in precision.values() if value is not None]
            statistic = anticipation_statistic(frames, group, verb=verb, seconds=seconds)
            bounds = bootstrap.interval(statistic, len(names))
            metrics.add(f"top5_mAP_{name}{'_of_guess' * guess}", float(np.mean(values)) if values else 0.0, bounds)
    empty = len(table["frame_id"]) - len(np.unique(table["frame"]))
    return metrics.result(table, clips=len(names), key_frames=len(table["frame_id"]), without_predictions=empty)


def predictions(table: Predictions) -> str:
    """Return the predictions in the format of the challenge, JSON."""
    results: dict[str, list[dict[str, Any]]] = {str(name): [] for name in table["frame_id"]}
    for row, number in enumerate(table["frame"]):
        results[str(table["frame_id"][number])].append(
            {
                "box": table["box"][row].round(2).tolist(),
                "noun_category_id": int(table["noun"][row]),
                "verb_category_id": int(table["verb"][row]),
                "time_to_contact": round(float(table["seconds"][row]), 4),
                "score": round(float(table["score"][row]), 6),
            }
        )
    return of_results(results, version="1.0", challenge=CHALLENGE)
