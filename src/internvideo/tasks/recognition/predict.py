"""Predict class scores of every view; compute top-1, top-5 and mean class accuracy.

Source: run_class_finetuning.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.data.sample import Sample
from internvideo.errors import RecipeError, RunError
from internvideo.metrics import bootstrap
from internvideo.metrics.classification import mean_class_accuracy, merge_views, top_k_hits
from internvideo.models.cross_model import CrossModel
from internvideo.models.encoder import ClipClassifier
from internvideo.tasks.protocol import ClipInputs, check_labels
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.views import run_clips

NAME = "recognition"
COLUMN = "logits"
"""Name of the column when the model gives one."""

Scorer = Callable[[Tensor], Mapping[str, Tensor]]
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


def classifier_scorer(model: ClipClassifier) -> Scorer:
    """Make the function uint8 clips -> {"logits"}."""
    return lambda video: {COLUMN: model(model.normalize(video))}


def interaction_scorer(model: CrossModel, temporal_stride: int) -> Scorer:
    """Make the function uint8 clips -> {"masked", "multimodal", "fused"}; the multimodal encoder is strided."""

    def score_clips(video: Tensor) -> dict[str, Tensor]:
        masked, multimodal = model.masked.normalize(video), model.multimodal.normalize(video[:, :, ::temporal_stride])
        output = model(masked, multimodal)
        return {"masked": output.masked, "multimodal": output.multimodal, "fused": output.fused}

    return score_clips


def restricted(scorer: Scorer, classes: Sequence[int]) -> Scorer:
    """Restrict a scorer to some classes, in their order."""
    index = torch.tensor(list(classes))
    return lambda video: {name: logits[:, index.to(logits.device)] for name, logits in scorer(video).items()}


def predict(
    inputs: ClipInputs[object],
    scorer: Scorer,
    *,
    subsets: Mapping[str, Callable[[Sample], bool]] | None = None,
    extra_protocol: Mapping[str, object] | None = None,
) -> Predictions:
    """Score every view of every video.

    Args:
        inputs: clips of labeled rows.
        scorer: uint8 clips -> named logits; see `classifier_scorer` and `interaction_scorer`.
        subsets: named conditions on a row, whose accuracy is reported too (e.g. time-directed classes).
        extra_protocol: further entries of the protocol.

    Returns:
        ids (N,), labels (N,), sample (R,), view (R,), classes (C,), logits:NAME (R, C) and subset:NAME (N,) of the
        videos read.

    Raises:
        RecipeError: a row without label, or a model with another number of classes.
        RunError: see `run_clips`.
    """
    manifest = inputs.manifest
    labels = check_labels(manifest)

    def checked(batch: Batch) -> Mapping[str, Tensor]:
        outputs = scorer(batch.video)
        for name, logits in outputs.items():
            if logits.shape[1:] != (len(manifest.classes),):
                found = f"{name} scores {logits.shape[-1]} classes, the manifest has {len(manifest.classes)}"
                hint = "use weights trained on these classes, or the manifest's classes.txt of the training"
                raise RecipeError(inputs.model_name or "model", found, "", hint)
        return outputs

    views = run_clips(checked, inputs, NAME)
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.asarray([row.id for row in views.rows]),
        "labels": labels[views.read],
        "sample": views.sample,
        "view": views.view,
        "classes": np.asarray(manifest.classes),
        **{f"logits:{name}": values for name, values in views.values.items()},
        **{f"subset:{name}": np.asarray([holds(row) for row in views.rows]) for name, holds in (subsets or {}).items()},
    }
    protocol = {**inputs.describe(), "merge": "softmax mean", **(extra_protocol or {})}
    return Predictions(NAME, arrays, protocol, views.coverage)


def columns(table: Predictions) -> list[str]:
    """Return the names of the score columns."""
    return [name.removeprefix("logits:") for name in table.arrays if name.startswith("logits:")]


def probabilities(table: Predictions, column: str | None = None) -> Floats:
    """Merge a column over views, (N, C); the only column when none is named. Raises RunError."""
    names = columns(table)
    if column is None and len(names) != 1:
        raise RunError("table", f"{len(names)} score columns", ", ".join(names), "name one")
    logits = table[f"logits:{column or names[0]}"]
    return merge_views(logits, table["sample"], len(table["ids"]), weight=table.arrays.get("weight"))


def score(table: Predictions) -> Result:
    """Compute top1, top5 and mean_class of every column with intervals.

    Names are FIGURE, with several columns COLUMN.FIGURE; a subset adds _SUBSET; top1_one_view is the middle view alone,
    beside the merged one, and stands where there are several views.
    """
    metrics = MetricValues()
    names = columns(table)
    labels, several = table["labels"], len(names) > 1
    for name in names:
        prefix, merged = f"{name}." if several else "", probabilities(table, name)
        _add(metrics, prefix, merged, labels)
        for subset in sorted(key for key in table.arrays if key.startswith("subset:")):
            inside = table[subset]
            if inside.any():
                hits = top_k_hits(merged[inside], labels[inside], 1)
                metrics.add_mean(f"{prefix}top1_{subset.removeprefix('subset:')}", hits)
        one = _one_view(table, name)
        if one is not None:
            metrics.add_mean(f"{prefix}top1_one_view", top_k_hits(one, labels, 1))
    return metrics.result(table)


def _add(metrics: MetricValues, prefix: str, merged: Floats, labels: Ints) -> None:
    for k in (1, 5):
        if k == 1 or merged.shape[1] > k:
            metrics.add_mean(f"{prefix}top{k}", top_k_hits(merged, labels, k))
    predicted = merged.argmax(axis=1)
    spread = bootstrap.interval(bootstrap.class_mean(predicted == labels, labels), len(labels))
    metrics.add(f"{prefix}mean_class", mean_class_accuracy(predicted, labels), spread)


def _one_view(table: Predictions, column: str) -> Floats | None:
    """Return the logits (N, C) of the middle view; None for a single view or an ensemble of models."""
    view = table["view"]
    clips = int(view.max()) + 1
    chosen = view == clips // 2
    if clips == 1 or "weight" in table.arrays or chosen.sum() != len(table["ids"]):
        return None
    order = np.argsort(table["sample"][chosen])
    logits: Floats = table[f"logits:{column}"][chosen][order]
    return logits


def difference(first: Predictions, second: Predictions) -> dict[str, Any]:
    """Compute the paired top-1 difference first - second of two one-column tables, with its interval.

    Videos are paired by id; only those that both read enter. The pairing makes the interval much narrower than those
    of the two figures. Returns {"top1", "interval", "videos"}.
    """
    hits = []
    shared = sorted(set(first["ids"].tolist()) & set(second["ids"].tolist()))
    if not shared:
        raise RunError("difference", "no video in both tables", "", "evaluate both on one split")
    for table in (first, second):
        place = {name: index for index, name in enumerate(table["ids"].tolist())}
        rows = np.asarray([place[name] for name in shared])
        hits.append(top_k_hits(probabilities(table)[rows], table["labels"][rows], 1).astype(float))
    gap = hits[0] - hits[1]
    interval = bootstrap.interval(bootstrap.mean(gap), len(gap))
    return {"top1": float(gap.mean()), "interval": interval.tolist(), "videos": len(shared)}
