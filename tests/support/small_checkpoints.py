"""Small published checkpoints of every layout, and loading them with something changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import published_keys as keys
import torch
from torch import Tensor, nn

from internvideo.weights.layouts import load_layout, merge_overrides, require_layout

TEXT = {"layers": 1, "context": 9, "words": 40}


def small_mm(joint: int = 64) -> keys.Keys:
    tower = keys.uniformerv2(32, 16, 64, 3, 2, prefix="visual.")
    return keys.multimodal(tower, keys.text_tower("", 64, joint, **TEXT), 64, 64, joint)


SMALL: dict[str, Callable[[], keys.Keys]] = {
    "pretrain": lambda: keys.videomae_pretrain(64, 2, 128, 64, 1, decoder_hidden=128),
    "classifier": lambda: keys.videomae_classifier(64, 2, 128, 5),
    "uniformerv2": lambda: keys.uniformerv2(32, 16, 64, 3, 2, 5, prefix=""),
    "local": lambda: keys.uniformerv2(32, 16, 64, 3, 2, 5, prefix="", local=2, downsample=True),
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


def untold(state: Mapping[str, Tensor]) -> dict[str, object]:
    """What the tensors of a small checkpoint do not tell: one head, and the last layers read by global blocks."""
    layout, found = require_layout(state), {}
    for path in layout.unknown:
        *outer, setting = path.split(".")
        value: object = 1
        if setting == "global_layers":
            value = layout.overrides
            for part in path.split("."):
                value = value[part]  # type: ignore[index]  # nested
        for part in (setting, *reversed(outer)):
            value = {part: value}
        found = merge_overrides(found, value)  # type: ignore[arg-type]  # made a mapping
    return found


def small(name: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Random weights, and settings that keep the clips small or that the tensors do not tell."""
    state, settings = _made_once(name)
    return dict(state), dict(settings)


@cache
def _made_once(name: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    masked = {"image_size": 32, "frames": 4} if name in ("pretrain", "classifier") else {}
    state = keys.numbers(SMALL[name]())
    return state, {**masked, **untold(state)}


def load(name: str, change: Mapping[str, Tensor | None] | None = None, **options: Any) -> nn.Module:
    """The small checkpoint with tensors added, replaced or (None) taken away."""
    state, rest = small(name)
    rest = {**rest, **options.pop("overrides", {})}
    state |= {key: value for key, value in (change or {}).items() if value is not None}
    for key in (key for key, value in (change or {}).items() if value is None):
        del state[key]
    return load_layout(require_layout(state), state, "file", overrides=rest, **options)


def same(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    mine = first.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in mine.items())
