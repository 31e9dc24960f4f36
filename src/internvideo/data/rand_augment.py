"""RandAugment on whole clips: the same operations with the same strengths for all frames.

Operations and their strengths are those of the "increasing" policy (timm, auto_augment.py): every drawn
operation is applied with probability 1/2, its magnitude is normal around `magnitude` in 0..10. The operations work on
any device: on the CPU few frames at a time, which fit its cache, on others all frames of a clip in one call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from internvideo.data.resize import Box

GRAY = 128
"""Fill value for pixels outside the frame in geometric operations."""
MAX_LEVEL = 10.0
"""Largest magnitude."""
WARP_CHUNK_SIZE = 2
"""Frames warped together on the CPU: few enough for its cache."""


def split_frames(frames: Tensor, cpu_chunk_size: int = 1) -> tuple[Tensor, ...]:
    """Split (T, 3, H, W) into views of `cpu_chunk_size` frames on the CPU; other devices get all frames at once."""
    return torch.split(frames, cpu_chunk_size if frames.device.type == "cpu" else max(len(frames), 1))


def _blend(base: Tensor, frame: Tensor, factor: float) -> Tensor:
    """Return base + factor (frame - base) of float32 tensors, clipped to 0..255 like the image library's enhancers."""
    return torch.add(base, frame - base, alpha=factor).clamp_(0, 255)


def _luma(frame: Tensor) -> Tensor:
    """Convert (..., 3, H, W) float32 levels to (..., H, W) float32 gray levels, ITU-R 601 in 16-bit fixed point.

    Sums stay below 2^24, so they are exact in float32.
    """
    red, green, blue = frame.unbind(-3)
    level = red.mul(19595 / 65536).add_(green, alpha=38470 / 65536).add_(blue, alpha=7471 / 65536)
    return level.add_(0.5).floor_()


def _look_up(frames: Tensor, tables: Tensor) -> Tensor:
    """Map the levels of (T, 3, H, W) uint8 through uint8 tables that broadcast to (T, 3, 256)."""
    tables = tables.expand(len(frames), 3, 256).reshape(-1, 256)
    if frames.device.type != "cpu":
        return tables.gather(1, _planes(frames).long()).view(frames.shape)
    mapped = torch.empty(frames.shape, dtype=torch.uint8)
    for plane, table, result in zip(_planes(frames), tables, _planes(mapped), strict=True):
        torch.index_select(table, 0, plane.int(), out=result)  # one plane's indices fit the cache
    return mapped


def _planes(frames: Tensor) -> Tensor:
    """View (T, 3, H, W) as (T * 3, H * W); frames that are not contiguous are copied."""
    return frames.contiguous().view(-1, frames.shape[-2] * frames.shape[-1])


def _range(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest level of each channel of each frame, (T, 3, 1) uint8 each."""
    planes = _planes(frames)
    if frames.device.type != "cpu":
        return planes.amin(1).view(-1, 3, 1), planes.amax(1).view(-1, 3, 1)
    array = planes.numpy()  # NumPy reduces bytes several times as fast
    return torch.from_numpy(array.min(1)).view(-1, 3, 1), torch.from_numpy(array.max(1)).view(-1, 3, 1)


def _histograms(frames: Tensor) -> Tensor:
    """Count the levels of each channel of each frame, (T, 3, 256) int64."""
    planes = _planes(frames)
    if frames.device.type == "cpu":
        return torch.stack([torch.bincount(plane, minlength=256) for plane in planes]).view(-1, 3, 256)
    counts = torch.zeros(len(planes), 256, dtype=torch.int64, device=frames.device)  # bincount waits for the device
    return counts.scatter_add_(1, planes.long(), torch.ones_like(planes, dtype=torch.int64)).view(-1, 3, 256)


def _part(frames: Tensor, box: Box | None) -> Tensor:
    """Return the part of (T, 3, H, W) inside a box, a view."""
    if box is None:
        return frames
    top, left, height, width = box
    return frames[..., top : top + height, left : left + width]


def auto_contrast(frames: Tensor, box: Box | None = None) -> Tensor:
    """Stretch every channel of every frame to 0..255; return only the box."""
    low, high = (level.float() for level in _range(frames))
    scale = 255 / (high - low).clamp_min(1)
    levels = torch.arange(256, dtype=torch.float32, device=frames.device)
    table = ((levels - low) * scale).clamp(0, 255)
    return _look_up(_part(frames, box), torch.where(high > low, table, levels).byte())


def equalize(frames: Tensor, box: Box | None = None) -> Tensor:
    """Flatten the histogram of every channel of every frame; return only the box."""
    frames = frames.contiguous()
    count = _histograms(frames)
    total = frames.shape[-2] * frames.shape[-1]
    last = count.gather(-1, _range(frames)[1].long())
    step = (total - last) // 255
    table = ((step // 2 + count.cumsum(-1) - count) // step.clamp_min(1)).clamp_(max=255)
    return _look_up(_part(frames, box), torch.where(step > 0, table, torch.arange(256, device=frames.device)).byte())


def invert(frames: Tensor) -> Tensor:
    """Replace every level by 255 - level."""
    return 255 - frames


def posterize(frames: Tensor, bits: int) -> Tensor:
    """Keep the highest `bits` bits."""
    return frames & (0xFF & ~((1 << (8 - bits)) - 1))


def solarize(frames: Tensor, threshold: int) -> Tensor:
    """Invert the levels from `threshold` on."""
    levels = torch.arange(256, device=frames.device)
    return _look_up(frames, torch.where(levels >= threshold, 255 - levels, levels).byte())


def solarize_add(frames: Tensor, amount: int) -> Tensor:
    """Add `amount` to the levels below 128."""
    levels = torch.arange(256, device=frames.device)
    return _look_up(frames, torch.where(levels < 128, (levels + amount).clamp(max=255), levels).byte())


def color(frames: Tensor, factor: float) -> Tensor:
    """Multiply the saturation by `factor`."""
    colored = torch.empty_like(frames)
    for part, result in zip(split_frames(frames), split_frames(colored), strict=True):
        levels = part.float()
        result.copy_(_blend(_luma(levels).unsqueeze(-3), levels, factor))
    return colored


def contrast(frames: Tensor, factor: float, box: Box | None = None) -> Tensor:
    """Multiply the distance from the frame's mean gray by `factor`; return only the box."""
    luma = (_luma(part.float()).double() for part in split_frames(frames))
    mean = torch.cat([(levels.mean((-2, -1)) + 0.5).floor() for levels in luma])
    levels = torch.arange(256, dtype=torch.float32, device=frames.device).expand(len(frames), 1, 256)
    return _look_up(_part(frames, box), _blend(mean[:, None, None].float(), levels, factor).byte())


def brightness(frames: Tensor, factor: float) -> Tensor:
    """Multiply the levels by `factor`."""
    brightened = torch.empty_like(frames)
    for part, result in zip(split_frames(frames), split_frames(brightened), strict=True):
        result.copy_(part.float().mul_(factor).clamp_(0, 255))
    return brightened


def sharpness(frames: Tensor, factor: float) -> Tensor:
    """Multiply the distance from a 3 x 3 smoothing by `factor`; the outermost pixels do not change."""
    if min(frames.shape[-2:]) < 3:
        return frames
    sharpened = frames.clone()
    for part, result in zip(split_frames(frames), split_frames(sharpened), strict=True):
        levels = part.float()
        rows = levels[..., :-2, :] + levels[..., 1:-1, :]
        rows += levels[..., 2:, :]
        inner = levels[..., 1:-1, 1:-1]
        box = inner.mul(4).add_(rows[..., :-2]).add_(rows[..., 1:-1]).add_(rows[..., 2:])
        smooth = box.mul_(2).add_(13).div_(26).floor_()  # whole numbers: the nearest to a thirteenth, exactly
        result[..., 1:-1, 1:-1] = _blend(smooth, inner, factor)
    return sharpened


def affine(frames: Tensor, matrix: tuple[float, float, float, float, float, float], box: Box | None = None) -> Tensor:
    """Resample (bicubic): the pixel at (x, y) is that of (a x + b y + c, d x + e y + f), in pixel centers."""
    height, width = frames.shape[-2:]
    a, b, c, d, e, f = matrix
    top, left, high, wide = box or (0, 0, height, width)
    rows, columns = (
        torch.arange(start, start + count, device=frames.device) + 0.5 for start, count in ((top, high), (left, wide))
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    grid = torch.stack([(a * x + b * y + c) * (2 / width) - 1, (d * x + e * y + f) * (2 / height) - 1], dim=-1)
    moved = frames.new_empty((len(frames), 3, high, wide))
    chunks = (split_frames(tensor, WARP_CHUNK_SIZE) for tensor in (frames, moved))
    for part, result in zip(*chunks, strict=True):
        # Frames and channels share the sampling grid, so they are stacked as channels of one image; outside is GRAY.
        image = part.contiguous().float().sub_(GRAY).view(1, -1, height, width)
        warped = functional.grid_sample(image, grid[None], mode="bicubic", padding_mode="zeros", align_corners=False)
        result.copy_(warped.add_(GRAY).round_().clamp_(0, 255).view(result.shape))
    return moved


def rotate(frames: Tensor, degrees: float, box: Box | None = None) -> Tensor:
    """Rotate counter-clockwise about the center of the frame."""
    height, width = frames.shape[-2:]
    cos, sin = float(np.cos(np.deg2rad(degrees))), float(np.sin(np.deg2rad(degrees)))
    x, y = width / 2, height / 2
    return affine(frames, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), box)


def shear_x(frames: Tensor, factor: float, box: Box | None = None) -> Tensor:
    """Move the pixel (x, y) to the left by factor * y."""
    return affine(frames, (1, factor, 0, 0, 1, 0), box)


def shear_y(frames: Tensor, factor: float, box: Box | None = None) -> Tensor:
    """Move the pixel (x, y) up by factor * x."""
    return affine(frames, (1, 0, 0, factor, 1, 0), box)


def translate_x(frames: Tensor, fraction: float, box: Box | None = None) -> Tensor:
    """Move to the left by a fraction of the width, rounded to whole pixels."""
    return _part(_shifted(frames, round(fraction * frames.shape[-1]), -1), box)


def translate_y(frames: Tensor, fraction: float, box: Box | None = None) -> Tensor:
    """Move up by a fraction of the height, rounded to whole pixels."""
    return _part(_shifted(frames, round(fraction * frames.shape[-2]), -2), box)


def _shifted(frames: Tensor, pixels: int, axis: int) -> Tensor:
    moved = torch.full_like(frames, GRAY)
    length = frames.shape[axis] - abs(pixels)
    moved.narrow(axis, max(-pixels, 0), length).copy_(frames.narrow(axis, max(pixels, 0), length))
    return moved


Operation = Callable[..., Tensor]
"""(frames, level in 0..1, sign -1 or 1, box or None) -> frames; of operations in `WHOLE`, only the box."""


def _positive(operation: Callable[[Tensor, int], Tensor], argument: Callable[[float], int]) -> Operation:
    return lambda frames, level, sign, box=None: operation(frames, argument(level))


def _signed(operation: Callable[..., Tensor], strength: float, neutral: float = 0.0) -> Operation:
    return lambda frames, level, sign, box=None: operation(frames, neutral + sign * level * strength)


def _whole(operation: Callable[..., Tensor], strength: float, neutral: float = 0.0) -> Operation:
    return lambda frames, level, sign, box=None: operation(frames, neutral + sign * level * strength, box)


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda frames, level, sign, box=None: auto_contrast(frames, box),
    "equalize": lambda frames, level, sign, box=None: equalize(frames, box),
    "invert": lambda frames, level, sign, box=None: invert(frames),
    "rotate": _whole(rotate, 30.0),
    "posterize": _positive(posterize, lambda level: 4 - int(level * 4)),
    "solarize": _positive(solarize, lambda level: 256 - int(level * 256)),
    "solarize_add": _positive(solarize_add, lambda level: int(level * 110)),
    "colour": _signed(color, 0.9, 1.0),
    "contrast": _whole(contrast, 0.9, 1.0),
    "brightness": _signed(brightness, 0.9, 1.0),
    "sharpness": _signed(sharpness, 0.9, 1.0),
    "shear_x": _whole(shear_x, 0.3),
    "shear_y": _whole(shear_y, 0.3),
    "translate_x": _whole(translate_x, 0.45),
    "translate_y": _whole(translate_y, 0.45),
}
"""Operations of the increasing policy with their strength at magnitude 10 (level 1)."""

WHOLE = {"auto_contrast", "equalize", "contrast", "rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
"""Operations that need the whole frame for a part of their result; the others need that part (and its neighbors)."""


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

        Raises ValueError: another policy or an unknown part.
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
        """Draw the operations of one clip: name, level in 0..1, sign."""
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
        """Augment (T, 3, H, W) uint8 with drawn operations; the input is not changed."""
        return self.apply(frames, self.draw(rng))

    def apply(self, frames: Tensor, drawn: Sequence[tuple[str, float, int]], box: Box | None = None) -> Tensor:
        """Apply drawn operations to (T, 3, H, W) uint8 and return the part inside a box, (T, 3, height, width).

        Once no remaining operation needs the whole frame, only the box (with the margin of `sharpness`) is computed.
        """
        if not drawn:
            return _part(frames, box)
        height, width = frames.shape[-2:]
        top, left, high, wide = box or (0, 0, height, width)
        last = max((index for index, (name, _, _) in enumerate(drawn) if name in WHOLE), default=-1)
        margin = sum(name == "sharpness" for name, _, _ in drawn[last + 1 :])
        above, before = min(top, margin), min(left, margin)
        grown_high = min(top + high + margin, height) - (top - above)
        grown = (top - above, left - before, grown_high, min(left + wide + margin, width) - (left - before))
        if last < 0:
            frames = _part(frames, grown)
        for index, (name, level, sign) in enumerate(drawn):
            # Planar layout: reading a channel or a row is a contiguous read.
            frames = OPERATIONS[name](frames.contiguous(), level, sign, grown if index == last else None)
        return _part(frames, (above, before, high, wide))
