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
from internvideo.tasks.future_hands.stage import outputs_to_pixels
from internvideo.tasks.protocol import ClipInputs
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.views import run_clips

NAME = "future_hands"
NUM_SUBMISSION_VIEWS = 30
"""Number of views whose summed predictions the published scorer expects, and divides by."""
Floats = NDArray[np.float64]


def predict(inputs: ClipInputs[ClipClassifier], targets: HandTargets, *, mean: Floats | None = None) -> Predictions:
    """Predict positions (pixels) of every row, averaged over views.

    Args:
        inputs: a model of 20 outputs; clips of the observed spans. targets: ground truth of these rows.
        mean: (20,) mean positions in training as fractions of the frame, a baseline.

    Returns:
        id, uid, group (N,); predicted, truth (N, 5, 2, 2) and size (N, 2) in pixels; seen, steps: `last_motion` and
        `frame_offsets` of `HandTargets`; mean (0 or 1, 20); of the videos read.
    """
    model = inputs.model

    def outputs(batch: Batch) -> Mapping[str, Tensor]:
        return {"outputs": model(model.normalize(batch.video))}

    views = run_clips(outputs, inputs, "future hands")
    count = len(views.read)
    total = np.zeros((count, views.values["outputs"].shape[1]))
    np.add.at(total, views.sample, views.values["outputs"])
    size = targets.size[views.read]
    predicted = (
        outputs_to_pixels(torch.from_numpy(total / inputs.protocol.num_views), torch.from_numpy(size).float())
        .double()
        .numpy()
    )
    arrays: dict[str, NDArray[Any]] = {
        "id": np.asarray([row.id for row in views.rows]),
        "uid": np.asarray([row.attributes.get("uid", row.id) for row in views.rows]),
        "group": np.asarray([row.group or row.path for row in views.rows]),
        "predicted": predicted,
        "truth": targets.positions[views.read],
        "size": size,
        "seen": targets.last_motion[views.read],
        "steps": targets.frame_offsets[views.read],
        "mean": np.zeros((0, 20)) if mean is None else np.asarray(mean)[None],
    }
    return Predictions(NAME, arrays, inputs.describe(), views.coverage)


def baselines(table: Predictions) -> dict[str, Floats]:
    """Return name of a baseline -> positions (N, 5, 2, 2) in pixels."""
    size, last_motion, positions_by_name = table["size"], table["seen"], {}
    if len(table["mean"]):
        fractions = table["mean"][0].reshape(1, 5, 2, 2)
        positions_by_name["mean_of_training"] = fractions * size[:, None, None]
    if (last_motion != 0).any():
        is_known = (last_motion[:, 0] != 0).any(axis=-1, keepdims=True)
        last = np.where(is_known, last_motion[:, 0], size[:, None] / 2)[:, None]  # the center for an unknown hand
        positions_by_name["last_position"] = np.repeat(last, 5, axis=1)
        positions_by_name["constant_velocity"] = last + last_motion[:, 1:] * table["steps"][:, :, None, None]
    return positions_by_name


def score(table: Predictions) -> Result:
    """Compute mean displacements in pixels of the model and the baselines; intervals resample clips."""
    metrics, truth = MetricValues(), table["truth"]
    groups = np.unique(table["group"], return_inverse=True)[1]
    for name, predicted in {"": table["predicted"], **baselines(table)}.items():
        statistic = displacement_statistic(predicted, truth)
        values = statistic(np.ones((1, len(truth))))[0]
        bounds = bootstrap.interval(statistic, len(truth), groups=groups)
        for column, figure in enumerate(FIGURES):
            if np.isfinite(values[column]) and np.isfinite(bounds[:, column]).all():
                short = figure.removesuffix("_displacement")
                metrics.add(f"{short}_px{'_' * bool(name)}{name}", values[column], bounds[:, column])
    return metrics.result(table, clips=len(np.unique(groups)))


def submission(table: Predictions, *, num_views: int = NUM_SUBMISSION_VIEWS) -> str:
    """Format the predictions for the challenge, as JSON: 20 values per row, multiplied by `num_views`.

    The name of a row is its "uid" (CLIP_ID_FRAME of the challenge), else its id. Rows with the same name (a clip that
    was annotated twice) are averaged.
    """
    predicted: dict[str, list[Floats]] = {}
    for name, values in zip(table.arrays.get("uid", table["id"]).tolist(), table["predicted"], strict=True):
        predicted.setdefault(name, []).append(values.reshape(-1))
    sums = {name: (np.mean(values, axis=0) * num_views).round(3).tolist() for name, values in predicted.items()}
    return json.dumps(sums) + "\n"
