"""ViCLIP."""

from __future__ import annotations

import torch

from internvideo.models.clip import TextConfig
from internvideo.models.viclip import ViCLIP, ViCLIPConfig
from internvideo.objectives.contrastive import symmetric_contrastive
from internvideo.weights.state import load_reference
from parity_families.case import Case, Family, Value, grad_norms, gradients


def build(case: Case) -> ViCLIP:
    vision, text = case.info["vision"], case.info["text"]
    assert vision["kernel_size"] == 1
    config = ViCLIPConfig(
        image_size=vision["input_resolution"],
        patch_size=vision["patch_size"],
        width=vision["width"],
        depth=vision["layers"],
        heads=vision["heads"],
        joint_width=vision["output_dim"],
        frames=vision["num_frames"],
        text=TextConfig(
            width=text["transformer_width"],
            heads=text["transformer_heads"],
            layers=text["transformer_layers"],
            vocab_size=text["vocab_size"],
            context_length=text["context_length"],
            mask_embedding=False,
        ),
    )
    model = ViCLIP(config)
    load_reference(model, case.weights, where=case.name)
    return model.eval()


def compute(case: Case, dtype: torch.dtype) -> dict[str, Value]:
    model = build(case).to(dtype)
    video, ids = case.input("video", dtype), case.io["text_ids"]
    seen, text = model.encode_video(video), model.encode_text(ids)
    image = model.encode_video(case.input("image", dtype))
    loss = symmetric_contrastive(seen, text, model.scale)
    values: dict[str, Value] = {
        "video_tokens64": model.visual.tokens(video),
        "vtc_loss64": loss.item(),
        "grad_norms64_vtc": grad_norms(model, gradients(model, loss), case.info["grad_norms64_vtc"]),
    }
    for name, value in (("video", seen), ("image", image), ("text", text)):
        values[f"{name}_feats"] = values[f"{name}_feats64"] = value
    values["sims"] = values["sims64"] = model.similarity(seen, text) * model.temperature
    return values


VICLIP = Family(
    build=build,
    compute=compute,
    inputs=frozenset({"video", "image", "text_ids"}),
    settings=frozenset({"vision", "text"}),
)
