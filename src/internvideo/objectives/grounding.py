"""Targets and losses of query grounding (arXiv 2211.09529, after VSLNet): span ends and highlighted steps.

Pure functions. Shapes: B queries, T steps. Step t of a sequence goes from t - 0.5 to t + 0.5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from internvideo.objectives.classification import Divisor, at_least_one

NO_ANSWER = -100
"""First and last step of a query whose answer is not in the sequence."""
INSIDE_WEIGHT = 2.0
"""Weight of the steps of the answer relative to the others, as in the released code of VSLNet."""


def span_to_steps(span: Tensor, length: Tensor) -> Tensor:
    """Return the first and last step (2,) int64, nearest to the ends of a span (2,), of `length` () steps."""
    first, behind = (torch.floor(span + 1.0)).long().unbind()
    first = torch.minimum(first.clamp(min=0), length - 1)
    return torch.stack([first, torch.maximum(first, torch.minimum(behind - 1, length - 1))])


def span_loss(start: Tensor, end: Tensor, steps: Tensor, divisor: Divisor = at_least_one) -> Tensor:
    """Compute the mean cross entropy of both span ends over the queries with an answer; 0 without any.

    Args:
        start, end: (B, T) logits. steps: (B, 2) first and last step, or `NO_ANSWER`.
        divisor: of the number of queries that have an answer.
    """
    num_answered = divisor((steps[:, 0] != NO_ANSWER).sum())
    first = F.cross_entropy(start, steps[:, 0], ignore_index=NO_ANSWER, reduction="sum")
    last = F.cross_entropy(end, steps[:, 1], ignore_index=NO_ANSWER, reduction="sum")
    return (first + last) / num_answered


def highlight_targets(steps: Tensor, length: int, margin: float) -> Tensor:
    """Return (B, T) 1 for steps of the answer, extended at both ends by `margin` of its length, else 0."""
    first, last = steps[:, :1], steps[:, 1:]
    more = margin * (last - first + 1)
    step = torch.arange(length, device=steps.device)[None]
    inside = (step >= first - more) & (step <= last + more) & (first != NO_ANSWER)
    return inside.float()


def highlight_loss(logits: Tensor, targets: Tensor, mask: Tensor, divisor: Divisor = at_least_one) -> Tensor:
    """Compute the mean binary cross entropy of the steps in `mask`, (B, T) each; `divisor` maps their number."""
    step_losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weighted = step_losses * torch.where(targets > 0, INSIDE_WEIGHT, 1.0) * mask
    return weighted.sum() / divisor(mask.sum())
