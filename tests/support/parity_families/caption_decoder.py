"""The caption decoder alone."""

from __future__ import annotations

import torch

from internvideo.models.caption_decoder import CaptionDecoder, CaptionDecoderConfig
from internvideo.objectives.captioning import caption_loss
from internvideo.weights.state import load_reference
from parity_families.case import Case, Family, Value, grad_norms, gradients


def build(case: Case) -> CaptionDecoder:
    arguments = case.info["constructor"]
    config = CaptionDecoderConfig(
        width=arguments["transformer_width"],
        heads=arguments["transformer_heads"],
        vision_width=arguments["vision_width"],
        layers=arguments["n_layers"],
        vocab_size=arguments["vocab_size"],
        num_queries=arguments["num_visual_queries"],
    )
    model = CaptionDecoder(config)
    load_reference(model, case.weights, where=case.name)
    return model.eval()


def compute(case: Case, dtype: torch.dtype) -> dict[str, Value]:
    model = build(case).to(dtype)
    visual = case.input("image_feats", dtype).permute(1, 0, 2, 3).flatten(1, 2)
    logits = model(visual, case.input("text_embeds", dtype))
    loss = caption_loss(logits, case.io["text_ids"], case.io["special_tokens_mask"].bool())
    return {
        "logits": logits,
        "logits64": logits,
        "cap_loss64": loss.item(),
        "grad_norms64_cap": grad_norms(model, gradients(model, loss), case.info["grad_norms64_cap"]),
    }


CAPTION_DECODER = Family(
    build=build,
    compute=compute,
    inputs=frozenset({"image_feats", "text_embeds", "text_ids", "special_tokens_mask"}),
    tolerance32=3e-5,
)
