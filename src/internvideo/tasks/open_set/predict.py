"""Open-set recognition: predicted class, uncertainty, and known or unknown (DEAR).

Training videos are predicted too, because the threshold of each method accepts 95 % of them as known.
Legend: M training videos, N test videos, C known classes, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.data.manifest import Manifest
from internvideo.data.sample import Sample
from internvideo.errors import ManifestError
from internvideo.metrics import bootstrap
from internvideo.metrics.classification import merge_rows
from internvideo.models.encoder import ClipClassifier
from internvideo.objectives.evidential import Evidence
from internvideo.tasks.open_set import metrics as metric
from internvideo.tasks.open_set.methods import (
    HeadTrainingSettings,
    Prediction,
    evidential_prediction,
    predict_with_all_methods,
    softmax_prediction,
)
from internvideo.tasks.protocol import ClipInputs, check_labels
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.views import Views, run_clips

NAME = "open_set"
KNOWN_ATTRIBUTE, CLASS_ATTRIBUTES = "known", ("class", "action")
"""Attributes of a row: the first is "no" for an unknown class, the others are the name of an unknown class."""
NOVELTY_ATTRIBUTE = "novelty"
"""Attribute of an unknown row: kind of novelty, such as near or far, for metrics per kind."""
OWN_METHOD = "model"
"""Method name of the classifier's last layer, as it was trained."""
ACCEPT_FRACTION = 0.95


def unknown_class(row: Sample) -> str:
    """Return the class name of a row of an unknown class, "unknown" if it has none."""
    return next((row.attributes[name] for name in CLASS_ATTRIBUTES if name in row.attributes), "unknown")


def is_unknown(row: Sample) -> bool:
    """Return whether a row has the mark of an unknown class."""
    return row.attributes.get(KNOWN_ATTRIBUTE) == "no"


def as_unknown(manifest: Manifest, root: Path) -> tuple[Sample, ...]:
    """Mark all rows of a manifest as unknown; paths are relative to `root`, or absolute if it is another folder."""
    rows = []
    for row in manifest.rows:
        name = unknown_class(row) if row.label is None else manifest.classes[row.label]
        attributes = {**row.attributes, KNOWN_ATTRIBUTE: "no", CLASS_ATTRIBUTES[0]: name}
        path = row.path if manifest.root == root else str(manifest.video_path(row).absolute())
        rows.append(row.model_copy(update={"label": None, "path": path, "attributes": attributes}))
    return tuple(rows)


def join(known: Manifest, unknown: Sequence[Sample]) -> Manifest:
    """Join known rows and rows of `as_unknown` in one manifest; colliding ids get a prefix.

    Raises:
        ManifestError: no known row, no unknown row, or a known row without label.
    """
    ids = {row.id for row in known.rows}
    unknown_rows = [row.model_copy(update={"id": f"unknown/{row.id}"}) if row.id in ids else row for row in unknown]
    both = replace(known, rows=(*known.rows, *unknown_rows))
    is_unknown_row = [is_unknown(row) for row in both.rows]
    if all(is_unknown_row) or not any(is_unknown_row):
        found = "only unknown" if all(is_unknown_row) else "only known"
        advice = 'give --unknown-manifest MANIFEST, or rows the attribute "known": "no"'
        raise ManifestError(known.source, f"{found} rows", "known and unknown ones", advice)
    check_labels(
        replace(both, rows=tuple(row for row, unknown in zip(both.rows, is_unknown_row, strict=True) if not unknown))
    )
    return both


def _features(inputs: ClipInputs[ClipClassifier], temporal_stride: int, title: str) -> tuple[NDArray[Any], Views]:
    """Compute the last layer's input, averaged over views: features (videos read, D), and the views."""
    model = inputs.model

    def compute_features(batch: Batch) -> dict[str, Tensor]:
        return {"features": model.head_input(model.normalize(batch.video[:, :, ::temporal_stride]))}

    views = run_clips(compute_features, inputs, title)
    return merge_rows(views.values["features"], views.sample, len(views.rows)), views


def predict(
    train: ClipInputs[ClipClassifier],
    test: ClipInputs[ClipClassifier],
    *,
    evidence: Evidence | None,
    temporal_stride: int = 1,
    seed: int = 0,
) -> Predictions:
    """Predict training and test videos with the classifier's last layer and with every method of `METHODS`.

    Args:
        train: labeled training rows with test-time clips.
        test: rows of known and unknown classes from `join`, for the same classifier.
        evidence: evidence function of the model's logits; None for a classifier trained with cross entropy.
        temporal_stride: the model gets every n-th frame. seed: of the methods.

    Returns:
        ids (N,); labels (N,), -1 for unknown; strangers (N,) name of the unknown class or ""; novelty (N,) its kind or
        ""; train_labels (M,); logits (N, C) and train_logits (M, C) of the classifier's last layer; for each method
        NAME predicted:NAME (N,), uncertainty:NAME (N,) and train_uncertainty:NAME (M,).

    Raises:
        RunError: see `run_clips`. RecipeError: a training row without label.
    """
    train_labels = check_labels(train.manifest)
    train_features, train_views = _features(train, temporal_stride, "training videos")
    test_features, views = _features(test, temporal_stride, NAME)
    rows, num_classes = views.rows, len(train.manifest.classes)
    labels = train_labels[train_views.read]
    layer = test.model.head_layer
    weight, bias = (array.detach().double().cpu().numpy() for array in (layer.weight, layer.bias))
    logits, train_logits = (array @ weight.T + bias for array in (test_features, train_features))
    head_settings = HeadTrainingSettings(num_classes=num_classes, seed=seed)
    predictions_by_method = {OWN_METHOD: (own_prediction(train_logits, evidence), own_prediction(logits, evidence))}
    predictions_by_method |= predict_with_all_methods(train_features, labels, test_features, head_settings)
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.asarray([row.id for row in rows]),
        "labels": np.asarray([-1 if is_unknown(row) or row.label is None else row.label for row in rows]),
        "strangers": np.asarray([unknown_class(row) if is_unknown(row) else "" for row in rows]),
        "novelty": np.asarray([row.attributes.get(NOVELTY_ATTRIBUTE, "") if is_unknown(row) else "" for row in rows]),
        "train_labels": labels,
        "logits": logits.astype(np.float32),
        "train_logits": train_logits.astype(np.float32),
    }
    for name, (train_prediction, test_prediction) in predictions_by_method.items():
        arrays |= {
            f"predicted:{name}": test_prediction[0].argmax(axis=1),
            f"uncertainty:{name}": test_prediction[1],
            f"train_uncertainty:{name}": train_prediction[1],
        }
    protocol = {
        **test.describe(),
        "merge": "logits mean",
        "evidence": evidence or "softmax",
        "methods": f"last layers on frozen features, {head_settings.epochs} epochs",
        "train_split_sha256": train.manifest.fingerprint,
        "train_videos": len(labels),
        "train_unreadable": train_views.coverage["asked"] - train_views.coverage["read"],
        "known_classes": num_classes,
        "seed": seed,
    }
    return Predictions(NAME, arrays, protocol, views.coverage)


def own_prediction(logits: NDArray[Any], evidence: Evidence | None) -> Prediction:
    """Compute probabilities and uncertainties from logits (N, C), as evidence or (`evidence` None) by softmax."""
    scores = torch.from_numpy(np.asarray(logits))
    return softmax_prediction(scores) if evidence is None else evidential_prediction(scores, evidence)


def methods(table: Predictions) -> list[str]:
    """List the methods of a table."""
    return [name.removeprefix("predicted:") for name in table.arrays if name.startswith("predicted:")]


def threshold(table: Predictions, method: str) -> float:
    """Return the uncertainty above which a video is predicted as unknown: the training videos' 95 % quantile."""
    return metric.rejection_threshold(table[f"train_uncertainty:{method}"], ACCEPT_FRACTION)


def score(table: Predictions) -> Result:
    """Compute the metrics of every method, named METHOD.METRIC.

    top1: of known videos. auroc, aupr, fpr95: of the uncertainty. auroc_KIND: with the unknown rows of one kind only.
    auroc_binary: after thresholding, as in the paper's table. accepted: fraction of the known videos. rejected:
    fraction of the unknown videos. open_macro_f1: see `metrics.open_macro_f1`. The last three have no intervals.
    """
    metrics, thresholds = MetricValues(), {}
    labels, unknown = table["labels"], table["labels"] < 0
    names, class_index = np.unique(table["strangers"][unknown], return_inverse=True)
    num_classes = int(table.protocol["known_classes"])
    for method in methods(table):
        predicted, uncertainty = table[f"predicted:{method}"], table[f"uncertainty:{method}"]
        reject_above = threshold(table, method)
        thresholds[method] = reject_above
        hits = (predicted == labels)[~unknown]
        metrics.add_mean(f"{method}.top1", hits)
        rejected = uncertainty > reject_above
        for suffix, values in (("", uncertainty), ("_binary", rejected.astype(np.float64))):
            figures = metric.detection_metrics(values[~unknown], values[unknown])
            bounds = bootstrap.interval(metric.detection_statistic(values, unknown), len(values))
            for column, name in enumerate(("auroc", "aupr", "fpr95")):
                if not suffix or name == "auroc":
                    metrics.add(f"{method}.{name}{suffix}", figures[name], bounds[:, column])
        for kind in sorted({*np.unique(table.arrays.get("novelty", ""))} - {""}):
            selected = ~unknown | (table["novelty"] == kind)
            bounds = bootstrap.interval(
                metric.detection_statistic(uncertainty[selected], unknown[selected]), int(selected.sum())
            )
            figures = metric.detection_metrics(uncertainty[~unknown], uncertainty[table["novelty"] == kind])
            metrics.add(f"{method}.auroc_{kind}", figures["auroc"], bounds[:, 0])
        metrics.add(f"{method}.accepted", (~rejected[~unknown]).mean())
        metrics.add(f"{method}.rejected", rejected[unknown].mean())
        predictions = metric.reject_uncertain(predicted, uncertainty, reject_above, num_classes)
        value = metric.open_macro_f1(
            (labels[~unknown], predictions[~unknown]), (class_index, predictions[unknown]), num_classes
        )
        metrics.add(f"{method}.open_macro_f1", value)
    metrics.add("openness", metric.openness(num_classes, len(names)))
    return metrics.result(
        table, thresholds=thresholds, accepted_in_training=ACCEPT_FRACTION, unknown_classes=len(names)
    )
