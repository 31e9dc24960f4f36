"""Settings, rows and options that would be misunderstood in silence."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import small_world
import torch
from pydantic import BaseModel
from typer.testing import CliRunner

from internvideo.cli.main import app
from internvideo.data.lists import read_folder
from internvideo.data.manifest import read_manifest
from internvideo.errors import InternVideoError, ManifestError, RecipeError, WeightsError
from internvideo.recipe import Recipe, build_recipe, read_recipe, shipped_recipes
from internvideo.storage import DIGESTS, read_safetensors
from internvideo.tasks import STAGES
from internvideo.tasks.captioning.predict import DecodingSettings
from internvideo.training.recipe_files import UNLIMITED_KEYS, apply_override
from internvideo.weights.convert import convert


@cache
def recipes() -> dict[str, str]:
    """A shipped recipe of every stage that has one."""
    found = {read_recipe(name).stage: name for name in reversed(shipped_recipes())}
    return {stage: name for stage, name in found.items() if stage}  # those of evaluation have none


def numbers(settings: type[BaseModel], above: str = "") -> list[str]:
    """Dotted names of all settings that take a number, also where it is None by default, in lists or in tables."""
    found = []
    for name, field in settings.model_fields.items():
        kinds, inside = [field.annotation], list[type[BaseModel]]()
        for kind in kinds:
            kinds += get_args(kind)
            inside += [kind] if isinstance(kind, type) and issubclass(kind, BaseModel) else []
        for kind in inside:
            found += numbers(kind, f"{above}{name}.")
        if not inside and any(kind in (int, float) for kind in kinds) and dict not in map(get_origin, kinds):
            found.append(f"{above}{name}")
    return found


def is_bounded(name: str, setting: str) -> None:
    """10**12 of anything is refused in one line that names the setting, or makes nothing so many times."""
    tree = read_recipe(name).resolved()
    for value in (10**12, [10**12], [10**12] * 2):  # floats too: 1e12 epochs
        apply_override(tree, f"{setting}={value}")
        with pytest.raises(RecipeError) as error:
            build_recipe(tree)
        assert setting.rpartition(".")[2] in str(error.value)


def test_every_stage_has_a_recipe() -> None:
    assert set(recipes()) == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_no_number_of_a_stage_is_without_a_bound(stage: str) -> None:
    of_data = [setting for setting in numbers(STAGES[stage].data, "data.") if setting not in UNLIMITED_KEYS]
    for setting in (*numbers(STAGES[stage].settings, "settings."), *of_data):
        is_bounded(recipes()[stage], setting)


@pytest.mark.parametrize("section", ["optimizer", "schedule", "loop"])
def test_no_number_of_any_recipe_is_without_a_bound(section: str) -> None:
    (settings,) = (kind for kind in [Recipe.model_fields[section].annotation] if kind is not None)
    found = [setting for setting in numbers(settings, f"{section}.") if setting not in UNLIMITED_KEYS]
    assert found
    for setting in found:
        is_bounded("sample/masked", setting)


def test_views_have_a_bound() -> None:
    with pytest.raises(RecipeError, match="num_clips"):
        read_recipe("sample/masked", ["data.sampling.num_clips=100000"])


@pytest.mark.parametrize(
    "setting", ["loop.grad_accum_steps", "optimizer.base_lr", "data.loader.batch_size", "schedule.warmup"]
)
def test_true_is_no_number(setting: str) -> None:
    with pytest.raises(RecipeError, match=r"is true; expected: a number"):
        read_recipe("sample/masked", [f"{setting}=true"])


@pytest.mark.parametrize("change", ["data.augment.aspect=[true,true]", "optimizer.betas=[false,false]"])
def test_true_is_no_number_in_lists(change: str) -> None:
    with pytest.raises(RecipeError, match=r"expected: a number"):
        read_recipe("sample/masked", [change])


def test_batches_of_one_step_are_of_one_size() -> None:
    with pytest.raises(RecipeError, match="smaller last batch"):
        read_recipe("sample/masked", ["loop.grad_accum_steps=2", "data.loader.drop_last=false"])


def test_a_head_is_not_asked_for_where_there_is_none() -> None:
    with pytest.raises(RecipeError, match="init_head"):
        read_recipe("sample/masked", ["init_head=random"])
    assert read_recipe("sample/supervised_masked", ["init_head=random"]).init_head == "random"


def test_settings_of_another_optimizer_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.momentum: not a setting of optimizer\.kind 'adamw'"):
        read_recipe("sample/masked", ["optimizer.momentum=0.5"])
    tree = read_recipe("sample/masked", ["optimizer.kind=sgd", "optimizer.betas=[0.9,0.999]"]).resolved()
    assert build_recipe(tree).optimizer.kind == "sgd"  # what is saved is read again


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["loop.ema_scaled=false"], "'loop.ema_scaled' is false without loop.ema_decay"),
        (["data.augment.mix_probability=0.5"], "without data.augment.mixup or data.augment.cutmix"),
    ],
)
def test_settings_of_what_is_switched_off_are_refused(changes: list[str], told: str) -> None:
    off = ["loop.ema_decay=null", "data.augment.mixup=0", "data.augment.cutmix=0", "data.augment.mix_smoothing=0.1"]
    with pytest.raises(RecipeError, match=told):
        read_recipe("sample/supervised_masked", [*off, *changes])
    on = ["loop.ema_decay=0.9", "data.augment.mixup=0.8"]
    assert read_recipe("sample/supervised_masked", [*off, *on, *changes]).loop.ema_decay == 0.9


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("demo --label kind", "--label"),
        ("demo --split part", "--split"),
        ("mix a.safetensors -o b.safetensors --base-weight 0.3", "--base-weight"),
        ("mix a.safetensors -o b.safetensors --tower text", "--tower"),
        ("prepare ucf101 --annotations . --check-videos", "--check-videos"),
        ("prepare ucf101 --annotations . --workers 2", "--workers"),
    ],
)
def test_options_of_what_was_not_asked_for_are_refused(line: str, option: str) -> None:
    result = CliRunner().invoke(app, line.split())
    assert isinstance(result.exception, RecipeError)
    assert str(result.exception).startswith(f"{option}: without --")


def test_every_stage_and_its_heads_are_known() -> None:
    assert [name for name, entry in STAGES.items() if not entry.classifier_paths] == [
        "masked", "multimodal", "retrieval", "refinement", "multiple_choice", "waypoints", "navigation"
    ]  # fmt: skip


def test_a_seed_without_draws_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="without top_p"):
        DecodingSettings(1, 0.0, 3)
    DecodingSettings(1, 0.9, 3)
    result = CliRunner().invoke(app, ["caption", str(tmp_path), "-e", "clip-b16", "--seed", "3"])
    assert isinstance(result.exception, RecipeError)
    assert "--top-p" in str(result.exception)


@pytest.mark.parametrize(
    "row",
    [
        {"span": [False, True]},
        {"fps": True},
        {"segments": [{"start": False, "end": True, "label": 0}]},
        {"boxes": [{"time": True, "x1": 0, "y1": 0, "x2": 1, "y2": 1}]},
        {"choices": {"options": ["a", "b"], "answer": True}},
    ],
)
def test_true_is_no_second(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "a", "path": "a.mp4", **row}) + "\n")
    with pytest.raises(ManifestError, match="a number"):
        read_manifest(path)


def test_folders_below_class_folders_are_told(tmp_path: Path) -> None:
    for name in ("root/a/1.mp4", "root/b/2.mp4", "other/3.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (note,) = [note for note in read_folder(tmp_path).notes if "inside a class" in note]
    assert note.startswith("2 folders are inside a class folder and belong to its class, such as 'root/a'")


def test_one_demo_at_a_time(tmp_path: Path) -> None:
    from internvideo.apps.demo import run_demo

    hold = f"from internvideo.storage import folder_lock\nwith folder_lock({str(tmp_path)!r}):"
    hold += " print(1, flush=True), input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline()
        with pytest.raises(InternVideoError, match=f"process {other.pid}"):
            run_demo(tmp_path, profile="short")
        other.communicate(b"\n")
    assert not (tmp_path / "world").exists()


def test_converted_weights_carry_their_digests(tmp_path: Path) -> None:
    state = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.arange(5), "c": torch.ones(2, 2, dtype=torch.bfloat16).T}
    torch.save(state, tmp_path / "x.pth")
    output = convert(tmp_path / "x.pth", float32=True).output
    raw = output.read_bytes()
    assert DIGESTS.encode() in raw
    found, _ = read_safetensors(output)
    assert torch.equal(found["a"], state["a"])
    output.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(WeightsError, match="another SHA-256"):
        read_safetensors(output)


def test_a_piece_behind_its_video_is_told(tmp_path: Path) -> None:
    from internvideo.cli.options import for_each
    from internvideo.features.video_files import VideoFile

    row = read_manifest(small_world.world())
    video = str(row.video_path(row.rows[0]))
    done: list[VideoFile] = []
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        for_each([VideoFile(video, 0.0, 1e4), VideoFile(video)], done.append)
    assert len(done) == 2
    assert "the span ends at 10000 s" in said.getvalue()
