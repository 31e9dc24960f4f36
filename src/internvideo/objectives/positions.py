"""Errors of predicted positions, of those that can be seen (arXiv 2211.09529, future hands)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from internvideo.objectives.classification import Divisor, at_least_one

BETA = 5.0
"""Pixels, where the error turns from squared to absolute."""


def masked_smooth_l1(
    predicted: Tensor, truth: Tensor, visible: Tensor, *, beta: float = BETA, divisor: Divisor = at_least_one
) -> Tensor:
    """Sum of the smooth-L1 errors of the visible coordinates over their number; 0 where nothing is visible.

    Args:
        predicted, truth: (...) coordinates in pixels. visible: (...) bool.
        divisor: of the number of visible coordinates.
    """
    errors = F.smooth_l1_loss(predicted, truth, beta=beta, reduction="none")
    return (errors * visible).sum() / divisor(visible.sum())
