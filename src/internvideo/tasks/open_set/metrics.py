"""Compute open-set metrics: separation of known and unknown samples by uncertainty (DEAR).

NumPy only. Legend: N samples, C known classes, U unknown classes. "Positive" is unknown: the more uncertain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.metrics.bootstrap import Statistic

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


def rejection_threshold(train_uncertainty: Floats, known: float = 0.95) -> float:
    """Return the uncertainty threshold that accepts the fraction `known` of the training videos.

    The published rule: sorted descending, element number N - int(known * N), counted from one.
    """
    n = len(train_uncertainty)
    rank = n - int(known * n)
    if n == 0 or rank < 1:
        raise ValueError(f"{n} training uncertainties and a share of {known}: no element number {rank}")
    return float(np.sort(train_uncertainty)[::-1][rank - 1])


def _curve(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Return cumulative true and false positives by descending distinct score; both start at 0."""
    if scores.shape != positive.shape or not np.isfinite(scores).all():
        raise ValueError(f"scores {scores.shape} must be finite and fit {positive.shape}")
    if positive.all() or not positive.any():
        raise ValueError("both known and unknown samples are needed")
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], positive[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    true = np.concatenate([[0], hits.cumsum()[last]]).astype(np.int64)
    false = np.concatenate([[0], (~hits).cumsum()[last]]).astype(np.int64)
    return true, false


def _area(y: Floats, x: Floats) -> Any:
    """Compute the area under y over x along the last axis by trapezoids (`numpy.trapezoid` needs NumPy 2)."""
    return (np.diff(x) * (y[..., 1:] + y[..., :-1]) / 2.0).sum(-1)


def auroc(known: Floats, unknown: Floats) -> float:
    """Compute AUROC: probability that an unknown sample is more uncertain than a known one, ties count half."""
    true, false = _curve(*_joined(known, unknown))
    return float(_area(true / true[-1], false / false[-1]))


def aupr(known: Floats, unknown: Floats) -> float:
    """Compute the area under the precision-recall curve by trapezoids, as published."""
    true, false = _curve(*_joined(known, unknown))
    precision = true[1:] / (true[1:] + false[1:])
    precision = np.concatenate([[1.0], precision])
    return float(_area(precision, true / true[-1]))


def fpr_at(known: Floats, unknown: Floats, recall: float = 0.95) -> float:
    """Return the false positive rate at the true positive rate nearest to `recall`."""
    true, false = _curve(*_joined(known, unknown))
    return float((false / false[-1])[np.abs(true / true[-1] - recall).argmin()])


def _joined(known: Floats, unknown: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    scores = np.concatenate([known, unknown]).astype(np.float64)
    return scores, np.repeat([False, True], [len(known), len(unknown)])


def binary_figures(known: Floats, unknown: Floats, threshold: float | None = None) -> dict[str, float]:
    """Compute auroc, aupr and fpr95 of uncertainties, raw or binarized (u > threshold) as in the paper's table.

    Report both: binarizing discards the ranking on either side of the threshold.
    """
    if threshold is not None:
        known, unknown = (np.asarray(part > threshold, dtype=np.float64) for part in (known, unknown))
    return {"auroc": auroc(known, unknown), "aupr": aupr(known, unknown), "fpr95": fpr_at(known, unknown)}


def weighted_figures(uncertainty: Floats, unknown: NDArray[np.bool_], recall: float = 0.95) -> Statistic:
    """Return auroc, aupr and fpr95 as a statistic of sample weights, for bootstrap intervals.

    Args:
        uncertainty: (N,). unknown: (N,) bool, with both values present.
        recall: see `fpr_at`.

    Returns:
        weights (b, N) -> (b, 3).
    """
    order = np.argsort(-uncertainty, kind="stable")
    starts = np.append(0, np.flatnonzero(np.diff(uncertainty[order])) + 1)  # tied samples are counted together
    positive = unknown[order].astype(np.float64)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn = weights[:, order]
        for kind in (positive, 1 - positive):  # a resample without known (or unknown) samples uses all of them
            drawn = drawn + kind * (drawn @ kind == 0)[:, None]
        true = np.add.reduceat(drawn * positive, starts, axis=1).cumsum(axis=1)
        false = np.add.reduceat(drawn * (1 - positive), starts, axis=1).cumsum(axis=1)
        zero = np.zeros((len(weights), 1))
        above = np.maximum(true + false, 1e-12)  # zero weight for the first scores: precision is undefined there
        precision = np.concatenate([zero + 1, np.where(true + false > 0, true / above, 1.0)], axis=1)
        tpr = np.concatenate([zero, true / true[:, -1:]], axis=1)
        fpr = np.concatenate([zero, false / false[:, -1:]], axis=1)
        nearest = np.abs(tpr - recall).argmin(axis=1)
        columns = [_area(tpr, fpr), _area(precision, tpr), fpr[np.arange(len(fpr)), nearest]]
        result: NDArray[np.float64] = np.stack(columns, axis=1)
        return result

    return statistic


def risk_coverage(uncertainty: Floats, right: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Compute the risk-coverage curve of accepting the least uncertain samples.

    Args:
        uncertainty: (N,). right: (N,) whether the prediction is correct, False for unknown classes.

    Returns:
        Coverage (N,), the accepted fraction 1/N .. 1, and risk (N,), the error rate among the accepted.
    """
    order = np.argsort(uncertainty, kind="stable")
    accepted = np.arange(1, len(order) + 1)
    return accepted / len(order), (~right[order]).cumsum() / accepted


def openness(known_classes: int, unknown_classes: int) -> float:
    """Compute the openness 1 - sqrt(2 C / (2 C + U)), in 0..1."""
    return float(1 - np.sqrt(2 * known_classes / (2 * known_classes + unknown_classes)))


def macro_f1(labels: Ints, predictions: Ints) -> float:
    """Compute the mean F1 over all classes that occur in labels or predictions."""
    size = int(max(labels.max(), predictions.max())) + 1
    total = np.bincount(labels, minlength=size) + np.bincount(predictions, minlength=size)
    hits = np.bincount(labels[labels == predictions], minlength=size)
    return float((2 * hits[total > 0] / total[total > 0]).mean())


def rejected(predictions: Ints, uncertainty: Floats, threshold: float, classes: int) -> Ints:
    """Replace the predictions of samples above the threshold by class C, "unknown"."""
    result: Ints = np.where(uncertainty > threshold, classes, predictions)
    return result


def open_macro_f1(known: tuple[Ints, Ints], unknown: tuple[Ints, Ints], classes: int, draws: int = 10) -> float:
    """Compute the macro-F1 with 1..U unknown classes mixed in, averaged with openness as weight.

    Args:
        known: labels and predictions (after `rejected`) of known samples.
        unknown: labels among the unknown classes, and predictions, of unknown samples; "unknown" is correct.
        classes: C. draws: random subsets of the U unknown classes for each of the numbers 1..U.
    """
    rng = np.random.default_rng(0)
    names = np.unique(unknown[0])
    total = weight = 0.0
    for count in range(1, len(names) + 1):
        values = []
        for _ in range(draws):
            chosen = np.isin(unknown[0], rng.permutation(names)[:count])
            labels = np.concatenate([known[0], np.full(int(chosen.sum()), classes)])
            values.append(macro_f1(labels, np.concatenate([known[1], unknown[1][chosen]])))
        share = openness(classes, count)
        total, weight = total + share * float(np.mean(values)), weight + share
    return total / weight


def entropy(probabilities: Floats) -> Floats:
    """Compute the entropy (N,) in nats of the mean over draws of probabilities (N, C, draws)."""
    result: Floats = _information(probabilities.mean(axis=2)).sum(axis=1)
    return result


def _information(probabilities: Floats) -> Floats:
    """-p log p, 0 where p is 0."""
    result: Floats = -probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))
    return result


def mutual_information(probabilities: Floats) -> Floats:
    """Compute BALD (N,) from (N, C, draws): mutual information of prediction and weights."""
    expected = _information(probabilities).sum(axis=1).mean(axis=1)
    result: Floats = entropy(probabilities) - expected
    return result
