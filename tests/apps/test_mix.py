"""Weights between weights: means, shares, towers, CLIP's layout, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_world
import torch
import yaml
from small_world import small_recipe

from internvideo.apps.mix import mix
from internvideo.errors import RecipeError, WeightsError
from internvideo.models.clip import CLIPConfig, CLIPModel
from internvideo.pipeline import load_trained, run_recipe
from internvideo.recipe import build_recipe
from internvideo.storage import read_safetensors, write_safetensors
from internvideo.weights.clip_import import from_clip
from internvideo.weights.state import save_model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    trees = [small_recipe("retrieval", schedule={"steps": 1}, loop={"seed": seed}) for seed in range(3)]
    return [run_recipe(build_recipe(tree), folder / str(i), device="cpu") for i, tree in enumerate(trees)]


def states(paths: list[Path]) -> list[dict[str, torch.Tensor]]:
    return [read_safetensors(path)[0] for path in paths]


def test_checkpoints_are_averaged_and_then_mixed(runs: list[Path], tmp_path: Path) -> None:
    made = mix(runs[:2], tmp_path / "mixed.safetensors", base=runs[2], base_weight=0.25)
    one, two, base = states(runs)
    found, metadata = read_safetensors(made.file)
    assert set(found) == set(one)
    assert (made.mixed, made.kept) == (len(one) - 1, 1)
    for name, value in found.items():
        mean = (one[name].double() + two[name].double()) / 2
        expected = mean if name == "logit_scale" else 0.25 * base[name].double() + 0.75 * mean
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    told = json.loads(metadata["mixed"])
    assert [entry["file"] for entry in told["mean_of"]] == [str(path) for path in runs[:2]]
    assert (told["base"]["file"], told["share_of_base"], told["tower"]) == (str(runs[2]), 0.25, "both")
    assert load_trained(made.file, device="cpu").recipe.stage == "retrieval"


@pytest.mark.parametrize(("tower", "moved"), [("text", ("text.",)), ("video", ("visual",))])
def test_one_tower_alone(runs: list[Path], tmp_path: Path, tower: Any, moved: tuple[str, ...]) -> None:
    mix(runs[:1], tmp_path / "mixed.safetensors", base=runs[1], base_weight=1.0, tower=tower)
    (tuned, base), found = states(runs[:2]), states([tmp_path / "mixed.safetensors"])[0]
    for name, value in found.items():
        assert torch.equal(value, (base if name.startswith(moved) else tuned)[name]), name


def test_clip_has_the_share_wherever_it_has_the_tensor(runs: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(7)
    clip = CLIPModel(CLIPConfig(small_world.SIDE, 8, 48, 3, 2, small_world.image_text_model().text.config, 24))
    save_model(tmp_path / "clip.safetensors", clip)
    mix(runs[:1], tmp_path / "mixed.safetensors", base=tmp_path / "clip.safetensors", base_weight=0.5)
    model = load_trained(runs[0], device="cpu").model
    tuned = {name: value.clone() for name, value in model.state_dict().items()}
    filled = from_clip(model, clip.state_dict()).filled
    found = states([tmp_path / "mixed.safetensors"])[0]
    assert 0 < len(filled) < len(found)
    for name, value in found.items():
        mixed = name in filled and name != "logit_scale"
        expected = (model.state_dict()[name] + tuned[name]) / 2 if mixed else tuned[name]
        torch.testing.assert_close(value, expected)


def test_another_recipe_cuts_the_test_clips_and_leaves_a_decoder_behind(runs: list[Path], tmp_path: Path) -> None:
    captioning = run_recipe(
        build_recipe(small_recipe("multimodal", schedule={"steps": 1})), tmp_path / "a", device="cpu"
    )
    tree = small_recipe(
        "retrieval", sampling={"kind": "one_per_second", "frames": 3}, augment={"resize_backend": "pil_bicubic"}
    )
    (tmp_path / "clips.yaml").write_text(yaml.safe_dump(tree))
    made = mix([captioning], tmp_path / "out.safetensors", base=runs[0], recipe=str(tmp_path / "clips.yaml"))
    trained = load_trained(made.file, device="cpu")
    assert (trained.recipe.data.sampling.kind, trained.recipe.data.augment.resize_backend) == (
        "one_per_second",
        "pil_bicubic",
    )
    assert trained.recipe.data.augment.eval_transform().resize_backend == "pil_bicubic"
    assert not any(name.startswith("caption_decoder") for name in trained.model.state_dict())
    one, two = states([captioning, runs[0]])
    torch.testing.assert_close(
        trained.model.state_dict()["visual.query"], (one["visual.query"] + two["visual.query"]) / 2
    )


def test_mistakes_leave_no_file(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "mixed.safetensors"
    with pytest.raises(RecipeError, match=r"1\.5; expected: 0 to 1"):
        mix(runs[:1], out, base=runs[1], base_weight=1.5)
    with pytest.raises(RecipeError, match="both, text, video"):
        mix(runs[:1], out, base=runs[1], tower="sound")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(RecipeError, match="one of the files that are mixed"):
        mix(runs[:1], runs[1], base=runs[1])
    write_safetensors(tmp_path / "bare.safetensors", states(runs[:1])[0])
    with pytest.raises(WeightsError, match="keys of no known layout"):
        mix([tmp_path / "bare.safetensors"], out)
    other = run_recipe(build_recipe(small_recipe("supervised", schedule={"steps": 1})), tmp_path / "run", device="cpu")
    with pytest.raises(WeightsError, match="the same model"):
        mix([runs[0], other], out)
    with pytest.raises(WeightsError, match="the tuned model has"):
        mix([runs[0]], out, base=other)
    assert not out.exists()
