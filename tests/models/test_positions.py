"""Positions at another clip size: each publisher's rule, in loading and in training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import published_keys as keys
import pytest
import small_world
import test_layouts_transformers as theirs
import test_spatio_temporal_localization
import torch
import torch.nn.functional as F
from small_checkpoints import SMALL, load, small, untold
from small_world import FRAMES, SIDE, small_recipe
from torch import Tensor, nn
from transformers import CLIPModel

from internvideo.errors import RecipeError, WeightsError
from internvideo.model_table import create_model
from internvideo.models.embeddings import resize_table, sin_cos_table
from internvideo.models.positions import infer_learned_grid, resize_patches
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.videomae import VideoMAEClassifier
from internvideo.pipeline import load_trained, prepare, run_recipe
from internvideo.recipe import Recipe, build_recipe, read_recipe, shipped_recipes
from internvideo.tasks.spatio_temporal_localization.model import ActionDetector
from internvideo.training.model_setup import build_model
from internvideo.weights.layouts import load_layout, require_layout
from internvideo.weights.state import save_model

WIDTH = 768


def published(slots: int, side: int) -> Tensor:
    """The released script's table: the one of 224 px and 16 frames, step by step as it stands there."""
    table = sin_cos_table(1568, WIDTH).reshape(8, 14, 14, WIDTH).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(side, side), mode="bicubic", align_corners=False)
    table = table.permute(2, 3, 1, 0).reshape(-1, WIDTH, 8)
    table = F.interpolate(table, size=slots, mode="linear")
    return table.reshape(side, side, WIDTH, slots).permute(3, 0, 1, 2).reshape(-1, WIDTH)


# --- fine-tuning recipes of the paper --------------------------------------------------------------------------------

MASKED = {
    name: recipe
    for name, path in shipped_recipes().items()
    if not name.startswith("sample/")
    and (recipe := read_recipe(path)).model.name.startswith(
        ("videomae", "interaction", "action-detector", "anticipator")
    )
    and recipe.stage != "masked"
}


@pytest.mark.parametrize("name", MASKED)
def test_recipes_of_the_paper_resize_the_table_of_224_px_and_16_frames(name: str) -> None:
    recipe = MASKED[name]
    place = "model.overrides.masked." if recipe.stage == "interaction" else "model.overrides."
    size = {"width": WIDTH, "depth": 1, "heads": 12, "frames": 32, "image_size": 112}
    changes = [f"{place}{key}={value}" for key, value in size.items()]
    if recipe.stage == "interaction":  # the other encoder is not asked for its size
        other = {"width": 64, "depth": 1, "heads": 1, "global_layers": [0], "global_heads": 1}
        changes += [f"model.overrides.multimodal.{key}={value}" for key, value in other.items()]
    changed = read_recipe(name, changes)
    model = build_model(
        changed, 400 if recipe.stage == "interaction" else 5 if recipe.init_head != "exact" else classes(recipe)
    )
    trunk = getattr(model, "masked", model)
    side = (
        14 if recipe.stage in ("spatio_temporal_localization", "anticipation") else 7
    )  # frames of any size are resized when they come
    torch.testing.assert_close(trunk.pos_embed[0], published(16, side), atol=1e-5, rtol=0)


def classes(recipe: Recipe) -> int:
    return int(recipe.model.overrides.get("num_classes", 5))


# --- training --------------------------------------------------------------------------------------------------------


def fine_tuned(stage: str, weights: Path | None, size: int, frames: int, **overrides: Any) -> Recipe:
    """A recipe of another clip size than the small world's, from weights of that."""
    tree = small_recipe(stage, augment={"size": size}, sampling={"frames": frames}, schedule={"steps": 1})
    tree["model"]["overrides"] = {**tree["model"]["overrides"], "image_size": size, "frames": frames, **overrides}
    return build_recipe({**tree, "init": {} if weights is None else {"weights": str(weights)}})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = build_recipe(small_recipe("masked", schedule={"steps": 1}))
    return run_recipe(recipe, tmp_path_factory.mktemp("pretrained"), device="cpu")


def table_of(model: nn.Module) -> Tensor:
    table = model.get_buffer("pos_embed")
    assert isinstance(table, Tensor)
    return table[0]


OURS = sin_cos_table(2 * 4 * 4, 48)
"""Of the small world's pretraining: two slots of 4 x 4 patches."""


def test_a_run_at_another_clip_size_starts_from_its_weights_table(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = fine_tuned("supervised", pretrained, 48, 8)
    right = resize_table(OURS, (2, 4, 4), (4, 6, 6))
    assert torch.equal(table_of(prepare(recipe).model), right)
    assert f"positions: pos_embed resized from {SIDE} px, {FRAMES} frames to 48 px, 8 frames" in capsys.readouterr().err
    first = run_recipe(recipe, tmp_path / "first", device="cpu")
    assert torch.equal(table_of(load_trained(first, device="cpu").model), right)
    kept = json.loads((tmp_path / "first" / "run.json").read_text())["recipe"]["model"]["overrides"]
    assert (kept["position_table"], kept["native_clip"]) == ("resized", [SIDE, FRAMES])
    # What was fine-tuned at another size goes on from the pretraining's table, as the released script does.
    third = prepare(fine_tuned("supervised", first, 64, 4))
    assert torch.equal(table_of(third.model), resize_table(OURS, (2, 4, 4), (2, 8, 8)))
    again = prepare(fine_tuned("supervised", first, 48, 8))
    assert torch.equal(table_of(again.model), right)


def test_the_same_clip_size_changes_nothing(pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = prepare(fine_tuned("supervised", pretrained, SIDE, FRAMES))
    assert torch.equal(table_of(job.model), OURS)
    assert job.recipe.model.overrides == fine_tuned("supervised", None, SIDE, FRAMES).model.overrides
    assert "positions" not in capsys.readouterr().err
    scratch = prepare(fine_tuned("supervised", None, 48, 8))
    assert torch.equal(table_of(scratch.model), sin_cos_table(4 * 6 * 6, 48))


def test_what_the_recipe_says_of_positions_stays(pretrained: Path) -> None:
    native = prepare(fine_tuned("supervised", pretrained, 48, 8, position_table="native"))
    assert torch.equal(table_of(native.model), sin_cos_table(4 * 6 * 6, 48))
    told = {"position_table": "resized", "native_clip": [64, 8]}
    right = resize_table(sin_cos_table(4 * 8 * 8, 48), (4, 8, 8), (4, 6, 6))
    assert torch.equal(table_of(prepare(fine_tuned("supervised", pretrained, 48, 8, **told)).model), right)
    resized = prepare(fine_tuned("supervised", pretrained, SIDE, FRAMES, position_table="resized"))
    assert torch.equal(table_of(resized.model), OURS)  # of the file's clip, not of 224 px


@pytest.mark.parametrize("name", ["public", "hub"])
def test_files_of_others_and_of_save_pretrained_tell_their_clip(name: str, tmp_path: Path) -> None:
    model = small_world.pretraining_model()
    told = {
        "internvideo": json.dumps({"model": "videomae-s-pretrain", "overrides": {"image_size": SIDE, "frames": FRAMES}})
    }
    save_model(tmp_path / "w.safetensors", model, told if name == "hub" else {})
    job = prepare(fine_tuned("supervised", tmp_path / "w.safetensors", 48, 8))
    public = resize_table(sin_cos_table(8 * 28 * 28, 48), (8, 28, 28), (4, 6, 6))
    right = resize_table(OURS, (2, 4, 4), (4, 6, 6)) if name == "hub" else public
    assert torch.equal(table_of(job.model), right)


def test_settings_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    save_model(tmp_path / "w.safetensors", small_world.pretraining_model(), {"recipe": "{}"})
    with pytest.raises(WeightsError, match="settings that cannot be read"):
        prepare(fine_tuned("supervised", tmp_path / "w.safetensors", 48, 8))


def test_the_interaction_takes_over_its_masked_encoders_table(pretrained: Path, tmp_path: Path) -> None:
    masked = run_recipe(fine_tuned("supervised", pretrained, 48, 4), tmp_path / "m", device="cpu")
    multimodal = run_recipe(fine_tuned("supervised_multimodal", None, 48, 4), tmp_path / "u", device="cpu")
    tree = small_recipe("interaction", augment={"size": 48})
    for part in ("masked", "multimodal"):
        tree["model"]["overrides"][part] = {**tree["model"]["overrides"][part], "image_size": 48}
    job = prepare(build_recipe({**tree, "init": {"masked": str(masked), "multimodal": str(multimodal)}}))
    right = resize_table(OURS, (2, 4, 4), (2, 6, 6))
    assert torch.equal(job.model.get_buffer("masked.pos_embed")[0], right)


def test_a_detector_resizes_its_encoders_table_once(pretrained: Path, tmp_path: Path) -> None:
    test_spatio_temporal_localization.world(tmp_path, 3)
    tree = test_spatio_temporal_localization.recipe(tmp_path).resolved()
    size = {"image_size": 64, "frames": 8, "width": 48, "depth": 3, "patch_size": 8}
    tree["model"]["overrides"] = {**tree["model"]["overrides"], **size}
    tree["data"]["sampling"]["frames"] = 8
    model = prepare(build_recipe({**tree, "init": {"weights": str(pretrained)}})).model
    assert isinstance(model, ActionDetector)
    right = resize_table(OURS, (2, 4, 4), (4, 4, 4))
    assert torch.equal(model.pos_embed[0], right)
    for block in model.blocks:
        for value in block.parameters():
            value.data.zero_()
    video = torch.zeros(1, 3, 8, 40, 64)
    plain = model.norm(model.patch_embed(video) + resize_table(right, (4, 4, 4), (4, 5, 8)))
    assert torch.equal(model.tokens(video), plain)


def test_learned_positions_are_resized_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = VideoMAEClassifier(replace(small_world.MASKED, frames=16, learnable_positions=True, num_classes=2))
    save_model(tmp_path / "old.safetensors", old)
    job = prepare(fine_tuned("supervised", tmp_path / "old.safetensors", 48, 4, learnable_positions=True))
    right = resize_table(old.pos_embed[0].detach(), (8, 4, 4), (2, 6, 6))
    assert torch.equal(job.model.state_dict()["pos_embed"][0], right)
    assert "positions: pos_embed resized from 128 to 72" in capsys.readouterr().err


def test_the_multimodal_encoder_is_fine_tuned_at_another_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = small_world.language_model()
    save_model(tmp_path / "old.safetensors", old)
    model = prepare(fine_tuned("supervised_multimodal", tmp_path / "old.safetensors", 48, 8)).model
    assert isinstance(model, UniFormerV2)
    right = resize_patches(old.visual.stem.positional_embedding.detach(), 6)
    assert torch.equal(model.stem.positional_embedding, right)
    assert "positions: stem.positional_embedding resized from 17 to 37" in capsys.readouterr().err


def test_clips_positions_are_resized_for_another_picture(tmp_path: Path) -> None:
    clip = small_world.image_text_model()
    save_model(tmp_path / "clip.safetensors", clip)
    recipe = fine_tuned("supervised_multimodal", None, 48, 4)
    job = prepare(build_recipe({**recipe.resolved(), "init": {"clip": str(tmp_path / "clip.safetensors")}}))
    right = resize_patches(clip.visual.stem.positional_embedding.detach(), 6)
    assert torch.equal(job.model.state_dict()["stem.positional_embedding"], right)


# --- loading ---------------------------------------------------------------------------------------------------------

STEMS = {
    "uniformerv2": ("positional_embedding", "stem."),
    "local": ("positional_embedding", "stem."),
    "mm": ("clip.visual.positional_embedding", "visual.stem."),
    "vqa": ("clip.visual.positional_embedding", "model.visual.stem."),
    "choice": ("clip.visual.positional_embedding", "model.visual.stem."),
    "viclip": ("vision_encoder.positional_embedding", "visual.stem."),
    "clip": ("visual.positional_embedding", "visual.stem."),
}


@pytest.mark.parametrize("size", [16, 48, 64])
@pytest.mark.parametrize("name", STEMS)
def test_patches_are_resized_bicubically_and_the_class_token_keeps_its_position(name: str, size: int) -> None:
    key, stem = STEMS[name]
    table = small(name)[0][key]
    patches = table[1:].reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(size // 16,) * 2, mode="bicubic", align_corners=False)
    right = torch.cat([table[:1], patches.permute(0, 2, 3, 1).flatten(0, 2)])
    state = load(name, image_size=size).state_dict()
    torch.testing.assert_close(state[f"{stem}positional_embedding"], right)
    words = [key for key in state if key.endswith("text.positional_embedding")]
    plain = load(name).state_dict()
    assert all(torch.equal(state[key], plain[key]) for key in words)


@torch.no_grad()
def test_transformers_clip_at_another_picture_answers_as_theirs() -> None:
    model: CLIPModel = theirs.image_text()
    ours = theirs.load(model.state_dict(), image_size=48)
    picture = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(3)).double()
    vision = model.vision_model(pixel_values=picture, interpolate_pos_encoding=True)
    expected = model.visual_projection(vision.pooler_output)
    found = ours.encode_video(picture[:, :, None])
    assert (found - expected).abs().max() < 1e-5  # the table is resized in single precision


@torch.no_grad()
def test_transformers_videomae_computes_its_table_for_the_clip() -> None:
    model = theirs.videomae(theirs.VideoMAEForVideoClassification)
    ours = theirs.load(model.state_dict(), image_size=48, frames=8)
    assert torch.equal(ours.pos_embed[0], sin_cos_table(4 * 3 * 3, 128).double())


def test_umt_resizes_the_table_of_eight_frames() -> None:
    state = keys.numbers(SMALL["classifier"]() | {"patch_embed.proj.weight": (64, 3, 1, 16, 16)})
    layout = require_layout(state)
    plain: Any = load_layout(layout, state, overrides=untold(state))
    assert (plain.config.frames, plain.config.image_size, plain.config.tubelet) == (8, 224, 1)
    assert torch.equal(plain.pos_embed[0], sin_cos_table(8 * 14 * 14, 64))
    other: Any = load_layout(layout, state, frames=16, image_size=112, overrides=untold(state))
    assert torch.equal(other.pos_embed[0], resize_table(plain.pos_embed[0], (8, 14, 14), (16, 7, 7)))


GRIDS = {
    1568: (8, 14), 3136: (16, 14), 784: (4, 14), 4608: (8, 24), 3528: (8, 21), 1152: (8, 12), 32: (8, 2), 196: (1, 14),
    392: None, 6272: None, 9216: None, 7: None,
}  # fmt: skip


@pytest.mark.parametrize("tokens", GRIDS)
def test_learned_positions_tell_frames_and_picture_or_are_asked_for(tokens: int) -> None:
    assert infer_learned_grid(tokens, 14) == GRIDS[tokens]


@pytest.mark.parametrize("tubelet", [1, 2])
def test_learned_tables_of_other_frame_counts_are_recognised(tubelet: int) -> None:
    kernel = {"patch_embed.proj.weight": (64, 3, tubelet, 16, 16)}
    state = keys.numbers(SMALL["classifier"]() | kernel | {"pos_embed": (1, 16 * 14 * 14, 64)})
    model: Any = load_layout(require_layout(state), state, overrides=untold(state))
    assert (model.config.frames, model.config.image_size) == (16 * tubelet, 224)
    assert torch.equal(model.pos_embed, state["pos_embed"])


def test_what_the_tokens_do_not_tell_is_asked_for() -> None:
    state = keys.numbers(SMALL["classifier"]() | {"pos_embed": (1, 392, 64)})
    layout = require_layout(state)
    assert layout.unknown == ("image_size", "frames", "heads")
    with pytest.raises(WeightsError, match="do not determine image_size, frames"):
        load_layout(layout, state, overrides={"heads": 1})
    told = {"image_size": 112, "frames": 16, "heads": 1}
    model: Any = load_layout(layout, state, overrides=told)
    assert torch.equal(model.pos_embed, state["pos_embed"])
    larger: Any = load_layout(layout, state, image_size=64, frames=32, overrides=told)
    assert torch.equal(larger.pos_embed[0], resize_table(state["pos_embed"][0], (8, 7, 7), (16, 4, 4)))
    with pytest.raises(WeightsError, match="pos_embed has 392 positions; expected: 784, of 32 frames of 112 px"):
        load_layout(layout, state, image_size=64, overrides={**told, "frames": 32})


def test_a_table_of_no_whole_patch_is_told() -> None:
    with pytest.raises(RecipeError, match="no patch of 16 px") as caught:
        create_model("videomae-s-classifier", {"position_table": "resized", "native_clip": [4, 16]})
    assert "\n" not in str(caught.value)
