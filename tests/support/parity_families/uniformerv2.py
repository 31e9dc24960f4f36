"""UniFormerV2, and what other families share with it: its arguments as our config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from internvideo.models.uniformerv2 import UniFormerV2, UniFormerV2Config
from internvideo.weights.state import load_reference
from parity_families.case import Case, Family, Value, grad_norms, gradients


def tower_config(arguments: Mapping[str, Any]) -> UniFormerV2Config:
    """The published video tower's constructor arguments as our config; without num_classes no head."""
    per_layer = 2 if arguments.get("double_lmhra", True) else 1
    return UniFormerV2Config(
        image_size=arguments["input_resolution"],
        patch_size=arguments["patch_size"],
        width=arguments["width"],
        depth=arguments["layers"],
        heads=arguments["heads"],
        global_layers=tuple(arguments["return_list"]),
        frames=arguments["t_size"],
        num_classes=arguments.get("num_classes", 0),
        global_heads=arguments["n_head"],
        mlp_ratio=arguments.get("mlp_factor", 4.0),
        local_blocks=0 if arguments.get("no_lmhra", True) else per_layer,
        local_reduction=arguments.get("dw_reduction", 1.5),
        temporal_downsample=arguments.get("temporal_downsample", False),
        balance=not arguments.get("frozen", False),
        head_dropout=arguments.get("cls_dropout", 0.5),
        drop_path=arguments.get("drop_path_rate", 0.0),
        backbone_drop_path=arguments.get("backbone_drop_path_rate", 0.0),
    )


def build(case: Case) -> UniFormerV2:
    model = UniFormerV2(tower_config(case.info["constructor"]))
    load_reference(model, case.weights, where=case.name)
    return model.eval()


def compute(case: Case, dtype: torch.dtype) -> dict[str, Value]:
    model = build(case).to(dtype)
    video = case.input("video", dtype)
    staged = model.stages(video)
    logits = model(video)
    loss = F.cross_entropy(logits, case.io["labels"])
    return {
        "logits": logits,
        "logits64": logits,
        "ln_pre64": model.stem(video),
        "last_block64": staged.all_tokens.flatten(0, 1).transpose(0, 1),
        "fused_feature64": model.merge_class_token(staged.query, staged.class_mean),
        "ce_loss64": loss.item(),
        "grad_norms64_ce": grad_norms(model, gradients(model, loss), case.info["grad_norms64_ce"]),
    }


UNIFORMERV2 = Family(build=build, compute=compute, inputs=frozenset({"video", "labels"}))
