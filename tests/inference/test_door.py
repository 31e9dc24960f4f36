"""The door: what it opens, that it names what it opened, and what it refuses in one line."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import published_keys as keys
import pytest
import small_apps
import small_world
import torch
from small_apps import random_model, settings

from internvideo import InternVideoError, VideoModel, load
from internvideo.errors import RecipeError, WeightsError
from internvideo.model_table import create_model
from internvideo.models.skip_init import check_all_loaded, skip_init
from internvideo.models.videomae import VideoMAEClassifier
from internvideo.storage import read_safetensors, write_safetensors
from internvideo.weights.state import load_state

ROOT = Path(__file__).parents[2]
CPU: dict[str, Any] = {"device": "cpu"}


def told(error: pytest.ExceptionInfo[InternVideoError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------- untrained


def test_an_untrained_model_says_so() -> None:
    model = random_model("supervised")
    assert model.metadata["trained"] == "no"
    assert model.metadata["source"] == "random"
    assert len(model.metadata["weights_sha256"]) == 64


def test_an_untrained_model_with_other_classes() -> None:
    for family in ("supervised", "supervised_multimodal", "interaction"):
        name, overrides = settings(family)
        model = load(name, weights="random", overrides=overrides, num_classes=7, **CPU)
        assert len(model.class_names) == 7
        assert len(model.classify(small_apps.clips(1))[0]) == 7
    for family in ("masked", "multimodal"):
        name, overrides = settings(family)
        with pytest.raises(RecipeError, match="has no classifier"):
            load(name, weights="random", overrides=overrides, num_classes=7, **CPU)
    with pytest.raises(RecipeError, match="num_classes: 0"):
        load("videomae-b-classifier", weights="random", num_classes=0, **CPU)
    with pytest.raises(RecipeError, match="frames: 8; expected: overrides"):
        load("videomae-b-classifier", weights="random", frames=8, **CPU)


# --------------------------------------------------------------------------------------------------------- own runs


@pytest.mark.parametrize("stage", ["masked", "multimodal", "supervised"])
def test_a_run_opens_by_its_file_its_folder_and_its_name(stage: str) -> None:
    path = small_apps.trained(stage)
    model = load(path, **CPU)
    name = small_world.small_recipe(stage)["model"]["name"]
    assert model.name == name
    assert model.metadata["layout"] == "internvideo training"
    expected = model.encode_video(small_apps.clips(1))
    for again in (
        load(path.parent, **CPU),
        load(name, weights=path, **CPU),
        load(name, weights=str(path.parent), **CPU),
    ):
        assert torch.equal(again.encode_video(small_apps.clips(1)), expected)
        assert again.metadata["weights_sha256"] == model.metadata["weights_sha256"]
    other = "viclip-b16"
    with pytest.raises(WeightsError, match=f"weights of '{name}'; expected: {other}"):
        load(other, weights=path, **CPU)
    with pytest.raises(RecipeError, match="this checkpoint already carries its config"):
        load(path, overrides={"depth": 3}, **CPU)


def test_classes_of_a_run_are_its_own() -> None:
    assert load(small_apps.trained("supervised"), **CPU).class_names == small_world.CLASSES
    assert load(small_apps.trained("multimodal"), **CPU).class_names == ()
    assert load(small_apps.trained("masked"), **CPU).class_names == ()


def test_a_new_head_leaves_the_rest() -> None:
    path = small_apps.trained("supervised")
    old, new = load(path, **CPU), load(path, num_classes=5, **CPU)
    assert new.class_names == ("0", "1", "2", "3", "4")
    assert new.metadata["head"] == "untrained"
    assert torch.equal(old.encode_video(small_apps.clips(2)), new.encode_video(small_apps.clips(2)))
    with pytest.raises(RecipeError, match="has no classifier"):
        load(small_apps.trained("multimodal"), num_classes=5, **CPU)


def test_a_classifier_from_pretraining_weights() -> None:
    path = small_apps.trained("masked")
    model = load("videomae-s-classifier", weights=path, num_classes=5, **CPU)
    assert model.class_names == ("0", "1", "2", "3", "4")
    assert isinstance(model.module, VideoMAEClassifier)
    state, _ = read_safetensors(path)
    assert torch.equal(model.module.state_dict()["blocks.1.mlp.fc1.weight"], state["encoder.blocks.1.mlp.fc1.weight"])
    with pytest.raises(WeightsError, match="these are weights of 'videomae-s-pretrain'"):
        load("videomae-s-classifier", weights=path, **CPU)
    with pytest.raises(WeightsError, match="these are weights of"):
        load("videomae-b-classifier", weights=path, num_classes=5, **CPU)


# --------------------------------------------------------------------------------------------------- published files


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A small classifier under the published keys, with a wrapper as DeepSpeed writes it."""
    state = keys.numbers(keys.videomae_classifier(width=64, depth=2, hidden=256, classes=6))
    write_safetensors(tmp_path / "download.safetensors", {f"module.{key}": value for key, value in state.items()})
    return tmp_path / "download.safetensors"


SIZE = {"heads": 2}


def test_published_weights_are_recognised(classifier: Path) -> None:
    model = load(classifier, overrides=SIZE, frames=4, image_size=32, **CPU)
    assert model.name.endswith("-classifier")
    assert "VideoMAE" in model.metadata["layout"]
    assert model.class_names == ("0", "1", "2", "3", "4", "5")
    assert (model.preprocessing.frames, model.preprocessing.size, model.preprocessing.resize_backend) == (
        4,
        32,
        "opencv",
    )
    assert sum(model.classify(small_apps.clips(1))[0].values()) == pytest.approx(1)
    other = load(classifier, overrides=SIZE, frames=4, image_size=32, num_classes=3, **CPU)
    assert other.class_names == ("0", "1", "2")
    assert torch.equal(model.encode_video(small_apps.clips(1)), other.encode_video(small_apps.clips(1)))


def test_a_folder_of_another_library_is_known_by_its_keys(classifier: Path) -> None:
    (classifier.parent / "config.json").write_text('{"model_type": "videomae"}')
    classifier.rename(classifier.with_name("model.safetensors"))
    model = load(classifier.parent, overrides=SIZE, frames=4, image_size=32, **CPU)
    assert "VideoMAE" in model.metadata["layout"]


def test_published_weights_of_another_model_are_named(classifier: Path) -> None:
    with pytest.raises(WeightsError, match=r"VideoMAE.*expected: viclip-l14") as error:
        load("viclip-l14", weights=classifier, **CPU)
    told(error)
    with pytest.raises(WeightsError, match=r"expected: videomae-l-classifier.*wrong size") as error:
        load("videomae-l-classifier", weights=classifier, **CPU)
    told(error)


def test_published_pretraining_becomes_a_classifier(tmp_path: Path) -> None:
    path = tmp_path / "pretrain.safetensors"
    write_safetensors(path, keys.numbers(keys.videomae_pretrain(64, 2, 256, 32, decoder_depth=1)))
    sizes = {"heads": 2, "decoder_heads": 2}
    model = load(path, overrides=sizes, frames=4, image_size=32, **CPU)
    assert model.capabilities == {"video"}
    head = load(path, overrides=sizes, frames=4, image_size=32, num_classes=3, **CPU)
    assert head.name.endswith("-classifier")
    assert len(head.class_names) == 3
    assert load(head.name, weights=path, overrides=sizes, frames=4, image_size=32, num_classes=3, **CPU).capabilities


def test_unknown_keys_are_shown(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"layer.0.weight": torch.ones(2)})
    with pytest.raises(WeightsError, match=r"layer\.N\.weight") as error:
        load(tmp_path / "x.safetensors", **CPU)
    told(error)


# ---------------------------------------------------------------------------------------------------------- mistakes


def test_a_name_alone_tells_what_to_give() -> None:
    with pytest.raises(WeightsError, match=r'no weights given; expected: weights=PATH, "hf://.*"random"') as error:
        load("internvideo-mm-l14", **CPU)
    told(error)


def test_a_misspelt_name_is_mended() -> None:
    with pytest.raises(WeightsError, match="did you mean 'internvideo-mm-l14'"):
        load("internvideo-mm-114", **CPU)
    with pytest.raises(RecipeError, match="did you mean 'internvideo-mm-l14'"):
        load("internvideo-mm-114", weights="random", **CPU)
    with pytest.raises(WeightsError, match="no such file or folder"):
        load("internvideo-mm-l14", weights="nowhere.safetensors", **CPU)


@pytest.mark.parametrize(
    ("source", "found"), [("https://[::1/x.safetensors", "is no address"), ("~nobody-is-called-so/x", "no such file")]
)
def test_addresses_and_paths_that_cannot_be(source: str, found: str) -> None:
    with pytest.raises(WeightsError, match=found) as error:
        load(source, **CPU)
    told(error)


def test_the_advice_to_convert_can_be_copied(tmp_path: Path) -> None:
    (tmp_path / "two words.pth").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"internvideo convert '.*/two words\.pth'"):
        load(tmp_path / "two words.pth", **CPU)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".ckpt", ".PTH"])
def test_a_pickle_is_never_opened(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{ending}"
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    for place in (path, tmp_path) if ending != ".PTH" else (path,):
        with pytest.raises(WeightsError, match="internvideo convert") as error:
            load(place, **CPU)
        assert str(path) in told(error)


def test_folders_that_are_not_clear_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights in the folder"):
        load(tmp_path, **CPU)
    shutil.copy(small_apps.trained(), tmp_path / "b.safetensors")
    assert load(tmp_path, **CPU).name == "videomae-s-classifier"
    shutil.copy(small_apps.trained(), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"2 weights files; expected: a\.safetensors, b\.safetensors"):
        load(tmp_path, **CPU)


@pytest.mark.parametrize("content", [b"", b"not a safetensors file at all"])
def test_a_damaged_file_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read") as error:
        load(tmp_path / "x.safetensors", **CPU)
    told(error)
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(WeightsError, match="no weights file"):
        load(tmp_path / "notes.txt", **CPU)


def test_wrong_device_and_precision_are_told_first() -> None:
    with pytest.raises(RecipeError, match="device"):
        load("hf://nobody/nothing", device="cuda:x")
    name, overrides = settings("masked")
    with pytest.raises(RecipeError, match="precision"):
        load(name, weights="random", overrides=overrides, device="cpu", precision="int4")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- torch.hub


def hubconf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_torch_hub_finds_an_entry_for_every_family() -> None:
    entries = hubconf()
    assert all(importlib.util.find_spec(name) for name in entries.dependencies)
    for name in ("load", "videomae", "uniformerv2", "internvideo_mm", "viclip", "clip", "interaction"):
        assert getattr(entries, name).__doc__


@pytest.mark.parametrize(
    ("entry", "arguments", "family"),
    [
        ("videomae", {"size": "s"}, "supervised"),
        ("videomae", {"size": "s", "head": False}, "masked"),
        ("uniformerv2", {}, "supervised_multimodal"),
        ("internvideo_mm", {"size": "b16", "caption": True}, "multimodal"),
        ("viclip", {"size": "b16"}, "viclip"),
        ("clip", {"size": "b16"}, "clip"),
        ("interaction", {"size": "b"}, "interaction"),
    ],
)
def test_torch_hub_opens_models(entry: str, arguments: dict[str, Any], family: str) -> None:
    name, overrides = settings(family)
    model = torch.hub.load(
        str(ROOT), entry, source="local", weights="random", overrides=overrides, device="cpu", **arguments
    )
    assert isinstance(model, VideoModel)
    assert model.name == name


@pytest.mark.parametrize("family", small_apps.FAMILIES)
def test_only_models_that_are_filled_are_built_without_drawing(family: str) -> None:
    name, overrides = settings(family)
    state = create_model(name, overrides).state_dict()
    before = torch.get_rng_state()
    with skip_init():
        module = create_model(name, overrides)
    with pytest.raises(WeightsError, match="no values for"):
        check_all_loaded(module, "here")
    if family in ("masked", "supervised"):  # elsewhere a few small embeddings are drawn by torch.randn
        assert torch.equal(torch.get_rng_state(), before)
    load_state(module, state)
    check_all_loaded(module, "here")
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert all(buffer.isfinite().all() for buffer in module.buffers())


def test_metadata_is_plain_text() -> None:
    model = load(small_apps.trained("supervised"), **CPU)
    assert json.loads(json.dumps(model.metadata)) == model.metadata
    assert json.loads(json.dumps(model.config)) == model.config
