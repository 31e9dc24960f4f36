"""RandAugment on whole clips: the same operations with the same strengths for all frames.

Operations and their strengths are those of the "increasing" policy (timm, auto_augment.py): every drawn
operation is applied with probability 1/2, its magnitude is normal around `magnitude` in 0..10.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

GRAY = 128
"""Value of the pixels that a geometric operation brings in from outside the frame."""
MAX_LEVEL = 10.0
"""Largest magnitude."""
CHUNK_SIZE = 2
"""Frames warped together: few enough for the processor's cache."""


def _blend(degenerate: Tensor, frames: Tensor, factor: float) -> Tensor:
    """degenerate + factor (frames - degenerate), truncated to 0..255 like the image library's enhancers."""
    base = degenerate.float()
    return base.add(frames.float() - base, alpha=factor).clamp_(0, 255).byte()


def _luma(frames: Tensor) -> Tensor:
    """(T, 3, H, W) -> (T, 1, H, W) int32 grey level, ITU-R 601 in 16-bit fixed point."""
    red, green, blue = frames.to(torch.int32).unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).unsqueeze(1)


def _look_up(frames: Tensor, tables: Tensor) -> Tensor:
    """Map the levels of (T, 3, H, W) uint8 through uint8 tables that broadcast to (T, 3, 256)."""
    tables = tables.expand(len(frames), 3, 256)
    first = torch.arange(3, dtype=torch.int32) * 256
    mapped = torch.empty_like(frames)
    for frame, table, result in zip(frames, tables, mapped, strict=True):  # one frame's indices fit the cache
        places = frame.permute(1, 2, 0) + first
        levels = table.reshape(-1).index_select(0, places.reshape(-1))
        result.copy_(levels.view(places.shape).permute(2, 0, 1))
    return mapped


def _histogram(frames: Tensor) -> Tensor:
    """(T, 3, H, W) uint8 -> (T, 3, 256) int64, how often each level occurs."""
    first = torch.arange(3, dtype=torch.int32)[:, None, None] * 256
    return torch.stack([torch.bincount((frame + first).flatten(), minlength=768).view(3, 256) for frame in frames])


def auto_contrast(frames: Tensor) -> Tensor:
    """Stretch every channel of every frame to 0..255."""
    low, high = frames.amin((-2, -1))[..., None].float(), frames.amax((-2, -1))[..., None].float()
    scale = 255 / (high - low).clamp_min(1)
    levels = torch.arange(256, dtype=torch.float32)
    table = ((levels - low) * scale).clamp(0, 255)
    return _look_up(frames, torch.where(high > low, table, levels).byte())


def equalize(frames: Tensor) -> Tensor:
    """Flatten the histogram of every channel of every frame."""
    count = _histogram(frames)
    total = frames.shape[-2] * frames.shape[-1]
    last = count.gather(-1, frames.amax((-2, -1)).long()[..., None])
    step = (total - last) // 255
    table = ((step // 2 + count.cumsum(-1) - count) // step.clamp_min(1)).clamp_(max=255)
    return _look_up(frames, torch.where(step > 0, table, torch.arange(256)).byte())


def invert(frames: Tensor) -> Tensor:
    """255 - level."""
    return 255 - frames


def posterize(frames: Tensor, bits: int) -> Tensor:
    """Keep the highest `bits` bits."""
    return frames & (0xFF & ~((1 << (8 - bits)) - 1))


def solarize(frames: Tensor, threshold: int) -> Tensor:
    """Invert the levels from `threshold` on."""
    levels = torch.arange(256)
    return _look_up(frames, torch.where(levels >= threshold, 255 - levels, levels).byte())


def solarize_add(frames: Tensor, amount: int) -> Tensor:
    """Add `amount` to the levels below 128."""
    levels = torch.arange(256)
    return _look_up(frames, torch.where(levels < 128, (levels + amount).clamp(max=255), levels).byte())


def color(frames: Tensor, factor: float) -> Tensor:
    """Saturation times `factor`."""
    return _blend(_luma(frames), frames, factor)


def contrast(frames: Tensor, factor: float) -> Tensor:
    """Distance from the frame's mean grey times `factor`."""
    mean = (_luma(frames).double().mean((1, 2, 3)) + 0.5).floor()
    levels = torch.arange(256).expand(len(frames), 1, 256)
    return _look_up(frames, _blend(mean[:, None, None], levels, factor))


def brightness(frames: Tensor, factor: float) -> Tensor:
    """Level times `factor`."""
    return frames.float().mul_(factor).clamp_(0, 255).byte()


def sharpness(frames: Tensor, factor: float) -> Tensor:
    """Distance from a 3 x 3 smoothing times `factor`; the outermost pixels stay."""
    if min(frames.shape[-2:]) < 3:
        return frames
    values = frames.to(torch.int16)
    rows = values[..., :-2, :] + values[..., 1:-1, :] + values[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * values[..., 1:-1, 1:-1]
    smooth = values.clone()
    smooth[..., 1:-1, 1:-1] = (2 * box + 13) // 26
    return _blend(smooth, frames, factor)


def affine(frames: Tensor, matrix: tuple[float, float, float, float, float, float]) -> Tensor:
    """Bicubic resampling: the pixel at (x, y) comes from (a x + b y + c, d x + e y + f) in pixel centres."""
    height, width = frames.shape[-2:]
    a, b, c, d, e, f = matrix
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    grid = torch.stack([(a * x + b * y + c) * (2 / width) - 1, (d * x + e * y + f) * (2 / height) - 1], dim=-1)
    moved = torch.empty(frames.shape, dtype=torch.uint8)
    for part, result in zip(torch.split(frames, CHUNK_SIZE), torch.split(moved, CHUNK_SIZE), strict=True):
        # Frames and channels share the grid, so they travel as channels of one image; outside is GREY.
        image = part.contiguous().float().sub_(GRAY).view(1, -1, height, width)
        warped = functional.grid_sample(image, grid[None], mode="bicubic", padding_mode="zeros", align_corners=False)
        result.copy_(warped.add_(GRAY).round_().clamp_(0, 255).view(part.shape))
    return moved


def rotate(frames: Tensor, degrees: float) -> Tensor:
    """Turn counter-clockwise about the centre of the frame."""
    height, width = frames.shape[-2:]
    cos, sin = float(np.cos(np.deg2rad(degrees))), float(np.sin(np.deg2rad(degrees)))
    x, y = width / 2, height / 2
    return affine(frames, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))


def shear_x(frames: Tensor, factor: float) -> Tensor:
    """Move the pixel (x, y) to the left by factor * y."""
    return affine(frames, (1, factor, 0, 0, 1, 0))


def shear_y(frames: Tensor, factor: float) -> Tensor:
    """Move the pixel (x, y) up by factor * x."""
    return affine(frames, (1, 0, 0, factor, 1, 0))


def translate_x(frames: Tensor, fraction: float) -> Tensor:
    """Move to the left by a share of the width, to whole pixels."""
    return _shifted(frames, round(fraction * frames.shape[-1]), -1)


def translate_y(frames: Tensor, fraction: float) -> Tensor:
    """Move up by a share of the height, to whole pixels."""
    return _shifted(frames, round(fraction * frames.shape[-2]), -2)


def _shifted(frames: Tensor, pixels: int, axis: int) -> Tensor:
    moved = torch.full_like(frames, GRAY)
    kept = frames.shape[axis] - abs(pixels)
    moved.narrow(axis, max(-pixels, 0), kept).copy_(frames.narrow(axis, max(pixels, 0), kept))
    return moved


Operation = Callable[[Tensor, float, int], Tensor]
"""(frames, level in 0..1, sign -1 or 1) -> frames."""


def _positive(operation: Callable[[Tensor, int], Tensor], argument: Callable[[float], int]) -> Operation:
    return lambda frames, level, sign: operation(frames, argument(level))


def _signed(operation: Callable[[Tensor, float], Tensor], most: float, around: float = 0.0) -> Operation:
    return lambda frames, level, sign: operation(frames, around + sign * level * most)


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda frames, level, sign: auto_contrast(frames),
    "equalize": lambda frames, level, sign: equalize(frames),
    "invert": lambda frames, level, sign: invert(frames),
    "rotate": _signed(rotate, 30.0),
    "posterize": _positive(posterize, lambda level: 4 - int(level * 4)),
    "solarize": _positive(solarize, lambda level: 256 - int(level * 256)),
    "solarize_add": _positive(solarize_add, lambda level: int(level * 110)),
    "colour": _signed(color, 0.9, 1.0),
    "contrast": _signed(contrast, 0.9, 1.0),
    "brightness": _signed(brightness, 0.9, 1.0),
    "sharpness": _signed(sharpness, 0.9, 1.0),
    "shear_x": _signed(shear_x, 0.3),
    "shear_y": _signed(shear_y, 0.3),
    "translate_x": _signed(translate_x, 0.45),
    "translate_y": _signed(translate_y, 0.45),
}
"""The increasing policy: what a magnitude of 10 (level 1) does stands beside each name."""


@dataclass(frozen=True)
class RandAugment:
    """Apply `count` drawn operations, each with `probability`, to a clip.

    Attributes:
        magnitude: mean magnitude, 0..10.
        count: operations drawn, with replacement.
        spread: standard deviation of the magnitude.
        probability: that a drawn operation is applied.
    """

    magnitude: float = 7.0
    count: int = 4
    spread: float = 0.5
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude <= MAX_LEVEL or self.count < 0 or self.spread < 0 or not 0 <= self.probability <= 1:
            raise ValueError(f"RandAugment magnitude 0..10, count and spread from 0, probability 0..1: {self}")

    @classmethod
    def parse(cls, text: str) -> RandAugment:
        """Read "rand-m7-n4-mstd0.5-inc1": magnitude, count, spread, increasing policy (the only one offered).

        Raises:
            ValueError: another policy or an unknown part.
        """
        kind, *parts = text.split("-")
        known = {"m": 10.0, "n": 2.0, "mstd": 0.0, "inc": 0.0, "p": 0.5}
        for part in parts:
            match = re.fullmatch(r"(mstd|m|n|inc|p)(\d+(?:\.\d+)?)", part)
            if match is None:
                raise ValueError(f"RandAugment setting {text!r}: cannot read {part!r}")
            known[match[1]] = float(match[2])
        if kind != "rand" or known["inc"] != 1 or known["n"] != int(known["n"]):
            raise ValueError(f"RandAugment setting {text!r}: must look like rand-m7-n4-mstd0.5-inc1")
        return cls(known["m"], int(known["n"]), known["mstd"], known["p"])

    def draw(self, rng: np.random.RandomState) -> list[tuple[str, float, int]]:
        """The operations of one clip: name, level in 0..1, sign."""
        names = list(OPERATIONS)
        drawn = []
        for index in rng.randint(len(names), size=self.count):
            applied = rng.uniform() < self.probability
            level = float(np.clip(rng.normal(self.magnitude, self.spread), 0, MAX_LEVEL)) / MAX_LEVEL
            sign = 1 if rng.uniform() < 0.5 else -1
            if applied:
                drawn.append((names[index], level, sign))
        return drawn

    def __call__(self, frames: Tensor, rng: np.random.RandomState) -> Tensor:
        """(T, 3, H, W) uint8 -> the same shape, the input is not changed."""
        for name, level, sign in self.draw(rng):
            frames = OPERATIONS[name](frames, level, sign)
        return frames
