"""Open-set recognition: predicted class, uncertainty, and known or unknown (DEAR).

Training videos are read too: every method's threshold accepts 95 % of them as known.
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
from internvideo.tasks.open_set.methods import Learning, Opinion, evidential_opinion, judge_all, softmax_opinion
from internvideo.tasks.protocol import ClipInputs, check_labels
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.views import Views, run_clips

NAME = "open_set"
KNOWN, CLASS = "known", ("class", "action")
"""Attributes of a row: KNOWN is "no" for an unknown class; CLASS is the name of an unknown class."""
NOVELTY = "novelty"
"""Attribute of an unknown row: its kind, such as near or far, for metrics per kind."""
OWN = "model"
"""Method name of the model's own last layer."""
ACCEPTED = 0.95


def unknown_class(row: Sample) -> str:
    """Return the class name of an unknown row, "unknown" if it has none."""
    return next((row.attributes[name] for name in CLASS if name in row.attributes), "unknown")


def is_unknown(row: Sample) -> bool:
    """Return whether a row is marked as unknown."""
    return row.attributes.get(KNOWN) == "no"


def as_unknown(manifest: Manifest, root: Path) -> tuple[Sample, ...]:
    """Convert all rows of a manifest to rows of unknown classes, with paths relative to `root`."""
    rows = []
    for row in manifest.rows:
        name = unknown_class(row) if row.label is None else manifest.classes[row.label]
        attributes = {**row.attributes, KNOWN: "no", CLASS[0]: name}
        path = row.path if manifest.root == root else str(manifest.video_path(row).absolute())
        rows.append(row.model_copy(update={"label": None, "path": path, "attributes": attributes}))
    return tuple(rows)


def join(known: Manifest, unknown: Sequence[Sample]) -> Manifest:
    """Join known rows and rows of `as_unknown` in one manifest; colliding ids get a prefix.

    Raises:
        ManifestError: no known row, no unknown row, or a known row without label.
    """
    ids = {row.id for row in known.rows}
    added = [row.model_copy(update={"id": f"unknown/{row.id}"}) if row.id in ids else row for row in unknown]
    both = replace(known, rows=(*known.rows, *added))
    kinds = [is_unknown(row) for row in both.rows]
    if all(kinds) or not any(kinds):
        found = "only unknown" if all(kinds) else "only known"
        advice = 'give --unknown-manifest MANIFEST, or rows the attribute "known": "no"'
        raise ManifestError(known.source, f"{found} rows", "known and unknown ones", advice)
    check_labels(replace(both, rows=tuple(row for row, unknown in zip(both.rows, kinds, strict=True) if not unknown)))
    return both


def _features(inputs: ClipInputs[ClipClassifier], step: int, title: str) -> tuple[NDArray[Any], Views]:
    """Compute the last layer's input (videos read, D), mean over views."""
    model = inputs.model

    def look(batch: Batch) -> dict[str, Tensor]:
        return {"features": model.head_input(model.normalize(batch.video[:, :, ::step]))}

    views = run_clips(look, inputs, title)
    return merge_rows(views.values["features"], views.sample, len(views.rows)), views


def predict(
    train: ClipInputs[ClipClassifier],
    test: ClipInputs[ClipClassifier],
    *,
    evidence: Evidence | None,
    temporal_stride: int = 1,
    seed: int = 0,
) -> Predictions:
    """Predict training and test videos with the model's own last layer and every method.

    Args:
        train: labeled training rows with test-time clips.
        test: rows of known and unknown classes from `join`, for the same classifier.
        evidence: evidence function of the model's logits; None for a classifier trained with cross entropy.
        temporal_stride: the model sees every n-th frame. seed: of the methods.

    Returns:
        ids (N,), labels (N,) with -1 for unknown, strangers (N,) name of an unknown class or "", train_labels (M,);
        logits (N, C) and train_logits (M, C) of the model's own last layer; for each method NAME predicted:NAME (N,),
        uncertainty:NAME (N,) and train_uncertainty:NAME (M,).

    Raises:
        RunError: see `run_clips`. RecipeError: a training row without label.
    """
    train_labels = check_labels(train.manifest)
    known, seen = _features(train, temporal_stride, "training videos")
    asked, views = _features(test, temporal_stride, NAME)
    rows, classes = views.rows, len(train.manifest.classes)
    labels = train_labels[seen.read]
    layer = test.model.head_layer
    weight, bias = (part.detach().double().cpu().numpy() for part in (layer.weight, layer.bias))
    logits, train_logits = (part @ weight.T + bias for part in (asked, known))
    learning = Learning(num_classes=classes, seed=seed)
    opinions = {OWN: (own_opinion(train_logits, evidence), own_opinion(logits, evidence))}
    opinions |= judge_all(known, labels, asked, learning)
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.asarray([row.id for row in rows]),
        "labels": np.asarray([-1 if is_unknown(row) or row.label is None else row.label for row in rows]),
        "strangers": np.asarray([unknown_class(row) if is_unknown(row) else "" for row in rows]),
        "novelty": np.asarray([row.attributes.get(NOVELTY, "") if is_unknown(row) else "" for row in rows]),
        "train_labels": labels,
        "logits": logits.astype(np.float32),
        "train_logits": train_logits.astype(np.float32),
    }
    for name, (before, after) in opinions.items():
        arrays |= {
            f"predicted:{name}": after[0].argmax(axis=1),
            f"uncertainty:{name}": after[1],
            f"train_uncertainty:{name}": before[1],
        }
    protocol = {
        **test.describe(),
        "merge": "logits mean",
        "evidence": evidence or "softmax",
        "methods": f"last layers on frozen features, {learning.epochs} epochs",
        "train_split_sha256": train.manifest.fingerprint,
        "train_videos": len(labels),
        "train_unreadable": seen.coverage["asked"] - seen.coverage["read"],
        "known_classes": classes,
        "seed": seed,
    }
    return Predictions(NAME, arrays, protocol, views.coverage)


def own_opinion(logits: NDArray[Any], evidence: Evidence | None) -> Opinion:
    """Turn logits (N, C) into predictions and uncertainties, by the classifier's loss."""
    scores = torch.from_numpy(np.asarray(logits))
    return softmax_opinion(scores) if evidence is None else evidential_opinion(scores, evidence)


def methods(table: Predictions) -> list[str]:
    """List the methods of a table."""
    return [name.removeprefix("predicted:") for name in table.arrays if name.startswith("predicted:")]


def threshold(table: Predictions, method: str) -> float:
    """Return the uncertainty above which a video is unknown: the 95 % quantile of the training videos."""
    return metric.rejection_threshold(table[f"train_uncertainty:{method}"], ACCEPTED)


def score(table: Predictions) -> Result:
    """Compute the metrics of every method, named METHOD.METRIC.

    top1 on known videos; auroc, aupr and fpr95 of the uncertainty; auroc_KIND for unknown rows of one kind (near, far);
    auroc_binary after thresholding, as in the paper's table; accepted: fraction of known videos; rejected: fraction of
    unknown videos; open_macro_f1. All but the last three have intervals.
    """
    metrics, thresholds = MetricValues(), {}
    labels, unknown = table["labels"], table["labels"] < 0
    names, strange = np.unique(table["strangers"][unknown], return_inverse=True)
    classes = int(table.protocol["known_classes"])
    for method in methods(table):
        predicted, doubt = table[f"predicted:{method}"], table[f"uncertainty:{method}"]
        limit = threshold(table, method)
        thresholds[method] = limit
        hits = (predicted == labels)[~unknown]
        metrics.add_mean(f"{method}.top1", hits)
        rejected = doubt > limit
        for suffix, values in (("", doubt), ("_binary", rejected.astype(np.float64))):
            found = metric.binary_figures(values[~unknown], values[unknown])
            bounds = bootstrap.interval(metric.weighted_figures(values, unknown), len(values))
            for place, name in enumerate(("auroc", "aupr", "fpr95")):
                if not suffix or name == "auroc":
                    metrics.add(f"{method}.{name}{suffix}", found[name], bounds[:, place])
        for kind in sorted({*np.unique(table.arrays.get("novelty", ""))} - {""}):
            only = ~unknown | (table["novelty"] == kind)
            bounds = bootstrap.interval(metric.weighted_figures(doubt[only], unknown[only]), int(only.sum()))
            found = metric.binary_figures(doubt[~unknown], doubt[table["novelty"] == kind])
            metrics.add(f"{method}.auroc_{kind}", found["auroc"], bounds[:, 0])
        metrics.add(f"{method}.accepted", (~rejected[~unknown]).mean())
        metrics.add(f"{method}.rejected", rejected[unknown].mean())
        answers = metric.rejected(predicted, doubt, limit, classes)
        value = metric.open_macro_f1((labels[~unknown], answers[~unknown]), (strange, answers[unknown]), classes)
        metrics.add(f"{method}.open_macro_f1", value)
    metrics.add("openness", metric.openness(classes, len(names)))
    return metrics.result(table, thresholds=thresholds, accepted_in_training=ACCEPTED, unknown_classes=len(names))
