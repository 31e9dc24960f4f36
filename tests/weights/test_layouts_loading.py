"""Published checkpoints are read strictly; another head, another clip size only when asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle, product
from typing import Any

import published_keys as keys
import pytest
import torch
from small_checkpoints import SMALL, load, same, small, untold
from torch import Tensor

from internvideo.errors import WeightsError
from internvideo.models.clip import CLIPModel
from internvideo.models.embeddings import resize_table
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEPretrain
from internvideo.weights.layouts import load_layout, recognize, require_layout

WRAPPERS = ("module.", "backbone.", "_orig_mod.model.")


@pytest.mark.parametrize(("name", "wrapper"), dict.fromkeys([*zip(SMALL, cycle(WRAPPERS)), *product(["mm"], WRAPPERS)]))
def test_what_programs_put_before_the_keys_changes_nothing(name: str, wrapper: str) -> None:
    state, rest = small(name)
    wrapped = {f"{wrapper}{key}": value for key, value in state.items()}
    layout = require_layout(wrapped)
    assert same(load_layout(layout, wrapped, overrides=rest), load(name))


@pytest.mark.parametrize("trunk", ["encoder.", "backbone.", "module.encoder.", "backbone.encoder."])
def test_a_finetuned_trunk_may_still_stand_under_its_old_name(trunk: str) -> None:
    state, rest = small("classifier")
    wrapped = {key if key.startswith(("head.", "fc_norm.")) else f"{trunk}{key}": v for key, v in state.items()}
    layout = require_layout(wrapped)
    assert layout.name == "VideoMAE classifier"
    assert same(load_layout(layout, wrapped, overrides=rest), load("classifier"))
    everything = {f"{trunk}{key}": value for key, value in state.items()}
    assert same(load_layout(require_layout(everything), everything, overrides=rest), load("classifier"))


def test_an_encoder_alone_is_a_classifier_without_classes() -> None:
    state, rest = small("classifier")
    bare = {key: value for key, value in state.items() if not key.startswith("head.")}
    model = load_layout(require_layout(bare), bare, overrides=rest)
    assert isinstance(model, VideoMAEClassifier)
    assert model(torch.randn(1, 3, 4, 32, 32)).shape == (1, 64)
    headed = load_layout(require_layout(bare), bare, num_classes=3, overrides=rest)
    assert headed(torch.randn(1, 3, 4, 32, 32)).shape == (1, 3)


def test_only_the_towers_of_a_multimodal_checkpoint_are_used() -> None:
    """Multi-Modalities-Pretraining: keys outside `clip.` are left out, and the layout says which."""
    extra = {
        "optimizer.state": torch.zeros(2),
        "itm_head.weight": torch.zeros(2, 64),
        "caption_decoder.x": torch.ones(1),
    }
    state, _ = small("mm")
    layout = require_layout(state | extra)
    assert layout.ignored_keys == tuple(extra)
    assert same(load("mm", extra), load("mm"))
    with pytest.raises(WeightsError, match=r"1 unused \(surprise\)"):
        load("mm", {"clip.surprise": torch.zeros(1)})
    bare = {key.removeprefix("clip."): value for key, value in state.items()} | {"itm_head.weight": torch.zeros(2)}
    layout = require_layout(bare)
    with pytest.raises(WeightsError, match="unused"):  # without the prefix everything must have a place
        load_layout(layout, bare, overrides=untold(bare))


def test_a_caption_decoder_comes_along_when_it_can_write() -> None:
    state = keys.numbers(SMALL["mm"]() | keys.caption_decoder(64, 64, 2, 40, queries=3, prefix="caption_decoder."))
    model = load_layout(require_layout(state), state, overrides=untold(state))
    assert isinstance(model, VideoLanguage)
    assert model.generate(torch.randn(1, 3, 2, 32, 32), start=38, end=39).shape == (1, 9)


# --- faults ---


def refused(name: str, change: Mapping[str, Tensor | None] | None = None, **options: Any) -> str:
    with pytest.raises(WeightsError) as error:
        load(name, change, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


VICTIM = {
    "pretrain": "decoder.blocks.0.attn.v_bias",
    "classifier": "blocks.1.attn.q_bias",
    "uniformerv2": "transformer.dec.1.ln_3.bias",
    "local": "transformer.resblocks.1.lmhra2.pos_embed.2.bias",
    "mm": "clip.visual_ln_post.bias",
    "vqa": "caption_decoder.multimodal_layers.0.1.fn.to_q.weight",
    "choice": "rank_output.1.bias",
    "viclip": "vision_encoder.ln_post.bias",
    "clip": "transformer.resblocks.0.attn.in_proj_bias",
    "caption": "predictor.1.bias",
}


@pytest.mark.parametrize("name", SMALL)
def test_every_fault_of_every_layout_is_named(name: str) -> None:
    key = VICTIM[name]
    tensor = small(name)[0][key]
    wrong = tensor.clone()
    wrong.view(-1)[1] = math.inf
    assert "1 missing" in refused(name, {key: None})
    assert "1 mis-shaped" in refused(name, {key: torch.randn(*tensor.shape[:-1], tensor.shape[-1] + 1)})
    assert "1 not finite" in refused(name, {key: wrong})
    assert "1 of another type" in refused(name, {key: torch.ones(tensor.shape, dtype=torch.int8)})
    place = "clip." if name in ("mm", "vqa", "choice") else ""
    assert "1 unused" in refused(name, {f"{place}surprise.weight": torch.zeros(2)})
    assert refused(name, {key: None}).startswith("file: ")


def test_tensors_that_tell_the_size_are_asked_for() -> None:
    state, rest = small("classifier")
    del state["blocks.0.norm1.weight"], state["fc_norm.weight"], state["fc_norm.bias"]
    with pytest.raises(WeightsError, match="3 missing"):
        load_layout(require_layout(state), state, overrides=rest)
    state, _ = small("uniformerv2")
    del state["positional_embedding"]
    with pytest.raises(WeightsError, match="positional_embedding: missing"):
        recognize(state)
    state["positional_embedding"] = torch.zeros(8, 64)
    with pytest.raises(WeightsError, match="1 \\+ a square"):
        recognize(state)
    state["positional_embedding"] = torch.zeros(64)
    with pytest.raises(WeightsError, match="mis-shaped"):
        recognize(state)
    both = {"module.head.weight": torch.zeros(2), "head.weight": torch.zeros(2)}
    with pytest.raises(WeightsError, match="two models"):
        recognize(both)
    decoder = keys.numbers(SMALL["mm"]())
    decoder |= keys.numbers(keys.caption_decoder(48, 64, 1, 40, queries=3, head=16, prefix="caption_decoder."))
    with pytest.raises(WeightsError, match="do not fit together"):
        recognize(decoder)


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ({}, "no tensor"),
        ({"fc.weight": torch.zeros(3, 3), "layer1.0.conv1.weight": torch.zeros(3, 3, 3, 3)}, "no known"),
        (
            {"patch_embed.proj.weight": torch.zeros(8, 3, 16, 16), "blocks.0.mlp.fc1.weight": torch.zeros(32, 8)},
            "image transformer",
        ),
        (
            {"visual.layer1.0.conv1.weight": torch.zeros(3, 3, 1, 1), "token_embedding.weight": torch.zeros(9, 4)},
            "with a ResNet",
        ),
    ],
    ids=["empty", "resnet", "image transformer", "CLIP with a convolutional tower"],
)
def test_an_unknown_layout_is_told_with_the_known_ones_and_the_keys_seen(state: dict[str, Tensor], name: str) -> None:
    assert recognize(state) is None
    with pytest.raises(WeightsError) as error:
        require_layout(state, "file")
    told = str(error.value)
    assert "UniFormerV2" in told
    assert "transformers VideoMAE classifier" in told
    assert "\n" not in told
    for key in state:
        assert key.replace(".0.", ".N.") in told
    assert name in told


def test_heads_that_cannot_be_told_must_be_given() -> None:
    state = keys.numbers(keys.videomae_classifier(48, 1, 96, 3))
    layout = require_layout(state)
    assert layout.unknown == ("heads",)
    with pytest.raises(WeightsError, match="do not determine heads"):
        load_layout(layout, state)
    model = load_layout(layout, state, overrides={"heads": 3})
    assert isinstance(model, VideoMAEClassifier)
    assert model.config.heads == 3


def test_biases_lost_by_a_conversion_are_noticed() -> None:
    """A trained VideoMAE has query and value biases; a file where all are zero has lost them."""
    state, _ = small("classifier")
    lost = {key: torch.zeros_like(value) for key, value in state.items() if key.endswith(("q_bias", "v_bias"))}
    assert "all query and value biases are zero" in refused("classifier", lost)
    some = dict(lost)
    some["blocks.0.attn.q_bias"] = torch.ones(64)
    load("classifier", some)
    untrained = lost | {key: torch.zeros_like(value) for key, value in state.items() if key.endswith("mlp.fc1.bias")}
    load("classifier", untrained)


# --- another head, another clip ---


@pytest.mark.parametrize(
    ("name", "head"), [("classifier", "head."), ("uniformerv2", "proj.linear."), ("local", "proj."), ("vqa", "head.5.")]
)
def test_another_number_of_classes_only_when_asked_for(name: str, head: str) -> None:
    setting = "answers" if name == "vqa" else "num_classes"
    state, rest = small(name)
    with pytest.raises(WeightsError, match=r"mis-shaped.*num_classes"):
        load_layout(require_layout(state), state, overrides={**rest, setting: 11})
    old, new = load(name), load(name, num_classes=11)
    before, after = old.state_dict(), new.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all(key.startswith(head) for key in changed)
    assert after[f"{head}weight" if name != "local" else "proj.linear.weight"].shape[0] == 11
    torch.manual_seed(3)
    first = load(name, num_classes=5).state_dict()  # also for the same number: it was asked for
    assert not torch.equal(first[min(changed)], before[min(changed)])


@pytest.mark.parametrize("name", ["mm", "viclip", "clip", "caption", "choice"])
def test_models_without_classes_take_none(name: str) -> None:
    assert "has no classes" in refused(name, num_classes=3)


def test_a_classifier_is_made_of_pretraining_weights_when_asked_for() -> None:
    pretrained, model = load("pretrain"), load("pretrain", num_classes=6)
    assert isinstance(pretrained, VideoMAEPretrain)
    assert isinstance(model, VideoMAEClassifier)
    assert model(torch.randn(1, 3, 4, 32, 32)).shape == (1, 6)
    assert torch.equal(model.blocks[1].mlp.fc2.weight, pretrained.encoder.blocks[1].mlp.fc2.weight)
    assert "missing (blocks.1.attn.q_bias)" in refused(
        "pretrain", {"encoder.blocks.1.attn.q_bias": None}, num_classes=6
    )


@pytest.mark.parametrize("frames", [2, 16, 64])
@pytest.mark.parametrize("name", ["uniformerv2", "mm", "vqa", "choice"])
def test_these_weights_do_not_depend_on_the_frames(name: str, frames: int) -> None:
    changed = load(name, frames=frames)
    assert same(changed, load(name))
    vision = (
        changed.config if isinstance(changed, UniFormerV2) else changed.get_submodule("model" if name != "mm" else "")
    )
    config = vision if isinstance(changed, UniFormerV2) else vision.config.vision  # type: ignore[union-attr]  # of two kinds
    assert config.frames == frames  # type: ignore[union-attr]  # one of three kinds of model


def test_a_classifiers_fixed_positions_are_resized_for_another_clip() -> None:
    state = keys.numbers(SMALL["classifier"]())
    layout = require_layout(state)
    native = load_layout(layout, state, overrides={"heads": 1})
    larger = load_layout(layout, state, frames=8, image_size=64, overrides={"heads": 1})
    anew = load_layout(layout, state, frames=8, image_size=64, overrides={"heads": 1, "position_table": "native"})
    assert isinstance(native, VideoMAEClassifier)
    assert isinstance(larger, VideoMAEClassifier)
    assert isinstance(anew, VideoMAEClassifier)
    assert same(larger, native)
    expected = resize_table(native.pos_embed[0], (8, 14, 14), (4, 4, 4))
    assert torch.allclose(larger.pos_embed[0], expected, atol=1e-6)
    assert torch.equal(anew.pos_embed[0], native.pos_embed[0, :64])
    same_size = load_layout(layout, state, frames=16, image_size=224, overrides={"heads": 1})
    assert same_size.config.position_table == "native"  # type: ignore[union-attr]  # a module


def test_learned_positions_are_resized_only_when_asked_for() -> None:
    state = keys.numbers(SMALL["classifier"]() | {"pos_embed": (1, 8 * 2 * 2, 64)})
    layout = require_layout(state)
    assert layout.overrides["image_size"] == 32
    assert layout.overrides["learnable_positions"]
    model = load_layout(layout, state, frames=8, image_size=48, overrides={"heads": 1})
    expected = resize_table(state["pos_embed"][0], (8, 2, 2), (4, 3, 3))
    assert torch.equal(model.state_dict()["pos_embed"][0], expected)
    with pytest.raises(WeightsError, match="another image size or number of frames"):
        load_layout(layout, state, overrides={"heads": 1, "frames": 8})


def test_viclip_cuts_or_interpolates_its_time_positions_only_when_asked_for() -> None:
    state, _ = small("viclip")
    stored = state["vision_encoder.temporal_positional_embedding"]
    fewer = load("viclip", frames=3).state_dict()["visual.time_embedding"]
    assert torch.equal(fewer, stored[:, :3])
    more = load("viclip", frames=8).state_dict()["visual.time_embedding"]
    assert more.shape == (1, 8, 64)
    assert torch.equal(more[:, 0], stored[:, 0])
    assert torch.allclose(more[:, 3], torch.lerp(stored[:, 1], stored[:, 2], 0.25))
    with pytest.raises(WeightsError, match="number of frames"):
        load_layout(require_layout(state), state, overrides={**untold(state), "frames": 8})


@pytest.mark.parametrize("name", ["uniformerv2", "local", "mm", "vqa", "choice", "viclip", "clip"])
def test_the_same_picture_changes_nothing(name: str) -> None:
    assert same(load(name, image_size=32), load(name))


def test_what_has_no_frames_says_so() -> None:
    assert "no number of frames" in refused("clip", frames=8)
    assert "no number of frames" in refused("caption", frames=8)
    assert "has no image size" in refused("caption", image_size=64)


def test_clip_is_read_frame_by_frame() -> None:
    model = load("clip")
    assert isinstance(model, CLIPModel)
    video = model.normalize(torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8))
    seen, text = model(video, torch.tensor([[1, 39, 0], [2, 3, 39]]))
    assert model.similarity(seen, text).shape == (2, 2)
    assert torch.allclose(model.scale, model.logit_scale.exp())
