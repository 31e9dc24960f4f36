"""Clips for tests of image operations, and the image library that the references used, applied frame by frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def smooth_clip(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(T, H, W, 3) uint8 of soft blobs that differ from frame to frame."""
    coarse = torch.rand(frames, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return fine.mul_(230).add_(10).byte().permute(0, 2, 3, 1).contiguous()


def noisy_clip(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), generator=generator, dtype=torch.uint8)


def by_library(clip: Tensor, function: Callable[[Image.Image], Image.Image]) -> Tensor:
    """(T, H, W, 3) through an image function -> (T, 3, H', W')."""
    frames = [np.asarray(function(Image.fromarray(frame.numpy()))) for frame in clip]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
