"""The head that a fine-tuning starts with, in every stage that has one: kept, by names, fresh, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_grounding
import test_objects
import test_spatio_temporal_localization
import test_temporal_localization
from small_world import small_recipe

from internvideo.apps.dry_run import describe
from internvideo.errors import RecipeError, WeightsError
from internvideo.pipeline import prepare
from internvideo.recipe import Recipe, build_recipe, read_recipe
from internvideo.training.model_setup import build_model
from internvideo.training.recipe import Job
from internvideo.weights.state import save_model


def regions(folder: Path) -> Recipe:
    test_spatio_temporal_localization.world(folder, 3)
    return test_spatio_temporal_localization.recipe(folder)


def anticipation(folder: Path) -> Recipe:
    test_objects.world(folder, 6)
    return test_objects.recipe(folder, "anticipation")


def localization(folder: Path) -> Recipe:
    return test_temporal_localization.recipe(test_temporal_localization.world(folder, 6))


def grounding(folder: Path) -> Recipe:
    return test_grounding.recipe(test_grounding.world(folder, 12))


def answering(folder: Path) -> Recipe:
    return build_recipe(small_recipe("question_answering"))


def supervised(folder: Path) -> Recipe:
    return build_recipe(small_recipe("supervised"))


LAYERS: dict[Callable[[Path], Recipe], str] = {
    regions: "head.projection",
    anticipation: "head.projection",
    localization: "cls_head.cls_head.conv",
    grounding: "word",
    answering: "head.5",
    supervised: "head",
}


def started(
    folder: Path, build: Callable[[Path], Recipe], known: Callable[[Any], Any], **changes: Any
) -> tuple[Job, Job]:
    """A job, and one that starts from its shaken weights, whose classes are those of `known`."""
    plain = build(folder / "world")
    first = prepare(plain)
    for value in first.model.parameters():
        value.data.add_(1.0)
    path = folder / "first.safetensors"
    save_model(path, first.model, {"classes": json.dumps(known(first.classes))})
    return first, prepare(build_recipe({**plain.resolved(), "init": {"weights": str(path)}, **changes}))


@pytest.mark.parametrize("build", LAYERS)
def test_a_fresh_head_is_fresh(build: Callable[[Path], Recipe], tmp_path: Path) -> None:
    first, job = started(tmp_path, build, list, init_head="random")
    drawn = prepare(first.recipe).model.state_dict()
    old, own = first.model.state_dict(), job.model.state_dict()
    layer = f"{LAYERS[build]}."
    assert job.head_init_lines == (f"random, {len(job.classes)} classes",)
    assert any(name.startswith(layer) for name in own)
    for name, value in own.items():
        assert value.equal(drawn[name] if name.startswith(layer) else old[name]), name


@pytest.mark.parametrize("build", LAYERS)
def test_the_same_head_is_of_the_same_classes(build: Callable[[Path], Recipe], tmp_path: Path) -> None:
    first, job = started(tmp_path, build, list)
    assert all(value.equal(first.model.state_dict()[name]) for name, value in job.model.state_dict().items())
    with pytest.raises(WeightsError, match="of the head has the index of"):
        started(tmp_path / "other", build, lambda classes: classes[::-1])
    with pytest.raises(WeightsError, match="a head of"):
        started(tmp_path / "more", build, lambda classes: [*classes, "one more"])


@pytest.mark.parametrize("build", [regions, anticipation, localization, answering])
def test_rows_are_found_by_names(build: Callable[[Path], Recipe], tmp_path: Path) -> None:
    first, job = started(tmp_path, build, lambda classes: classes[::-1], init_head="match_names")
    name, count = f"{LAYERS[build]}.weight", len(job.classes)
    old, own = first.model.state_dict()[name], job.model.state_dict()[name]
    assert own[:count].equal(old[:count].flip(0))
    assert own[count:].equal(old[count:])  # the background of anticipation stays where it is


def test_a_map_of_classes_is_refused_where_there_are_none() -> None:
    recipe = build_recipe({**small_recipe("multiple_choice"), "init_class_map": "no.json"})
    with pytest.raises(RecipeError, match="init_class_map"):
        prepare(recipe)


@pytest.mark.parametrize("kind", ["random", "match_names"])
def test_the_data_tell_the_classes_where_the_head_is_another(kind: str) -> None:
    recipe = read_recipe("sample/supervised_masked", ["model.overrides.num_classes=400", f"init_head={kind}"])
    assert build_model(recipe, 2).config.num_classes == 2  # type: ignore[union-attr]  # a classifier
    with pytest.raises(RecipeError, match="400, but the manifest has 2 classes"):
        build_model(read_recipe("sample/supervised_masked", ["model.overrides.num_classes=400"]), 2)


def test_own_classes_wait_for_the_weights_alone(tmp_path: Path) -> None:
    tree = small_recipe("supervised", model={"overrides": {"num_classes": 400}})
    recipe = build_recipe({**tree, "init_head": "random", "init": {"weights": str(tmp_path / "none.safetensors")}})
    with pytest.raises(WeightsError, match=r"none\.safetensors"):
        describe(recipe, device="cpu")


def test_settings_of_a_part_that_are_none_are_refused() -> None:
    recipe = build_recipe(
        {**small_recipe("interaction"), "model": {"name": "interaction-b", "overrides": {"masked": 5}}}
    )
    with pytest.raises(RecipeError, match=r"model.overrides.masked: 5"):
        build_model(recipe, 2)
