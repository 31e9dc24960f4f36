"""Smooth-L1 loss of predicted positions over visible coordinates (arXiv 2211.09529, future hands)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from internvideo.objectives.classification import Divisor, at_least_one

BETA = 5.0
"""Pixels, transition from squared to absolute error."""


def masked_smooth_l1(
    predicted: Tensor, truth: Tensor, visible: Tensor, *, beta: float = BETA, divisor: Divisor = at_least_one
) -> Tensor:
    """Compute the mean smooth-L1 error of the visible coordinates; 0 where none is visible.

    Args:
        predicted, truth: (...) coordinates in pixels. visible: (...) bool.
        divisor: of the number of visible coordinates.
    """
    errors = F.smooth_l1_loss(predicted, truth, beta=beta, reduction="none")
    return (errors * visible).sum() / divisor(visible.sum())
