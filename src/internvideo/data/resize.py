"""Resizing and cropping of whole clips, in the pixel arithmetic of the three image libraries the references used.

Frames are (T, 3, H, W) tensors; a decoded clip (T, H, W, 3) seen through `channels_first` is channels-last in memory,
which is the fast layout of the uint8 resizer. Source: models.md B, C.4, D.5, E.4.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Style = Literal["pil", "pil_bicubic", "opencv", "torch"]
"""How evaluation resizes and crops:

* `pil`: bilinear with antialiasing, rounded to uint8 (multimodal encoder, D.5);
* `pil_bicubic`: bicubic with antialiasing, rounded to uint8 (retrieval E.4, ViCLIP F);
* `opencv`: bilinear between the four neighbours, rounded to uint8 (masked encoder, B);
* `torch`: the same without rounding, float32 in 0..255, and centre crops one pixel further (UniFormerV2, C.4).
"""


def channels_first(clip: Tensor) -> Tensor:
    """(T, H, W, 3) -> (T, 3, H, W), a view.

    Raises:
        ValueError: the clip is not uint8 of that shape, or has no pixels.
    """
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or clip.numel() == 0:
        raise ValueError(f"a clip is uint8 (T, H, W, 3), not {clip.dtype} {tuple(clip.shape)}")
    return clip.permute(0, 3, 1, 2)


def resize(frames: Tensor, size: tuple[int, int], style: Style) -> Tensor:
    """(T, 3, H, W) uint8 -> (T, 3, *size) uint8, or float32 in 0..255 in style "torch"."""
    same = tuple(frames.shape[-2:]) == size
    if style == "torch":
        frames = frames.float()
        return frames if same else functional.interpolate(frames, size, mode="bilinear", align_corners=False)
    if same:
        return frames
    if style == "opencv":
        plain = functional.interpolate(frames.float(), size, mode="bilinear", align_corners=False)
        return plain.round_().to(torch.uint8)
    mode = "bicubic" if style == "pil_bicubic" else "bilinear"
    return functional.interpolate(frames, size, mode=mode, align_corners=False, antialias=True)


def scaled_size(height: int, width: int, short: int, style: Style) -> tuple[int, int]:
    """The frame size with the shorter side `short` and the aspect kept, the longer side truncated."""
    long_side, short_side = max(height, width), min(height, width)
    # The rounding of the division is the released one: product first, except in UniFormerV2.
    long = math.floor(long_side / short_side * short) if style == "torch" else int(short * long_side / short_side)
    long = max(long, short)
    return (long, short) if height > width else (short, long)


def crop_starts(length: int, size: int, crops: int, style: Style = "opencv") -> tuple[int, ...]:
    """Where 1 or 3 crops of `size` start along a side of `length`.

    Raises:
        ValueError: the crop is longer than the side.
    """
    room = length - size
    if room < 0:
        raise ValueError(f"a crop of {size} does not fit into {length}")
    if style == "torch":
        centre = math.ceil(room / 2)
        return (centre,) if crops == 1 else (0, centre, room)
    if crops == 1:
        return (round(room / 2),)
    return tuple(int(crop * (room / (crops - 1))) for crop in range(crops))
