"""Action detection of persons at a key frame: masked encoder, norm, and a head on boxes (AlphAction).

Legend: B clips, R boxes of all of them, T frames, H W pixels of the frame, p patch, D width, C classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from internvideo.models.embeddings import Normalize, resize_table, resized_table
from internvideo.models.encoder import ClipNeeds
from internvideo.models.entry import ModelEntry
from internvideo.models.factory import VIDEOMAE_SIZES
from internvideo.models.module import LayerNorm
from internvideo.models.videomae import EPS, FineTunedBackbone, VideoMAEConfig, run_blocks
from internvideo.models.videomae_config import MaskedEncoder
from internvideo.tasks.spatio_temporal_localization.regions import RegionHead

MEAN = (122.7717 / 255, 115.9465 / 255, 102.9801 / 255)
STD = (57.375 / 255,) * 3


class FrameBackbone(FineTunedBackbone):
    """VideoMAE backbone for frames of any size: the position table is resized to the input.

    With position_table "resized", the table has the size of `native_clip`, so that it is interpolated only once.

    Attributes:
        checkpointing: recompute activations in the backward pass (gradient checkpointing).
    """

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config)
        self.normalize = Normalize(MEAN, STD)
        self.norm = LayerNorm(config.width, eps=EPS)

    def _table(self) -> Tensor:
        config = self.config
        if config.position_table == "resized":
            side = config.native_clip[0] // config.patch_size
            grid = (config.grid[0], side, side)
            return resized_table(grid, config.width, config.patch_size, config.tubelet, config.native_clip)
        return super()._table()

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """A number of frames; any size."""
        return (ClipNeeds(frames=self.config.frames),)

    def grid_tokens(self, video: Tensor) -> Tensor:
        """Compute the tokens after the norm.

        Args:
            video: (B, 3, T, H, W) normalized; a remainder of H and W that is smaller than a patch is cropped at the
                right and bottom, as by a strided convolution.

        Returns:
            (B, T / tubelet, H // p, W // p, D).

        Raises:
            ValueError: another number of frames, or a frame smaller than a patch.
        """
        patch, frames = self.config.patch_size, self.config.frames
        rows, columns = video.shape[3] // patch, video.shape[4] // patch
        if video.shape[1:3] != (3, frames) or not rows or not columns:
            raise ValueError(f"expected a video (B, 3, {frames}, >= {patch}, >= {patch}), got {tuple(video.shape)}")
        cropped = video[..., : rows * patch, : columns * patch].contiguous()
        num_times, table = self.config.grid[0], self.pos_embed[0]
        side = math.isqrt(len(table) // num_times)
        if (rows, columns) != (side, side):
            table = resize_table(table, (num_times, side, side), (num_times, rows, columns))
        embedded: Tensor = self.patch_embed(cropped)
        tokens = run_blocks(self.blocks, embedded + table.to(embedded.dtype), self.checkpointing)
        return self.norm(tokens).view(len(video), num_times, rows, columns, -1)

    def initial_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
        """Map weights of an earlier stage to (state, pattern of parameters that keep their initialization).

        Returns None for the weights of a detector, whose names need no mapping.
        """
        return None if "head.projection.weight" in state else (select_encoder_weights(state), NEWLY_INITIALIZED)


class ActionDetector(FrameBackbone, MaskedEncoder):
    """Action detector: logits per box, for frames of any size."""

    class_layer = ("head.projection", 0)

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config)
        self.head = RegionHead(config.width, config.num_classes, patch=config.patch_size, dropout=config.head_dropout)
        self.reset_parameters()
        nn.init.zeros_(self.head.projection.bias)

    def tokens(self, video: Tensor) -> Tensor:
        """Video, see `grid_tokens` -> tokens (B, N, D)."""
        return self.grid_tokens(video).flatten(1, 3)

    def features(self, video: Tensor) -> Tensor:
        """Video, see `grid_tokens` -> mean of its tokens (B, D)."""
        return self.tokens(video).mean(dim=1)

    def forward(self, video: Tensor, clip_index: Tensor, boxes: Tensor) -> Tensor:
        """Video (see `grid_tokens`), clip index of each box (R,) int64, boxes (R, 4) in pixels -> logits (R, C)."""
        return self.head(self.grid_tokens(video), clip_index, boxes)


NEWLY_INITIALIZED = r"(norm|head)\."
"""Pattern of the parameters that weights of earlier stages lack; they keep their random initialization."""


def select_encoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the encoder weights of a pretraining model or classifier that a detector starts from."""
    pretrained = any(name.startswith("encoder.") for name in state)
    prefix = "encoder." if pretrained else ""
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {name: value for name, value in inner.items() if not re.match(r"(fc_norm|norm|head)\.", name)}


MODELS = {
    f"action-detector-{size}": ModelEntry(
        ActionDetector,
        replace(VIDEOMAE_SIZES[size], num_classes=80),
        None,
        f"actions of persons in boxes: masked encoder {size.upper()} with a head on boxes, 80 classes",
    )
    for size in ("s", "b", "l", "h")
}
