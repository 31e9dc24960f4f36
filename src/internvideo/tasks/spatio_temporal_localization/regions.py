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
    """Enlarge boxes (R, 4) by a fraction of their width and height, half of it on each side, clipped to the image.

    Corners are inclusive, as published: the width is x2 - x1 + 1, the largest coordinate size - 1.

    Args:
        boxes: corners. size: (width, height) of the image. width, height: fractions.
    """
    grow = (boxes[:, 2:] - boxes[:, :2] + 1) * _to_device_like(boxes, width, height) / 2
    limit = _to_device_like(boxes, *size) - 1
    low, high = (boxes[:, :2] - grow).clamp(min=0), (boxes[:, 2:] + grow).clamp(min=0)
    return torch.cat([torch.minimum(low, limit), torch.minimum(high, limit)], dim=1)


def jitter_boxes(boxes: Tensor, size: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Jitter every side of boxes (R, 4) at random, as published.

    Sides move outwards by up to 20 % of the width and 10 % of the height, inwards by up to 10 % and 5 %.
    """
    extent = boxes[:, 2:] - boxes[:, :2] + 1
    random = torch.rand(boxes.shape, generator=generator, device=boxes.device, dtype=boxes.dtype)
    offset = (random * 0.3 - 0.1) * torch.cat([extent, extent], dim=1) * _to_device_like(boxes, 1.0, 0.5, 1.0, 0.5)
    limit = _to_device_like(boxes, *size, *size) - 1
    offset = boxes + offset * _to_device_like(boxes, -1.0, -1.0, 1.0, 1.0)
    return torch.minimum(offset.clamp(min=0), limit)


def _to_device_like(target: Tensor, *values: float) -> Tensor:
    """Return values as a tensor with dtype and device of `target`, without a device sync."""
    return torch.tensor(values, dtype=target.dtype).to(target.device, non_blocking=True)


def _axis_weights(start: Tensor, length: Tensor, size: int, output_size: int) -> Tensor:
    """Compute the weights (R, P, size) of the cells in each bin along one axis, of boxes with starts and lengths (R,).

    A bin is the mean of ceil(length / P) samples, each linearly interpolated between two cells; samples more than one
    cell outside of the grid are zero.
    """
    num_samples = (length / output_size).ceil().clamp(min=1)
    if num_samples.device.type == "cpu" and not torch.compiler.is_compiling():
        max_samples = int(num_samples.max()) if len(num_samples) else 1
    else:  # a bound without device synchronization: boxes of up to twice the grid
        max_samples = 2 * -(-size // output_size)
        torch._assert_async((num_samples <= max_samples).all(), f"a box is longer than twice the grid of {size} cells")
    sample_index = torch.arange(max_samples, device=start.device, dtype=start.dtype)
    bin_length = (length / output_size)[:, None, None]
    bin_start = (
        start[:, None, None]
        + torch.arange(output_size, device=start.device, dtype=start.dtype)[None, :, None] * bin_length
    )
    coordinate = bin_start + (sample_index + 0.5) * bin_length / num_samples[:, None, None]
    sample_weight = ((sample_index < num_samples[:, None, None]) & (coordinate >= -1) & (coordinate <= size)).to(
        start.dtype
    ) / num_samples[:, None, None]
    coordinate = coordinate.clamp(min=0)
    low = coordinate.floor().clamp(max=size - 1)
    at_border = low >= size - 1
    high_weight = torch.where(at_border, torch.zeros_like(coordinate), coordinate - low)
    high = torch.where(at_border, low, low + 1)
    weights = start.new_zeros(len(start), output_size, size)
    weights.scatter_add_(2, low.long(), sample_weight * (1 - high_weight))
    return weights.scatter_add_(2, high.long(), sample_weight * high_weight)


def roi_align(
    features: Tensor, clip_index: Tensor, boxes: Tensor, *, output_size: int = 7, spatial_scale: float = 1 / 16
) -> Tensor:
    """Pool the mean feature of every bin of every box, without rounding ("not aligned", adaptive sampling).

    The samples of a bin form a grid, so the mean is a product of one matrix along each axis.

    Args:
        features: (B, D, H', W'). clip_index: (R,) int64, clip of each box. boxes: (R, 4).
        output_size: P. spatial_scale: cells per pixel.

    Returns:
        (R, D, P, P).
    """
    corners = boxes * spatial_scale
    extent = (corners[:, 2:] - corners[:, :2]).clamp(min=1.0)
    height, width = features.shape[-2:]
    along_y = _axis_weights(corners[:, 1], extent[:, 1], height, output_size)
    along_x = _axis_weights(corners[:, 0], extent[:, 0], width, output_size)
    rows = torch.einsum("rph,rdhw->rdpw", along_y.to(features.dtype), features[clip_index])
    return torch.einsum("rdpw,rqw->rdpq", rows, along_x.to(features.dtype))


def torchvision_roi_align(
    features: Tensor, clip_index: Tensor, boxes: Tensor, *, output_size: int = 7, spatial_scale: float = 1 / 16
) -> Tensor:
    """Apply torchvision's `roi_align` (torchvision must be installed), in float32 or float64."""
    features_float = features if features.dtype in (torch.float32, torch.float64) else features.float()
    rois = torch.cat([clip_index[:, None].to(features_float.dtype), boxes.to(features_float.dtype)], dim=1)
    operators = import_module("torchvision.ops")
    pooled: Tensor = operators.roi_align(
        features_float, rois, output_size, spatial_scale, sampling_ratio=-1, aligned=False
    )
    return pooled.to(features.dtype)


@cache
def default_roi_align() -> Callable[..., Tensor]:
    """Return torchvision's RoIAlign if it can be imported, else the one of this module; their results agree."""
    try:
        import_module("torchvision.ops")
    except (ImportError, OSError, RuntimeError):  # not installed, or built for another version of torch
        return roi_align
    return torchvision_roi_align


class RegionHead(Module):
    """Box head: mean over time, RoIAlign, maximum over bins, linear layer (the paper's "simple linear head")."""

    def __init__(self, width: int, num_classes: int, *, patch: int, output_size: int = 7, dropout: float = 0.0) -> None:
        super().__init__()
        self.patch, self.output_size = patch, output_size
        self.roi_align = default_roi_align()
        self.dropout = Dropout(dropout)
        self.projection = Linear(width, num_classes)

    def pool(self, tokens: Tensor, clip_index: Tensor, boxes: Tensor) -> Tensor:
        """Pool normalized tokens (B, T', H', W', D) to box features (R, D); clip_index (R,), boxes (R, 4) in pixels."""
        grid = tokens.mean(dim=1).permute(0, 3, 1, 2)
        return self.roi_align(grid, clip_index, boxes, output_size=self.output_size, spatial_scale=1 / self.patch).amax(
            dim=(2, 3)
        )

    def forward(self, tokens: Tensor, clip_index: Tensor, boxes: Tensor) -> Tensor:
        """Compute logits (R, C); arguments as `pool`."""
        return self.projection(self.dropout(self.pool(tokens, clip_index, boxes)))


def region_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the sum over boxes of the mean sigmoid cross entropy over classes, of (R, C) (AlphAction)."""
    return F.binary_cross_entropy_with_logits(logits, labels) * len(logits)
