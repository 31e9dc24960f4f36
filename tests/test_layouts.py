"""Published checkpoints are recognised by keys and shapes and read strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import published_keys as keys
from goldens_folder import GOLDENS
from internvideo.errors import WeightsError
from internvideo.models.clip import Clip
from internvideo.models.embeddings import resize_table
from internvideo.models.factory import MODELS, create_model
from internvideo.models.heads import FusedAnswer
from internvideo.models.layouts import Layout, as_model, layout_of, load_layout, recognise
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.viclip import ViCLIP
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEPretrain
from internvideo.models.weights import TABLES, convert_reference
from parity_families.case import Case

CASES = {
    path.stem: Case(path)
    for path in sorted((GOLDENS / "models").glob("*.json"))
    if "model" in json.loads(path.read_text())
}


# --- the stored reference models ---


def known(case: Case) -> dict[str, Any]:
    """What the tensors cannot tell, from the case's settings."""
    info = case.info
    if "vision" in info:
        return {"heads": info["vision"]["heads"], "text": {"heads": info["text"]["transformer_heads"]}}
    if "config" in info:
        towers = {name: {"heads": info["config"][name]["heads"]} for name in ("vision", "text")}
        return {"model": towers} if "vqa" in case.name else towers
    arguments = info["constructor"]
    if "encoder_embed_dim" in arguments:
        return {
            "image_size": arguments["img_size"],
            "frames": info["num_frames"],
            "heads": arguments["encoder_num_heads"],
            "decoder_heads": arguments["decoder_num_heads"],
        }
    if "return_list" in arguments:
        return {"heads": arguments["heads"], "global_layers": arguments["return_list"]}
    return {"heads": arguments["num_heads"]} if "num_heads" in arguments else {}


def outputs(case: Case, model: nn.Module) -> dict[str, Tensor]:
    """Some stored outputs by name, computed by our model in float32."""
    io = case.io
    if isinstance(model, VideoMAEPretrain):
        return {"pred": model(io["video"].float(), io["mask"].bool())}
    if isinstance(model, FusedAnswer):
        choices = case.info["config"].get("choices")
        ids = io["text_ids"]
        video = io["video"].float().transpose(1, 2)
        return {"out": model(video, ids if choices is None else ids.view(-1, choices, ids.shape[1]))}
    if isinstance(model, VideoLanguage) and "choices" in case.info["config"]:
        seen = model.encode_video(io["video"].float().transpose(1, 2))
        text = model.encode_text(io["text_ids"])
        scores = model.similarity(seen, text).view(len(seen), len(seen), -1)
        return {"out": scores[torch.arange(len(seen)), torch.arange(len(seen))]}
    if isinstance(model, VideoLanguage | ViCLIP):
        return {
            "video_feats": model.encode_video(io["video"].float()),
            "text_feats": model.encode_text(io["text_ids"]),
        }
    if isinstance(model, VideoMAEClassifier | UniFormerV2):
        video = io.get("video")
        if video is None:
            side = model.config.image_size // io["video_lowres"].shape[-1]
            video = io["video_lowres"].repeat_interleave(side, 3).repeat_interleave(side, 4)
        return {"logits": model(video.float())}
    visual = io["image_feats"].float().permute(1, 0, 2, 3).flatten(1, 2)
    return {"logits": model(visual, io["text_embeds"].float())}


FAMILY = {
    "caption_decoder": "caption decoder",
    "mae_finetune": "VideoMAE classifier",
    "mae_pretrain": "VideoMAE pretraining",
    "mm_multichoice": "InternVideo-MM",
    "mm_multichoice_fused": "InternVideo-MM multiple choice",
    "mm_videotext": "InternVideo-MM",
    "mm_vqa": "InternVideo-MM question answering",
    "ufv2": "UniFormerV2",
    "viclip": "ViCLIP",
}


@pytest.mark.parity
@pytest.mark.parametrize("wrapper", ["", "module.backbone."])
@pytest.mark.parametrize("name", CASES)
def test_every_reference_model_is_recognised_and_gives_its_outputs(name: str, wrapper: str) -> None:
    case = CASES[name]
    state = {f"{wrapper}{key}": value for key, value in case.weights.items()}
    layout = recognise(state)
    assert layout is not None
    assert layout.name == FAMILY[max((start for start in FAMILY if name.startswith(start)), key=len)]
    assert layout.prefix == wrapper
    assert layout.left_out == ()
    assert json.loads(json.dumps(layout.overrides)) == layout.overrides
    frames = size = None
    if name.startswith("mae_finetune"):
        frames, size = case.info["constructor"]["all_frames"], case.info["constructor"]["img_size"]
    model = load_layout(layout, state, name, frames=frames, image_size=size, overrides=known(case)).eval()
    with torch.no_grad():
        found = outputs(case, model)
    for key, ours in found.items():
        stored = case.io[key if key in case.io else f"{key}64"]
        error = (ours - stored.float()).abs().max().item()
        assert error < (3e-5 if "mm_" in name or "caption" in name else 1e-5), (key, error)


# --- the published sizes ---


def mm(size: str, joint: bool = True) -> keys.Keys:
    width, depth, patch, text = {"b16": (768, 12, 16, 512), "l14": (1024, 24, 14, 768)}[size]
    tower = keys.uniformerv2(224, patch, width, depth, 4, prefix="visual.")
    joint_width = text if joint else 0
    return keys.multimodal(tower, keys.text_tower("", text, joint_width), width, text, joint_width)


def clip_keys(image: int, patch: int, width: int, depth: int, text: int) -> keys.Keys:
    return keys.clip(image, patch, width, depth, keys.text_tower("", text, text), text)


def viclip_keys(patch: int, width: int, depth: int, text: int) -> keys.Keys:
    return keys.viclip(224, patch, width, depth, keys.text_tower("text_encoder.", text, text, context=32), text)


def answering(size: str, head: str, outputs: int) -> keys.Keys:
    vision, text = {"b16": (768, 512), "l14": (1024, 768)}[size]
    decoder = keys.caption_decoder(text, vision, 4, words=0, prefix="caption_decoder.")
    return keys.below("clip.", mm(size, joint=False)) | decoder | keys.answer_head(head, vision + 2 * text, outputs)


B, L, H, S = (768, 12, 3072), (1024, 24, 4096), (1280, 32, 5120), (384, 12, 1536)
GIANT, GIGANTIC = (1408, 40, 6144), (1664, 48, 8192)
SSV2 = {"local": 2, "downsample": True}

PUBLISHED: dict[str, tuple[Callable[[], keys.Keys], int | None, str, dict[str, object]]] = {
    "pretrain B": (lambda: keys.videomae_pretrain(*B, 384), 218, "videomae-b-pretrain", {}),
    "pretrain S": (lambda: keys.videomae_pretrain(*S, 192), None, "videomae-s-pretrain", {}),
    "pretrain L": (lambda: keys.videomae_pretrain(*L, 512, 12), None, "videomae-l-pretrain", {"decoder_depth": 12}),
    "pretrain H": (lambda: keys.videomae_pretrain(*H, 512, 8), None, "videomae-h-pretrain", {"decoder_depth": 8}),
    "pretrain g14": (
        lambda: keys.videomae_pretrain(*GIANT, 512, patch=14, decoder_hidden=int(512 * 48 / 11)),
        None,
        "videomae-g14-pretrain",
        {},
    ),
    "pretrain g16": (
        lambda: keys.videomae_pretrain(*GIANT, 512, decoder_hidden=int(512 * 48 / 11)),
        None,
        "videomae-g16-pretrain",
        {},
    ),
    "pretrain G14": (
        lambda: keys.videomae_pretrain(*GIGANTIC, 512, patch=14, decoder_hidden=int(512 * 64 / 13)),
        None,
        "videomae-G14-pretrain",
        {},
    ),
    "finetuned B": (lambda: keys.videomae_classifier(*B, 400), 162, "videomae-b-classifier", {}),
    "finetuned B, SSv2": (
        lambda: keys.videomae_classifier(*B, 174), 162, "videomae-b-classifier", {"classes": 174},
    ),
    "finetuned B, layer scale, first token": (
        lambda: keys.videomae_classifier(*B, 400, first=True, scale=True),
        186,
        "videomae-b-classifier",
        {"layer_scale": 0.1, "pooling": "first"},
    ),
    "finetuned S": (lambda: keys.videomae_classifier(*S, 400), None, "videomae-s-classifier", {}),
    "finetuned L": (lambda: keys.videomae_classifier(*L, 700), None, "videomae-l-classifier", {"classes": 700}),
    "finetuned H": (lambda: keys.videomae_classifier(*H, 710), None, "videomae-h-classifier", {"classes": 710}),
    "finetuned g14": (lambda: keys.videomae_classifier(*GIANT, 400, 14), None, "videomae-g14-classifier", {}),
    "finetuned g16": (lambda: keys.videomae_classifier(*GIANT, 400), None, "videomae-g16-classifier", {}),
    "finetuned G14": (lambda: keys.videomae_classifier(*GIGANTIC, 400, 14), None, "videomae-G14-classifier", {}),
    "UniFormerV2 B/16": (lambda: keys.uniformerv2(224, 16, 768, 12, 4, 400), 219, "uniformerv2-b16", {}),
    "UniFormerV2 B/16 K710": (
        lambda: keys.uniformerv2(224, 16, 768, 12, 4, 710), 219, "uniformerv2-b16", {"classes": 710},
    ),
    "UniFormerV2 L/14": (
        lambda: keys.uniformerv2(224, 14, 1024, 24, 4, 339), None, "uniformerv2-l14", {"classes": 339},
    ),
    "UniFormerV2 L/14@336": (lambda: keys.uniformerv2(336, 14, 1024, 24, 4, 400), None, "uniformerv2-l14-336", {}),
    "UniFormerV2 L/14@336, frozen": (
        lambda: keys.uniformerv2(336, 14, 1024, 24, 4, 400, balance=False),
        None,
        "uniformerv2-l14-336",
        {"balance": False},
    ),
    "UniFormerV2 B/16 SSv2": (
        lambda: keys.uniformerv2(224, 16, 768, 12, 8, 174, **SSV2), 547, "uniformerv2-b16-ssv2", {},
    ),
    "UniFormerV2 L/14 SSv2": (
        lambda: keys.uniformerv2(224, 14, 1024, 24, 16, 174, **SSV2), None, "uniformerv2-l14-ssv2", {},
    ),
    "MM L/14": (lambda: mm("l14"), 513, "internvideo-mm-l14", {}),
    "MM B/16": (lambda: mm("b16"), 369, "internvideo-mm-b16", {}),
    "MM L/14 with clip.": (lambda: keys.below("clip.", mm("l14")), 513, "internvideo-mm-l14", {}),
    "MM L/14 that writes": (
        lambda: keys.below("clip.", mm("l14")) | keys.caption_decoder(768, 1024, 4, prefix="caption_decoder."),
        513 + 72,
        "internvideo-mm-l14-caption",
        {"caption": {"layers": 4}},
    ),
    "MM L/14 answers": (lambda: answering("l14", "vqa_classifier", 1501), None, "internvideo-mm-l14-vqa", {}),
    "MM B/16 answers": (
        lambda: answering("b16", "vqa_classifier", 1541), None, "internvideo-mm-b16-vqa", {"answers": 1541},
    ),
    "MM L/14 chooses": (lambda: answering("l14", "rank_output", 1), None, "internvideo-mm-l14-choice", {}),
    "MM B/16 chooses": (lambda: answering("b16", "rank_output", 1), None, "internvideo-mm-b16-choice", {}),
    "caption decoder L": (lambda: keys.caption_decoder(768, 1024, 4), 72, "caption-decoder-l14", {}),
    "caption decoder B, 6 layers": (
        lambda: keys.caption_decoder(512, 768, 6), None, "caption-decoder-b16", {"layers": 6},
    ),
    "ViCLIP L/14": (lambda: viclip_keys(14, 1024, 24, 768), 297 + 149 + 1, "viclip-l14", {}),
    "ViCLIP B/16": (lambda: viclip_keys(16, 768, 12, 512), None, "viclip-b16", {}),
    "CLIP B/32": (lambda: clip_keys(224, 32, 768, 12, 512), None, "clip-b32", {}),
    "CLIP B/16": (lambda: clip_keys(224, 16, 768, 12, 512), None, "clip-b16", {}),
    "CLIP L/14": (lambda: clip_keys(224, 14, 1024, 24, 768), None, "clip-l14", {}),
    "CLIP L/14@336": (lambda: clip_keys(336, 14, 1024, 24, 768), None, "clip-l14-336", {}),
}  # fmt: skip
"""Published checkpoint -> its keys, how many (spec/models.md I.2, where it says), the model it is, what differs."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_is_recognised_and_every_key_has_its_place(name: str) -> None:
    make, count, model_name, overrides = PUBLISHED[name]
    published = make()
    if count is not None:
        assert len(published) == count
    layout = layout_of(keys.meta(keys.below("module.", published)))
    assert (layout.model, layout.overrides, layout.unknown) == (model_name, overrides, ())
    state, left_out = layout.family.read(keys.meta(published))
    assert left_out == ()
    with torch.device("meta"):
        model = create_model(layout.model, layout.overrides)
    constants = [key for key in state if key.endswith(("inv_freq", "beta"))]  # their values are looked at, not kept
    ours, unused = convert_reference(model, {key: value for key, value in state.items() if key not in constants})
    assert unused == []
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


def test_every_model_that_was_published_is_reached() -> None:
    own = {"interaction-b", "interaction-l", "interaction-h"}
    assert {row[2] for row in PUBLISHED.values()} == set(MODELS) - own - {"internvideo-mm-b16-caption"}


def test_every_table_of_weights_is_reached_by_a_layout() -> None:
    builds = {type(load_layout(layout_of(state), state, overrides=rest)) for state, rest in map(small, SMALL)}
    only_by_hand = {"SimilarMultipleChoice"}  # the multimodal model itself
    assert {kind.__name__ for kind in TABLES} == {kind.__name__ for kind in builds} | only_by_hand


# --- small published checkpoints ---

TEXT = {"layers": 1, "context": 9, "words": 40}


def small_mm(joint: int = 64) -> keys.Keys:
    tower = keys.uniformerv2(32, 16, 64, 3, 2, prefix="visual.")
    return keys.multimodal(tower, keys.text_tower("", 64, joint, **TEXT), 64, 64, joint)


SMALL: dict[str, Callable[[], keys.Keys]] = {
    "pretrain": lambda: keys.videomae_pretrain(64, 2, 128, 64, 1, decoder_hidden=128),
    "classifier": lambda: keys.videomae_classifier(64, 2, 128, 5),
    "uniformerv2": lambda: keys.uniformerv2(32, 16, 64, 3, 2, 5, prefix=""),
    "local": lambda: keys.uniformerv2(32, 16, 64, 3, 2, 5, prefix="", **SSV2),
    "mm": lambda: keys.below("clip.", small_mm()),
    "vqa": lambda: (
        keys.below("clip.", small_mm(0))
        | keys.caption_decoder(64, 64, 1, 0, queries=3, prefix="caption_decoder.")
        | keys.answer_head("vqa_classifier", 192, 7)
    ),
    "choice": lambda: (
        keys.below("clip.", small_mm(0))
        | keys.caption_decoder(64, 64, 1, 0, queries=3, prefix="caption_decoder.")
        | keys.answer_head("rank_output", 192, 1)
    ),
    "viclip": lambda: keys.viclip(32, 16, 64, 2, keys.text_tower("text_encoder.", 64, 64, **TEXT), 64, 4),
    "clip": lambda: keys.clip(32, 16, 64, 2, keys.text_tower("", 64, 64, **TEXT), 64),
    "caption": lambda: keys.caption_decoder(64, 64, 1, 40, queries=3),
}


def small(name: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Random weights, and settings that keep the clips small."""
    masked = {"image_size": 32, "frames": 4} if name in ("pretrain", "classifier") else {}
    return keys.numbers(SMALL[name]()), dict(masked)


def load(name: str, change: Mapping[str, Tensor | None] | None = None, **options: Any) -> nn.Module:
    """The small checkpoint with tensors added, replaced or (None) taken away."""
    state, rest = small(name)
    state |= {key: value for key, value in (change or {}).items() if value is not None}
    for key in (key for key, value in (change or {}).items() if value is None):
        del state[key]
    return load_layout(layout_of(state), state, "file", overrides=rest, **options)


def same(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    mine = first.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in mine.items())


@pytest.mark.parametrize("wrapper", ["module.", "backbone.", "_orig_mod.model."])
@pytest.mark.parametrize("name", SMALL)
def test_what_programs_put_before_the_keys_changes_nothing(name: str, wrapper: str) -> None:
    state, rest = small(name)
    wrapped = {f"{wrapper}{key}": value for key, value in state.items()}
    layout = layout_of(wrapped)
    assert layout.prefix == wrapper
    assert same(load_layout(layout, wrapped, overrides=rest), load(name))


@pytest.mark.parametrize("trunk", ["encoder.", "backbone.", "module.encoder.", "backbone.encoder."])
def test_a_finetuned_trunk_may_still_stand_under_its_old_name(trunk: str) -> None:
    state, rest = small("classifier")
    wrapped = {key if key.startswith(("head.", "fc_norm.")) else f"{trunk}{key}": v for key, v in state.items()}
    layout = layout_of(wrapped)
    assert layout.name == "VideoMAE classifier"
    assert same(load_layout(layout, wrapped, overrides=rest), load("classifier"))
    everything = {f"{trunk}{key}": value for key, value in state.items()}
    assert same(load_layout(layout_of(everything), everything, overrides=rest), load("classifier"))


def test_an_encoder_alone_is_a_classifier_without_classes() -> None:
    state, rest = small("classifier")
    bare = {key: value for key, value in state.items() if not key.startswith("head.")}
    model = load_layout(layout_of(bare), bare, overrides=rest)
    assert isinstance(model, VideoMAEClassifier)
    assert model(torch.randn(1, 3, 4, 32, 32)).shape == (1, 64)
    headed = load_layout(layout_of(bare), bare, new_classes=3, overrides=rest)
    assert headed(torch.randn(1, 3, 4, 32, 32)).shape == (1, 3)


def test_only_the_towers_of_a_multimodal_checkpoint_are_used() -> None:
    """Spec D.3: keys outside `clip.` are left out, and the layout says which."""
    extra = {
        "optimizer.state": torch.zeros(2),
        "itm_head.weight": torch.zeros(2, 64),
        "caption_decoder.x": torch.ones(1),
    }
    state, _ = small("mm")
    layout = layout_of(state | extra)
    assert layout.left_out == tuple(extra)
    assert same(load("mm", extra), load("mm"))
    with pytest.raises(WeightsError, match=r"1 unused \(surprise\)"):
        load("mm", {"clip.surprise": torch.zeros(1)})
    bare = {key.removeprefix("clip."): value for key, value in state.items()} | {"itm_head.weight": torch.zeros(2)}
    layout = layout_of(bare)
    with pytest.raises(WeightsError, match="unused"):  # without the prefix everything must have a place
        load_layout(layout, bare)


def test_a_caption_decoder_comes_along_when_it_can_write() -> None:
    state = keys.numbers(SMALL["mm"]() | keys.caption_decoder(64, 64, 2, 40, queries=3, prefix="caption_decoder."))
    model = load_layout(layout_of(state), state)
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
    state, _ = small("classifier")
    del state["blocks.0.norm1.weight"], state["fc_norm.weight"], state["fc_norm.bias"]
    with pytest.raises(WeightsError, match="3 missing"):
        load_layout(layout_of(state), state)
    state, _ = small("uniformerv2")
    del state["positional_embedding"]
    with pytest.raises(WeightsError, match="positional_embedding: missing"):
        recognise(state)
    state["positional_embedding"] = torch.zeros(8, 64)
    with pytest.raises(WeightsError, match="1 \\+ a square"):
        recognise(state)
    state["positional_embedding"] = torch.zeros(64)
    with pytest.raises(WeightsError, match="mis-shaped"):
        recognise(state)
    both = {"module.head.weight": torch.zeros(2), "head.weight": torch.zeros(2)}
    with pytest.raises(WeightsError, match="two models"):
        recognise(both)
    decoder = keys.numbers(SMALL["mm"]())
    decoder |= keys.numbers(keys.caption_decoder(48, 64, 1, 40, queries=3, head=16, prefix="caption_decoder."))
    with pytest.raises(WeightsError, match="do not fit together"):
        recognise(decoder)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"fc.weight": torch.zeros(3, 3), "layer1.0.conv1.weight": torch.zeros(3, 3, 3, 3)},
        {"patch_embed.proj.weight": torch.zeros(8, 3, 16, 16), "blocks.0.mlp.fc1.weight": torch.zeros(32, 8)},
        {"visual.layer1.0.conv1.weight": torch.zeros(3, 3, 1, 1), "token_embedding.weight": torch.zeros(9, 4)},
    ],
    ids=["empty", "resnet", "image transformer", "CLIP with a convolutional tower"],
)
def test_an_unknown_layout_is_told_with_the_known_ones_and_the_keys_seen(state: dict[str, Tensor]) -> None:
    assert recognise(state) is None
    with pytest.raises(WeightsError) as error:
        layout_of(state, "file")
    told = str(error.value)
    assert "UniFormerV2" in told
    assert "transformers VideoMAE classifier" in told
    assert "\n" not in told
    for key in state:
        assert key.replace(".0.", ".N.") in told


def test_heads_that_cannot_be_told_must_be_given() -> None:
    state = keys.numbers(keys.videomae_classifier(48, 1, 96, 3))
    layout = layout_of(state)
    assert layout.unknown == ("heads",)
    with pytest.raises(WeightsError, match="do not tell heads"):
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
    setting = "answers" if name == "vqa" else "classes"
    state, rest = small(name)
    with pytest.raises(WeightsError, match=r"mis-shaped.*new_classes"):
        load_layout(layout_of(state), state, overrides={**rest, setting: 11})
    old, new = load(name), load(name, new_classes=11)
    before, after = old.state_dict(), new.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all(key.startswith(head) for key in changed)
    assert after[f"{head}weight" if name != "local" else "proj.linear.weight"].shape[0] == 11
    torch.manual_seed(3)
    first = load(name, new_classes=5).state_dict()  # also for the same number: it was asked for
    assert not torch.equal(first[min(changed)], before[min(changed)])


@pytest.mark.parametrize("name", ["mm", "viclip", "clip", "caption", "choice"])
def test_models_without_classes_take_none(name: str) -> None:
    assert "has no classes" in refused(name, new_classes=3)


def test_a_classifier_is_made_of_pretraining_weights_when_asked_for() -> None:
    pretrained, model = load("pretrain"), load("pretrain", new_classes=6)
    assert isinstance(pretrained, VideoMAEPretrain)
    assert isinstance(model, VideoMAEClassifier)
    assert model(torch.randn(1, 3, 4, 32, 32)).shape == (1, 6)
    assert torch.equal(model.blocks[1].mlp.fc2.weight, pretrained.encoder.blocks[1].mlp.fc2.weight)
    assert "missing (blocks.1.attn.q_bias)" in refused(
        "pretrain", {"encoder.blocks.1.attn.q_bias": None}, new_classes=6
    )


@pytest.mark.parametrize("frames", [2, 16, 64])
@pytest.mark.parametrize("name", ["uniformerv2", "mm", "vqa", "choice"])
def test_these_weights_do_not_depend_on_the_frames(name: str, frames: int) -> None:
    changed = load(name, frames=frames)
    assert same(changed, load(name))
    vision = (
        changed.config if isinstance(changed, UniFormerV2) else changed.get_submodule("model" if name != "mm" else "")
    )
    config = vision if isinstance(changed, UniFormerV2) else vision.config.vision  # type: ignore[union-attr]
    assert config.frames == frames  # type: ignore[union-attr]  # one of three kinds of model


def test_a_classifiers_fixed_positions_are_resized_for_another_clip() -> None:
    state = keys.numbers(SMALL["classifier"]())
    layout = layout_of(state)
    native = load_layout(layout, state)
    larger = load_layout(layout, state, frames=8, image_size=64)
    anew = load_layout(layout, state, frames=8, image_size=64, overrides={"position_table": "native"})
    assert isinstance(native, VideoMAEClassifier)
    assert isinstance(larger, VideoMAEClassifier)
    assert isinstance(anew, VideoMAEClassifier)
    assert same(larger, native)
    expected = resize_table(native.pos_embed[0], (8, 14, 14), (4, 4, 4))
    assert torch.allclose(larger.pos_embed[0], expected, atol=1e-6)
    assert torch.equal(anew.pos_embed[0], native.pos_embed[0, :64])
    assert load_layout(layout, state, frames=16, image_size=224).config.position_table == "native"  # type: ignore[union-attr]


def test_learned_positions_are_resized_only_when_asked_for() -> None:
    state = keys.numbers(SMALL["classifier"]() | {"pos_embed": (1, 8 * 2 * 2, 64)})
    layout = layout_of(state)
    assert layout.overrides["image_size"] == 32
    assert layout.overrides["learnable_positions"]
    model = load_layout(layout, state, frames=8, image_size=48)
    expected = resize_table(state["pos_embed"][0], (8, 2, 2), (4, 3, 3))
    assert torch.equal(model.state_dict()["pos_embed"][0], expected)
    with pytest.raises(WeightsError, match="another image size or number of frames"):
        load_layout(layout, state, overrides={"frames": 8})


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
        load_layout(layout_of(state), state, overrides={"frames": 8})


@pytest.mark.parametrize("name", ["uniformerv2", "local", "mm", "vqa", "choice", "viclip", "clip"])
def test_other_positions_are_never_resized(name: str) -> None:
    assert "positions for 32 px" in refused(name, image_size=64)
    assert same(load(name, image_size=32), load(name))


def test_what_has_no_frames_says_so() -> None:
    assert "no number of frames" in refused("clip", frames=8)
    assert "no number of frames" in refused("caption", frames=8)
    assert "sees no picture" in refused("caption", image_size=64)


# --- the model that was asked for ---


def published_layout(name: str) -> Layout:
    return layout_of(keys.meta(PUBLISHED[name][0]()))


def test_a_layout_can_be_told_as_the_model_that_was_asked_for() -> None:
    layout = published_layout("UniFormerV2 L/14@336")
    assert as_model(layout, "uniformerv2-l14-336") == layout
    with pytest.raises(WeightsError, match=r"image_size 336.*uniformerv2-l14;.*wrong size, it is uniformerv2-l14-336"):
        as_model(layout, "uniformerv2-l14", "file")
    with pytest.raises(WeightsError, match="another model"):
        as_model(layout, "videomae-l-classifier", "file")
    with pytest.raises(WeightsError, match="wrong size"):
        as_model(published_layout("finetuned L"), "videomae-b-classifier")
    with pytest.raises(WeightsError, match="new_classes"):
        as_model(published_layout("pretrain B"), "videomae-b-classifier")
    plain = as_model(published_layout("finetuned B"), "videomae-b-classifier")
    assert plain.overrides == {}
    writer = as_model(published_layout("MM L/14 that writes"), "internvideo-mm-l14-caption")
    assert writer.overrides == {"caption": {"layers": 4}}


def test_clip_is_read_frame_by_frame() -> None:
    model = load("clip")
    assert isinstance(model, Clip)
    video = model.normalise(torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8))
    seen, text = model(video, torch.tensor([[1, 39, 0], [2, 3, 39]]))
    assert model.similarity(seen, text).shape == (2, 2)
    assert torch.allclose(model.scale, model.logit_scale.exp())
