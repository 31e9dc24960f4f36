"""The recipes of benchmarks, made small enough to run on the samples of their official annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from goldens_folder import GOLDENS

from internvideo.data.manifest import Manifest
from internvideo.data.settings import SampledData
from internvideo.recipe import read_recipe, shipped_recipes

PREFIX = "benchmarks/"
RECIPES = {
    name.removeprefix(PREFIX): path.read_text(encoding="utf-8")
    for name, path in shipped_recipes().items()
    if name.startswith(PREFIX)
}
"""Benchmark -> its recipe's text."""

ANNOTATIONS = GOLDENS / "tasks" / "annotations"
SAMPLES: dict[str, str] = {
    "activitynet": "activitynet_v1_3",
    "activitynet_segments": "activitynet_v1_3",
    "hacs_segments": "hacs",
    "ava": "ava_v2_2",
    "ucf101_hmdb51": ".",
    "ego4d_nlq": "../ego4d_nlq",
    "tgif_choice": "tgif_qa",
    "r2r_ce": "r2r_vlnce",
    "ucf101_mit": ".",
    **{f"zero_shot_{name}": name for name in ("msrvtt", "msvd", "lsmdc", "activitynet_captions", "didemo", "vatex")},
}
"""Benchmark -> folder of its annotation sample, where it has another name."""

ENCODER = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 3, "heads": 2, "frames": 4}
DETECTOR = {"input_width": 4, "width": 16, "heads": 2, "windows": [5], "max_length": 32, "branch_layers": 2,
            "ranges": [[0, 4], [4, 8], [8, 10000]], "stem_layers": 1, "embedding_layers": 1}  # fmt: skip
CLIPS: dict[str, object] = {"sampling.frames": 4, "augment.size": 32}
SMALL: dict[str, tuple[dict[str, Any], dict[str, object]]] = {
    "supervised": ({**ENCODER, "global_layers": [1, 2]}, CLIPS),
    "open_set": (ENCODER, CLIPS),
    "spatio_temporal_localization": (ENCODER, {**CLIPS, "key_frames.short": 36, "key_frames.longest": 48}),
    "anticipation": (ENCODER, {**CLIPS, "key_frames.short": 36, "key_frames.longest": 48}),
    "future_hands": ({**ENCODER, "global_layers": [1, 2]}, CLIPS),
    "temporal_localization": (DETECTOR, {}),
    "grounding": ({"input_width": 4, "width": 16, "heads": 2, "max_length": 64}, {}),
}
"""Stage -> overrides of the model, and of the data, that make its recipes small."""


def small(stage: str) -> tuple[dict[str, Any], dict[str, object]]:
    """SMALL, and of other stages what their recipe for the sample world has."""
    if stage in SMALL:
        return SMALL[stage]
    sample = read_recipe(f"sample/{stage}")
    if not isinstance(sample.data, SampledData):
        return sample.model.overrides, {}
    return sample.model.overrides, {
        "sampling.frames": sample.data.sampling.frames,
        "augment.size": sample.data.augment.size,
    }


def sample_of(name: str) -> Path:
    """The sample of a benchmark's annotations."""
    return ANNOTATIONS / SAMPLES.get(name, name)


def shrunk(name: str, source: Path, manifest: Manifest | None) -> list[str]:
    """What makes a recipe small enough to run here.

    Args:
        source: what it learns from: a manifest (of queries: the folder `features` lies beside it), features, episodes.
        manifest: its rows, where it has some.
    """
    recipe = read_recipe(PREFIX + name)
    model, data = small(recipe.stage or "retrieval")
    given: dict[str, object] = {"train": source, "loader.batch_size": 1}
    if manifest is None:  # no videos: the agent walks, here over a floor without end
        given |= {"split": "val_unseen", "world.opener": "empty_habitat:open_scene"}
        overrides = [f"model.overrides.{key}={json.dumps(value)}" for key, value in model.items()]
        return overrides + [f"data.{key}={value}" for key, value in given.items()]
    if recipe.model.name.endswith("-ssv2"):
        model = {**model, "global_heads": 2}
    if recipe.stage == "temporal_localization":
        data = {"features.resized": 32} if recipe.data.features.resized else {}
    elif recipe.stage == "grounding":
        data = {"queries.features": source.parent / "features"}
    elif "num_classes" in recipe.model.overrides:
        model = {**model, "num_classes": len(manifest.classes)}
    given = {**data, **given, "loader.workers": 0, "loader.cache_megabytes": 0} if recipe.stage else data
    if recipe.data.split is not None:
        given["split"] = manifest.rows[0].split  # some samples hold one split alone
    return [f"model.overrides.{key}={value}" for key, value in model.items()] + [
        f"data.{key}={value}" for key, value in given.items()
    ]
