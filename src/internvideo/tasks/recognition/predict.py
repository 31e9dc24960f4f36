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
"""Name of the column of a model with a single output."""

Scorer = Callable[[Tensor], Mapping[str, Tensor]]
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


def classifier_scorer(model: ClipClassifier) -> Scorer:
    """Return the function uint8 clips -> {"logits"}."""
    return lambda video: {COLUMN: model(model.normalize(video))}


def interaction_scorer(model: CrossModel, temporal_stride: int) -> Scorer:
    """Return the function uint8 clips -> logits {"masked", "multimodal", "fused"}.

    The multimodal encoder gets every `temporal_stride`-th frame.
    """

    def score_clips(video: Tensor) -> dict[str, Tensor]:
        masked, multimodal = model.masked.normalize(video), model.multimodal.normalize(video[:, :, ::temporal_stride])
        output = model(masked, multimodal)
        return {"masked": output.masked, "multimodal": output.multimodal, "fused": output.fused}

    return score_clips


def restrict_classes(scorer: Scorer, classes: Sequence[int]) -> Scorer:
    """Return a scorer that selects the logits of these class indices, in their order."""
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
        scorer: uint8 clips -> logits by name; see `classifier_scorer` and `interaction_scorer`.
        subsets: name -> condition on a row; the accuracy on these rows is reported too.
        extra_protocol: further entries of the protocol.

    Returns:
        ids (N,), labels (N,), sample (R,), view (R,), classes (C,), logits:NAME (R, C) and subset:NAME (N,) of the
        videos read.

    Raises:
        ManifestError: a row without label. RecipeError: a model with another number of classes than the manifest.
        RunError: see `run_clips`.
    """
    manifest = inputs.manifest
    labels = check_labels(manifest)

    def score_batch(batch: Batch) -> Mapping[str, Tensor]:
        outputs = scorer(batch.video)
        for name, logits in outputs.items():
            if logits.shape[1:] != (len(manifest.classes),):
                found = f"{name} scores {logits.shape[-1]} classes, the manifest has {len(manifest.classes)}"
                hint = "use weights trained on these classes, or give the manifest the classes.txt of the training"
                raise RecipeError(inputs.model_name or "model", found, "", hint)
        return outputs

    views = run_clips(score_batch, inputs, NAME)
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.asarray([row.id for row in views.rows]),
        "labels": labels[views.read],
        "sample": views.sample,
        "view": views.view,
        "classes": np.asarray(manifest.classes),
        **{f"logits:{name}": values for name, values in views.values.items()},
        **{
            f"subset:{name}": np.asarray([condition(row) for row in views.rows])
            for name, condition in (subsets or {}).items()
        },
    }
    protocol = {**inputs.describe(), "merge": "softmax mean", **(extra_protocol or {})}
    return Predictions(NAME, arrays, protocol, views.coverage)


def columns(table: Predictions) -> list[str]:
    """Return the names of the columns of logits."""
    return [name.removeprefix("logits:") for name in table.arrays if name.startswith("logits:")]


def probabilities(table: Predictions, column: str | None = None) -> Floats:
    """Compute the class probabilities (N, C), averaged over views, of a column of logits.

    Args:
        column: None for the only one.

    Raises:
        RunError: `column` is None and there are several.
    """
    names = columns(table)
    if column is None and len(names) != 1:
        raise RunError("table", f"{len(names)} score columns", ", ".join(names), "name one")
    logits = table[f"logits:{column or names[0]}"]
    return merge_views(logits, table["sample"], len(table["ids"]), weight=table.arrays.get("weight"))


def score(table: Predictions) -> Result:
    """Compute top1, top5 and mean_class of every column of logits, with intervals.

    A metric's name has the prefix COLUMN. if there are several columns, and the suffix _SUBSET for a subset.
    top1_one_view is the accuracy of the middle view alone, if there are several views.
    """
    metrics = MetricValues()
    names = columns(table)
    labels, has_columns = table["labels"], len(names) > 1
    for name in names:
        prefix, merged = f"{name}." if has_columns else "", probabilities(table, name)
        _add_accuracies(metrics, prefix, merged, labels)
        for subset in sorted(key for key in table.arrays if key.startswith("subset:")):
            in_subset = table[subset]
            if in_subset.any():
                hits = top_k_hits(merged[in_subset], labels[in_subset], 1)
                metrics.add_mean(f"{prefix}top1_{subset.removeprefix('subset:')}", hits)
        one_view = _middle_view(table, name)
        if one_view is not None:
            metrics.add_mean(f"{prefix}top1_one_view", top_k_hits(one_view, labels, 1))
    return metrics.result(table)


def _add_accuracies(metrics: MetricValues, prefix: str, merged: Floats, labels: Ints) -> None:
    for k in (1, 5):
        if k == 1 or merged.shape[1] > k:
            metrics.add_mean(f"{prefix}top{k}", top_k_hits(merged, labels, k))
    predicted = merged.argmax(axis=1)
    bounds = bootstrap.interval(bootstrap.class_mean(predicted == labels, labels), len(labels))
    metrics.add(f"{prefix}mean_class", mean_class_accuracy(predicted, labels), bounds)


def _middle_view(table: Predictions, column: str) -> Floats | None:
    """Return the logits (N, C) of the middle view; None for a single view or an ensemble of models."""
    view = table["view"]
    num_views = int(view.max()) + 1
    is_middle = view == num_views // 2
    if num_views == 1 or "weight" in table.arrays or is_middle.sum() != len(table["ids"]):
        return None
    order = np.argsort(table["sample"][is_middle])
    logits: Floats = table[f"logits:{column}"][is_middle][order]
    return logits


def difference(first: Predictions, second: Predictions) -> dict[str, Any]:
    """Compute the top-1 difference first - second of two tables with one column each, with a paired interval.

    Videos are paired by id; those that only one table has are left out. Because of the pairing, the interval is much
    narrower than those of the two accuracies.

    Returns:
        {"top1": difference, "interval": its bounds, "videos": number of common videos}.
    """
    hits = []
    shared = sorted(set(first["ids"].tolist()) & set(second["ids"].tolist()))
    if not shared:
        raise RunError("difference", "no video in both tables", "", "evaluate both on one split")
    for table in (first, second):
        row_of_id = {name: index for index, name in enumerate(table["ids"].tolist())}
        rows = np.asarray([row_of_id[name] for name in shared])
        hits.append(top_k_hits(probabilities(table)[rows], table["labels"][rows], 1).astype(float))
    hit_difference = hits[0] - hits[1]
    interval = bootstrap.interval(bootstrap.mean(hit_difference), len(hit_difference))
    return {"top1": float(hit_difference.mean()), "interval": interval.tolist(), "videos": len(shared)}
