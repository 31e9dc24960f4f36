"""Transform decoded frames to model input; the random parameters of a clip are the same for all its frames.

A transform converts a clip (T, H, W, 3) uint8 to (3, T, S, S) uint8 contiguous; models normalize. All randomness
comes from the `RandomState` that the loader seeds for the clip. Source: run_class_finetuning.py,
UniFormerV2 configs, Multi-Modalities-Pretraining.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from internvideo.data.rand_augment import RandAugment, split_frames
from internvideo.data.resize import Box, ResizeBackend, channels_first, crop_starts, resize, resize_fast, scaled_size

MULTI_SCALES = (1.0, 0.875, 0.75, 0.66)
CORNER_SCALES = (1.0, 0.8)
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_RESIZE = 256 / 224
"""Short side before the crop, as a multiple of the crop."""

RESIZE_CHUNK_SIZE = 4
"""Frames resized together on the CPU: few enough for its cache."""

_SIDES = re.compile(r"\b((left|right)(wards?)?|(anti-?|counter-?)?clockwise)\b", re.IGNORECASE)

CropKind = Literal["multi_scale", "corner", "random_resized", "random", "center"]


class ClipTransform(Protocol):
    """(T, H, W, 3) uint8 -> (3, T, S, S) uint8 contiguous."""

    def __call__(self, clip: Tensor, rng: np.random.RandomState) -> Tensor:
        """Transform one clip with the same parameters for all its frames."""


def direction_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the class names that depend on left and right or on the sense of rotation; they rule out `flip`."""
    return tuple(name for name in classes if _SIDES.search(name.replace("_", " ")))


def multi_scale_box(height: int, width: int, size: int, rng: np.random.RandomState) -> Box:
    """Draw a crop whose sides are the shorter side times one of four scales, at one of 13 positions (mae.py).

    Sides within 2 pixels of `size` are `size`; the scales of the two sides are equal or adjacent; the positions are a
    grid of quarter steps.
    """
    base = min(height, width)
    sides = [int(base * scale) for scale in MULTI_SCALES]
    sides = [size if abs(side - size) < 3 and size <= base else side for side in sides]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    high, wide = pairs[rng.randint(len(pairs))]
    down, right = (height - high) // 4, (width - wide) // 4
    places = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)] + [(y, x) for y in (1, 3) for x in (1, 3)]
    y, x = places[rng.randint(len(places))]
    return y * down, x * right, high, wide


def corner_box(height: int, width: int, rng: np.random.RandomState) -> Box:
    """Draw a square crop in a corner or in the center, whose side is the shorter side times 1 or 0.8.

    Source: OpenGVLab/InternVideo, Open-Set-Action-Recognition/configs/recognition/mae/finetune_ucf101_mae_edlnokl.py
    (mmaction2's `MultiScaleCrop` with scales (1, 0.8), no gap between the scales of the sides and five places).
    """
    side = int(min(height, width) * CORNER_SCALES[rng.randint(len(CORNER_SCALES))])
    down, right = (height - side) // 4, (width - side) // 4
    y, x = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))[rng.randint(5)]
    return y * down, x * right, side, side


def _draw_sides(
    frame: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float], rng: np.random.RandomState
) -> tuple[int, int]:
    """Draw two sides of a box: of an area in a range of fractions of the frame, and of log-uniform aspect."""
    target = rng.uniform(*area) * frame[0] * frame[1]
    ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    return round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))


def random_resized_box(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], rng: np.random.RandomState
) -> Box:
    """Draw a box of random area (fraction of the frame) and aspect (log-uniform); after ten failures the largest
    centered one."""
    for _ in range(10):
        high, wide = _draw_sides((height, width), area, aspect, rng)
        if 0 < wide <= width and 0 < high <= height:
            return int(rng.randint(height - high + 1)), int(rng.randint(width - wide + 1)), high, wide
    ratio = min(max(width / height, aspect[0]), aspect[1])
    wide, high = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - high) // 2, (width - wide) // 2, max(high, 1), max(wide, 1)


@dataclass(frozen=True)
class Erasing:
    """A box to erase with noise, the same in all frames, and the seed of the noise."""

    box: Box
    seed: int


def draw_erasing(height: int, width: int, probability: float, rng: np.random.RandomState) -> Erasing | None:
    """Draw whether to erase, and a box that lies inside a frame; None where nothing is erased."""
    if rng.uniform() >= probability:
        return None
    for _ in range(10):
        wide, high = _draw_sides((height, width), ERASED_AREA, ERASED_ASPECT, rng)
        if 0 < wide < width and 0 < high < height:
            top, left = int(rng.randint(height - high + 1)), int(rng.randint(width - wide + 1))
            return Erasing((top, left, high, wide), int(rng.randint(2**31 - 1)))
    return None


def _erase(clip: Tensor, erasing: Erasing) -> None:
    """Fill a box of a clip (3, T, H, W) uint8 with noise that is standard normal after ImageNet normalization."""
    top, left, high, wide = erasing.box
    generator = torch.Generator().manual_seed(erasing.seed)  # of the CPU: the same noise on every device
    noise = torch.randn(clip.shape[1], 3, high, wide, generator=generator).transpose(0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    levels = (noise * std + mean).round_().clamp_(0, 255).byte()
    clip[..., top : top + high, left : left + wide] = levels.to(clip.device, non_blocking=True)


def _resize_to_clip(frames: Tensor, out: Tensor, *, flip: bool) -> None:
    """Resize (T, 3, H, W) uint8 to the clip `out` (3, T, S, S) uint8, on the CPU few frames at a time."""
    parts = split_frames(frames, RESIZE_CHUNK_SIZE), split_frames(out.transpose(0, 1), RESIZE_CHUNK_SIZE)
    for part, result in zip(*parts, strict=True):
        resized = resize_fast(part, (out.shape[-2], out.shape[-1]))
        result.copy_(resized.flip(-1) if flip else resized)


@dataclass(frozen=True)
class DrawnTransform:
    """The random choices of one clip, `TrainTransform.draw`.

    Attributes:
        operations: operations of RandAugment: name, level in 0..1, sign.
        box: the part of a frame that is resized to (S, S). scaled: size to which whole frames are resized before the
            box is taken of them; None takes it of the frames themselves.
        flip: whether to mirror. erasing: the box to erase, in the result.
    """

    operations: tuple[tuple[str, float, int], ...]
    box: Box
    scaled: tuple[int, int] | None
    flip: bool
    erasing: Erasing | None


@dataclass(frozen=True)
class TrainTransform:
    """Augment a clip: RandAugment, crop, flip, erase.

    Crops are resized as uint8 with antialiasing. run_class_finetuning.py resized float tensors without it, which
    aliases where the crop is larger than S and takes several times as long.

    Attributes:
        size: S of the result, pixels.
        crop: "multi_scale" (masked pretraining), "corner" (open-set recognition: scale, then `corner_box`),
            "random_resized" (both classifiers), "random" (question answering: scale, then a random place), or "center".
        flip: mirror half of the clips; leave it off for label sets with directions (`direction_classes`).
        rand_augment: a setting like "rand-m7-n4-mstd0.5-inc1", or None.
        erasing: probability of erasing one box.
        area, aspect: range of "random_resized", shares of the frame and width over height.
        resize: short side before "corner", "random" and "center" crops; None for S * 256 / 224.
        keep_aspect: False scales to a square before those three (question answering).
        on_device: loaders only draw; the batch is transformed on the device it is moved to (`DecodedBatch`).
    """

    size: int
    crop: CropKind = "multi_scale"
    flip: bool = False
    rand_augment: str | None = None
    erasing: float = 0.0
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (0.75, 4 / 3)
    resize: int | None = None
    keep_aspect: bool = True
    on_device: bool = False
    _augment: RandAugment | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.erasing <= 1 or self._short < self.size:
            raise ValueError(f"size {self.size}, resize {self.resize}, erasing {self.erasing}")
        if self.crop not in get_args(CropKind):
            raise ValueError(f"crop {self.crop!r}")
        if self.rand_augment is not None:
            object.__setattr__(self, "_augment", RandAugment.parse(self.rand_augment))

    @property
    def _short(self) -> int:
        return round(self.size * CLIP_RESIZE) if self.resize is None else self.resize

    def __call__(self, clip: Tensor, rng: np.random.RandomState) -> Tensor:
        """Augment (T, H, W, 3) uint8 to (3, T, S, S) uint8 contiguous."""
        out = clip.new_empty((3, len(clip), self.size, self.size))
        self.apply(clip, self.draw(clip.shape[1], clip.shape[2], rng), out)
        return out

    def draw(self, height: int, width: int, rng: np.random.RandomState) -> DrawnTransform:
        """Draw the random choices of a clip of frames of this size."""
        operations = () if self._augment is None else tuple(self._augment.draw(rng))
        scaled = None
        if self.crop == "multi_scale":
            box = multi_scale_box(height, width, self.size, rng)
        elif self.crop == "random_resized":
            box = random_resized_box(height, width, self.area, self.aspect, rng)
        else:
            short = self._short
            scaled = scaled_size(height, width, short, "pil") if self.keep_aspect else (short, short)
            box = self._box_of_scaled(*scaled, rng)
        flip = self.flip and rng.uniform() < 0.5
        erasing = draw_erasing(self.size, self.size, self.erasing, rng) if self.erasing else None
        return DrawnTransform(operations, box, scaled, flip, erasing)

    def _box_of_scaled(self, height: int, width: int, rng: np.random.RandomState) -> Box:
        """Draw the part of a resized frame: a corner, which has still to be resized to (S, S), or a crop of S."""
        if self.crop == "corner":
            return corner_box(height, width, rng)
        margins = (height - self.size, width - self.size)
        top, left = (int(rng.randint(margin + 1)) if self.crop == "random" else round(margin / 2) for margin in margins)
        return top, left, self.size, self.size

    def apply(self, clip: Tensor, drawn: DrawnTransform, out: Tensor) -> None:
        """Transform (T, H, W, 3) uint8 into `out` (3, T, S, S) uint8, on their device.

        On the CPU this gives `__call__` of the same draws; on others pixels may differ by rounding.
        """
        frames = channels_first(clip)
        box_of_frame = drawn.box if drawn.scaled is None else None
        frames = (self._augment or RandAugment()).apply(frames, drawn.operations, box_of_frame)
        if drawn.scaled is not None:
            top, left, high, wide = drawn.box
            frames = resize_fast(frames, drawn.scaled)[..., top : top + high, left : left + wide]
        _resize_to_clip(frames, out, flip=drawn.flip)
        if drawn.erasing is not None:
            _erase(out, drawn.erasing)


@dataclass(frozen=True)
class EvalTransform:
    """Resize a clip, and take one center crop or three along the longer side.

    Attributes:
        size: S of the result, pixels.
        resize: short side before the crop; None for S (crops touch both edges).
        num_crops: 1 or 3.
        resize_backend: pixel arithmetic, see `resize.ResizeBackend`; "torch" gives float32 in 0..255 instead of uint8.
        keep_aspect: False scales to a square of `resize`.
    """

    size: int
    resize: int | None = None
    num_crops: int = 1
    resize_backend: ResizeBackend = "pil"
    keep_aspect: bool = True

    def __post_init__(self) -> None:
        if self.size < 1 or self._short < self.size or self.num_crops not in (1, 3):
            raise ValueError(f"size {self.size}, resize {self.resize}, crops {self.num_crops}: allowed crops 1 or 3")
        if self.resize_backend not in ("pil", "pil_bicubic", "opencv", "torch"):
            raise ValueError(f"resize_backend {self.resize_backend!r}")

    @property
    def resizing(self) -> str:
        """Size before the crops and pixel arithmetic, for the evaluation protocol."""
        return f"{'squashed to' if not self.keep_aspect else 'short side'} {self._short}, {self.resize_backend}"

    @property
    def _short(self) -> int:
        return self.size if self.resize is None else self.resize

    def crop_clip(self, clip: Tensor) -> list[Tensor]:
        """Resize (T, H, W, 3) uint8; return `num_crops` crops (3, T, S, S), left to right or top to bottom."""
        frames = channels_first(clip)
        height, width = frames.shape[-2:]
        short = self._short
        scaled = (short, short) if not self.keep_aspect else scaled_size(height, width, short, self.resize_backend)
        across = scaled[1] > scaled[0]
        tops = crop_starts(scaled[0], self.size, 1 if across else self.num_crops, self.resize_backend)
        lefts = crop_starts(scaled[1], self.size, self.num_crops if across else 1, self.resize_backend)
        scale = (tops[0], lefts[0], tops[-1] + self.size - tops[0], lefts[-1] + self.size - lefts[0])
        frames = resize(frames, scaled, self.resize_backend, scale).transpose(0, 1)
        return [
            frames[..., top - scale[0] :, left - scale[1] :][..., : self.size, : self.size].contiguous()
            for top in tops
            for left in lefts
        ]

    def __call__(self, clip: Tensor, rng: np.random.RandomState) -> Tensor:
        """Return the center view, (3, T, S, S); `rng` is not used."""
        views = self.crop_clip(clip)
        return views[len(views) // 2]
