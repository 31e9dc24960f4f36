"""Errors of predicted positions, of those that can be seen (spec tasks.md 11, future hands)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

BETA = 5.0
"""Pixels, where the error turns from squared to absolute."""


def masked_smooth_l1(predicted: Tensor, truth: Tensor, visible: Tensor, *, beta: float = BETA) -> Tensor:
    """Sum of the smooth-L1 errors of the visible coordinates over their number; 0 where nothing is visible.

    Args:
        predicted, truth: (...) coordinates in pixels. visible: (...) bool.
    """
    errors = F.smooth_l1_loss(predicted, truth, beta=beta, reduction="none")
    return (errors * visible).sum() / visible.sum().clamp(min=1)
