"""Masks: counts, shapes, chance, repeatability."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from internvideo.objectives.masking import (
    num_masked_tokens,
    progressive_mask,
    progressive_num_visible,
    random_mask,
    sample_mask,
    tube_mask,
)

GRID = (8, 14, 14)
KINDS = ("tube", "random", "progressive", "center")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "ratio"), [(GRID, 0.9), ((4, 8, 8), 0.9), ((3, 2, 5), 0.5), ((1, 1, 1), 0.0)])
def test_every_sample_masks_the_count_of_its_kind(kind: str, grid: tuple[int, int, int], ratio: float) -> None:
    mask = sample_mask(kind, 5, grid, ratio, generator())
    assert mask.shape == (5, grid[0] * grid[1] * grid[2])
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [num_masked_tokens(kind, grid, ratio)] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_decides(kind: str) -> None:
    first, again, other = (sample_mask(kind, 4, GRID, 0.9, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_a_tube_is_the_same_in_every_slot() -> None:
    mask = tube_mask(3, GRID, 0.9, generator()).view(3, 8, 196)
    assert bool((mask == mask[:, :1]).all())
    assert int(mask[0, 0].sum()) == 176


def test_a_random_mask_is_not_a_tube() -> None:
    mask = random_mask(3, GRID, 0.9, generator()).view(3, 8, 196)
    assert not bool((mask == mask[:, :1]).all())
    assert int(mask[0].sum()) == int(0.9 * 1568)


def test_every_place_is_masked_equally_often() -> None:
    share = tube_mask(4000, (2, 3, 4), 0.5, generator()).double().mean(0)
    assert float((share - 0.5).abs().max()) < 5 * (0.25 / 4000) ** 0.5


def test_progressive_slots() -> None:
    falling = progressive_num_visible(GRID, 0.9, 0.95, "progressive")
    assert falling[0] == 19
    assert falling[-1] == 9
    assert falling == sorted(falling, reverse=True)
    center = progressive_num_visible(GRID, 0.9, 0.95, "center")
    assert center == center[::-1]
    assert (center[0], max(center), center[3]) == (9, 19, 19)
    odd = progressive_num_visible((5, 14, 14), 0.9, 0.95, "center")
    assert (len(odd), odd[2], odd) == (5, 19, odd[::-1])


@pytest.mark.parametrize("kind", ["progressive", "center"])
def test_progressive_slots_keep_the_best_of_one_ranking(kind: str) -> None:
    kept = (~progressive_mask(2, GRID, 0.9, generator(), kind=kind)).view(2, 8, 196)
    expected = progressive_num_visible(GRID, 0.9, 0.95, kind)
    assert kept.sum(2).tolist() == [expected, expected]
    order = np.argsort(expected)
    for fewer, more in pairwise(order):
        assert not bool((kept[:, fewer] & ~kept[:, more]).any())


@pytest.mark.parametrize(("grid", "ratio"), [((0, 2, 2), 0.5), ((2, 2, 2), 1.0), ((2, 2, 2), -0.1)])
def test_impossible_masks_are_refused(grid: tuple[int, int, int], ratio: float) -> None:
    for draw in (tube_mask, random_mask, progressive_mask):
        with pytest.raises(ValueError, match="grid"):
            draw(1, grid, ratio, generator())


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="tube, random"):
        sample_mask("block", 1, GRID, 0.9, generator())  # type: ignore[arg-type]  # the mistake under test


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_drawn_on_the_gpu_without_waiting(kind: str) -> None:
    cuda = torch.Generator("cuda").manual_seed(0)
    sample_mask(kind, 2, GRID, 0.9, cuda, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        mask = sample_mask(kind, 2, GRID, 0.9, cuda, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert mask.is_cuda
    assert mask.sum(1).tolist() == [num_masked_tokens(kind, GRID, 0.9)] * 2
