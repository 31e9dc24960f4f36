"""Resize and crop clips with the pixel arithmetic of the image libraries that the reference implementations use.

Frames are (T, 3, H, W) tensors; `channels_first` is a view of a decoded clip (T, H, W, 3), which is channels-last in
memory, the fast layout of the uint8 resizer. Source: Pillow (Resample.c), OpenCV (resize.cpp).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

ResizeBackend = Literal["pil", "pil_bicubic", "opencv", "torch"]
"""How evaluation resizes and crops:

* `pil`: bilinear with antialiasing, rounded to uint8 (Multi-Modalities-Pretraining);
* `pil_bicubic`: bicubic with antialiasing, rounded to uint8 (Video-Text-Retrieval, viclip.py);
* `opencv`: bilinear between the four neighbours, rounded to uint8 (masked encoder, run_class_finetuning.py);
* `torch`: the same without rounding, float32 in 0..255, and starts of center crops rounded up (UniFormerV2 configs).
"""

PIL_BITS = 22
OPENCV_BITS = 11

Box = tuple[int, int, int, int]
"""top, left, height, width in pixels."""


def channels_first(clip: Tensor) -> Tensor:
    """Return a view (T, 3, H, W) of a uint8 clip (T, H, W, 3).

    Raises ValueError: another dtype or shape, or no pixels.
    """
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or clip.numel() == 0:
        raise ValueError(f"a clip is uint8 (T, H, W, 3), not {clip.dtype} {tuple(clip.shape)}")
    return clip.permute(0, 3, 1, 2)


def resize_fast(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (T, 3, H, W) uint8 to (T, 3, *size) for training: antialiased bilinear, within 2 levels of "pil"."""
    if tuple(frames.shape[-2:]) == size:
        return frames
    if frames.device.type != "cpu":  # only the CPU has a kernel for bytes
        frames = functional.interpolate(frames.float(), size, mode="bilinear", align_corners=False, antialias=True)
        return frames.round_().clamp_(0, 255).byte()
    return functional.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=True)


def resize(frames: Tensor, size: tuple[int, int], backend: ResizeBackend, box: Box | None = None) -> Tensor:
    """Resize (T, 3, H, W) uint8 to (T, 3, *size) uint8, or to float32 in 0..255 with the backend "torch".

    The uint8 backends reproduce the fixed-point arithmetic of their library. Pixels may differ by one level where
    OpenCV enlarges, and where Pillow 13 resizes the columns of a tall frame before its rows.

    Args:
        frames: input. size: output height and width. backend: pixel arithmetic.
        box: compute only this part of the result, (T, 3, height, width); None for all of it.
    """
    height, width = frames.shape[-2:]
    top, left, box_height, box_width = box or (0, 0, *size)
    if backend == "torch" or (height, width) == size:
        if backend == "torch":
            frames = frames.float()
        if (height, width) != size:
            frames = functional.interpolate(frames, size, mode="bilinear", align_corners=False)
        return frames[..., top : top + box_height, left : left + box_width]
    along_x = _filter(width, size[1], left, box_width, backend)
    along_y = _filter(height, size[0], top, box_height, backend)
    rows_needed = slice(along_y.first, along_y.first + along_y.length)
    columns_needed = slice(along_x.first, along_x.first + along_x.length)
    resized = torch.empty(len(frames), 3, box_height, box_width, dtype=torch.uint8)
    transposed = torch.empty(along_x.length, 3, along_y.length)
    for frame, result in zip(frames, resized, strict=True):
        # A pass sums contiguous rows; the sums of one frame fit in the CPU cache.
        transposed.copy_(frame[:, rows_needed, columns_needed].permute(2, 0, 1))
        first_pass = _opencv_first_pass if backend == "opencv" else _pil_pass
        columns = first_pass(transposed.view(along_x.length, -1), along_x).view(box_width, 3, -1)
        rows = columns.permute(2, 1, 0).reshape(along_y.length, -1)
        second_pass = _opencv_second_pass if backend == "opencv" else _pil_pass
        result.copy_(second_pass(rows, along_y).view(box_height, 3, box_width).permute(1, 0, 2))
    return resized


@dataclass(frozen=True)
class _Filter:
    """A resampling filter along one axis, for a range of its outputs.

    Attributes:
        first, length: the range of inputs that these outputs need.
        positions: (M, K) int64, for each of M outputs its K inputs in that range.
        weights: (M, K) int32, fixed-point.
        parts: each (M * K) float32, the weights split into parts of `bits` bits, the lowest first, the sign in the
            highest: sums of bytes times these are integers below 2^24, exact in float32 in any order.
    """

    first: int
    length: int
    positions: Tensor
    weights: Tensor
    parts: tuple[Tensor, ...]
    bits: int

    @cached_property
    def overshoots(self) -> bool:
        """Whether there are negative weights, so that sums can leave 0..255."""
        return bool((self.weights < 0).any())

    def sums(self, rows: Tensor, part: int) -> Tensor:
        """Compute weighted sums (M, C) float32 of rows (N, C) float32 with one part of the weights."""
        starts = torch.arange(0, self.positions.numel(), self.positions.shape[1])
        return torch.embedding_bag(rows, self.positions.view(-1), starts, False, 0, False, self.parts[part])[0]


@lru_cache(maxsize=256)
def _filter(inputs: int, outputs: int, first_output: int, count: int, backend: ResizeBackend) -> _Filter:
    """Make the filter from `inputs` pixels to `outputs`, for `count` of these from `first_output` on."""
    positions, weights = _opencv_taps(inputs, outputs) if backend == "opencv" else _pil_taps(inputs, outputs, backend)
    selected = slice(first_output, first_output + count)
    positions, weights = positions[:, selected], weights[:, selected]
    used = weights.any(axis=1)
    positions, weights = positions[used].T.copy(), weights[used].T.copy()
    low = int(positions.min())
    bits = next(bits for bits in (11, 8, 5, 1) if 255 * (2**bits - 1) * positions.shape[1] < 2**24)
    total_bits = OPENCV_BITS if backend == "opencv" else PIL_BITS
    parts = [weights >> shift & (1 << bits) - 1 for shift in range(0, total_bits - bits, bits)]
    parts.append(weights >> bits * len(parts))
    cut = tuple(torch.from_numpy(part.astype(np.float32).reshape(-1)) for part in parts)
    span = int(positions.max()) + 1 - low
    return _Filter(low, span, torch.from_numpy(positions - low), torch.from_numpy(weights), cut, bits)


def _pil_taps(length: int, outputs: int, backend: ResizeBackend) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return input positions and 22-bit fixed-point weights (taps, M) of Pillow's filter, widened by the scale."""
    scale = length / outputs
    widened = max(scale, 1.0)
    reach = widened * (2 if backend == "pil_bicubic" else 1)
    center = (np.arange(outputs) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), length)
    positions = first + np.arange((last - first).max())[:, None]
    distance = np.abs((positions - center + 0.5) / widened)
    if backend == "pil_bicubic":
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * -0.5 + 2
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    else:
        weights = np.maximum(1 - distance, 0.0)
    weights = np.where(positions < last, weights, 0.0)
    weights /= weights.sum(axis=0)
    fixed = np.trunc(weights * 2**PIL_BITS + np.copysign(0.5, weights)).astype(np.int32)
    return positions.clip(max=length - 1), fixed


def _pil_pass(rows: Tensor, along: _Filter) -> Tensor:
    """Filter (N, C) float32 integers 0..255 to (M, C), rounded to the nearest integer."""
    total = along.sums(rows, 0)
    for part in range(1, len(along.parts)):
        total = total.mul_(2.0**-along.bits).floor_().add_(along.sums(rows, part))
    left = PIL_BITS - along.bits * (len(along.parts) - 1)  # remaining fractional bits
    levels = total.add_(2.0 ** (left - 1)).mul_(2.0**-left).floor_()
    return levels.clamp_(0, 255) if along.overshoots else levels


def _opencv_taps(length: int, outputs: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the two neighbours and their 11-bit fixed-point weights, (2, M) each, from float32 positions."""
    position = ((np.arange(outputs) + 0.5) * (length / outputs) - 0.5).astype(np.float32)
    left = np.floor(position)
    fraction = np.where((left < 0) | (left >= length - 1), np.float32(0), position - left)
    below = left.astype(np.int64).clip(0, length - 1)
    weights = np.rint(np.stack([1 - fraction, fraction]) * np.float32(2**OPENCV_BITS)).astype(np.int32)
    return np.stack([below, np.minimum(below + 1, length - 1)]), weights


def _opencv_first_pass(rows: Tensor, along: _Filter) -> Tensor:
    """Filter (N, C) float32 integers 0..255 to (M, C) int32, without the lowest four bits of the sums."""
    return along.sums(rows, 0).mul_(2.0**-4).to(torch.int32)  # truncation is floor, because no sum is negative


def _opencv_second_pass(rows: Tensor, along: _Filter) -> Tensor:
    """Filter (N, C) int32 of the first pass to (M, C) uint8; every tap is truncated before the sum."""
    total = torch.full((len(along.positions), rows.shape[1]), 2, dtype=torch.int32)
    for position, weight in zip(along.positions.unbind(1), along.weights.unbind(1), strict=True):
        total += rows.index_select(0, position).mul_(weight[:, None]) >> 16
    return (total >> 2).to(torch.uint8)


def scaled_size(height: int, width: int, short: int, backend: ResizeBackend) -> tuple[int, int]:
    """Return the frame size with the shorter side `short` and the aspect ratio kept; the longer side is truncated."""
    long_side, short_side = max(height, width), min(height, width)
    # The order of operations, and so the rounding, is that of the released code.
    long = math.floor(long_side / short_side * short) if backend == "torch" else int(short * long_side / short_side)
    long = max(long, short)
    return (long, short) if height > width else (short, long)


def crop_starts(length: int, size: int, crops: int, backend: ResizeBackend = "opencv") -> tuple[int, ...]:
    """Return the start positions of 1 or 3 crops of `size` along a side of `length`.

    Raises ValueError: the crop is longer than the side.
    """
    margin = length - size
    if margin < 0:
        raise ValueError(f"a crop of {size} does not fit into {length}")
    if backend == "torch":
        center = math.ceil(margin / 2)
        return (center,) if crops == 1 else (0, center, margin)
    if crops == 1:
        return (round(margin / 2),)
    return tuple(int(crop * (margin / (crops - 1))) for crop in range(crops))
