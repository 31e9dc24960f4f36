"""Targets and losses of a temporal detector: focal loss, 1-D IoU losses (ActionFormer).

Pure functions. Shapes: P points, G ground truths, K classes. Times are in feature steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from internvideo.objectives.classification import to_float32

_EPS = 1e-8


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Compute the sigmoid focal loss of every entry, in at least float32.

    Args:
        logits, targets: (..., K), targets in 0..1.
        alpha: weight of the positive side, below 0 for no weighting. gamma: of the modulating factor.
    """
    logits = to_float32(logits)
    targets = targets.to(logits.dtype)
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    target_probability = probability * targets + (1 - probability) * (1 - targets)
    loss = entropy * (1 - target_probability) ** gamma
    return loss if alpha < 0 else (alpha * targets + (1 - alpha) * (1 - targets)) * loss


def smooth_targets(targets: Tensor, smoothing: float) -> Tensor:
    """Smooth targets: y (1 - e) + e / (K + 1)."""
    return targets * (1 - smoothing) + smoothing / (targets.shape[-1] + 1)


def _overlap(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return IoU, union length and hull length of segments given as distances (..., 2) from a common point."""
    predicted, truth = to_float32(predicted), to_float32(truth)
    intersection = torch.minimum(predicted, truth).sum(dim=-1)
    union = predicted.sum(dim=-1) + truth.sum(dim=-1) - intersection
    return intersection / union.clamp(min=_EPS), union, torch.maximum(predicted, truth).sum(dim=-1)


def diou_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """Compute the DIoU loss 1 - IoU + (center distance / hull length)^2, (..., 2) -> (...)."""
    iou, _, hull = _overlap(predicted, truth)
    predicted, truth = to_float32(predicted), to_float32(truth)
    center_distance = 0.5 * (predicted[..., 1] - predicted[..., 0] - truth[..., 1] + truth[..., 0])
    return 1 - iou + (center_distance / hull.clamp(min=_EPS)).square()


def point_targets(
    points: Tensor, segments: Tensor, labels: Tensor, num_classes: int, *, radius: float = 1.5
) -> tuple[Tensor, Tensor]:
    """Compute the classification and regression targets of every point of one sequence.

    A point is assigned to the segments whose center is within `radius` strides, that contain it, and whose farther end
    is in its range; of several, to the shortest.

    Args:
        points: (P, 4) time, range low and high, stride. segments: (G, 2) start and end. labels: (G,) int64.
        num_classes: K. radius: largest distance from the center of a segment, in strides.

    Returns:
        classes (P, K) 0 or 1, several where segments are equally short; distances to start and end (P, 2) in strides.
    """
    if not len(segments):
        return points.new_zeros(len(points), num_classes), points.new_zeros(len(points), 2)
    time, stride = points[:, 0, None], points[:, 3, None]
    left, right = time - segments[None, :, 0], segments[None, :, 1] - time
    center = 0.5 * (segments[:, 0] + segments[:, 1])[None]
    low = torch.maximum(center - radius * stride, segments[None, :, 0])
    high = torch.minimum(center + radius * stride, segments[None, :, 1])
    inside = torch.minimum(time - low, high - time) > 0
    farther = torch.maximum(left, right)
    in_range = (farther >= points[:, 1, None]) & (farther <= points[:, 2, None])
    lengths = (segments[:, 1] - segments[:, 0])[None].expand_as(left)
    lengths = lengths.masked_fill(~(inside & in_range), float("inf"))
    shortest, chosen = lengths.min(dim=1)
    equal = ((lengths - shortest[:, None]).abs() <= 1e-3) & lengths.isfinite()
    target = (equal.to(points.dtype) @ F.one_hot(labels, num_classes).to(points.dtype)).clamp(max=1.0)
    row = torch.arange(len(points), device=points.device)
    distances = torch.stack([left[row, chosen], right[row, chosen]], dim=1) / stride
    return target, distances


def detection_loss(
    logits: Tensor,
    offsets: Tensor,
    valid: Tensor,
    targets: Tensor,
    distances: Tensor,
    *,
    normalizer: Tensor,
    smoothing: float = 0.0,
    weight: float = 1.0,
) -> dict[str, Tensor]:
    """Compute the focal loss over all points and the DIoU loss over points with an action, each over `normalizer`.

    Args:
        logits: (B, P, K). offsets: (B, P, 2). valid: (B, P) bool. targets: (B, P, K). distances: (B, P, 2).
        normalizer: () running number of positive points.
        smoothing: of the class targets. weight: of the regression, 0 or less for cls / max(reg, 0.01).

    Returns:
        "loss", "class_loss" and "offset_loss".
    """
    positive = (targets.sum(dim=-1) > 0) & valid
    point_losses = focal_loss(logits, smooth_targets(targets, smoothing)).sum(dim=-1)
    class_loss = (point_losses * valid).sum() / normalizer
    # The distances of negative points may be negative: they are replaced before the division.
    truth = torch.where(positive[..., None], distances, torch.ones_like(distances))
    offset_loss = (diou_loss(offsets, truth) * positive).sum() / normalizer
    factor = weight if weight > 0 else class_loss.detach() / offset_loss.detach().clamp(min=0.01)
    return {"loss": class_loss + factor * offset_loss, "class_loss": class_loss, "offset_loss": offset_loss}
