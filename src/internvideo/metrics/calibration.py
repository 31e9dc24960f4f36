"""How far probabilities can be believed: calibration error, and the temperature that makes them more honest.

NumPy only. Legend: N samples, C classes. Temperature scaling divides all logits by one number T, which changes no
answer: T > 1 makes them less sure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

TEMPERATURES = (0.02, 50.0)
"""Between these the temperature is looked for."""

_GOLDEN = (5**0.5 - 1) / 2


def expected_calibration_error(probabilities: Floats, labels: Ints, bins: int = 15) -> float:
    """Mean over samples of |confidence - accuracy| of their bin of confidence (equally wide bins).

    Args:
        probabilities: (N, C), rows sum to 1. labels: (N,). bins: pieces of 0..1.
    """
    if len(labels) == 0 or probabilities.shape[:1] != labels.shape:
        raise ValueError(f"probabilities {probabilities.shape} and labels {labels.shape} must agree and not be empty")
    confidence = probabilities.max(axis=1)
    hits = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, confidence - hits, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """The T that makes the cross-entropy of logits / T smallest.

    As in Platt scaling the true class is expected with 1 - 1 / (N + 2) only, the others with the rest: N samples
    without a mistake do not show that none will ever be made, and T would shrink to nothing.

    The cross-entropy is convex in 1 / T, so in log T it has one valley, which a golden-section search finds.

    Args:
        logits: (N, C) of samples that the classifier was not trained on, C at least 2. labels: (N,).
    """
    if len(labels) == 0 or logits.shape[:1] != labels.shape or not np.isfinite(logits).all():
        raise ValueError(f"logits {logits.shape} must be finite and fit labels {labels.shape}")
    # Soft targets are linear in the cross-entropy: their mean logit joins that of the true class.
    doubt = 1 / (len(labels) + 2)
    others = doubt / (logits.shape[1] - 1)
    true = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    expected = float(((1 - doubt - others) * true + others * logits.sum(axis=1)).mean())

    def loss_at(place: float) -> float:
        scaled = logits / np.exp(place)
        peak = scaled.max(axis=1)
        return float((peak + np.log(np.exp(scaled - peak[:, None]).sum(axis=1))).mean() - expected / np.exp(place))

    low, high = np.log(TEMPERATURES)
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    loss = [loss_at(place) for place in inner]
    while high - low > 1e-4:
        if loss[0] <= loss[1]:
            high, inner[1], loss[1] = inner[1], inner[0], loss[0]
            inner[0] = high - _GOLDEN * (high - low)
            loss[0] = loss_at(inner[0])
        else:
            low, inner[0], loss[0] = inner[0], inner[1], loss[1]
            inner[1] = low + _GOLDEN * (high - low)
            loss[1] = loss_at(inner[1])
    return float(np.exp((low + high) / 2))
