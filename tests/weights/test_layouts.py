"""Published checkpoints are recognized by keys and shapes and read strictly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import published_keys as keys
import pytest
import torch
from goldens_folder import GOLDENS
from parity_families.case import Case
from shapes import shapes_only
from small_checkpoints import SMALL, load, same, small, untold
from torch import Tensor, nn

from internvideo.errors import WeightsError
from internvideo.model_table import MODELS, create_model
from internvideo.models.factory import configure
from internvideo.models.heads import FusedQANetwork
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.viclip import ViCLIP
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEPretrain
from internvideo.weights.layouts import Layout, as_model, load_layout, merge_overrides, recognize, require_layout
from internvideo.weights.state import TABLES, convert_reference, match_scalar_shapes

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
    if isinstance(model, FusedQANetwork):
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
    layout = recognize(state)
    assert layout is not None
    assert layout.name == FAMILY[max((start for start in FAMILY if name.startswith(start)), key=len)]
    assert layout.ignored_keys == ()
    assert json.loads(json.dumps(layout.overrides)) == layout.overrides
    frames = size = None
    if name.startswith("mae_finetune"):
        frames, size = case.info["constructor"]["all_frames"], case.info["constructor"]["img_size"]
    rest = merge_overrides(untold(state), known(case))
    model = load_layout(layout, state, name, frames=frames, image_size=size, overrides=rest).eval()
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
        lambda: keys.videomae_classifier(*B, 174), 162, "videomae-b-classifier", {"num_classes": 174},
    ),
    "finetuned B, layer scale, first token": (
        lambda: keys.videomae_classifier(*B, 400, first=True, scale=True),
        186,
        "videomae-b-classifier",
        {"layer_scale": 0.1, "pooling": "first"},
    ),
    "finetuned S": (lambda: keys.videomae_classifier(*S, 400), None, "videomae-s-classifier", {}),
    "finetuned L": (lambda: keys.videomae_classifier(*L, 700), None, "videomae-l-classifier", {"num_classes": 700}),
    "finetuned H": (lambda: keys.videomae_classifier(*H, 710), None, "videomae-h-classifier", {"num_classes": 710}),
    "finetuned g14": (lambda: keys.videomae_classifier(*GIANT, 400, 14), None, "videomae-g14-classifier", {}),
    "finetuned g16": (lambda: keys.videomae_classifier(*GIANT, 400), None, "videomae-g16-classifier", {}),
    "finetuned G14": (lambda: keys.videomae_classifier(*GIGANTIC, 400, 14), None, "videomae-G14-classifier", {}),
    "UniFormerV2 B/16": (lambda: keys.uniformerv2(224, 16, 768, 12, 4, 400), 219, "uniformerv2-b16", {}),
    "UniFormerV2 B/16 K710": (
        lambda: keys.uniformerv2(224, 16, 768, 12, 4, 710), 219, "uniformerv2-b16", {"num_classes": 710},
    ),
    "UniFormerV2 L/14": (
        lambda: keys.uniformerv2(224, 14, 1024, 24, 4, 339), None, "uniformerv2-l14", {"num_classes": 339},
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
        lambda: answering("b16", "vqa_classifier", 1541), None, "internvideo-mm-b16-vqa", {"num_answers": 1541},
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
"""Published checkpoint -> its keys, how many (None: not stated), the model it is, what differs."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_is_recognised_and_every_key_has_its_place(name: str) -> None:
    make, count, model_name, overrides = PUBLISHED[name]
    published = make()
    if count is not None:
        assert len(published) == count
    layout = require_layout(keys.meta(keys.below("module.", published)))
    assert (layout.model, layout.overrides, layout.unknown) == (model_name, overrides, ())
    state, left_out = layout.family.read(keys.meta(published))
    assert left_out == ()
    with shapes_only():
        model = create_model(layout.model, layout.overrides)
    constants = [key for key in state if key.endswith(("inv_freq", "beta"))]  # their values are looked at, not kept
    ours, unused = convert_reference(model, {key: value for key, value in state.items() if key not in constants})
    assert unused == []
    own = model.state_dict()
    assert {key: value.shape for key, value in match_scalar_shapes(own, ours).items()} == {
        key: value.shape for key, value in own.items()
    }


@pytest.mark.parametrize(
    ("width", "depth", "heads"),
    [(768, 12, 12), (1024, 24, 16), (768, 6, 0), (1280, 32, 0), (384, 12, 0), (320, 2, 0)],
)
def test_heads_are_those_of_a_published_size_or_must_be_given(width: int, depth: int, heads: int) -> None:
    layout = require_layout(keys.meta(clip_keys(224, 16, width, depth, 512)))
    assert ("heads" in layout.unknown) is (heads == 0)
    assert not heads or configure(layout.model, layout.overrides, MODELS).heads == heads


@pytest.mark.parametrize(("depth", "stages", "told"), [(12, 4, True), (12, 8, False), (12, 3, False), (6, 4, False)])
def test_the_layers_that_global_blocks_read_must_be_given_for_other_sizes(depth: int, stages: int, told: bool) -> None:
    state = keys.meta(keys.uniformerv2(224, 16, 768, depth, stages, 5))
    layout = require_layout(state)
    assert ("global_layers" in layout.unknown) is not told
    if not told:
        with pytest.raises(WeightsError, match=r"do not determine .*global_layers"):
            load_layout(layout, state, overrides={"heads": 12})


@pytest.mark.parametrize(
    ("width", "depth", "model"),
    [(128, 2, "s"), (384, 2, "s"), (600, 3, "b"), (768, 1, "b"), (1024, 12, "l"), (1200, 4, "h")],
)
def test_a_model_is_called_after_its_width(width: int, depth: int, model: str) -> None:
    found = require_layout(keys.meta(keys.videomae_classifier(width, depth, 4 * width, 3)))
    assert found.model == f"videomae-{model}-classifier"


def test_every_model_that_was_published_is_reached() -> None:
    own = {"interaction-b", "interaction-l", "interaction-h"}
    trained_here = ("actionformer-", "action-detector-", "anticipator-", "tcanet", "navigator", "grounder")
    own |= {name for name in MODELS if name.startswith(trained_here)}
    own |= {name for name, entry in MODELS.items() if ".external." in entry.build.__module__}  # models/test_siglip.py
    assert {row[2] for row in PUBLISHED.values()} == set(MODELS) - own - {"internvideo-mm-b16-caption"}


def test_every_table_of_weights_is_reached_by_a_layout() -> None:
    builds = {type(load_layout(require_layout(state), state, overrides=rest)) for state, rest in map(small, SMALL)}
    only_by_hand = {"ZeroShotMultipleChoice"}  # the multimodal model itself
    only_by_hand |= {kind.__name__ for kind in TABLES if ".external." in kind.__module__}  # models/test_siglip.py
    assert {kind.__name__ for kind in TABLES} == {kind.__name__ for kind in builds} | only_by_hand


# --- the model that was asked for ---


def published_layout(name: str) -> Layout:
    return require_layout(keys.meta(PUBLISHED[name][0]()))


def test_a_layout_can_be_told_as_the_model_that_was_asked_for() -> None:
    layout = published_layout("UniFormerV2 L/14@336")
    assert as_model(layout, "uniformerv2-l14-336") == layout
    with pytest.raises(WeightsError, match=r"image_size 336.*uniformerv2-l14;.*wrong size, it is uniformerv2-l14-336"):
        as_model(layout, "uniformerv2-l14", "file")
    with pytest.raises(WeightsError, match="another model"):
        as_model(layout, "videomae-l-classifier", "file")
    with pytest.raises(WeightsError, match="wrong size"):
        as_model(published_layout("finetuned L"), "videomae-b-classifier")
    with pytest.raises(WeightsError, match="num_classes"):
        as_model(published_layout("pretrain B"), "videomae-b-classifier")
    plain = as_model(published_layout("finetuned B"), "videomae-b-classifier")
    assert plain.overrides == {}
    shorter = require_layout(keys.meta(keys.videomae_classifier(768, 11, 3072, 400)))
    with pytest.raises(WeightsError, match=r"depth 11.*incomplete"):
        as_model(shorter, "videomae-b-classifier")
    writer = as_model(published_layout("MM L/14 that writes"), "internvideo-mm-l14-caption")
    assert writer.overrides == {"caption": {"layers": 4}}
    with pytest.raises(WeightsError, match="ask for internvideo-mm-l14"):
        as_model(published_layout("MM L/14"), "internvideo-mm-l14-caption")


def test_who_asks_for_the_towers_gets_them_without_a_decoder() -> None:
    state = keys.numbers(SMALL["mm"]() | keys.caption_decoder(64, 64, 2, 40, queries=3, prefix="caption_decoder."))
    layout = require_layout(state)
    assert layout.model.endswith("-caption")
    with pytest.raises(WeightsError, match="wrong size"):
        as_model(layout, "internvideo-mm-l14")
    plain = as_model(published_layout("MM L/14 that writes"), "internvideo-mm-l14")
    assert (plain.overrides, plain.ignored_keys) == ({}, ("caption_decoder.*",))
    model = load_layout(
        replace(plain, model=layout.model, overrides={**layout.overrides, "caption": None}),
        state,
        overrides=untold(state),
    )
    assert same(model, load("mm"))
