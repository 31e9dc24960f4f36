"""Resizing and cropping of whole clips, in the pixel arithmetic of the three image libraries the references used.

Frames are (T, 3, H, W) tensors; a decoded clip (T, H, W, 3) seen through `channels_first` is channels-last in memory,
which is the fast layout of the uint8 resizer. Source: models.md B, C.4, D.5, E.4.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Style = Literal["pil", "pil_bicubic", "opencv", "torch"]
"""How evaluation resizes and crops:

* `pil`: bilinear with antialiasing, rounded to uint8 (multimodal encoder, D.5);
* `pil_bicubic`: bicubic with antialiasing, rounded to uint8 (retrieval E.4, ViCLIP F);
* `opencv`: bilinear between the four neighbours, rounded to uint8 (masked encoder, B);
* `torch`: the same without rounding, float32 in 0..255, and centre crops one pixel further (UniFormerV2, C.4).
"""

PIL_BITS = 22
OPENCV_BITS = 11


def channels_first(clip: Tensor) -> Tensor:
    """(T, H, W, 3) -> (T, 3, H, W), a view.

    Raises:
        ValueError: the clip is not uint8 of that shape, or has no pixels.
    """
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or clip.numel() == 0:
        raise ValueError(f"a clip is uint8 (T, H, W, 3), not {clip.dtype} {tuple(clip.shape)}")
    return clip.permute(0, 3, 1, 2)


def resize_fast(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, 3, H, W) uint8 -> (T, 3, *size) uint8, bilinear with antialiasing: for training, within 2 levels of "pil"."""
    if tuple(frames.shape[-2:]) == size:
        return frames
    return functional.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=True)


def resize(frames: Tensor, size: tuple[int, int], style: Style) -> Tensor:
    """(T, 3, H, W) uint8 -> (T, 3, *size) uint8, or float32 in 0..255 in style "torch".

    The uint8 styles repeat the fixed-point arithmetic of their library and so its levels, but for one level here and
    there: where OpenCV enlarges, and where Pillow 13 takes the columns of a tall frame before its rows.
    """
    height, width = frames.shape[-2:]
    if style == "torch":
        frames = frames.float()
        same = (height, width) == size
        return frames if same else functional.interpolate(frames, size, mode="bilinear", align_corners=False)
    if (height, width) == size:
        return frames
    along_x, along_y = _taps(width, size[1], style), _taps(height, size[0], style)
    first, second = (_pil_pass, _pil_pass) if style != "opencv" else (_opencv_first_pass, _opencv_second_pass)
    resized = torch.empty(len(frames), 3, *size, dtype=torch.uint8)
    for frame, result in zip(frames, resized, strict=True):
        # A pass gathers rows, which are whole pieces of memory; one frame's sums stay in the processor's cache.
        columns = first(frame.permute(2, 0, 1).reshape(width, -1), along_x)
        rows = columns.view(size[1], 3, height).permute(2, 1, 0).reshape(height, -1)
        result.copy_(second(rows, along_y).view(size[0], 3, size[1]).permute(1, 0, 2))
    return resized


Taps = tuple[tuple[Tensor, Tensor], ...]
"""For each tap of the filter: (M,) source index of each of M outputs, and its (M, 1) int32 fixed-point weight."""


@lru_cache(maxsize=256)
def _taps(length: int, outputs: int, style: Style) -> Taps:
    places, weights = _opencv_taps(length, outputs) if style == "opencv" else _pil_taps(length, outputs, style)
    used = weights.any(axis=1)
    return tuple(
        (torch.from_numpy(place.copy()), torch.from_numpy(weight[:, None].copy()))
        for place, weight in zip(places[used], weights[used], strict=True)
    )


def _pil_taps(length: int, outputs: int, style: Style) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Filter widened by the scale, normalised, in 22-bit fixed point: (taps, M) each."""
    scale = length / outputs
    widened = max(scale, 1.0)
    reach = widened * (2 if style == "pil_bicubic" else 1)
    centre = (np.arange(outputs) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), length)
    places = first + np.arange((last - first).max())[:, None]
    distance = np.abs((places - centre + 0.5) / widened)
    if style == "pil_bicubic":
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * -0.5 + 2
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    else:
        weights = np.maximum(1 - distance, 0.0)
    weights = np.where(places < last, weights, 0.0)
    weights /= weights.sum(axis=0)
    fixed = np.trunc(weights * 2**PIL_BITS + np.copysign(0.5, weights)).astype(np.int32)
    return places.clip(max=length - 1), fixed


def _pil_pass(rows: Tensor, taps: Taps) -> Tensor:
    """(N, C) uint8 -> (M, C) uint8."""
    total = _weighted(rows, taps[0])
    for tap in taps[1:]:
        total.add_(_weighted(rows, tap))
    levels = total.add_(1 << (PIL_BITS - 1)) >> PIL_BITS
    return levels.clamp_(0, 255).to(torch.uint8)


def _opencv_taps(length: int, outputs: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The two neighbours in 11-bit fixed point, places in float32: (2, M) each."""
    place = ((np.arange(outputs) + 0.5) * (length / outputs) - 0.5).astype(np.float32)
    left = np.floor(place)
    part = np.where((left < 0) | (left >= length - 1), np.float32(0), place - left)
    below = left.astype(np.int64).clip(0, length - 1)
    weights = np.rint(np.stack([1 - part, part]) * np.float32(2**OPENCV_BITS)).astype(np.int32)
    return np.stack([below, np.minimum(below + 1, length - 1)]), weights


def _opencv_first_pass(rows: Tensor, taps: Taps) -> Tensor:
    """(N, C) uint8 -> (M, C) int32, four bits of the weights already dropped."""
    total = _weighted(rows, taps[0])
    for tap in taps[1:]:
        total.add_(_weighted(rows, tap))
    return total >> 4


def _opencv_second_pass(rows: Tensor, taps: Taps) -> Tensor:
    """(N, C) int32 of the first pass -> (M, C) uint8; every tap is truncated before the sum."""
    total = _weighted(rows, taps[0]) >> 16
    for tap in taps[1:]:
        total.add_(_weighted(rows, tap) >> 16)
    return ((total + 2) >> 2).to(torch.uint8)


def _weighted(rows: Tensor, tap: tuple[Tensor, Tensor]) -> Tensor:
    place, weight = tap
    return rows.index_select(0, place).to(torch.int32).mul_(weight)


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
