"""Compute the mean displacement of predicted hand positions (arXiv 2211.09529). NumPy only.

Positions are (N, 5, 2, 2): sample, moment (the last is the contact), hand (left, right), x and y in pixels; a hand at
(0, 0) is not visible, as in the published files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOMENTS, HANDS = 5, 2
FIGURES = (
    "left_mean_displacement", "right_mean_displacement", "left_contact_displacement", "right_contact_displacement",
)  # fmt: skip


def visible(truth: Floats) -> NDArray[np.bool_]:
    """Return the visibility (N, 5, 2) bool of the hands with positions (N, 5, 2, 2)."""
    is_visible: NDArray[np.bool_] = (truth != 0).any(axis=-1)
    return is_visible


def displacement_statistic(predicted: Floats, truth: Floats) -> Callable[[Floats], Floats]:
    """Return the metrics as a statistic for `bootstrap.interval`: weights (b, N) -> (b, 4) in the order of FIGURES.

    A metric is the mean distance over visible hands, of all moments or of the contact only; NaN without a visible hand.

    Raises:
        ValueError: `predicted` and `truth` do not have the shape (N, 5, 2, 2).
    """
    if predicted.shape != truth.shape or truth.shape[1:] != (MOMENTS, HANDS, 2):
        raise ValueError(f"predicted {predicted.shape}, truth {truth.shape}: both (N, {MOMENTS}, {HANDS}, 2)")
    is_visible = visible(truth)
    distance = np.where(is_visible, np.sqrt(((predicted - truth) ** 2).sum(axis=-1)), 0.0)
    totals = np.concatenate([distance.sum(axis=1), distance[:, -1]], axis=1)
    counts = np.concatenate([is_visible.sum(axis=1), is_visible[:, -1]], axis=1).astype(np.float64)

    def statistic(weights: Floats) -> Floats:
        num_visible = weights @ counts
        result: Floats = np.divide(
            weights @ totals, num_visible, out=np.full(num_visible.shape, np.nan), where=num_visible > 0
        )
        return result

    return statistic
