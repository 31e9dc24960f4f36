"""Table of backbones by name, and building of models with overridden settings.

Source: modeling_pretrain.py, modeling_finetune.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from internvideo.errors import RecipeError, suggestion
from internvideo.models.declared import ModelSizeError, check_setting_size, limit_to_memory
from internvideo.models.entry import ModelEntry
from internvideo.models.external.internvideo2 import InternVideo2, InternVideo2Config
from internvideo.models.external.siglip import SigLIP, SigLIPConfig
from internvideo.models.external.vjepa2 import VJEPA2, VJEPA2Config
from internvideo.models.multimodal_sizes import MULTIMODAL_MODELS
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig, VideoMAEPretrain

VIDEOMAE_SIZES: dict[str, VideoMAEConfig] = {
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


def _describe_size(config: Any) -> str:
    return f"width {config.width}, {config.depth} layers"


_PRETRAIN_MILLIONS = {"s": 24.029, "b": 94.211, "l": 317.782, "h": 645.659}
_PRETRAIN_MILLIONS |= {"g14": 1026.307, "g16": 1026.998, "G14": 1859.244}
_CLASSIFIER_MILLIONS = {"s": 22.034, "b": 86.535, "l": 304.271, "h": 632.119, "g14": 1012.174, "G14": 1843.911}

_PRETRAIN = {
    f"videomae-{size}-pretrain": ModelEntry(
        build=VideoMAEPretrain,
        config=config,
        million_parameters=_PRETRAIN_MILLIONS[size],
        description=f"masked encoder and decoder, {_describe_size(config)}, patch {config.patch_size}",
    )
    for size, config in VIDEOMAE_SIZES.items()
}
_CLASSIFIER = {
    f"videomae-{size}-classifier": ModelEntry(
        build=VideoMAEClassifier,
        config=dataclasses.replace(config, num_classes=400),
        million_parameters=_CLASSIFIER_MILLIONS.get(size),
        description=f"masked encoder with a head, {_describe_size(config)}, patch {config.patch_size}",
    )
    for size, config in VIDEOMAE_SIZES.items()
}

_SIGLIP_SIZES = {
    "b16": SigLIPConfig(),
    "l16": SigLIPConfig(width=1024, depth=24, heads=16),
    "so400m-14": SigLIPConfig(patch_size=14, width=1152, depth=27, heads=16, mlp_ratio=4304 / 1152),
}
"""At 224 px; the published models for 256, 384 and 512 px differ only in the positions."""
_INTERNVIDEO2_SIZES = {
    "b14": InternVideo2Config(width=768, depth=12, heads=12, mlp_ratio=4.0, align_width=512),
    "l14": InternVideo2Config(width=1024, depth=24, mlp_ratio=4.0, align_width=512),
    "1b": InternVideo2Config(),
    "6b": InternVideo2Config(width=3200, depth=48, heads=25, mlp_ratio=4.0),
}
_SIGLIP = {
    f"siglip-{size}": ModelEntry(SigLIP, config, None, f"SigLIP's image encoder, {_describe_size(config)}")
    for size, config in _SIGLIP_SIZES.items()
}
_INTERNVIDEO2 = {
    f"internvideo2-{size}": ModelEntry(
        InternVideo2, config, None, f"InternVideo2-CLIP's video encoder, {_describe_size(config)}"
    )
    for size, config in _INTERNVIDEO2_SIZES.items()
}
_VJEPA2 = {
    "vjepa2-l": ModelEntry(
        VJEPA2, VJEPA2Config(), None, f"V-JEPA 2's encoder, {_describe_size(VJEPA2Config())}, patch 16"
    )
}

BACKBONES: dict[str, ModelEntry] = {
    **_PRETRAIN, **_CLASSIFIER, **_VJEPA2, **_SIGLIP, **_INTERNVIDEO2, **MULTIMODAL_MODELS,
}  # fmt: skip
"""All models that encode clips; `model_table.MODELS` also has the networks of the tasks."""


def list_models(models: Mapping[str, ModelEntry] = BACKBONES) -> dict[str, str]:
    """Return name -> description of every model of a table."""
    return {name: entry.description for name, entry in models.items()}


RENAMED_SETTINGS = {
    "classes": "num_classes", "head_places": "spatial_head", "unit_frames": "normalize_frames",
    "vocabulary": "vocab_size", "context": "context_length", "queries": "num_queries", "factor": "mlp_ratio",
    "mlp_factor": "mlp_ratio", "keep": "token_keep_rate", "answers": "num_answers", "video": "use_video",
    "words": "max_words", "steps": "max_steps", "picks": "max_waypoints", "centre_factors": "center_factors",
}  # fmt: skip
"""Earlier name of a setting of a model's config -> its name; both are accepted."""


def present_settings(config: Any, overrides: Mapping[str, object]) -> dict[str, object]:
    """Return overrides of a config in which renamed settings have their present names."""
    renamed: dict[str, object] = {}
    for key, value in overrides.items():
        name = key if hasattr(config, key) else RENAMED_SETTINGS.get(key, key)
        current = getattr(config, name, None)
        nested = dataclasses.is_dataclass(current) and isinstance(value, Mapping)
        renamed[name] = present_settings(current, cast(Mapping[str, object], value)) if nested else value
    return renamed


def _has_type_of(value: object, current: object) -> bool:
    """Return whether a value has the type of the setting that it replaces."""
    if isinstance(current, bool) or isinstance(value, bool):
        return type(current) is type(value)
    if isinstance(current, float):
        return isinstance(value, int | float)
    return current is None or value is None or isinstance(value, type(current))


def _replace(config: Any, overrides: Mapping[str, object], where: str) -> Any:
    names = [field.name for field in dataclasses.fields(config)]
    values: dict[str, object] = {}
    for name, value in overrides.items():
        if name not in names:
            raise RecipeError(f"{where}.{name}", "no such setting", ", ".join(names), suggestion(name, names))
        current = getattr(config, name)
        if dataclasses.is_dataclass(current) and isinstance(value, Mapping):
            value = _replace(current, value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(value)
        if not _has_type_of(value, current):
            raise RecipeError(f"{where}.{name}", repr(value), f"{type(current).__name__}, as in {current!r}")
        try:
            check_setting_size(name, value)
        except ModelSizeError as error:
            raise RecipeError(f"{where}.{name}", str(error)) from error
        values[name] = value
    try:
        return dataclasses.replace(config, **values)
    except (ValueError, ArithmeticError) as error:
        raise RecipeError(where, str(error)) from error


def configure(
    name: str, overrides: Mapping[str, object] | None = None, models: Mapping[str, ModelEntry] = BACKBONES
) -> Any:
    """Return the config of a named model with overridden settings. Raises RecipeError as `create_model`."""
    entry = models.get(name)
    if entry is None:
        raise RecipeError("model", repr(name), ", ".join(models), suggestion(name, models))
    return _replace(entry.config, present_settings(entry.config, overrides or {}), f"model {name}")


def create_model(
    name: str, overrides: Mapping[str, object] | None = None, models: Mapping[str, ModelEntry] = BACKBONES
) -> nn.Module:
    """Build and initialize a model.

    Args:
        name: a key of `models`.
        overrides: settings of the model's config to change; nested mappings for nested configs.
        models: the table of named sizes.

    Raises:
        RecipeError: an unknown name or setting, a value of the wrong type, contradictory or too large sizes.
    """
    config = configure(name, overrides, models)
    try:
        with limit_to_memory(config):
            return models[name].build(config)
    except (ValueError, ArithmeticError, MemoryError) as error:
        raise RecipeError(f"model {name}", str(error) or "more memory than there is") from error
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise RecipeError(f"model {name}", "the settings declare more memory than there is") from error


def differences(base: Any, config: Any) -> dict[str, object]:
    """Return the overrides that turn `base` into `config`, as JSON values, nested for nested configs."""
    changed: dict[str, object] = {}
    for field in dataclasses.fields(base):
        old, new = getattr(base, field.name), getattr(config, field.name)
        if old != new:
            nested = dataclasses.is_dataclass(old) and dataclasses.is_dataclass(new)
            changed[field.name] = differences(old, new) if nested else list(new) if isinstance(new, tuple) else new
    return changed
