"""Loss of segment refinement (TCANet).

Pure functions. Shapes: P proposals, each with the ground truth that it overlaps most.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from internvideo.objectives.classification import Divisor, at_least_one

HIGH, LOW = 0.7, 0.3
"""tIoU of the groups that the quality loss balances: high above, low below, middle between."""


def best_truths(proposals: Tensor, truths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ground truth that each proposal overlaps most, (P, 2), (G, 2) -> (P, 2), and the tIoU (P,).

    Without ground truth each proposal is returned, with tIoU 0.
    """
    if not len(truths):
        return proposals, proposals.new_zeros(len(proposals))
    left = torch.maximum(proposals[:, None, 0], truths[None, :, 0])
    right = torch.minimum(proposals[:, None, 1], truths[None, :, 1])
    intersection = (right - left).clamp(min=0)
    union = (proposals[:, 1] - proposals[:, 0])[:, None] + (truths[:, 1] - truths[:, 0])[None] - intersection
    overlap, best = (intersection / union.clamp(min=1e-9)).max(dim=1)
    return truths[best], overlap


def balanced_sample(overlap: Tensor, generator: torch.Generator) -> Tensor:
    """Sample the proposals (P,) bool of the quality loss: as many of each group as the smallest non-empty one has."""
    group = (overlap >= HIGH).long() + (overlap >= LOW).long()
    members = group[None] == torch.arange(3, device=group.device)[:, None]  # (3, P)
    sizes = members.sum(dim=1)
    min_size = torch.where(sizes > 0, sizes, len(overlap)).min()
    draw = torch.rand(overlap.shape, generator=generator, device=overlap.device)
    rank = torch.where(members, draw, 2.0).argsort(dim=1).argsort(dim=1)  # of a proposal among its group
    return (members & (rank < min_size)).any(dim=0)


def refinement_loss(
    ends: Tensor,
    center: Tensor,
    quality: Tensor,
    end_targets: Tensor,
    center_targets: Tensor,
    overlap: Tensor,
    threshold: float,
    generator: torch.Generator,
    divisor: Divisor = at_least_one,
) -> dict[str, Tensor]:
    """Compute the smooth-L1 losses of both box codecs, for proposals above `threshold`, and of the quality.

    Args:
        ends, center: (P, 2) offsets. quality: (P,) logits. end_targets, center_targets: (P, 2).
        overlap: (P,) tIoU with the ground truth. threshold: of the regressor. generator: of the balancing.
        divisor: of the numbers of proposals that overlap enough, and that are sampled.

    Returns:
        "loss", "ends_loss", "centre_loss", "quality_loss".
    """
    good = overlap >= threshold
    count = divisor(good.sum())
    # Other proposals may have infinite targets (no ground truth): they are replaced, not multiplied by 0.
    keep = good[:, None]
    ends_loss = F.smooth_l1_loss(ends, torch.where(keep, end_targets, ends.detach()), reduction="sum") / count
    center_loss = F.smooth_l1_loss(center, torch.where(keep, center_targets, center.detach()), reduction="sum") / count
    sampled = balanced_sample(overlap, generator)
    errors = F.smooth_l1_loss(quality.sigmoid(), overlap, reduction="none")
    quality_loss = (errors * sampled).sum() / divisor(sampled.sum())
    total = ends_loss + center_loss + quality_loss
    return {"loss": total, "ends_loss": ends_loss, "centre_loss": center_loss, "quality_loss": quality_loss}
