"""Untrained small models of every family behind the door, clips for them, and a trained run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import small_world
import torch
from filelock import FileLock
from small_world import small_recipe

from internvideo.data.manifest import read_manifest
from internvideo.inference.loading import load
from internvideo.inference.video_model import VideoModel
from internvideo.pipeline import run_recipe
from internvideo.recipe import build_recipe

FAMILIES = ("masked", "multimodal", "supervised", "supervised_multimodal", "interaction", "viclip", "clip")
TEXT = {"width": 32, "heads": 2, "layers": 2, "context": 32}
TOWER = {"image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "heads": 2, "joint_width": 24, "text": TEXT}


def settings(family: str) -> tuple[str, dict[str, Any]]:
    """Name and overrides of a small model."""
    if family == "viclip":
        return "viclip-b16", {**TOWER, "frames": 4}
    if family == "clip":
        return "clip-b16", TOWER
    model = small_recipe(family)["model"]
    overrides = model["overrides"]
    if family == "interaction":
        overrides = {part: {**values, "num_classes": 3} for part, values in overrides.items()}
    elif family.startswith("supervised"):
        overrides = {**overrides, "num_classes": 3}
    return model["name"], overrides


def random_model(family: str, **changes: Any) -> VideoModel:
    """An untrained one, the same at every call; its parameters are far enough from zero to tell clips apart."""
    torch.manual_seed(0)
    name, overrides = settings(family)
    model = load(name, weights="random", overrides={**overrides, **changes}, device="cpu")
    for parameter in model.module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@cache
def clips(count: int = 3) -> tuple[Path, ...]:
    """Files of the small world."""
    manifest = read_manifest(small_world.world())
    return tuple(manifest.video_path(row) for row in manifest.rows[:count])


@cache
def trained(stage: str = "supervised") -> Path:
    """model.safetensors of a run of one step; made once for all processes."""
    folder = small_world.made_once(f"run-{stage}")
    recipe = build_recipe(small_recipe(stage, schedule={"steps": 1}))
    with FileLock(folder.with_suffix(".lock")):
        made = folder / "model.safetensors"
        return made if made.is_file() else run_recipe(recipe, folder, device="cpu")
