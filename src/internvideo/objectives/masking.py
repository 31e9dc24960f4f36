"""Masks of masked video pretraining: tube, random, progressive (masking_generator.py).

A mask is (B, N) bool over tokens in the order time, row, column; True = masked; every sample masks the same number.
Masks are sampled on the generator's device, without a sync.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Grid = tuple[int, int, int]
"""(t, h, w) tokens."""
MaskKind = Literal["tube", "random", "progressive", "center"]


def _check(grid: Grid, ratio: float) -> None:
    if min(grid) < 1 or not 0.0 <= ratio < 1.0:
        raise ValueError(f"grid {grid}, ratio {ratio}: the grid must be positive and the ratio in [0, 1)")


def progressive_num_visible(
    grid: Grid, ratio: float, final_ratio: float, kind: Literal["progressive", "center"]
) -> list[int]:
    """Return the number of visible tokens at each temporal position, linear between masking `ratio` and `final_ratio`.

    "progressive" decreases from the first to the last position; "center" increases to the middle and decreases again.
    """
    _check(grid, ratio)
    _check(grid, final_ratio)
    num_temporal, num_spatial = grid[0], grid[1] * grid[2]
    max_visible, min_visible = int((1 - ratio) * num_spatial), int((1 - final_ratio) * num_spatial)
    if kind == "progressive":
        return [int(count) for count in np.linspace(max_visible, min_visible, num_temporal)]
    rise = [int(count) for count in np.linspace(min_visible, max_visible, (num_temporal + 1) // 2)]
    return rise + rise[::-1][num_temporal % 2 :]


def num_masked_tokens(kind: MaskKind, grid: Grid, ratio: float, final_ratio: float = 0.95) -> int:
    """Return M, the number of masked tokens, of N, in every mask of this kind."""
    _check(grid, ratio)
    t, h, w = grid
    if kind == "tube":
        return t * int(ratio * h * w)
    if kind == "random":
        return int(ratio * t * h * w)
    return t * h * w - sum(progressive_num_visible(grid, ratio, final_ratio, kind))


def _ranks(batch: int, positions: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Return (B, positions) int64: a uniformly random permutation in each row."""
    scores = torch.rand(batch, positions, generator=generator, device=generator.device)
    return scores.argsort(dim=1).to(device, non_blocking=True)


def tube_mask(
    batch: int, grid: Grid, ratio: float, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Sample one spatial mask of int(ratio * h * w) positions per clip, repeated over time, (B, N) bool."""
    _check(grid, ratio)
    t, h, w = grid
    spatial = _ranks(batch, h * w, generator, device) < int(ratio * h * w)
    return spatial.repeat(1, t)


def random_mask(
    batch: int, grid: Grid, ratio: float, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Sample int(ratio * N) masked tokens anywhere in the clip, (B, N) bool."""
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
    kind: Literal["progressive", "center"] = "progressive",
) -> Tensor:
    """Rank the spatial positions per clip; each time keeps as many first ones as `kind` gives, (B, N) bool."""
    num_visible = torch.tensor(progressive_num_visible(grid, ratio, final_ratio, kind)).to(device, non_blocking=True)
    ranks = _ranks(batch, grid[1] * grid[2], generator, device)
    return (ranks[:, None, :] >= num_visible[None, :, None]).flatten(1)


def sample_mask(
    kind: MaskKind, batch: int, grid: Grid, ratio: float, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Sample masks of a recipe's kind. Returns (B, N) bool; raises ValueError for an unknown kind."""
    if kind == "tube":
        return tube_mask(batch, grid, ratio, generator, device)
    if kind == "random":
        return random_mask(batch, grid, ratio, generator, device)
    if kind in ("progressive", "center"):
        return progressive_mask(batch, grid, ratio, generator, device, kind=kind)
    raise ValueError(f"mask kind {kind!r}, expected: tube, random, progressive, center")
