"""Settings, rows and options that would be misunderstood in silence."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small_world
import torch
from typer.testing import CliRunner

from internvideo.cli.main import app
from internvideo.data.lists import read_folder
from internvideo.data.manifest import read_manifest
from internvideo.errors import InternVideoError, ManifestError, RecipeError, WeightsError
from internvideo.recipe import build_recipe, read_recipe
from internvideo.recipe_checks import LARGER, leaves
from internvideo.storage import DIGESTS, read_safetensors
from internvideo.tables import STAGES
from internvideo.tasks.captioning.predict import Writing
from internvideo.weights.convert import convert

RECIPE = {
    "masked": "sample/masked", "multimodal": "sample/multimodal", "regions": "sample/spatio_temporal",
    "waypoints": "sample/waypoints", "navigation": "sample/navigation", "localisation": "sample/localisation",
}  # fmt: skip


def numbers(tree: dict[str, Any]) -> list[str]:
    found = leaves(tree).items()
    return [name for name, value in found if type(value) in (int, float) and not name.startswith("model.")]


@pytest.mark.parametrize("name", RECIPE.values())
def test_no_number_is_without_a_bound(name: str) -> None:
    """10**12 of anything is refused in one line that names the setting, or makes nothing so many times."""
    recipe = read_recipe(name)
    for setting in numbers(recipe.resolved()):
        if setting in LARGER:
            continue
        with pytest.raises(RecipeError) as error:
            read_recipe(name, [f"{setting}={10**12}"])  # floats too: 1e12 epochs
        assert setting.rpartition(".")[2] in str(error.value)


def test_views_have_a_bound() -> None:
    with pytest.raises(RecipeError, match="views"):
        read_recipe("sample/masked", ["data.sampling.views=100000"])


@pytest.mark.parametrize(
    "setting", ["loop.accumulate", "optimizer.base_lr", "data.loader.batch_size", "schedule.warmup"]
)
def test_true_is_no_number(setting: str) -> None:
    with pytest.raises(RecipeError, match=r"is true; allowed: a number"):
        read_recipe("sample/masked", [f"{setting}=true"])


@pytest.mark.parametrize("change", ["data.augment.aspect=[true,true]", "optimizer.betas=[false,false]"])
def test_true_is_no_number_in_lists(change: str) -> None:
    with pytest.raises(RecipeError, match=r"allowed: a number"):
        read_recipe("sample/masked", [change])


def test_batches_of_one_step_are_of_one_size() -> None:
    with pytest.raises(RecipeError, match="smaller last batch"):
        read_recipe("sample/masked", ["loop.accumulate=2", "data.loader.drop_last=false"])


def test_a_head_is_not_asked_for_where_there_is_none() -> None:
    with pytest.raises(RecipeError, match="init_head"):
        read_recipe("sample/masked", ["init_head=fresh"])
    assert read_recipe("sample/supervised_masked", ["init_head=fresh"]).init_head == "fresh"


def test_settings_of_another_optimizer_are_refused() -> None:
    with pytest.raises(RecipeError, match="momentum: not of the kind 'adamw'"):
        read_recipe("sample/masked", ["optimizer.momentum=0.5"])
    tree = read_recipe("sample/masked", ["optimizer.kind=sgd", "optimizer.betas=[0.9,0.999]"]).resolved()
    assert build_recipe(tree).optimizer.kind == "sgd"  # what is saved is read again


def test_every_stage_and_its_heads_are_known() -> None:
    assert [name for name, entry in STAGES.items() if not entry.heads] == [
        "masked", "multimodal", "retrieval", "refinement", "multiple_choice", "waypoints", "navigation"
    ]  # fmt: skip


def test_a_seed_without_draws_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="without a nucleus"):
        Writing(1, 0.0, 3)
    Writing(1, 0.9, 3)
    result = CliRunner().invoke(app, ["caption", str(tmp_path), "-e", "clip-b16", "--seed", "3"])
    assert isinstance(result.exception, RecipeError)
    assert "--nucleus" in str(result.exception)


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
    (note,) = [note for note in read_folder(tmp_path).notes if "below" in note]
    assert note.startswith("2 folders lie below a class folder, such as 'root/a'")


def test_one_demo_at_a_time(tmp_path: Path) -> None:
    from internvideo.apps.demo import run_demo

    hold = f"from internvideo.storage import alone_in\nwith alone_in({str(tmp_path)!r}): print(1, flush=True), input()"
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
    assert "the piece ends at 10000 s" in said.getvalue()
