"""Which tokens are hidden in masked pretraining (masking_generator.py).

A mask is (B, N) bool over tokens in the order time, row, column; True = masked; every sample masks the same number.
The torch forms draw on the generator's device without waiting for it; the numpy forms repeat the published
generators draw by draw.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Grid = tuple[int, int, int]
"""(t, h, w) tokens."""
MaskKind = Literal["tube", "random", "progressive", "centre"]


def _check(grid: Grid, ratio: float) -> None:
    if min(grid) < 1 or not 0.0 <= ratio < 1.0:
        raise ValueError(f"grid {grid}, ratio {ratio}: the grid must be positive and the ratio in [0, 1)")


def progressive_kept(grid: Grid, ratio: float, final_ratio: float, kind: Literal["progressive", "centre"]) -> list[int]:
    """Tokens kept in each time slot: linear between those of `ratio` (most) and of `final_ratio` (fewest).

    "progressive" falls from the first slot to the last; "centre" rises to the middle and falls again.
    """
    _check(grid, ratio)
    _check(grid, final_ratio)
    slots, places = grid[0], grid[1] * grid[2]
    most, fewest = int((1 - ratio) * places), int((1 - final_ratio) * places)
    if kind == "progressive":
        return [int(kept) for kept in np.linspace(most, fewest, slots)]
    rise = [int(kept) for kept in np.linspace(fewest, most, (slots + 1) // 2)]
    return rise + rise[::-1][slots % 2 :]


def masked_count(kind: MaskKind, grid: Grid, ratio: float, final_ratio: float = 0.95) -> int:
    """M, how many of the N tokens every mask of this kind hides."""
    _check(grid, ratio)
    t, h, w = grid
    if kind == "tube":
        return t * int(ratio * h * w)
    if kind == "random":
        return int(ratio * t * h * w)
    return t * h * w - sum(progressive_kept(grid, ratio, final_ratio, kind))


def _ranks(batch: int, places: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """(B, places) int64: in each row a uniformly random permutation."""
    scores = torch.rand(batch, places, generator=generator, device=generator.device)
    return scores.argsort(dim=1).to(device, non_blocking=True)


def tube_mask(
    batch: int, grid: Grid, ratio: float, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """One spatial mask per sample, the same in every time slot: int(ratio * h * w) masked of each slot.

    Returns:
        (B, N) bool.
    """
    _check(grid, ratio)
    t, h, w = grid
    spatial = _ranks(batch, h * w, generator, device) < int(ratio * h * w)
    return spatial.repeat(1, t)


def random_mask(
    batch: int, grid: Grid, ratio: float, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """int(ratio * N) tokens anywhere in the clip. Returns (B, N) bool."""
    _check(grid, ratio)
    tokens = grid[0] * grid[1] * grid[2]
    return _ranks(batch, tokens, generator, device) < int(ratio * tokens)


def progressive_mask(
    batch: int,
    grid: Grid,
    ratio: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    *,
    final_ratio: float = 0.95,
    kind: Literal["progressive", "centre"] = "progressive",
) -> Tensor:
    """One ranking of the h * w places per sample; each slot keeps the best of it, more or fewer by `kind`.

    Returns:
        (B, N) bool.
    """
    kept = torch.tensor(progressive_kept(grid, ratio, final_ratio, kind)).to(device, non_blocking=True)
    ranks = _ranks(batch, grid[1] * grid[2], generator, device)
    return (ranks[:, None, :] >= kept[None, :, None]).flatten(1)


def draw_mask(
    kind: MaskKind,
    batch: int,
    grid: Grid,
    ratio: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The mask of a kind named in a recipe. Returns (B, N) bool; raises ValueError for an unknown kind."""
    if kind == "tube":
        return tube_mask(batch, grid, ratio, generator, device)
    if kind == "random":
        return random_mask(batch, grid, ratio, generator, device)
    if kind in ("progressive", "centre"):
        return progressive_mask(batch, grid, ratio, generator, device, kind=kind)
    raise ValueError(f"mask kind {kind!r}, allowed: tube, random, progressive, centre")
