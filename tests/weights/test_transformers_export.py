"""What `save_pretrained(layout="transformers")` writes is read by transformers with equal outputs, and by us again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from internvideo import VideoModel, load
from internvideo.errors import RecipeError

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # theirs is untyped
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # theirs is untyped

SMALL: dict[str, Any] = {"image_size": 32, "frames": 4, "width": 96, "depth": 2, "heads": 3, "mlp_ratio": 2.0}
DECODER: dict[str, Any] = {"decoder_width": 48, "decoder_depth": 1, "decoder_heads": 3}
TEXT: dict[str, Any] = {"width": 96, "heads": 3, "layers": 2}
IMAGE_TEXT: dict[str, Any] = {"image_size": 32, "width": 96, "depth": 2, "heads": 3, "text": TEXT, "joint_width": 24}


def equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """In float32: attention sums in another order there."""
    return torch.allclose(found, wanted, atol=1e-5, rtol=1e-5)


def model(name: str, **overrides: Any) -> VideoModel:
    """Random weights, every parameter moved away from where it starts."""
    made = load(name, weights="random", overrides=overrides, device="cpu")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.add_(0.04 * torch.randn(parameter.shape, generator=generator))
    return made


def video(frames: int = 4) -> torch.Tensor:
    return torch.randn(2, 3, frames, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "change",
    [{}, {"head_eps": 1e-5}, {"pooling": "first"}, {"activation": "relu"}, {"qkv_bias": False}, {"eps": 0.1}],
    ids=str,
)
@torch.no_grad()
def test_a_classifier_gives_equal_logits_there(
    change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = model("videomae-s-classifier", **SMALL, num_classes=3, **change)
    ours.class_names = ("fall", "sit", "walk")
    folder = ours.save_pretrained(tmp_path / "saved", layout="transformers")
    assert ("norm of the mean: 1e-06 in internvideo" in capsys.readouterr().err) == (change.get("head_eps") is None)
    theirs = transformers.AutoModelForVideoClassification.from_pretrained(folder).eval()
    assert type(theirs).__name__ == "VideoMAEForVideoClassification"
    assert theirs.config.id2label == {0: "fall", 1: "sit", 2: "walk"}
    found = theirs(video().transpose(1, 2)).logits
    assert equal(found, ours.module(video()))
    again = load(folder, device="cpu")
    assert again.class_names == ours.class_names
    assert equal(again.module(video()), ours.module(video()))
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert list(processor.image_mean) == list(ours.module.config.mean)


@torch.no_grad()
def test_pretraining_and_an_encoder_give_equal_tokens_there(tmp_path: Path) -> None:
    ours = model("videomae-s-pretrain", **SMALL, **DECODER)
    folder = ours.save_pretrained(tmp_path / "pretrain", layout="transformers")
    theirs = transformers.VideoMAEForPreTraining.from_pretrained(folder).eval()
    mask = (torch.arange(8) % 3 != 0).expand(2, -1)
    found = theirs(video().transpose(1, 2), bool_masked_pos=mask).logits
    assert equal(found, ours.module(video(), mask))
    encoder = model("videomae-s-classifier", **SMALL, num_classes=0, final_norm=False)
    folder = encoder.save_pretrained(tmp_path / "encoder", layout="transformers")
    plain = transformers.VideoMAEModel.from_pretrained(folder).eval()
    assert equal(plain(video().transpose(1, 2)).last_hidden_state, encoder.module.tokens(video()))
    assert torch.equal(load(folder, device="cpu").module.tokens(video()), encoder.module.tokens(video()))


@pytest.mark.parametrize("change", [{}, {"activation": "gelu", "eps": 0.01}], ids=str)
@torch.no_grad()
def test_clip_gives_equal_similarities_there(change: dict[str, Any], tmp_path: Path) -> None:
    ours = model("clip-b16", **{**IMAGE_TEXT, "text": {**TEXT, **change}}, **change)
    folder = ours.save_pretrained(tmp_path / "saved", layout="transformers")
    theirs = transformers.CLIPModel.from_pretrained(folder).eval()
    assert ours._tokenizer is not None
    ids = ours._tokenizer.encode(["a dog runs", "somebody opens a door"]).long()
    images = video(1)
    found = theirs(input_ids=ids, pixel_values=images[:, :, 0])
    wanted = ours.module.similarity(*ours.module(images, ids))
    assert equal(found.logits_per_image, wanted)
    again = load(folder, device="cpu")
    assert torch.equal(again.module.similarity(*again.module(images, ids)), wanted)


def test_the_folder_says_what_it_is(tmp_path: Path) -> None:
    folder = model("videomae-s-classifier", **SMALL, num_classes=3).save_pretrained(tmp_path, layout="transformers")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json"
    ]  # fmt: skip
    card = (folder / "README.md").read_text()
    assert "library_name: transformers\n" in card
    assert "pipeline_tag: video-classification\n" in card
    assert "transformers reads the folder too, as `VideoMAEForVideoClassification`" in card
    assert "resized by 'opencv' in internvideo" in card
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["VideoMAEForVideoClassification"], "float32")


@pytest.mark.parametrize(
    ("name", "settings", "found"),
    [
        ("videomae-s-classifier", {**SMALL, "layer_scale": 0.1}, "layer_scale 0.1; expected: 0"),
        ("videomae-s-classifier", {**SMALL, "learnable_positions": True}, "learnable_positions True"),
        ("videomae-s-classifier", {**SMALL, "position_table": "resized"}, "position_table resized"),
        ("videomae-s-classifier", {**SMALL, "num_classes": 0}, "an encoder with a norm of the mean"),
        (
            "uniformerv2-b16",
            {"image_size": 32, "patch_size": 16, "width": 64, "heads": 2, "depth": 4, "global_layers": [2, 3]},
            "uniformerv2-b16 does not exist in transformers; expected: VideoMAE or CLIP",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_transformers_lacks_is_refused(name: str, settings: dict[str, Any], found: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        model(name, **settings).save_pretrained(tmp_path / "saved", layout="transformers")
    assert f"layout transformers: {found}" in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="layout: 'timm'; expected: internvideo, transformers"):
        model("videomae-s-classifier", **SMALL).save_pretrained(tmp_path, layout="timm")  # type: ignore[arg-type]
