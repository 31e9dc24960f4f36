"""Action head on person boxes: RoIAlign, pooling head, and box arithmetic (AlphAction).

Shapes: B clips, R boxes of all clips, T' H' W' token grid, D width, P bins per side, C classes.
Boxes are (x1, y1, x2, y2) in pixels of the clip unless noted otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from internvideo.models.module import Dropout, Linear, Module


def widen_boxes(boxes: Tensor, size: tuple[float, float], *, width: float = 0.1, height: float = 0.05) -> Tensor:
    """Enlarge boxes (R, 4) by a total fraction of their width and height, clipped to the image.

    Corners are inclusive, as published: the width is x2 - x1 + 1, the largest coordinate size - 1.

    Args:
        boxes: corners. size: (width, height) of the image. width, height: fractions.
    """
    grow = (boxes[:, 2:] - boxes[:, :2] + 1) * _row(boxes, width, height) / 2
    limit = _row(boxes, *size) - 1
    low, high = (boxes[:, :2] - grow).clamp(min=0), (boxes[:, 2:] + grow).clamp(min=0)
    return torch.cat([torch.minimum(low, limit), torch.minimum(high, limit)], dim=1)


def jitter_boxes(boxes: Tensor, size: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Jitter every side of boxes (R, 4): outwards by up to 20 % (height: 10 %), inwards by up to 10 % (5 %)."""
    extent = boxes[:, 2:] - boxes[:, :2] + 1
    draw = torch.rand(boxes.shape, generator=generator, device=boxes.device, dtype=boxes.dtype)
    moved = (draw * 0.3 - 0.1) * torch.cat([extent, extent], dim=1) * _row(boxes, 1.0, 0.5, 1.0, 0.5)
    limit = _row(boxes, *size, *size) - 1
    moved = boxes + moved * _row(boxes, -1.0, -1.0, 1.0, 1.0)
    return torch.minimum(moved.clamp(min=0), limit)


def _row(like: Tensor, *values: float) -> Tensor:
    """Copy host values to a tensor like another without synchronizing its device."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def _axis_weights(start: Tensor, length: Tensor, size: int, bins: int) -> Tensor:
    """Compute the weights (R, P, size) of cells in bins along one axis for starts and lengths (R,).

    A bin is the mean of ceil(length / P) samples, each linearly interpolated between two cells; samples more than one
    cell outside count zero.
    """
    count = (length / bins).ceil().clamp(min=1)
    if count.device.type == "cpu" and not torch.compiler.is_compiling():
        most = int(count.max()) if len(count) else 1
    else:  # a bound without device synchronization: boxes of up to twice the grid
        most = 2 * -(-size // bins)
        torch._assert_async((count <= most).all(), f"a box is longer than twice the grid of {size} cells")
    sample = torch.arange(most, device=start.device, dtype=start.dtype)
    bin_length = (length / bins)[:, None, None]
    first = (
        start[:, None, None] + torch.arange(bins, device=start.device, dtype=start.dtype)[None, :, None] * bin_length
    )
    place = first + (sample + 0.5) * bin_length / count[:, None, None]
    share = ((sample < count[:, None, None]) & (place >= -1) & (place <= size)).to(start.dtype) / count[:, None, None]
    place = place.clamp(min=0)
    low = place.floor().clamp(max=size - 1)
    beyond = low >= size - 1
    upper = torch.where(beyond, torch.zeros_like(place), place - low)
    high = torch.where(beyond, low, low + 1)
    weights = start.new_zeros(len(start), bins, size)
    weights.scatter_add_(2, low.long(), share * (1 - upper))
    return weights.scatter_add_(2, high.long(), share * upper)


def roi_align(features: Tensor, clip: Tensor, boxes: Tensor, *, bins: int = 7, scale: float = 1 / 16) -> Tensor:
    """Pool the mean feature of every bin of every box, without rounding ("not aligned", adaptive sampling).

    The samples of a bin form a grid, so the mean is a product of one matrix along each axis.

    Args:
        features: (B, D, H', W'). clip: (R,) int64, clip index of each box. boxes: (R, 4).
        bins: P. scale: cells per pixel.

    Returns:
        (R, D, P, P).
    """
    corners = boxes * scale
    extent = (corners[:, 2:] - corners[:, :2]).clamp(min=1.0)
    height, width = features.shape[-2:]
    along_y = _axis_weights(corners[:, 1], extent[:, 1], height, bins)
    along_x = _axis_weights(corners[:, 0], extent[:, 0], width, bins)
    rows = torch.einsum("rph,rdhw->rdpw", along_y.to(features.dtype), features[clip])
    return torch.einsum("rdpw,rqw->rdpq", rows, along_x.to(features.dtype))


def torchvision_roi_align(
    features: Tensor, clip: Tensor, boxes: Tensor, *, bins: int = 7, scale: float = 1 / 16
) -> Tensor:
    """Apply torchvision's `roi_align` (torchvision must be installed), in float32 or float64."""
    exact = features if features.dtype in (torch.float32, torch.float64) else features.float()
    rois = torch.cat([clip[:, None].to(exact.dtype), boxes.to(exact.dtype)], dim=1)
    operators = import_module("torchvision.ops")
    found: Tensor = operators.roi_align(exact, rois, bins, scale, sampling_ratio=-1, aligned=False)
    return found.to(features.dtype)


@cache
def chosen_roi_align() -> Callable[..., Tensor]:
    """Return torchvision's RoIAlign if importable, else the one of this module; their results agree."""
    try:
        import_module("torchvision.ops")
    except (ImportError, OSError, RuntimeError):  # absent, or made for another version of torch
        return roi_align
    return torchvision_roi_align


class RegionHead(Module):
    """Mean over time, RoIAlign, maximum over bins, linear layer (the paper's "simple linear head")."""

    def __init__(self, width: int, num_classes: int, *, patch: int, bins: int = 7, dropout: float = 0.0) -> None:
        super().__init__()
        self.patch, self.bins = patch, bins
        self.roi_align = chosen_roi_align()
        self.dropout = Dropout(dropout)
        self.projection = Linear(width, num_classes)

    def pool(self, tokens: Tensor, clip: Tensor, boxes: Tensor) -> Tensor:
        """Pool tokens (B, T', H', W', D) after the norm to box features (R, D); clip (R,), boxes (R, 4) in pixels."""
        grid = tokens.mean(dim=1).permute(0, 3, 1, 2)
        return self.roi_align(grid, clip, boxes, bins=self.bins, scale=1 / self.patch).amax(dim=(2, 3))

    def forward(self, tokens: Tensor, clip: Tensor, boxes: Tensor) -> Tensor:
        """Compute logits (R, C); arguments as `pool`."""
        return self.projection(self.dropout(self.pool(tokens, clip, boxes)))


def region_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the sigmoid cross entropy of logits and labels (R, C): mean over R x C entries times R, as published."""
    return F.binary_cross_entropy_with_logits(logits, labels) * len(logits)
