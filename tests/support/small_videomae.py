"""Small VideoMAE sizes, and clips and masks for them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from internvideo.models.videomae import VideoMAEConfig
from internvideo.objectives.masking import random_mask

TINY = VideoMAEConfig(
    image_size=16, patch_size=4, frames=4, width=24, depth=2, heads=2, decoder_width=16, decoder_depth=2,
    decoder_heads=2, num_classes=5,
)  # fmt: skip
DEMO = dataclasses.replace(
    TINY, image_size=64, patch_size=8, frames=8, width=128, depth=4, heads=4, decoder_width=64, decoder_heads=2
)


def clip(config: VideoMAEConfig = TINY, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, config.frames, config.image_size, config.image_size)


def mask(config: VideoMAEConfig = TINY, batch: int = 2, ratio: float = 0.75) -> Tensor:
    return random_mask(batch, config.grid, ratio, torch.Generator().manual_seed(1))
