"""Transform clips together with their boxes (AlphAction). Boxes are (R, 4): x1, y1, x2, y2 in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from internvideo.data.resize import channels_first, resize_fast

MIN_SQUARE_SIDE = 8
"""Smallest side of a square around a box, in pixels."""

MAX_SHIFT, SCALE_RANGE = 0.1, (0.85, 1.2)
"""In training: maximum shift of a square around a box, as a fraction of its side, and range of its scale."""


class Square(NamedTuple):
    """A square of a frame in pixels."""

    left: int
    top: int
    width: int


class Boxed(NamedTuple):
    """A clip (3, T, H, W) uint8, its boxes (R, 4) float32, and their index (R,) int64 among the input boxes."""

    clip: Tensor
    boxes: Tensor
    box_index: Tensor


def resized_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Return (height, width) with the shorter side `short`, or smaller so that the longer side is at most `longest`."""
    scale = min(short / min(height, width), longest / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def square_around(
    box: Sequence[float], size: tuple[int, int], box_sides: float, shift: Sequence[float] = (0, 0)
) -> Square:
    """Return the square around a box, moved inside the frame, in integer pixels.

    Args:
        box: x1, y1, x2, y2 in pixels. size: (height, width) of the frame.
        box_sides: side of the square as a multiple of the longer side of the box; at most the frame's shorter side.
        shift: to the right and down, as fractions of the square's side.
    """
    longer = max(box[2] - box[0], box[3] - box[1])
    width = min(max(round(longer * box_sides), MIN_SQUARE_SIDE), *size)
    center = ((box[0] + box[2]) / 2 + shift[0] * width, (box[1] + box[3]) / 2 + shift[1] * width)
    left, top = (
        min(max(round(coordinate - width / 2), 0), length - width)
        for coordinate, length in zip(center, size[::-1], strict=True)
    )
    return Square(left, top, width)


def shift_color(clip: Tensor, hue: float, saturation: float, value: float) -> Tensor:
    """Shift the hue (degrees), saturation and value (both 0..1) of frames (T, 3, H, W) uint8 RGB."""
    pixels = clip.float() / 255
    high, low = pixels.amax(1), pixels.amin(1)
    chroma = high - low
    safe_chroma = chroma.clamp(min=1e-8)
    red, green, blue = pixels.unbind(1)
    angle = torch.where(
        high == red,
        ((green - blue) / safe_chroma) % 6,
        torch.where(high == green, (blue - red) / safe_chroma + 2, (red - green) / safe_chroma + 4),
    )
    angle = (angle + hue / 60) % 6
    new_saturation = (chroma / high.clamp(min=1e-8) + saturation).clamp(0, 1) * (
        chroma > 0
    )  # gray has no hue to saturate
    new_value = (high + value).clamp(0, 1)
    offsets = torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    ramp = (offsets + angle[:, None]) % 6
    shade = torch.minimum(ramp, 4 - ramp).clamp(0, 1)
    return ((new_value[:, None] * (1 - new_saturation[:, None] * shade)) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class BoxedTransform:
    """Resize clips and boxes; in training also crop, jitter colors and flip horizontally at random.

    Attributes:
        size: S of the training crop; smaller frames are padded with black at the right and at the bottom.
        short, longest: shorter side, and largest longer side, after resizing.
        flip: flip with probability 1/2.
        hue: maximum change in degrees. saturation, value: maximum change, on a scale of 0..1.
        around: see `KeyFrameSettings`.
    """

    size: int = 224
    short: int = 256
    longest: int = 464
    flip: bool = False
    hue: float = 20.0
    saturation: float = 0.1
    value: float = 0.1
    around: float | None = None

    def crop_boxes(self, clip: Tensor, boxes: Tensor, rng: np.random.RandomState | None = None) -> list[Boxed]:
        """Crop one clip (3, T, S, S) per box (R, 4), given as fractions, from (T, H, W, 3) uint8 (with `around`).

        `rng` is for the random jitter and flips of training; None for testing.
        """
        box_sides = self.around or 1.0
        frames = channels_first(clip)
        height, width = frames.shape[2:]
        box_clips = []
        for index, box in enumerate(boxes * boxes.new_tensor([width, height, width, height])):
            shift = (0.0, 0.0) if rng is None else rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2).tolist()
            scale = 1.0 if rng is None else float(rng.uniform(*SCALE_RANGE))
            left, top, side = square_around(box.tolist(), (height, width), box_sides * scale, shift)
            square = frames[:, :, top : top + side, left : left + side].contiguous()
            video = resize_fast(square, (self.size, self.size)).permute(1, 0, 2, 3)
            box_in_square = (box - box.new_tensor([left, top, left, top])).clamp(0, side) * (self.size / side)
            if rng is not None:
                video, box_in_square = self._jitter_and_flip(video, box_in_square[None], rng)
            box_clips.append(Boxed(video.contiguous(), box_in_square.view(1, 4), torch.tensor([index])))
        return box_clips

    def resize(self, clip: Tensor, boxes: Tensor) -> Boxed:
        """Resize whole frames for testing: (T, H, W, 3) uint8 and boxes (R, 4) as fractions."""
        frames = channels_first(clip)
        height, width = resized_size(frames.shape[2], frames.shape[3], self.short, self.longest)
        frames = resize_fast(frames, (height, width))
        scaled = boxes * boxes.new_tensor([width, height, width, height])
        return Boxed(frames.permute(1, 0, 2, 3).contiguous(), scaled, torch.arange(len(boxes)))

    def train(self, clip: Tensor, boxes: Tensor, rng: np.random.RandomState) -> Boxed:
        """Resize and crop for training to (3, T, S, S); boxes outside the crop are dropped."""
        video, boxes, _ = self.resize(clip, boxes)
        size, (height, width) = self.size, video.shape[-2:]
        top = int(rng.randint(max(height - size, 0) + 1))
        left = int(rng.randint(max(width - size, 0) + 1))
        video = video[..., top : top + size, left : left + size]
        limit = boxes.new_tensor([video.shape[-1], video.shape[-2]] * 2)
        boxes = torch.minimum((boxes - boxes.new_tensor([left, top] * 2)).clamp(min=0), limit)
        box_index = ((boxes[:, 2] - boxes[:, 0] > 1) & (boxes[:, 3] - boxes[:, 1] > 1)).nonzero()[:, 0]
        boxes = boxes[box_index]
        video, boxes = self._jitter_and_flip(video, boxes, rng)
        missing = (size - video.shape[-2], size - video.shape[-1])
        if any(missing):
            video = torch.nn.functional.pad(video, (0, missing[1], 0, missing[0]))
        return Boxed(video.contiguous(), boxes, box_index)

    def _jitter_and_flip(self, video: Tensor, boxes: Tensor, rng: np.random.RandomState) -> tuple[Tensor, Tensor]:
        """Jitter the colors of a clip (3, T, H, W), and flip clip and boxes with probability 1/2."""
        if self.hue or self.saturation or self.value:
            hue, saturation, value = rng.uniform(-1, 1, 3) * (self.hue, self.saturation, self.value)
            video = shift_color(video.transpose(0, 1), hue, saturation, value).transpose(0, 1)
        if self.flip and rng.rand() < 0.5:
            video = video.flip(-1)
            width = video.shape[-1]
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
        return video, boxes
