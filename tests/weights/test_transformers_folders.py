"""Folders of transformers' save_pretrained: every field of a config is honoured, with equal outputs, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from internvideo import VideoModel, load
from internvideo.errors import InternVideoError, RecipeError, WeightsError
from internvideo.storage import read_safetensors, write_safetensors

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # theirs is untyped
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # theirs is untyped

NAMES = {0: "fall", 1: "sit", 2: "walk"}
SMALL = {
    "image_size": 32, "num_frames": 4, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 192, "decoder_hidden_size": 48, "decoder_num_attention_heads": 3,
    "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 96, "id2label": NAMES,
    "label2id": {name: number for number, name in NAMES.items()},
}  # fmt: skip
TOWER = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 3}
PICTURE = {**TOWER, "image_size": 32, "patch_size": 16}
WORDS = {**TOWER, "vocab_size": 60, "max_position_embeddings": 9, "eos_token_id": 59}
TOLERANCE = 1e-9
"""Both in double precision."""


def drawn(model: Any) -> Any:
    """Every parameter moved away from where it starts, zeros and ones most of all."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def videomae(kind: Any, folder: Path, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = drawn(kind(transformers.VideoMAEConfig(**{**SMALL, **settings})))
    model.save_pretrained(folder)
    return model


def image_text(folder: Path, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    parts = {"vision_config": {**PICTURE, **vision}, "text_config": {**WORDS, **text}}
    model = drawn(transformers.CLIPModel(transformers.CLIPConfig(**parts, projection_dim=24)))
    model.save_pretrained(folder)
    return model


def clip_of(model: Any) -> Tensor:
    config, generator = model.config, torch.Generator().manual_seed(1)
    return torch.randn(2, 3, config.num_frames, config.image_size, config.image_size, generator=generator).double()


def doubled(model: VideoModel) -> Any:
    return model.module.double()


def edit(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "config.json") -> None:
    config = json.loads((folder / name).read_text())
    change(config)
    (folder / name).write_text(json.dumps(config))


CHANGES: list[dict[str, Any]] = [
    {},
    {"num_attention_heads": 6},
    {"hidden_act": "relu"},
    {"hidden_act": "quick_gelu"},
    {"hidden_act": "gelu_new"},
    {"hidden_act": "silu"},
    {"layer_norm_eps": 0.1},
    {"qkv_bias": False},
    {"use_mean_pooling": False},
    {"use_mean_pooling": False, "layer_norm_eps": 0.1},
    {"num_frames": 8},
    {"image_size": 64},
    {"patch_size": 8},
    {"tubelet_size": 4},
    {"intermediate_size": 100},
    {"num_hidden_layers": 3},
    {"hidden_size": 72, "intermediate_size": 72},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
@torch.no_grad()
def test_every_setting_of_a_classifier_is_honoured(change: dict[str, Any], tmp_path: Path) -> None:
    theirs = videomae(transformers.VideoMAEForVideoClassification, tmp_path, **change)
    ours, video = load(tmp_path, device="cpu"), clip_of(theirs)
    assert (doubled(ours)(video) - theirs.double()(video.transpose(1, 2)).logits).abs().max() < TOLERANCE
    assert ours.class_names == ("fall", "sit", "walk")
    assert (ours.preprocessing.frames, ours.preprocessing.size) == (theirs.config.num_frames, theirs.config.image_size)
    again = load(ours.save_pretrained(tmp_path / "saved"), device="cpu")
    assert torch.equal(doubled(again)(video), ours.module(video))
    assert again.class_names == ours.class_names
    if change.get("hidden_size") is None:
        assert "but of another size: image_size" in (tmp_path / "saved" / "README.md").read_text()
        assert "width 96" in (tmp_path / "saved" / "README.md").read_text()


@pytest.mark.parametrize("change", [*CHANGES, {"decoder_num_attention_heads": 6}], ids=str)
@torch.no_grad()
def test_every_setting_of_pretraining_is_honoured(change: dict[str, Any], tmp_path: Path) -> None:
    ratio = change.get("intermediate_size", SMALL["intermediate_size"]) / change.get("hidden_size", 96)
    change = {**change, "decoder_intermediate_size": int(48 * ratio)}
    theirs = videomae(transformers.VideoMAEForPreTraining, tmp_path, **change)
    ours, video, config = doubled(load(tmp_path, device="cpu")), clip_of(theirs), theirs.config
    tokens = config.num_frames // config.tubelet_size * (config.image_size // config.patch_size) ** 2
    mask = (torch.arange(tokens) % 3 != 0).expand(2, -1)
    expected = theirs.double()(video.transpose(1, 2), bool_masked_pos=mask).logits
    assert (ours(video, mask) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    "change", [c for c in CHANGES if not c or c.keys() & {"use_mean_pooling", "qkv_bias"}], ids=str
)
@torch.no_grad()
def test_settings_of_an_encoder_alone_are_honoured(change: dict[str, Any], tmp_path: Path) -> None:
    theirs = videomae(transformers.VideoMAEModel, tmp_path, **change)
    ours, video = load(tmp_path, device="cpu"), clip_of(theirs)
    tokens = theirs.double()(video.transpose(1, 2)).last_hidden_state
    expected = tokens.mean(1) if theirs.config.use_mean_pooling else tokens[:, 0]
    assert (doubled(ours)(video) - expected).abs().max() < TOLERANCE
    assert ours.class_names == ()
    assert len(load(tmp_path, device="cpu", num_classes=4).class_names) == 4


CLIP_CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    ({"hidden_act": "gelu"}, {}),
    ({}, {"hidden_act": "relu"}),
    ({"num_attention_heads": 6}, {}),
    ({}, {"num_attention_heads": 12}),
    ({"layer_norm_eps": 0.1}, {}),
    ({}, {"layer_norm_eps": 0.1}),
    ({"intermediate_size": 100}, {"intermediate_size": 50}),
    ({"image_size": 64, "patch_size": 8}, {"max_position_embeddings": 12}),
    ({"hidden_size": 72}, {"num_hidden_layers": 1}),
    ({}, {"eos_token_id": 2}),
]


@pytest.mark.parametrize(("vision", "text"), CLIP_CHANGES, ids=str)
@torch.no_grad()
def test_every_setting_of_clip_is_honoured(vision: dict[str, Any], text: dict[str, Any], tmp_path: Path) -> None:
    theirs = image_text(tmp_path, vision, text)
    ours = doubled(load(tmp_path, device="cpu"))
    side = theirs.config.vision_config.image_size
    image, ids = torch.randn(2, 3, side, side).double(), torch.tensor([[58, 5, 59, 0], [58, 59, 0, 0], [58, 7, 8, 59]])
    expected = theirs.double()(input_ids=ids, pixel_values=image)
    seen = nn.functional.normalize(ours.encode_video(image[:, :, None]), dim=-1)
    read = nn.functional.normalize(ours.encode_text(ids), dim=-1)
    assert (seen - expected.image_embeds).abs().max() < TOLERANCE
    assert (read - expected.text_embeds).abs().max() < TOLERANCE


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(InternVideoError) as error:
        load(folder, device="cpu", **options)
    assert isinstance(error.value, WeightsError | RecipeError)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_attention_heads": 5}, "heads"),
        ({"num_attention_heads": "3"}, "num_attention_heads '3'"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        ({"hidden_act": "mish"}, "hidden_act 'mish'"),
        ({"image_size": [32, 64]}, r"image_size [32, 64]"),
        ({"num_frames": 5}, "frames"),
        ({"num_frames": 4.0}, "num_frames 4.0"),
        ({"num_channels": 1}, "num_channels 1"),
        ({"hidden_size": 128}, "hidden_size 128"),
        ({"num_hidden_layers": 12}, "num_hidden_layers 12"),
        ({"intermediate_size": 128}, "intermediate_size 128"),
        ({"patch_size": 8}, "patch_size 8"),
        ({"tubelet_size": 4}, "tubelet_size 4"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps 'small'"),
        ({"qv_bias": None}, "qkv_bias None"),
        ({"use_mean_pooling": False}, "use_mean_pooling False"),
        ({"model_type": "timesformer"}, "model type 'timesformer'"),
        ({"id2label": {"0": "a", "1": "b"}}, "names 2 classes"),
        ({"id2label": {"0": "a", "1": "b", "3": "c"}}, "names 3 classes"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "two classes 'a'"),
        ({"problem_type": "multi_label_classification"}, "multi_label_classification"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
    ids=str,
)
def test_a_config_at_odds_with_model_or_tensors_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    videomae(transformers.VideoMAEForVideoClassification, tmp_path)
    edit(tmp_path, lambda config: config.update(change))
    assert told in refused(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text_config": {"eos_token_id": 7}}, "eos_token_id 7"),
        ({"text_config": {"vocab_size": 61}}, "vocab_size 61"),
        ({"vision_config": {"hidden_act": "laplace"}}, "hidden_act 'laplace'"),
        ({"vision_config": {"num_channels": 4}}, "num_channels 4"),
        ({"projection_dim": 25}, "projection_dim 25"),
        ({"vision_config_dict": {"patch_size": 8}}, "patch_size 8"),
        ({"model_type": "siglip"}, "siglip"),
        ({"text_config": 3}, "text_config"),
    ],
    ids=str,
)
def test_a_config_of_clip_at_odds_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    image_text(tmp_path, {}, {})

    def edited(config: dict[str, Any]) -> None:
        for key, value in change.items():
            old = config.get(key)
            config[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value

    edit(tmp_path, edited)
    assert told in refused(tmp_path)


def test_what_a_config_does_not_say_has_the_default_of_transformers(tmp_path: Path) -> None:
    videomae(transformers.VideoMAEForVideoClassification, tmp_path, num_frames=16, image_size=224)
    edit(tmp_path, lambda config: [config.pop(key) for key in ("num_frames", "image_size", "hidden_act", "id2label")])
    model = load(tmp_path, device="cpu")
    assert (model.preprocessing.frames, model.preprocessing.size) == (16, 224)
    assert model.class_names == ("0", "1", "2")
    edit(tmp_path, lambda config: config.update(window=3))
    assert load(tmp_path, device="cpu").metadata["config_not_understood"] == "window"


def test_a_file_is_read_with_the_config_beside_it_and_asks_for_heads_without(tmp_path: Path) -> None:
    videomae(transformers.VideoMAEForVideoClassification, tmp_path, num_attention_heads=6)
    assert load(tmp_path / "model.safetensors", device="cpu").module.config.heads == 6  # type: ignore[union-attr]  # a module
    (tmp_path / "config.json").unlink()
    assert "do not determine heads" in refused(tmp_path)
    assert load(tmp_path, device="cpu", overrides={"heads": 3}).class_names == ("0", "1", "2")


def test_who_asks_wins_over_a_config(tmp_path: Path) -> None:
    videomae(transformers.VideoMAEForVideoClassification, tmp_path)
    assert load(tmp_path, device="cpu", overrides={"activation": "relu"}).module.config.activation == "relu"  # type: ignore[union-attr]  # a module
    fresh = load(tmp_path, device="cpu", num_classes=5)
    assert fresh.class_names == ("0", "1", "2", "3", "4")


def test_shards_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    theirs = videomae(transformers.VideoMAEForVideoClassification, tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    folder = tmp_path / "shards"
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    whole = load(tmp_path / "whole", device="cpu")
    for source in (folder, folder / "model.safetensors.index.json"):
        found = load(source, device="cpu")
        assert found.metadata["weights_sha256"] == whole.metadata["weights_sha256"]
        assert found.class_names == whole.class_names
    assert "shards of a model" in refused(shards[0])
    shard = max(shards, key=lambda path: len(read_safetensors(path)[0]))
    state, _ = read_safetensors(shard)
    write_safetensors(shard, {**state, "surprise": torch.zeros(1)})
    assert "surprise is in it" in refused(folder)
    write_safetensors(shard, dict(list(state.items())[1:]))
    assert "is not in it" in refused(folder)
    shard.unlink()
    assert shard.name in refused(folder)
    for broken in ("[]", "{}", "{", '{"weight_map": {"a": "../model.safetensors"}}'):
        (folder / "model.safetensors.index.json").write_text(broken)
        assert "model.safetensors.index.json" in refused(folder)


def small_vit(kind: Any, config: Any, **settings: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    return kind(config(**{**sizes, "image_size": 32, **settings}))


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "timesformer": (
        lambda: small_vit(transformers.TimesformerForVideoClassification, transformers.TimesformerConfig), "TimeSformer"
    ),
    "vivit": (lambda: small_vit(transformers.VivitForVideoClassification, transformers.VivitConfig), "ViViT"),
    "clip_vision_model": (
        lambda: small_vit(transformers.CLIPVisionModel, transformers.CLIPVisionConfig), "image tower alone"
    ),
    "vit": (lambda: small_vit(transformers.ViTModel, transformers.ViTConfig), ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_are_refused_by_name_with_and_without_their_config(kind: str, tmp_path: Path) -> None:
    make, name = OTHERS[kind]
    make().save_pretrained(tmp_path)
    told = refused(tmp_path)
    assert f"model type '{kind}'" in told
    assert told.startswith(str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").unlink()
    told = refused(tmp_path)
    assert name in told
    assert told.startswith(str(tmp_path / "model.safetensors"))


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    state = {f"base_model.model.blocks.0.attn.qkv.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
    write_safetensors(tmp_path / "adapter_model.safetensors", state)
    assert "only a LoRA adapter" in refused(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "MCG-NJU/videomae-base", "r": 2}')
    assert "a LoRA adapter of 'MCG-NJU/videomae-base'" in refused(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    write_safetensors(tmp_path / "adapter_model.safetensors", {**state, "blocks.0.norm1.weight": torch.zeros(2)})
    assert "unmerged LoRA" in refused(tmp_path)


@torch.no_grad()
def test_a_processor_tells_colours_and_crop(tmp_path: Path) -> None:
    videomae(transformers.VideoMAEForVideoClassification, tmp_path)
    plain = load(tmp_path, device="cpu")
    processor = {
        "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.125], "resample": 3,
        "size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32},
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    model = load(tmp_path, device="cpu")
    rule = model.preprocessing
    assert (rule.resize, rule.size, rule.resize_backend, rule.keep_aspect) == (40, 32, "pil_bicubic", True)
    pixels = torch.randint(0, 256, (1, 3, 4, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(processor[key]).view(3, 1, 1, 1) for key in ("image_mean", "image_std"))
    assert torch.allclose(model.module.normalize(pixels), (pixels / 255 - mean) / std, atol=1e-6)  # type: ignore[operator]  # a module
    assert model.preprocessing.sampler == plain.preprocessing.sampler
    again = load(model.save_pretrained(tmp_path / "saved"), device="cpu")
    assert torch.equal(again.logits(pixels), model.logits(pixels))
    assert not torch.allclose(plain.logits(pixels), model.logits(pixels))
    squashed = {**processor, "size": {"height": 32, "width": 32}, "do_center_crop": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(squashed))
    assert not load(tmp_path, device="cpu").preprocessing.keep_aspect


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"crop_size": {"height": 16, "width": 16}}, "a crop of 16 px"),
        ({"crop_size": {"height": 16, "width": 32}}, "crop_size"),
        ({"size": {"shortest_edge": 16}}, "of 16"),
        ({"size": {"longest_edge": 40}}, "size"),
        ({"do_resize": False}, "square"),
        ({"do_rescale": False}, "do_rescale"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"resample": 0}, "resample 0"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std"),
    ],
    ids=str,
)
def test_a_processor_that_we_cannot_follow_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    videomae(transformers.VideoMAEForVideoClassification, tmp_path)
    processor = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **change}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    message = refused(tmp_path)
    assert told in message
    assert "preprocessor_config.json" in message


def test_the_licence_is_that_of_the_card_beside_the_weights(tmp_path: Path) -> None:
    videomae(transformers.VideoMAEForVideoClassification, tmp_path)
    assert load(tmp_path, device="cpu").metadata["licence"] == "unknown"
    (tmp_path / "README.md").write_text("---\ntags: [video]\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    model = load(tmp_path, device="cpu")
    assert (model.metadata["licence"], model.metadata["licence_stated"]) == (
        "cc-by-nc-4.0", "by the README.md beside the weights",
    )  # fmt: skip
