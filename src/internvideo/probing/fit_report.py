"""Report the results of a fit: metrics with confidence intervals, a confusion matrix and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.metrics import bootstrap
from internvideo.metrics.calibration import expected_calibration_error
from internvideo.metrics.classification import confusion_matrix, mean_class_accuracy, softmax
from internvideo.plots.style import write_plot
from internvideo.probing.fit_learn import LabeledFeatures, OutOfFoldPredictions, UnknownCheck
from internvideo.storage import write_text
from internvideo.tasks.table import MetricValues, Result

MAX_MISTAKES = 20
"""Largest number of most confident mistakes in the report; often their label is wrong."""

NAME = "fit"
"""Name of the task in results."""


def add_metrics(metrics: MetricValues, prefix: str, predictions: OutOfFoldPredictions, data: LabeledFeatures) -> None:
    """Add accuracies of the probe and the baselines, calibration errors and acceptance, with prefixed names.

    Confidence intervals resample groups, not videos.
    """
    labels, probabilities = data.labels, predictions.probabilities
    predicted = probabilities.argmax(axis=1)
    correct = predicted == labels
    metrics.add_mean(f"{prefix}top1", correct, data.groups)
    interval = bootstrap.interval(bootstrap.class_mean(correct, labels), len(labels), groups=data.groups)
    metrics.add(f"{prefix}mean_class", mean_class_accuracy(predicted, labels), interval)
    nearest, majority = predictions.nearest == labels, predictions.majority == labels
    metrics.add_mean(f"{prefix}nearest_mean", nearest, data.groups)
    metrics.add_mean(f"{prefix}majority", majority, data.groups)
    metrics.add(f"{prefix}chance", 1 / probabilities.shape[1])
    metrics.add_mean(f"{prefix}better_than_nearest_mean", correct.astype(float) - nearest, data.groups)
    metrics.add(f"{prefix}ece_before", expected_calibration_error(softmax(predictions.logits), labels))
    metrics.add(f"{prefix}ece_after", expected_calibration_error(probabilities, labels))
    accepted = predictions.accepted
    metrics.add_mean(f"{prefix}known_accepted", accepted, data.groups)
    if accepted.any():
        metrics.add_mean(f"{prefix}top1_of_accepted", correct[accepted], data.groups[accepted])


def add_fold_metrics(metrics: MetricValues, predictions: OutOfFoldPredictions, data: LabeledFeatures) -> list[float]:
    """Add mean and standard deviation of the accuracies of the folds; return the accuracies."""
    correct = predictions.logits.argmax(axis=1) == data.labels
    fold_accuracies = [float(correct[predictions.fold == fold].mean()) for fold in np.unique(predictions.fold)]
    metrics.add("folds_mean", float(np.mean(fold_accuracies)))
    metrics.add("folds_spread", float(np.std(fold_accuracies, ddof=1)) if len(fold_accuracies) > 1 else 0.0)
    return fold_accuracies


def add_unknown(metrics: MetricValues, check: UnknownCheck | None, classes: Sequence[str]) -> dict[str, Any] | None:
    """Add the metrics of `leave_one_class_out`; return those of each class."""
    if check is None:
        return None
    metrics.add("unknown_auroc", check.auroc)
    metrics.add("unknown_rejected", check.rejected)
    return {
        "classes": {classes[label]: {"auroc": a, "rejected": r} for label, (a, r) in check.per_class.items()},
        "known_accepted": check.accepted,
    }


def most_confident_mistakes(
    predictions: OutOfFoldPredictions, data: LabeledFeatures, ids: Sequence[str], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the mistakes with the largest probabilities, in descending order; `ids` are the n video ids."""
    probabilities = predictions.probabilities
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    mistakes = np.flatnonzero(predicted != data.labels)
    return [
        {
            "id": ids[index],
            "label": classes[data.labels[index]],
            "said": classes[predicted[index]],
            "probability": round(float(confidence[index]), 4),
        }
        for index in mistakes[np.argsort(-confidence[mistakes], kind="stable")][:MAX_MISTAKES]
    ]


def count_confusion(predictions: OutOfFoldPredictions, data: LabeledFeatures, num_classes: int) -> NDArray[np.int64]:
    """Count predictions: (C, C), true class by predicted class."""
    return confusion_matrix(predictions.logits.argmax(axis=1).astype(np.int64), data.labels, num_classes)


def write_fit_report(folder: Path, result: Result, details: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Write report.json and confusion.svg (from more["confusion"]), each atomically. Raises RunError."""
    from internvideo.plots import charts

    def plot() -> str:
        matrix = charts.confusion_matrix(np.asarray(details["confusion"]), classes)
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{matrix}'

    write_plot(folder / "confusion.svg", plot)
    text = json.dumps({**result, **details}, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / "report.json", text + "\n")
