"""Adapters, configs of other packages, and what starts from weights with another activation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import published_keys as keys
import pytest
import torch
import transformers
from small_checkpoints import small
from test_transformers_folders import clip_of, doubled, image_text, videomae
from torch import Tensor

from internvideo import load
from internvideo.errors import InternVideoError, RecipeError, WeightsError
from internvideo.models.uniformerv2 import UniFormerV2, UniFormerV2Config
from internvideo.storage import write_safetensors
from internvideo.weights.initialize import initialize

LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", "use_dora": False, "rank_pattern": {}}
TARGET = "videomae.encoder.layer.1.attention.attention.query"


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(InternVideoError) as error:
        load(folder, device="cpu", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def adapter(folder: Path, base: Path, change: dict[str, Any]) -> dict[str, Tensor]:
    """An adapter of one layer, and a classifier trained whole, as peft writes them."""
    generator = torch.Generator().manual_seed(2)
    state = {
        f"base_model.model.{TARGET}.lora_A.weight": torch.randn(2, 96, generator=generator),
        f"base_model.model.{TARGET}.lora_B.weight": torch.randn(96, 2, generator=generator),
        "base_model.model.classifier.bias": torch.randn(3, generator=generator),
    }
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "adapter_model.safetensors", state)
    config = {**LORA, "base_model_name_or_path": str(base), **change}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return state


@pytest.mark.parametrize(("change", "scale"), [({}, 1.5), ({"use_rslora": True}, 3 / math.sqrt(2))], ids=str)
@torch.no_grad()
def test_a_plain_adapter_is_merged_into_its_base(change: dict[str, Any], scale: float, tmp_path: Path) -> None:
    theirs = videomae(transformers.VideoMAEForVideoClassification, tmp_path / "base")
    state = adapter(tmp_path / "adapter", tmp_path / "base", change)
    down, up, bias = state.values()
    theirs.get_submodule(TARGET).weight += scale * (up @ down)
    theirs.classifier.bias.copy_(bias)
    ours, video = load(tmp_path / "adapter", device="cpu"), clip_of(theirs)
    difference = doubled(ours)(video) - theirs.double()(video.transpose(1, 2)).logits
    assert difference.abs().max() < 1e-5  # the sum is rounded to float32, in another order
    assert ours.class_names == ("fall", "sit", "walk")
    plain = doubled(load(tmp_path / "base", device="cpu"))
    assert (plain(video) - ours.module(video)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias 'all'"),
        ({"alpha_pattern": {"query": 4}}, "alpha_pattern"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 0}, "r 0"),
        ({"lora_alpha": "3"}, "lora_alpha '3'"),
        ({"base_model_name_or_path": "MCG-NJU/videomae-base"}, "MCG-NJU/videomae-base"),
    ],
    ids=str,
)
def test_another_adapter_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    videomae(transformers.VideoMAEForVideoClassification, tmp_path / "base")
    adapter(tmp_path / "adapter", tmp_path / "base", change)
    assert told in refused(tmp_path / "adapter")
    adapter(tmp_path / "adapter", tmp_path / "adapter", {})
    assert "an adapter of an adapter" in refused(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        (f"base_model.model.{TARGET}.lora_B.weight", torch.ones(90, 2)),
        (f"base_model.model.{TARGET}.lora_A.weight", None),
        ("base_model.model.surprise.weight", torch.ones(2)),
        (f"base_model.model.{TARGET}.lora_magnitude_vector", torch.ones(96)),
    ],
    ids=["shape", "half a pair", "no place", "dora"],
)
def test_an_adapter_that_does_not_fit_is_refused(key: str, tensor: Tensor | None, tmp_path: Path) -> None:
    videomae(transformers.VideoMAEForVideoClassification, tmp_path / "base")
    state = adapter(tmp_path / "adapter", tmp_path / "base", {})
    state = {name: value for name, value in {**state, key: tensor}.items() if value is not None}
    write_safetensors(tmp_path / "adapter" / "adapter_model.safetensors", state)
    assert "adapter_model.safetensors" in refused(tmp_path / "adapter")


# --- configs of other packages beside the original layouts ---


def small_clip(folder: Path, config: dict[str, Any], name: str = "open_clip_config.json") -> Path:
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "open_clip_model.safetensors", small("clip")[0])
    (folder / name).write_text(json.dumps(config))
    return folder


def open_clip(**change: Any) -> dict[str, Any]:
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
    text = {"context_length": 9, "vocab_size": 40, "width": 64, "layers": 1, "heads": 4}
    model = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": {**model, **change}, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}}


@pytest.mark.parametrize(("change", "activation"), [({}, "gelu"), ({"quick_gelu": True}, "quick_gelu")], ids=str)
def test_open_clip_tells_activation_heads_and_colours(change: dict[str, Any], activation: str, tmp_path: Path) -> None:
    model: Any = load(small_clip(tmp_path, open_clip(**change)), device="cpu").module
    config = model.config
    assert (config.activation, config.text.activation) == (activation, activation)
    assert (config.heads, config.text.heads) == (2, 4)
    assert (config.mean, config.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert model.visual.blocks[0].mlp.activation == model.text.blocks[0].mlp.activation == activation


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"embed_dim": 32}, "embed_dim 32"),
        ({"vision_cfg": {**open_clip()["model_cfg"]["vision_cfg"], "attentional_pool": True}}, "attentional_pool"),
        ({"vision_cfg": {**open_clip()["model_cfg"]["vision_cfg"], "width": 32}}, "width 32"),
        ({"text_cfg": {**open_clip()["model_cfg"]["text_cfg"], "hf_model_name": "bert"}}, "hf_model_name"),
    ],
    ids=["joint space", "pooling", "width", "text tower"],
)
def test_an_open_clip_of_another_kind_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    assert told in refused(small_clip(tmp_path, open_clip(**change)))


def test_the_config_of_videomae_v2_is_read(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", keys.numbers(keys.videomae_classifier(64, 1, 128, 3)))
    sizes = {"img_size": 32, "num_frames": 4, "embed_dim": 64, "depth": 1, "num_heads": 2, "cos_attn": False}
    config = {"model_type": "VideoMAEv2_Base", "model_config": sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model: Any = load(tmp_path, device="cpu").module
    assert (model.config.heads, model.config.frames, model.config.image_size) == (2, 4, 32)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_config": {**sizes, "cos_attn": True}}))
    assert "cos_attn" in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "something_else"}))
    told = load(tmp_path, device="cpu", overrides={"heads": 1}).metadata["config_not_understood"]
    assert "something_else" in told


# --- who starts from CLIP ---


def test_an_encoder_does_not_start_from_layers_of_another_activation(tmp_path: Path) -> None:
    sizes = UniFormerV2Config(
        image_size=32, patch_size=16, width=96, depth=2, heads=3, global_layers=(0, 1), num_classes=3
    )
    for name, act in (("quick", "quick_gelu"), ("plain", "gelu")):
        image_text(tmp_path / name, {"hidden_act": act}, {"hidden_act": act})
    model = UniFormerV2(sizes)
    initialize(model, {"clip": tmp_path / "quick" / "model.safetensors"})
    with pytest.raises(WeightsError, match=r"layers with gelu; expected: QuickGELU"):
        initialize(model, {"clip": tmp_path / "plain" / "model.safetensors"})
    folder = small_clip(tmp_path / "open", open_clip())
    with pytest.raises(WeightsError, match="layers with gelu"):
        initialize(model, {"clip": folder / "open_clip_model.safetensors"})


def test_a_text_tower_of_another_vocabulary_reads_no_texts(tmp_path: Path) -> None:
    image_text(tmp_path, {}, {})
    model = load(tmp_path, device="cpu")
    with pytest.raises(RecipeError, match="60 tokens"):
        model.encode_text("a dog")
