"""What a fit found, as figures with their intervals, a picture and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.metrics import bootstrap
from internvideo.metrics.calibration import expected_calibration_error
from internvideo.metrics.classification import confusion_matrix, mean_class_accuracy, softmax
from internvideo.probing.fit_learn import Data, Judged, UnknownCheck
from internvideo.storage import write_text
from internvideo.tasks.table import BOOTSTRAP, Figures, Result

MISTAKES = 20
"""The surest mistakes are named: often the label is what is wrong."""

NAME = "fit"


@dataclass(frozen=True)
class Shown:
    """Names for numbers: ids of the judged videos, and classes."""

    ids: Sequence[str]
    classes: Sequence[str]


def add_figures(figures: Figures, prefix: str, judged: Judged, data: Data) -> None:
    """Accuracies of the probe and of the baselines, calibration and acceptance, under names with a prefix.

    Intervals draw whole sources.
    """
    labels, probabilities = data.labels, judged.probabilities
    said = probabilities.argmax(axis=1)
    right = said == labels
    _add_mean(figures, f"{prefix}top1", right, data.groups)
    spread = bootstrap.interval(bootstrap.class_mean(right, labels), len(labels), groups=data.groups, **BOOTSTRAP)
    figures.add(f"{prefix}mean_class", mean_class_accuracy(said, labels), spread)
    nearest, majority = judged.nearest == labels, judged.majority == labels
    _add_mean(figures, f"{prefix}nearest_mean", nearest, data.groups)
    _add_mean(figures, f"{prefix}majority", majority, data.groups)
    figures.add(f"{prefix}chance", 1 / probabilities.shape[1])
    _add_mean(figures, f"{prefix}better_than_nearest_mean", right.astype(float) - nearest, data.groups)
    figures.add(f"{prefix}ece_before", expected_calibration_error(softmax(judged.logits), labels))
    figures.add(f"{prefix}ece_after", expected_calibration_error(probabilities, labels))
    accepted = judged.accepted
    _add_mean(figures, f"{prefix}known_accepted", accepted, data.groups)
    if accepted.any():
        _add_mean(figures, f"{prefix}top1_of_accepted", right[accepted], data.groups[accepted])


def _add_mean(figures: Figures, name: str, values: NDArray[Any], groups: NDArray[np.int64]) -> None:
    bounds = bootstrap.interval(bootstrap.mean(values), len(values), groups=groups, **BOOTSTRAP)
    figures.add(name, float(np.mean(values)), bounds)


def add_spread(figures: Figures, judged: Judged, data: Data) -> list[float]:
    """Mean and standard deviation over the folds of their accuracy. Returns the accuracy of each."""
    right = judged.logits.argmax(axis=1) == data.labels
    each = [float(right[judged.fold == fold].mean()) for fold in np.unique(judged.fold)]
    figures.add("folds_mean", float(np.mean(each)))
    figures.add("folds_spread", float(np.std(each, ddof=1)) if len(each) > 1 else 0.0)
    return each


def add_unknown(figures: Figures, check: UnknownCheck | None, classes: Sequence[str]) -> dict[str, Any] | None:
    """Figures of the classes left out. Returns them class by class."""
    if check is None:
        return None
    figures.add("unknown_auroc", check.auroc)
    figures.add("unknown_rejected", check.rejected)
    return {
        "classes": {classes[label]: {"auroc": a, "rejected": r} for label, (a, r) in check.each.items()},
        "known_accepted": check.accepted,
    }


def surest_mistakes(judged: Judged, data: Data, shown: Shown) -> list[dict[str, Any]]:
    """The mistakes with the largest probability, the surest first."""
    probabilities = judged.probabilities
    said, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(said != data.labels)
    return [
        {
            "id": shown.ids[index],
            "label": shown.classes[data.labels[index]],
            "said": shown.classes[said[index]],
            "probability": round(float(sure[index]), 4),
        }
        for index in wrong[np.argsort(-sure[wrong], kind="stable")][:MISTAKES]
    ]


def confusion(judged: Judged, data: Data, classes: int) -> NDArray[np.int64]:
    """Counts (C, C), row = true class."""
    return confusion_matrix(judged.logits.argmax(axis=1).astype(np.int64), data.labels, classes)


def write_fit_report(folder: Path, result: Result, more: Mapping[str, Any], classes: Sequence[str]) -> None:
    """report.json and confusion.svg (from more["confusion"]), each atomically. Raises RunError."""
    from internvideo.plots import charts as figures

    picture = figures.confusion_matrix(np.asarray(more["confusion"]), classes)
    write_text(folder / "confusion.svg", f'<?xml version="1.0" encoding="UTF-8"?>\n{picture}\n')
    text = json.dumps({**result, **more}, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / "report.json", text + "\n")
