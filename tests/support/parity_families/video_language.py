"""The multimodal model and the networks built on it: question answering and multiple choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from internvideo.models.caption_decoder import CaptionDecoderConfig
from internvideo.models.clip import TextConfig
from internvideo.models.heads import (
    FusedQANetwork,
    PairScoringMultipleChoice,
    VideoQuestionAnswering,
    ZeroShotMultipleChoice,
)
from internvideo.models.video_language import VideoLanguage, VideoLanguageConfig
from internvideo.objectives.contrastive import symmetric_contrastive
from internvideo.weights.state import load_reference
from parity_families.case import Case, Family, Value, grad_norms, gradients
from parity_families.uniformerv2 import tower_config

HEAD_WIDTH = 64
"""Every head of the published downstream model's decoder."""


def model_config(config: Mapping[str, Any]) -> VideoLanguageConfig:
    """The stored sizes as our config, without a caption decoder."""
    text = config["text"]
    return VideoLanguageConfig(
        vision=tower_config(config["vision"]),
        text=TextConfig(
            width=text["width"],
            heads=text["heads"],
            layers=text["layers"],
            vocab_size=text["vocab_size"],
            context_length=text["context_length"],
        ),
        joint_width=config["embed_dim"],
    )


def build(case: Case) -> VideoLanguage:
    model = VideoLanguage(model_config(case.info["config"]))
    load_reference(model, case.weights, where=case.name)
    return model.eval()


def compute(case: Case, dtype: torch.dtype) -> dict[str, Value]:
    model = build(case).to(dtype)
    video, ids = case.input("video", dtype), case.io["text_ids"]
    seen, image = model.encode_video(video), model.encode_video(case.input("image", dtype))
    text, hidden = model.encode_text(ids), model.encode_text(ids, case.io["text_masked_indices"].bool())
    logits = model.similarity(seen, text)
    loss = symmetric_contrastive(seen, text, model.scale)
    wanted = case.info["grad_norms64_contrastive"]
    values: dict[str, Value] = {
        "video_all_feats64": model.visual.stages(video).all_tokens.permute(2, 0, 1, 3),
        "text_all_feats64": model.text.tokens(ids),
        "contrastive_loss64": loss.item(),
        "grad_norms64_contrastive": grad_norms(model, gradients(model, loss), wanted),
    }
    for name, value in (("video", seen), ("image", image), ("text", text)):
        values[f"{name}_feats"] = values[f"{name}_feats64"] = value
    values["text_feats_masked"] = values["text_feats_masked64"] = hidden
    values["logits"] = values["logits64"] = logits
    return values


def build_downstream(case: Case) -> FusedQANetwork | ZeroShotMultipleChoice:
    config = case.info["config"]
    plain = model_config(config)
    width = plain.text.width
    caption = CaptionDecoderConfig(
        width=width,
        heads=width // HEAD_WIDTH,
        vision_width=plain.vision.width,
        layers=config["decoder_layers"],
    )
    model: FusedQANetwork | ZeroShotMultipleChoice
    if "choices" not in config:
        assert config["qa_type"] == "vtc_cap"
        model = VideoQuestionAnswering(replace(plain, caption=caption), config["answers"])
    elif config["mc_type"] == "vtc_cap":
        model = PairScoringMultipleChoice(replace(plain, caption=caption))
    else:
        assert config["mc_type"] == "vtc"
        model = ZeroShotMultipleChoice(plain)
    load_reference(model, case.weights, where=case.name)
    return model.eval()


def compute_downstream(case: Case, dtype: torch.dtype) -> dict[str, Value]:
    model = build_downstream(case).to(dtype)
    video, ids = case.input("video", dtype).transpose(1, 2), case.io["text_ids"]
    choices = case.info["config"].get("choices")
    out = model(video, ids if choices is None else ids.view(-1, choices, ids.shape[1]))
    loss = F.cross_entropy(out, case.io["labels"])
    values: dict[str, Value] = {
        "out": out,
        "out64": out,
        "loss32": loss.item(),
        "loss64": loss.item(),
        "grad_norms64": grad_norms(model, gradients(model, loss), case.info["grad_norms64"]),
    }
    if isinstance(model, FusedQANetwork):
        answer = model.answer(video, ids)
        return values | {
            "video_feats64": answer.video,
            "text_feats64": answer.text,
            "cap_logits64": answer.caption,
        }
    return values | {"video_feats64": model.model.encode_video(video), "text_feats64": model.model.encode_text(ids)}


VIDEO_LANGUAGE = Family(
    build=build,
    compute=compute,
    inputs=frozenset({"video", "image", "text_ids", "special_tokens_mask", "text_masked_indices"}),
)
DOWNSTREAM = Family(
    build=build_downstream,
    compute=compute_downstream,
    inputs=frozenset({"video", "text_ids", "special_tokens_mask", "labels"}),
    tolerance32=3e-5,
)
