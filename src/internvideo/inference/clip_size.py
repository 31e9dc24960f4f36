"""Convert a trained model to another clip size: the same weights, positions resized as in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import RecipeError, WeightsError
from internvideo.inference.families import overrides_of, video_encoder
from internvideo.model_table import create_model
from internvideo.models.positions import fit_positions
from internvideo.models.skip_init import skip_init
from internvideo.models.videomae_config import VideoMAEConfig
from internvideo.weights.layouts import merge_overrides
from internvideo.weights.state import load_state


def at_clip_size(
    name: str, module: nn.Module, clips: Preprocessing, frames: int | None, image_size: int | None, where: object
) -> tuple[nn.Module, Preprocessing]:
    """Convert model and preprocessing to clips of `frames` frames and `image_size` pixels.

    Learned positions are resized (`models.positions`); fixed ones of a VideoMAE classifier are those of the clip that
    it was trained on, resized (InternVideo1/Pretrain/VideoMAE/run_class_finetuning.py).

    Args:
        name, module, clips: the trained model and its preprocessing. frames, image_size: None keeps the current value.
        where: file or folder, for messages.

    Raises:
        WeightsError: a model of two encoders, or a pretraining model. RecipeError: an unsupported size.
    """
    if frames is None and image_size is None:
        return module, clips
    encoder = video_encoder(module, name)
    parts = list(_video_parts(encoder.build_config))
    if len(parts) != 1 or encoder.fixed_clip_size:
        kind = "masked pretraining" if encoder.fixed_clip_size else "several encoders"
        raise WeightsError(where, f"{name} is a model of {kind}", "its own frames and image_size", "leave them out")
    if clips.single_frame and frames not in (None, 1):
        raise RecipeError("frames", str(frames), "1: this model takes only the middle frame")
    path, config = parts[0]
    sizes = {"frames": frames, "image_size": image_size}
    changes: dict[str, object] = {key: value for key, value in sizes.items() if value and hasattr(config, key)}
    if isinstance(config, VideoMAEConfig) and config.position_table == "native" and not config.learnable_positions:
        changes |= {"position_table": "resized", "native_clip": [config.image_size, config.frames]}
    for part in reversed(path):
        changes = {part: changes}
    settings: dict[str, Any] = {}
    if frames is not None:
        settings |= {"frames": frames, "sampled_frames": frames * clips.temporal_stride if clips.sampled_frames else 0}
    if image_size is not None:  # the size before the crop grows with it
        sides = {"resize": clips.resize, "short_side": clips.short_side}
        settings |= {key: round(side * image_size / clips.size) for key, side in sides.items() if side}
        settings["size"] = image_size
    clips = clips.with_settings(**settings)
    with skip_init():
        model = create_model(name, merge_overrides(overrides_of(name, module), changes))
    fitted, _ = fit_positions(model, module.state_dict())
    load_state(model, fitted, where)
    return model, clips


def _video_parts(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the settings of each video encoder in those of a model, with their path."""
    if hasattr(config, "image_size"):
        yield path, config
        return
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _video_parts(value, (*path, field.name))
