"""Cross entropy with hard or soft targets and label smoothing; divisors and precision of all objectives."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
Divisor = Callable[[Tensor], Tensor]
"""Maps the number of terms of a sum, (), to its divisor for the mean.

With several processes this is the mean of their numbers: averaging gradients over the processes then gives the mean
over all terms, as in one process with the joined batch.
"""


def to_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; keep float32 and float64."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def at_least_one(count: Tensor) -> Tensor:
    """Return the divisor of a single process: the count, or 1 if it is 0."""
    return count.clamp(min=1)


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0, divisor: Divisor = at_least_one) -> Tensor:
    """Compute the mean of -sum(target * log softmax(logits)) over the samples with a target, in float32.

    Args:
        logits: (..., C).
        targets: (...) int64 labels with -100 for "none", or (..., C) float distributions (mixup); smoothing is for
            labels only, distributions are taken as they are.
        smoothing: s in [0, 1); the target of a label is 1 - s + s / C on it and s / C elsewhere.
        divisor: of the number of labels.

    Returns:
        Scalar float32; 0 (with zero gradients) when no sample has a target.
    """
    logits = logits.float()
    if targets.is_floating_point():
        if targets.shape != logits.shape:
            raise ValueError(f"targets {tuple(targets.shape)} for logits {tuple(logits.shape)}")
        if smoothing:
            raise ValueError("smoothing is for hard labels; mixed targets already carry it")
        return -(targets * F.log_softmax(logits, dim=-1)).sum(-1).mean()
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"labels {tuple(targets.shape)} for logits {tuple(logits.shape)}")
    total = F.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE_INDEX, label_smoothing=smoothing, reduction="sum"
    )
    # Counted on the device, without a sync; a batch without labels gives 0, not 0 / 0.
    return total / divisor((targets != IGNORE_INDEX).sum())
