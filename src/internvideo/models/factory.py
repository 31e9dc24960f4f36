"""Name -> model: the one table of named sizes, and how a recipe changes them.

Source: modeling_pretrain.py, modeling_finetune.py.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

from internvideo.errors import RecipeError
from internvideo.models.declared import DeclaredError, check_whole, within_memory
from internvideo.models.entry import ModelEntry
from internvideo.models.multimodal_sizes import MULTIMODAL_MODELS
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig, VideoMAEPretrain
from internvideo.tasks.anticipation.model import Anticipator
from internvideo.tasks.grounding.model import Grounder, GrounderConfig
from internvideo.tasks.navigation.model import Navigator, NavigatorConfig
from internvideo.tasks.refinement.model import TCANet, TCANetConfig
from internvideo.tasks.spatiotemporal.model import ActionDetector
from internvideo.tasks.temporal_localization.model import ActionFormer, ActionFormerConfig

_SIZES: dict[str, VideoMAEConfig] = {
    "s": VideoMAEConfig(width=384, depth=12, heads=6, decoder_width=192, decoder_heads=3),
    "b": VideoMAEConfig(width=768, depth=12, heads=12, decoder_width=384, decoder_heads=6),
    "l": VideoMAEConfig(width=1024, depth=24, heads=16, decoder_width=512, decoder_heads=8),
    "h": VideoMAEConfig(width=1280, depth=32, heads=16, decoder_width=512, decoder_heads=8),
    "g14": VideoMAEConfig(
        patch_size=14, width=1408, depth=40, heads=16, mlp_ratio=48 / 11, decoder_width=512, decoder_heads=8
    ),
    "g16": VideoMAEConfig(width=1408, depth=40, heads=16, mlp_ratio=48 / 11, decoder_width=512, decoder_heads=8),
    "G14": VideoMAEConfig(
        patch_size=14, width=1664, depth=48, heads=16, mlp_ratio=64 / 13, decoder_width=512, decoder_heads=8
    ),
}
"""Decoder depth 4 as in the paper; the released pretraining scripts use 12 for L and 8 for H."""

_PRETRAIN_MILLIONS = {
    "s": 24.029,
    "b": 94.211,
    "l": 317.782,
    "h": 645.659,
    "g14": 1026.307,
    "g16": 1026.998,
    "G14": 1859.244,
}
_CLASSIFIER_MILLIONS = {"s": 22.034, "b": 86.535, "l": 304.271, "h": 632.119, "g14": 1012.174, "G14": 1843.911}

_PRETRAIN = {
    f"videomae-{size}-pretrain": ModelEntry(
        build=VideoMAEPretrain,
        config=config,
        parameters=_PRETRAIN_MILLIONS[size],
        about=f"masked encoder and decoder, width {config.width}, {config.depth} layers, patch {config.patch_size}",
    )
    for size, config in _SIZES.items()
}
_CLASSIFIER = {
    f"videomae-{size}-classifier": ModelEntry(
        build=VideoMAEClassifier,
        config=dataclasses.replace(config, classes=400),
        parameters=_CLASSIFIER_MILLIONS.get(size),
        about=f"masked encoder with a head, width {config.width}, {config.depth} layers, patch {config.patch_size}",
    )
    for size, config in _SIZES.items()
}

_CLASSLESS = ActionFormerConfig(width=256, windows=(25,) * 5 + (1,), classes=1, absolute_positions=True)
_LEVELS = ActionFormerConfig().ranges
_DETECTORS: dict[str, tuple[ActionFormerConfig, float | None, str]] = {
    "thumos": (ActionFormerConfig(), 28.072, "20 classes, windows of 19, up to 2304 steps"),
    "activitynet": (
        dataclasses.replace(_CLASSLESS, max_length=768),
        7.533,
        "one class, windows of 25, up to 768 steps",
    ),
    "hacs": (_CLASSLESS, None, "one class, windows of 25, up to 2304 steps"),
    "fineaction": (
        dataclasses.replace(_CLASSLESS, windows=(7,) * 5 + (1,), max_length=192),
        None,
        "one class, windows of 7, 192 steps",
    ),
    "ego4d-mq": (
        ActionFormerConfig(
            width=384,
            windows=(9,),
            max_length=1024,
            classes=110,
            branch_layers=7,
            absolute_positions=True,
            ranges=(*_LEVELS[:-1], (64, 128), (128, 256), (256, 10000)),
        ),
        None,
        "110 classes, 8 levels, windows of 9, up to 1024 steps",
    ),
}
"""ActionFormer for each benchmark (its configs; arXiv 2211.09529 for Ego4D's moments)."""

_DETECTOR_ENTRIES = {
    f"actionformer-{name}": ModelEntry(ActionFormer, config, millions, f"temporal detector on features: {about}")
    for name, (config, millions, about) in _DETECTORS.items()
}

_REFINERS = {
    "tcanet": ModelEntry(
        TCANet, TCANetConfig(), None, "refines a detector's segments: encoder of width 512, three regressors in cascade"
    )
}
"""TCANet as for HACS, on SlowFast's 2304 channels."""

_GROUNDERS = {
    "grounder": ModelEntry(
        Grounder,
        GrounderConfig(),
        None,
        "finds what a query asks for in features of a long video: width 256, words learned",
    )
}

_REGIONS = {
    f"action-detector-{size}": ModelEntry(
        ActionDetector,
        dataclasses.replace(_SIZES[size], classes=80),
        None,
        f"what persons in boxes do: masked encoder {size.upper()} with a head on boxes, 80 classes",
    )
    for size in ("s", "b", "l", "h")
} | {
    f"anticipator-{size}": ModelEntry(
        Anticipator,
        dataclasses.replace(_SIZES[size], classes=74),
        None,
        f"what will be done to objects in boxes, and when: masked encoder {size.upper()} with two heads, 74 verbs",
    )
    for size in ("s", "b", "l", "h")
}

_NAVIGATORS = {
    "navigator": ModelEntry(
        Navigator,
        NavigatorConfig(),
        None,
        "follows instructions in worlds: masked encoder L, CLIP B/32, waypoints from depth, history-aware planner",
    )
}

MODELS: dict[str, ModelEntry] = {
    **_PRETRAIN,
    **_CLASSIFIER,
    **MULTIMODAL_MODELS,
    **_DETECTOR_ENTRIES,
    **_REFINERS,
    **_GROUNDERS,
    **_REGIONS,
    **_NAVIGATORS,
}
"""Every model that a recipe can name."""


def list_models() -> dict[str, str]:
    """Name -> what it is, of every model that `create_model` builds."""
    return {name: entry.about for name, entry in MODELS.items()}


def _near(name: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _fits(value: object, current: object) -> bool:
    """Whether a setting's value is of the kind of the value that it replaces."""
    if isinstance(current, bool) or isinstance(value, bool):
        return isinstance(current, bool) and isinstance(value, bool)
    if isinstance(current, float):
        return isinstance(value, int | float)
    return current is None or value is None or isinstance(value, type(current))


def _replace(config: Any, overrides: Mapping[str, object], where: str) -> Any:
    names = [field.name for field in dataclasses.fields(config)]
    values: dict[str, object] = {}
    for name, value in overrides.items():
        if name not in names:
            raise RecipeError(f"{where}.{name}", "no such setting", ", ".join(names), _near(name, names))
        current = getattr(config, name)
        if dataclasses.is_dataclass(current) and isinstance(value, Mapping):
            value = _replace(current, value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(value)
        if not _fits(value, current):
            raise RecipeError(f"{where}.{name}", repr(value), f"{type(current).__name__}, as in {current!r}")
        try:
            check_whole(name, value)
        except DeclaredError as error:
            raise RecipeError(f"{where}.{name}", str(error)) from error
        values[name] = value
    try:
        return dataclasses.replace(config, **values)
    except (ValueError, ArithmeticError) as error:
        raise RecipeError(where, str(error)) from error


def configure(name: str, overrides: Mapping[str, object] | None = None) -> Any:
    """The config of a model of `MODELS` with settings changed. Raises RecipeError as `create_model` does."""
    entry = MODELS.get(name)
    if entry is None:
        raise RecipeError("model", repr(name), ", ".join(MODELS), _near(name, list(MODELS)))
    return _replace(entry.config, overrides or {}, f"model {name}")


def create_model(name: str, overrides: Mapping[str, object] | None = None) -> nn.Module:
    """Build and initialise a model of `MODELS`.

    Args:
        name: a key of `MODELS`.
        overrides: settings of the model's config to change; nested configs take nested mappings.

    Raises:
        RecipeError: an unknown name or setting, a value of the wrong kind, sizes that do not fit together.
    """
    config = configure(name, overrides)
    try:
        with within_memory(config):
            return MODELS[name].build(config)
    except (ValueError, ArithmeticError, MemoryError) as error:
        raise RecipeError(f"model {name}", str(error) or "more memory than there is") from error
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise RecipeError(f"model {name}", "the settings declare more memory than there is") from error


def differences(base: Any, config: Any) -> dict[str, object]:
    """The overrides that turn one config into another of its kind: plain values, nested for nested configs."""
    changed: dict[str, object] = {}
    for field in dataclasses.fields(base):
        old, new = getattr(base, field.name), getattr(config, field.name)
        if dataclasses.is_dataclass(old) and dataclasses.is_dataclass(new):
            if inner := differences(old, new):
                changed[field.name] = inner
        elif old != new:
            changed[field.name] = list(new) if isinstance(new, tuple) else new
    return changed
