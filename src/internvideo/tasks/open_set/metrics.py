"""Compute open-set metrics: separation of known and unknown samples by uncertainty (DEAR).

NumPy only. Legend: N samples, C known classes, U unknown classes. Unknown samples are the positives, whose uncertainty
should be higher. Arguments `known` and `unknown` are the uncertainties of known and unknown samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.metrics.bootstrap import Statistic

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


def rejection_threshold(train_uncertainty: Floats, accept_fraction: float = 0.95) -> float:
    """Return the uncertainty threshold that accepts this fraction of the training videos.

    As published: of N uncertainties in descending order, the one at position N - int(accept_fraction * N), from 1.
    """
    n = len(train_uncertainty)
    position = n - int(accept_fraction * n)
    if n == 0 or position < 1:
        raise ValueError(f"no threshold accepts the fraction {accept_fraction} of {n} training uncertainties")
    return float(np.sort(train_uncertainty)[::-1][position - 1])


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
    """Compute AUROC, the probability that an unknown sample is more uncertain than a known one; ties count half."""
    true, false = _curve(*_join_scores(known, unknown))
    return float(_area(true / true[-1], false / false[-1]))


def aupr(known: Floats, unknown: Floats) -> float:
    """Compute the area under the precision-recall curve by trapezoids, as published."""
    true, false = _curve(*_join_scores(known, unknown))
    precision = true[1:] / (true[1:] + false[1:])
    precision = np.concatenate([[1.0], precision])
    return float(_area(precision, true / true[-1]))


def fpr_at(known: Floats, unknown: Floats, recall: float = 0.95) -> float:
    """Return the false positive rate at the true positive rate nearest to `recall`."""
    true, false = _curve(*_join_scores(known, unknown))
    return float((false / false[-1])[np.abs(true / true[-1] - recall).argmin()])


def _join_scores(known: Floats, unknown: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    scores = np.concatenate([known, unknown]).astype(np.float64)
    return scores, np.repeat([False, True], [len(known), len(unknown)])


def detection_metrics(known: Floats, unknown: Floats, threshold: float | None = None) -> dict[str, float]:
    """Compute auroc, aupr and fpr95 of uncertainties, or with a threshold of binarized ones, as in the paper's table.

    Binarization discards the ranking on either side of the threshold, so both should be reported.
    """
    if threshold is not None:
        known, unknown = (np.asarray(scores > threshold, dtype=np.float64) for scores in (known, unknown))
    return {"auroc": auroc(known, unknown), "aupr": aupr(known, unknown), "fpr95": fpr_at(known, unknown)}


def detection_statistic(uncertainty: Floats, unknown: NDArray[np.bool_], recall: float = 0.95) -> Statistic:
    """Return auroc, aupr and fpr95 as a statistic of sample weights, for bootstrap intervals.

    Args:
        uncertainty: (N,). unknown: (N,) bool, with both values present.
        recall: see `fpr_at`.

    Returns:
        weights (b, N) -> (b, 3).
    """
    order = np.argsort(-uncertainty, kind="stable")
    starts = np.append(0, np.flatnonzero(np.diff(uncertainty[order])) + 1)  # of the groups of tied samples
    positive = unknown[order].astype(np.float64)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        ordered_weights = weights[:, order]
        for kind in (positive, 1 - positive):  # in a resample without positives (negatives), all of them count
            ordered_weights = ordered_weights + kind * (ordered_weights @ kind == 0)[:, None]
        true = np.add.reduceat(ordered_weights * positive, starts, axis=1).cumsum(axis=1)
        false = np.add.reduceat(ordered_weights * (1 - positive), starts, axis=1).cumsum(axis=1)
        zero = np.zeros((len(weights), 1))
        num_detected = np.maximum(true + false, 1e-12)  # 0 while all weights so far are 0: precision is undefined
        precision = np.concatenate([zero + 1, np.where(true + false > 0, true / num_detected, 1.0)], axis=1)
        tpr = np.concatenate([zero, true / true[:, -1:]], axis=1)
        fpr = np.concatenate([zero, false / false[:, -1:]], axis=1)
        nearest = np.abs(tpr - recall).argmin(axis=1)
        columns = [_area(tpr, fpr), _area(precision, tpr), fpr[np.arange(len(fpr)), nearest]]
        result: NDArray[np.float64] = np.stack(columns, axis=1)
        return result

    return statistic


def risk_coverage(uncertainty: Floats, is_correct: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Compute the risk-coverage curve of accepting the least uncertain samples.

    Args:
        uncertainty: (N,). is_correct: (N,) whether the prediction is correct, False for unknown samples.

    Returns:
        coverage (N,), the accepted fraction 1/N .. 1, and risk (N,), the error rate of the accepted samples.
    """
    order = np.argsort(uncertainty, kind="stable")
    accepted = np.arange(1, len(order) + 1)
    return accepted / len(order), (~is_correct[order]).cumsum() / accepted


def openness(known_classes: int, unknown_classes: int) -> float:
    """Compute the openness 1 - sqrt(2 C / (2 C + U)), in 0..1."""
    return float(1 - np.sqrt(2 * known_classes / (2 * known_classes + unknown_classes)))


def macro_f1(labels: Ints, predictions: Ints) -> float:
    """Compute the mean F1 over all classes that occur in labels or predictions."""
    size = int(max(labels.max(), predictions.max())) + 1
    total = np.bincount(labels, minlength=size) + np.bincount(predictions, minlength=size)
    hits = np.bincount(labels[labels == predictions], minlength=size)
    return float((2 * hits[total > 0] / total[total > 0]).mean())


def reject_uncertain(predictions: Ints, uncertainty: Floats, threshold: float, num_classes: int) -> Ints:
    """Replace the predictions of samples with uncertainty above the threshold by class C, which means "unknown"."""
    result: Ints = np.where(uncertainty > threshold, num_classes, predictions)
    return result


def open_macro_f1(known: tuple[Ints, Ints], unknown: tuple[Ints, Ints], num_classes: int, num_draws: int = 10) -> float:
    """Compute the macro-F1 of known samples together with those of u = 1..U unknown classes, averaged over u.

    The weights of the average are the openness for each u.

    Args:
        known: labels and predictions (from `reject_uncertain`) of known samples.
        unknown: index among the unknown classes, and prediction, of unknown samples; class C is the correct one.
        num_classes: C. num_draws: random subsets of u unknown classes for each u.
    """
    rng = np.random.default_rng(0)
    names = np.unique(unknown[0])
    total = total_weight = 0.0
    for num_unknown in range(1, len(names) + 1):
        values = []
        for _ in range(num_draws):
            selected = np.isin(unknown[0], rng.permutation(names)[:num_unknown])
            labels = np.concatenate([known[0], np.full(int(selected.sum()), num_classes)])
            values.append(macro_f1(labels, np.concatenate([known[1], unknown[1][selected]])))
        openness_weight = openness(num_classes, num_unknown)
        total, total_weight = total + openness_weight * float(np.mean(values)), total_weight + openness_weight
    return total / total_weight


def entropy(probabilities: Floats) -> Floats:
    """Compute the entropy (N,) in nats of the mean over the samples of probabilities (N, C, samples)."""
    result: Floats = _information(probabilities.mean(axis=2)).sum(axis=1)
    return result


def _information(probabilities: Floats) -> Floats:
    """Compute -p log p, 0 for p = 0."""
    result: Floats = -probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))
    return result


def mutual_information(probabilities: Floats) -> Floats:
    """Compute BALD (N,), the mutual information of prediction and weights, from probabilities (N, C, samples)."""
    expected = _information(probabilities).sum(axis=1).mean(axis=1)
    result: Floats = entropy(probabilities) - expected
    return result
