"""Recipes for evaluation: no run is made of them, and they have no settings of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvideo.apps.dry_run import describe
from internvideo.errors import RecipeError
from internvideo.pipeline import run_recipe
from internvideo.recipe import Recipe, read_recipe


def test_a_recipe_for_evaluation_is_not_trained(tmp_path: Path) -> None:
    zero_shot = read_recipe("benchmarks/zero_shot_k400")
    assert not isinstance(zero_shot, Recipe)
    for work in (lambda: run_recipe(zero_shot, tmp_path / "run"), lambda: describe(zero_shot)):
        with pytest.raises(RecipeError, match="neither optimizer nor schedule: it is for evaluation"):
            work()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.train=x.jsonl", "'train' is of training"),
        ("data.loader.workers=2", r"'loader\.workers' is of training"),
        ("data.augment.mixup=0.5", r"no setting 'data\.augment\.mixup'"),
        ("task=zero_shoot", "'zero_shoot'; expected: zero_shot, retrieval, multiple_choice"),
        ("stage=retrieval", "without a stage"),
        ("init_head=fresh", "no setting 'init_head'"),
    ],
)
def test_a_recipe_for_evaluation_has_no_settings_of_training(change: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        read_recipe("benchmarks/zero_shot_k400", [change])
