"""The weight-space ensemble of a run: its result lies between where it started and where it came."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_world import small_recipe

from internvideo.pipeline import prepare, run_recipe
from internvideo.recipe import build_recipe
from internvideo.storage import read_safetensors


def trained(folder: Path, share: float) -> dict[str, torch.Tensor]:
    recipe = build_recipe({**small_recipe("supervised"), "base_weight": share})
    return read_safetensors(run_recipe(recipe, folder, device="cpu"))[0]


def test_the_share_of_the_initial_weights(tmp_path: Path) -> None:
    initial = prepare(build_recipe(small_recipe("supervised"))).model.state_dict()
    tuned, half, none = (trained(tmp_path / str(share), share) for share in (0.0, 0.5, 1.0))
    moved = [name for name in initial if not torch.equal(initial[name], tuned[name])]
    assert moved
    for name in initial:
        assert torch.equal(none[name], initial[name]), name
        torch.testing.assert_close(half[name], (initial[name] + tuned[name]) / 2)


def test_a_finished_run_gives_the_same_ensemble_again(tmp_path: Path) -> None:
    first = trained(tmp_path / "run", 0.5)
    again = trained(tmp_path / "run", 0.5)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(Exception, match="base_weight"):
        build_recipe({**small_recipe("supervised"), "base_weight": share})
