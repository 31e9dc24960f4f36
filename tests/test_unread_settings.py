"""Settings of other stages, options of other tasks: refused by name, never skipped in silence."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from small_world import small_recipe

from internvideo.cli.evaluate import task_command
from internvideo.errors import RecipeError
from internvideo.evaluation import evaluate_task, find_task
from internvideo.pretraining.masked import MaskedSettings
from internvideo.recipe import build_recipe, build_saved_recipe, read_recipe
from internvideo.tasks import STAGES, TASKS
from internvideo.tasks.task import EvaluateOptions
from internvideo.training.recipe import VERSION

OTHERS: dict[str, tuple[str, str, str]] = {
    "words of queries": ("sample/supervised_masked", "data.queries.max_vocab=7", "it is a setting of grounding"),
    "proposals": ("sample/supervised_masked", "data.proposals.files=[nofile.json]", "it is a setting of refinement"),
    "one class": (
        "sample/supervised_masked",
        "data.features.class_agnostic=true",
        "it is a setting of temporal_localization",
    ),
    "a detector's boxes": (
        "sample/masked",
        "data.key_frames.candidates=no.json",
        "it is a setting of spatio_temporal_localization, anticipation",
    ),
    "a world": ("sample/multimodal", "data.world.kind=miniworld", "it is a setting of waypoints, navigation"),
    "panoramas": ("sample/navigation", "data.world.panoramas=7", "it is a setting of waypoints"),
    "image batches": ("sample/supervised_masked", "data.image_batch_size=3", "it is a setting of multimodal"),
    "mixing": ("sample/masked", "data.augment.mixup=0.8", "it is a setting of supervised"),
    "captions": ("sample/supervised_multimodal", "data.captions=each", "it is a setting of multimodal, retrieval"),
    "clips of features": ("sample/temporal_localization", "data.sampling.frames=3", "it is a setting of masked"),
    "colours of boxes": (
        "sample/spatio_temporal_localization",
        "data.augment.erasing=0.5",
        "it is a setting of masked",
    ),
    "questions": ("sample/multiple_choice", "data.questions.max_answers=3", "it is a setting of question_answering"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_setting_of_another_stage_is_refused(case: str) -> None:
    name, override, told = OTHERS[case]
    with pytest.raises(RecipeError, match=told) as caught:
        read_recipe(name, [override])
    assert "\n" not in str(caught.value)
    assert f"in the stage '{read_recipe(name).stage}'" in str(caught.value)


def test_all_of_them_are_told_at_once() -> None:
    with pytest.raises(RecipeError, match=r"data.queries.*data.hands"):
        read_recipe("sample/masked", ["data.queries.max_vocab=7", "data.hands.seconds=9"])


def test_saved_recipes_of_version_1_are_read_without_what_their_stage_never_read() -> None:
    """Version 1 had the settings of every task below `data`, and accepted values of other stages."""
    tree = build_recipe(small_recipe("supervised")).resolved()
    old = {name: value for name, value in tree.items() if name != "version"}
    old["data"] = {**tree["data"], "queries": {"most": 7}, "world": {"kind": "embedded"}, "captions": "random"}
    assert build_saved_recipe(old).resolved() == tree
    with pytest.raises(RecipeError, match=r"no setting 'data\.unheard_of'"):
        build_saved_recipe({**old, "data": {**old["data"], "unheard_of": 1}})
    with pytest.raises(RecipeError, match=f"reads recipes up to version {VERSION}"):
        build_saved_recipe({**tree, "version": VERSION + 1})


EARLIER: dict[str, dict[str, Any]] = {
    "supervised": {
        "initial_share": 0.5, "init_head": "fresh", "settings": {"frame_step": 1},
        "loop": {"gradient_clip": 1.0, "accumulate": 2},
        "schedule": {"steps": 6, "shape": "steps", "drops": [2, 4]},
        "data": {"also": {"more": {"manifest": "x.jsonl"}}, "loader": {"batch_size": 2, "repeats": 3},
                 "augment": {"size": 32, "crop": "centre", "as_tested": True, "bicubic": True, "test_style": None,
                             "squash": True}},
    },
    "masked": {
        "settings": {"mask": "centre", "normalised_targets": False}, "schedule": {"steps": 6, "shape": "whole_cosine"},
        "data": {"augment": {"size": 32, "bicubic": False, "test_style": "opencv", "squash": False}},
    },
}  # fmt: skip


@pytest.mark.parametrize("stage", EARLIER)
@pytest.mark.parametrize("version", [{}, {"version": 2}])
def test_saved_recipes_of_earlier_versions_have_other_names(stage: str, version: dict[str, int]) -> None:
    tree = small_recipe(stage)
    old = {**tree, **version, **{key: value for key, value in EARLIER[stage].items() if not isinstance(value, dict)}}
    for key in ("settings", "loop", "schedule"):
        old[key] = EARLIER[stage].get(key, tree.get(key, {}))
    old["data"] = {**tree["data"], **EARLIER[stage]["data"]}
    found = build_saved_recipe(old)
    data: Any = found.data
    if stage == "masked":
        assert found.settings == MaskedSettings(mask="center", normalize_targets=False)
        assert (data.augment.resize_backend, data.augment.keep_aspect) == ("opencv", True)
        assert found.schedule.kind == "cosine_including_warmup"
        return
    assert (found.base_weight, found.init_head, found.loop.max_grad_norm) == (0.5, "random", 1.0)
    assert (found.loop.grad_accum_steps, data.loader.repeated_augmentation) == (2, 3)
    assert list(data.extra_manifests) == ["more"]
    assert (found.schedule.kind, found.schedule.milestones) == ("multistep", (2, 4))
    assert (data.augment.crop, data.augment.use_eval_transform) == ("center", True)
    assert (data.augment.resize_backend, data.augment.keep_aspect) == ("pil_bicubic", False)


@pytest.mark.parametrize(
    ("old", "new"),
    [("loop.accumulate=2", "loop.grad_accum_steps"), ("data.loader.repeats=2", "data.loader.repeated_augmentation"),
     ("data.augment.squash=true", "data.augment.keep_aspect=false"),
     ("settings.frame_step=2", "settings.temporal_stride"),
     ("schedule.shape=linear", "schedule.kind"), ("initial_share=0.5", "base_weight")],
)  # fmt: skip
def test_a_name_of_an_earlier_version_is_answered_with_the_present_one(old: str, new: str) -> None:
    with pytest.raises(RecipeError, match=f"no setting '{old.split('=')[0]}', now '{new}'") as caught:
        read_recipe("sample/supervised_masked", [old])
    assert "\n" not in str(caught.value)


def test_a_value_of_an_earlier_version_is_answered_with_the_present_one() -> None:
    with pytest.raises(RecipeError, match=r"'schedule.kind': 'whole_cosine' is 'cosine_including_warmup' now"):
        read_recipe("sample/masked", ["schedule.kind=whole_cosine"])
    with pytest.raises(RecipeError, match=r"'stage': 'regions' is 'spatio_temporal_localization' now"):
        read_recipe("sample/masked", ["stage=regions"])
    with pytest.raises(RecipeError, match=r"found 'localisation'.* did you mean 'temporal_localization'"):
        find_task("localisation")
    assert (
        build_saved_recipe({**small_recipe("question_answering"), "stage": "answering"}).stage == "question_answering"
    )


@pytest.mark.parametrize("value", ["5", "[1]", "text", "true"])
def test_settings_that_are_none_do_not_become_the_usual_ones(value: str) -> None:
    with pytest.raises(RecipeError, match="'settings': must be settings of the stage"):
        read_recipe("sample/supervised_masked", [f"settings={value}"])


def test_settings_of_another_stage_are_refused() -> None:
    assert read_recipe("sample/supervised_masked", ["settings="]).settings == STAGES["supervised"].settings()
    with pytest.raises(
        RecipeError, match=r"settings.caption_weight' in the stage 'supervised', it is a setting of multimodal"
    ):
        read_recipe("sample/supervised_masked", ["settings.caption_weight=1"])
    with pytest.raises(RecipeError, match="must be settings of the stage"):
        build_recipe({**small_recipe("supervised"), "settings": MaskedSettings()})


GIVEN: dict[str, Any] = {
    "num_clips": 2, "num_crops": 3, "unknown_manifest": Path("no"), "train_manifest": Path("no"),
    "persons": Path("no"), "boxes": Path("no"), "restrict": True, "proposals": Path("no"), "features": Path("no"),
    "captions": "all", "querybank": Path("no"), "frames": (3, 4), "ensemble_with": (Path("no"),), "num_beams": 7,
    "top_p": 0.5, "seed": 3, "class_scores": Path("no"), "agreement": "colour", "within": "place", "templates": ("{}",),
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_an_option_of_another_task_is_refused_before_anything_is_read(name: str, tmp_path: Path) -> None:
    readers = [task.name for task in TASKS if name in {one.name for one in fields(task.options)}]
    assert readers
    for task in {task.name for task in TASKS} - set(readers):
        with pytest.raises(RecipeError, match=f"{task}: does not read --{name.replace('_', '-')}") as caught:
            evaluate_task(task, tmp_path / "none", tmp_path / "none.jsonl", tmp_path, {name: GIVEN[name]})
        assert readers[0] in str(caught.value)


@pytest.mark.parametrize(
    ("option", "told"),
    [("--boxes", "--boxes .of anticipation, state_change"), ("--beams", "--beams .now --num-beams"),
     ("--also", "--also .now --ensemble-with"), ("--unknown", "--unknown .now --unknown-manifest")],
)  # fmt: skip
def test_the_command_names_the_tasks_that_read_an_option(option: str, told: str) -> None:
    command = task_command(find_task("recognition"))
    with pytest.raises(RecipeError, match=f"recognition: does not read {told}") as caught:
        command(["weights", "manifest", option, "3"], standalone_mode=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(typer.TyperException, match="No such option"):
        command(["weights", "manifest", "--neither"], standalone_mode=False)


def test_every_option_of_a_task_is_tried_above() -> None:
    of_every_task = {one.name for one in fields(EvaluateOptions)}
    assert {one.name for task in TASKS for one in fields(task.options)} == {*GIVEN, "class_map", *of_every_task}
