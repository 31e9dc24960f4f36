"""Predict positions of both hands at five moments; compute their mean displacement (arXiv 2211.09529).

For rows with positions in observed frames two baselines are scored too: last position and constant velocity. Both use
the exact positions, the model only the clip.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.metrics import bootstrap
from internvideo.models.encoder import ClipClassifier
from internvideo.tasks.future_hands.data import HandTargets
from internvideo.tasks.future_hands.metrics import FIGURES, displacement_statistic
from internvideo.tasks.future_hands.stage import positions
from internvideo.tasks.protocol import ClipInputs
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.views import run_clips

NAME = "future_hands"
SUMMED = 30
"""Views whose sum the published scorer expects (`num_clips`)."""
Floats = NDArray[np.float64]


def predict(inputs: ClipInputs[ClipClassifier], targets: HandTargets, *, mean: Floats | None = None) -> Predictions:
    """Predict positions (pixels) of every row, averaged over views.

    Args:
        inputs: a model of 20 outputs; clips of the observed spans. targets: what is true of these rows.
        mean: (20,) mean positions in training, fractions of the frame; a baseline.
    """
    model = inputs.model

    def outputs(batch: Batch) -> Mapping[str, Tensor]:
        return {"outputs": model(model.normalize(batch.video))}

    views = run_clips(outputs, inputs, "future hands")
    count = len(views.read)
    total = np.zeros((count, views.values["outputs"].shape[1]))
    np.add.at(total, views.sample, views.values["outputs"])
    size = targets.size[views.read]
    found = positions(torch.from_numpy(total / inputs.clips.num_views), torch.from_numpy(size).float()).double().numpy()
    arrays: dict[str, NDArray[Any]] = {
        "id": np.asarray([row.id for row in views.rows]),
        "uid": np.asarray([row.attributes.get("uid", row.id) for row in views.rows]),
        "group": np.asarray([row.group or row.path for row in views.rows]),
        "predicted": found,
        "truth": targets.positions[views.read],
        "size": size,
        "seen": targets.seen[views.read],
        "steps": targets.steps[views.read],
        "mean": np.zeros((0, 20)) if mean is None else np.asarray(mean)[None],
    }
    return Predictions(NAME, arrays, inputs.describe(), views.coverage)


def guesses(table: Predictions) -> dict[str, Floats]:
    """Compute baseline positions (N, 5, 2, 2) by the name of the baseline."""
    size, seen, found = table["size"], table["seen"], {}
    if len(table["mean"]):
        shares = table["mean"][0].reshape(1, 5, 2, 2)
        found["mean_of_training"] = shares * size[:, None, None]
    if (seen != 0).any():
        known = (seen[:, 0] != 0).any(axis=-1, keepdims=True)
        last = np.where(known, seen[:, 0], size[:, None] / 2)[:, None]  # a hand that was not seen is somewhere
        found["last_position"] = np.repeat(last, 5, axis=1)
        found["constant_velocity"] = last + seen[:, 1:] * table["steps"][:, :, None, None]
    return found


def score(table: Predictions) -> Result:
    """Compute mean displacements in pixels of the model and the baselines; intervals resample clips."""
    metrics, truth = MetricValues(), table["truth"]
    groups = np.unique(table["group"], return_inverse=True)[1]
    for name, predicted in {"": table["predicted"], **guesses(table)}.items():
        statistic = displacement_statistic(predicted, truth)
        values = statistic(np.ones((1, len(truth))))[0]
        bounds = bootstrap.interval(statistic, len(truth), groups=groups)
        for place, figure in enumerate(FIGURES):
            if np.isfinite(values[place]) and np.isfinite(bounds[:, place]).all():
                short = figure.removesuffix("_displacement")
                metrics.add(f"{short}_px{'_' * bool(name)}{name}", values[place], bounds[:, place])
    return metrics.result(table, clips=len(np.unique(groups)))


def submission(table: Predictions, *, clips: int = SUMMED) -> str:
    """Format the predictions for the challenge, JSON: 20 values per row, times the `clips` by which it divides.

    A row's name is its "uid" (the challenge's CLIP_ID_FRAME), else its id; rows of one name (a clip annotated twice)
    are averaged.
    """
    predicted: dict[str, list[Floats]] = {}
    for name, values in zip(table.arrays.get("uid", table["id"]).tolist(), table["predicted"], strict=True):
        predicted.setdefault(name, []).append(values.reshape(-1))
    sums = {name: (np.mean(values, axis=0) * clips).round(3).tolist() for name, values in predicted.items()}
    return json.dumps(sums) + "\n"
