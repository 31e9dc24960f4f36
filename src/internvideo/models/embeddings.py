"""From pixels to tokens: normalization, tubelet embedding, sin-cos positions and their resizing.

Source: modeling_pretrain.py (tubelets, 1-D sin-cos table) and modeling_finetune.py (resized table of the classifier).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.models.declared import MAX_POSITIONS, ModelSizeError
from internvideo.models.module import Conv2d, Linear, Module, Sequential

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF_MEAN, HALF_STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
"""Pixel mean and std: VideoMAE and ViCLIP; CLIP and the multimodal model; UniFormerV2."""

ADDED_STEMS = r"(^|\.)(stem|patch_embed)\.(motion|convolutions)(\.|$)"
"""Names of the tensors of the stems that are added to the patches' and start at zero."""

NATIVE_CLIP = 224, 16
"""Side in pixels and frames of the clip for which modeling_finetune.py computes the table that it then resizes."""


class Normalize(Module):
    """Normalize pixels 0..255 per channel: (x / 255 - mean) / std.

    Mean and std follow the module's device but are in no state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1, 1), persistent=False)

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T, S, S) or (3, T, S, S), uint8 or float in 0..255 -> the same shape, float."""
        pixels = video if video.is_floating_point() else video.to(self.mean.dtype)
        return pixels.sub(255 * self.mean).div_(255 * self.std)


def minus_mean_frame(video: Tensor) -> Tensor:
    """Subtract the mean over time of every pixel: (B, 3, T, S, S) -> the same; zeros where T = 1.

    This removes the static background, which a small encoder would otherwise learn before motion.
    """
    return video - video.mean(dim=2, keepdim=True)


class ConvolutionStem(Module):
    """Six convolutions of 3 x 3 on every frame, added to its patch tokens and, of their maximum, to its class token.

    Patches of 8 px cut small objects apart: a transformer that learns from scratch needs many times more pictures to
    tell their shapes from such pieces than overlapping convolutions do. The maximum over places tells what there is
    wherever it is; without it a shape is hardly learned beside color and place. Both outputs start at zero.

    Args:
        channels: of the first two, at half of the frame's side; then twice and, at a quarter, four times as many.
        patch_size: side of a patch in pixels, a multiple of 4. width: of the tokens.
    """

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        if patch_size % 4:
            raise ValueError(f"patch size {patch_size} is not a multiple of 4, as a convolution stem needs")
        widths = (3, channels, channels, 2 * channels, 2 * channels, 4 * channels, 4 * channels)
        layers: list[nn.Module] = []
        for inner, outer, stride in zip(widths, widths[1:], (2, 1, 1, 1, 2, 1), strict=False):
            layers += [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
        self.layers = Sequential(*layers)
        self.out = Conv2d(widths[-1], width, 3, patch_size // 4, 1)
        self.summary = Linear(widths[-1], width, bias=False)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]  # the convolution has a bias
        nn.init.zeros_(self.summary.weight)

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T, S, S) normalized -> tokens of every frame (B * T, 1 + HW, D), the class token first."""
        found = self.layers(video.transpose(1, 2).flatten(0, 1))
        patches = self.out(found).flatten(2).transpose(1, 2)
        return torch.cat([self.summary(found.amax(dim=(2, 3)))[:, None], patches], dim=1)


class TubeletEmbedding(Module):
    """A linear map of blocks of `tubelet` frames x `patch` x `patch` pixels, equal to a Conv3d with kernel = stride.

    As a Linear, it is computed for the visible blocks only. The initialization is torch's default, as for the published
    convolution (modeling_pretrain.py).

    Args:
        width: D. patch: side p in pixels. tubelet: frames per token. channels: of a pixel.
        motion_stem: add a second linear map, zero at the start, of the clip minus its mean frame. Under tube masking
            the mean frame at a visible position contains visible pixels only, so no masked content leaks.
    """

    def __init__(self, width: int, patch: int, tubelet: int, channels: int = 3, *, motion_stem: bool = False) -> None:
        super().__init__()
        self.patch, self.tubelet = patch, tubelet
        self.proj = Linear(channels * tubelet * patch * patch, width)
        self.motion = nn.Parameter(torch.zeros(width, self.proj.in_features)) if motion_stem else None

    def cut(self, video: Tensor, token_index: Tensor | None = None) -> Tensor:
        """Cut the pixels of each token, ordered (channel, frame, row, column) within a token.

        Args:
            video: (B, 3, T, S, S).
            token_index: (B, K) int64, the tokens to cut, counted in the order time, row, column; None for all.

        Returns:
            (B, K or N, 3 * tubelet * p * p).
        """
        p = self.patch
        batch, channels, frames, height, width = video.shape
        blocks = video.view(batch, channels, frames // self.tubelet, self.tubelet, height // p, p, width // p, p)
        blocks = blocks.permute(0, 2, 4, 6, 1, 3, 5, 7)  # a view (B, t, h, w, 3, tubelet, p, p)
        if token_index is None:
            return blocks.flatten(4).flatten(1, 3)
        rows, columns = blocks.shape[2:4]
        sample = torch.arange(batch, device=token_index.device)[:, None]
        spatial = token_index % (rows * columns)
        return blocks[sample, token_index // (rows * columns), spatial // columns, spatial % columns].flatten(2)

    def forward(self, video: Tensor, token_index: Tensor | None = None) -> Tensor:
        """(B, 3, T, S, S), token_index (B, K) or None -> (B, K or N, D)."""
        tokens = self.proj(self.cut(video, token_index))
        if self.motion is not None:
            tokens = tokens + F.linear(self.cut(minus_mean_frame(video), token_index), self.motion)
        return tokens


def sin_cos_table(num_tokens: int, width: int) -> Tensor:
    """Build fixed positions (N, D) float32: sin at even and cos at odd channels (modeling_pretrain.py).

    Raises:
        ModelSizeError: the table has more than MAX_POSITIONS elements.
    """
    _check_table_size(num_tokens, width)
    channel = np.arange(width)
    angle = np.arange(num_tokens)[:, None] / np.power(10000.0, 2 * (channel // 2) / width)[None]
    table = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    return torch.from_numpy(table.astype(np.float32))


def _check_table_size(num_tokens: int, width: int) -> None:
    if num_tokens * width > MAX_POSITIONS:
        raise ModelSizeError(
            f"a table of {num_tokens:,} positions of width {width:,}, at most {MAX_POSITIONS:,} elements are allowed"
        )


def resize_table(table: Tensor, grid: tuple[int, int, int], target: tuple[int, int, int]) -> Tensor:
    """Resize positions bicubically in space, then linearly over time (modeling_finetune.py).

    Args:
        table: (N, D) float32. grid: its (t, h, w). target: (t, h, w) of the result (N', D).
    """
    width = table.shape[1]
    table_grid = table.reshape(*grid, width).permute(0, 3, 1, 2)  # (t, D, h, w)
    if grid[1:] != target[1:]:
        table_grid = F.interpolate(table_grid, size=target[1:], mode="bicubic", align_corners=False)
    if grid[0] != target[0]:
        over_time = table_grid.permute(2, 3, 1, 0).flatten(0, 1)  # (h * w, D, t)
        over_time = F.interpolate(over_time, size=target[0], mode="linear", align_corners=False)
        table_grid = over_time.view(*target[1:], width, target[0]).permute(3, 2, 0, 1)
    return table_grid.permute(0, 2, 3, 1).reshape(-1, width).contiguous()


def resized_table(
    grid: tuple[int, int, int], width: int, patch: int, tubelet: int, native_clip: tuple[int, int] = NATIVE_CLIP
) -> Tensor:
    """Build the classifier's position table for another clip size by resizing that of pretraining.

    If the patch does not divide the side of `native_clip`, the grid is rounded down, as in the published code
    (OpenGVLab/InternVideo, InternVideo1/Pretrain/VideoMAE/modeling_finetune.py: `org_img_size[1] // patch_size`).

    Args:
        grid: (t, h, w) of the result. width: D.
        patch, tubelet: side in pixels and frames of a token.
        native_clip: side in pixels and frames of the clips of pretraining.

    Returns:
        (t * h * w, D) float32.

    Raises:
        ValueError: `native_clip` is smaller than one token.
    """
    side, num_times = native_clip[0] // patch, native_clip[1] // tubelet
    if not side * num_times:
        raise ValueError(
            f"a clip of {native_clip[0]} px and {native_clip[1]} frames has no patch of {patch} px and {tubelet} frames"
        )
    _check_table_size(math.prod(grid), width)
    return resize_table(sin_cos_table(num_times * side**2, width), (num_times, side, side), grid)
