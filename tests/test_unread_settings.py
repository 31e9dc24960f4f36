"""Settings of other stages, options of other tasks: refused by name, never passed over in silence."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from small_world import small_recipe

from internvideo.errors import RecipeError
from internvideo.evaluation import EVALUATIONS, EvaluationSettings, evaluate_task
from internvideo.pretraining.masked import MaskedSettings
from internvideo.recipe import STAGES, DataSettings, build_recipe, read_recipe
from internvideo.tasks.evaluation_settings import OF_EVERY_TASK

OTHERS: dict[str, tuple[str, str, str]] = {
    "words of queries": ("sample/supervised_masked", "data.queries.most=7", "'data.queries.most' counts in grounding"),
    "proposals": ("sample/supervised_masked", "data.proposals.files=[nofile.json]", "counts in refinement"),
    "one class": ("sample/supervised_masked", "data.features.class_agnostic=true", "counts in localisation"),
    "a detector's boxes": ("sample/masked", "data.key_frames.candidates=no.json", "counts in regions, anticipation"),
    "a world": ("sample/multimodal", "data.world.kind=miniworld", "counts in waypoints, navigation"),
    "panoramas": ("sample/navigation", "data.world.panoramas=7", "counts in waypoints"),
    "image batches": ("sample/supervised_masked", "data.image_batch_size=3", "counts in multimodal"),
    "mixing": ("sample/masked", "data.augment.mixup=0.8", "counts in supervised"),
    "captions": ("sample/supervised_multimodal", "data.captions=each", "counts in multimodal, retrieval"),
    "clips of features": ("sample/localisation", "data.sampling.frames=3", "counts in masked"),
    "colours of boxes": ("sample/spatio_temporal", "data.augment.erasing=0.5", "counts in masked"),
    "questions": ("sample/multiple_choice", "data.questions.most=3", "counts in answering"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_setting_of_another_stage_is_refused(case: str) -> None:
    name, override, told = OTHERS[case]
    with pytest.raises(RecipeError, match=told) as caught:
        read_recipe(name, [override])
    assert "\n" not in str(caught.value)
    assert f"in the stage '{read_recipe(name).stage}'" in str(caught.value)


def test_all_of_them_are_told_at_once_and_what_is_as_usual_is_not() -> None:
    usual = DataSettings.model_fields["queries"].default.most
    assert read_recipe("sample/masked", [f"data.queries.most={usual}", "data.split=train"]).data.split == "train"
    with pytest.raises(RecipeError, match=r"data.hands.*data.queries.most"):
        read_recipe("sample/masked", ["data.queries.most=7", "data.hands.seconds=9"])


def test_saved_recipes_are_read_as_they_are() -> None:
    """What older versions accepted stands in the weights they wrote."""
    tree = small_recipe("supervised")
    tree["data"]["queries"] = {"most": 7}
    assert build_recipe(tree).data.queries.most == 7


def test_every_section_counts_somewhere_and_every_name_exists() -> None:
    read = {name.partition(".")[0] for entry in STAGES.values() for name in entry.reads}
    assert read | {"train", "loader"} == set(DataSettings.model_fields)
    for entry in STAGES.values():
        for name in entry.reads:
            section, _, leaf = name.partition(".")
            if leaf:
                assert leaf in type(DataSettings.model_fields[section].default).model_fields, name


@pytest.mark.parametrize("value", ["5", "[1]", "text", "true"])
def test_settings_that_are_none_do_not_become_the_usual_ones(value: str) -> None:
    with pytest.raises(RecipeError, match="'settings': must be settings of the stage"):
        read_recipe("sample/supervised_masked", [f"settings={value}"])


def test_settings_of_another_stage_are_refused() -> None:
    assert read_recipe("sample/supervised_masked", ["settings="]).settings == STAGES["supervised"].settings()
    with pytest.raises(RecipeError, match=r"settings.caption_weight' in the stage 'supervised', it is of multimodal"):
        read_recipe("sample/supervised_masked", ["settings.caption_weight=1"])
    with pytest.raises(RecipeError, match="must be settings of the stage"):
        build_recipe({**small_recipe("supervised"), "settings": MaskedSettings()})


GIVEN: dict[str, Any] = {
    "views": 2, "crops": 3, "unknown": Path("no"), "train": Path("no"), "class_scores": Path("no"),
    "persons": Path("no"), "boxes": Path("no"), "restrict": True, "proposals": Path("no"), "features": Path("no"),
    "captions": "all", "bank": Path("no"), "frames": (3, 4), "also": (Path("no"),), "beams": 7, "nucleus": 0.5,
    "seed": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_an_option_of_another_task_is_refused_before_anything_is_read(name: str, tmp_path: Path) -> None:
    settings = EvaluationSettings(**{name: GIVEN[name]})
    readers = [task for task, entry in EVALUATIONS.items() if name in entry.reads]
    assert readers
    for task in EVALUATIONS.keys() - set(readers):
        with pytest.raises(RecipeError, match=f"{task}: does not read --{name.replace('_', '-')}") as caught:
            evaluate_task(task, tmp_path / "none.safetensors", tmp_path / "none.jsonl", tmp_path, settings)
        assert readers[0] in str(caught.value)


def test_every_option_is_read_by_a_task() -> None:
    assert {one.name for one in fields(EvaluationSettings)} == {*GIVEN, "class_map", *OF_EVERY_TASK}
    assert {name for entry in EVALUATIONS.values() for name in entry.reads} == {*GIVEN, "class_map"}
