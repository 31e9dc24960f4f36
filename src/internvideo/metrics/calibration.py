"""Calibration of probabilities: expected calibration error and temperature scaling.

NumPy only. Legend: N samples, C classes. Temperature scaling divides all logits by one number T, which does not change
the predicted class; T > 1 lowers the confidence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

TEMPERATURE_RANGE = (0.02, 50.0)
"""Search range of the temperature."""

_GOLDEN_RATIO = (5**0.5 - 1) / 2


def expected_calibration_error(probabilities: Floats, labels: Ints, num_bins: int = 15) -> float:
    """Compute the mean over samples of |confidence - accuracy| of their confidence bin (equal-width bins).

    Args:
        probabilities: (N, C), rows sum to 1. labels: (N,). num_bins: number of bins of 0..1.
    """
    if len(labels) == 0 or probabilities.shape[:1] != labels.shape:
        raise ValueError(f"probabilities {probabilities.shape} and labels {labels.shape} must agree and not be empty")
    confidence = probabilities.max(axis=1)
    hits = probabilities.argmax(axis=1) == labels
    bin_index = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    gaps = np.bincount(bin_index, confidence - hits, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """Fit T by minimizing the cross-entropy of logits / T.

    As in Platt scaling the target of the true class is 1 - 1 / (N + 2); the other classes share 1 / (N + 2). With hard
    targets T would tend to 0 if all N samples are classified correctly.

    The cross-entropy is convex in 1 / T, hence unimodal in log T: a golden-section search finds the minimum.

    Args:
        logits: (N, C) of samples that the classifier was not trained on, C at least 2. labels: (N,).
    """
    if len(labels) == 0 or logits.shape[:1] != labels.shape or not np.isfinite(logits).all():
        raise ValueError(f"logits {logits.shape} must be finite and fit labels {labels.shape}")
    # The cross-entropy with soft targets is log-sum-exp minus the logit that is expected under the targets.
    smoothing = 1 / (len(labels) + 2)
    other_target = smoothing / (logits.shape[1] - 1)
    true_logits = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    expected = float(((1 - smoothing - other_target) * true_logits + other_target * logits.sum(axis=1)).mean())

    def loss_at(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        peak = scaled.max(axis=1)
        log_sum_exp = peak + np.log(np.exp(scaled - peak[:, None]).sum(axis=1))
        return float(log_sum_exp.mean() - expected / np.exp(log_temperature))

    low, high = np.log(TEMPERATURE_RANGE)
    inner = [high - _GOLDEN_RATIO * (high - low), low + _GOLDEN_RATIO * (high - low)]
    loss = [loss_at(log_temperature) for log_temperature in inner]
    while high - low > 1e-4:
        if loss[0] <= loss[1]:
            high, inner[1], loss[1] = inner[1], inner[0], loss[0]
            inner[0] = high - _GOLDEN_RATIO * (high - low)
            loss[0] = loss_at(inner[0])
        else:
            low, inner[0], loss[0] = inner[0], inner[1], loss[1]
            inner[1] = low + _GOLDEN_RATIO * (high - low)
            loss[1] = loss_at(inner[1])
    return float(np.exp((low + high) / 2))
