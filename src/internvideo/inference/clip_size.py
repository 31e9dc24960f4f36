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
    name: str,
    module: nn.Module,
    preprocessing: Preprocessing,
    frames: int | None,
    image_size: int | None,
    where: object,
) -> tuple[nn.Module, Preprocessing]:
    """Convert model and preprocessing to clips of `frames` frames and `image_size` pixels.

    Learned positions are resized (`models.positions`). Fixed positions of a VideoMAE classifier are computed for the
    clip size of its training and resized (InternVideo1/Pretrain/VideoMAE/run_class_finetuning.py).

    Args:
        name, module, preprocessing: the trained model and its preprocessing. frames, image_size: None for no change.
        where: file or folder, for messages.

    Raises:
        WeightsError: a model of two encoders, or a pretraining model. RecipeError: an unsupported size.
    """
    if frames is None and image_size is None:
        return module, preprocessing
    encoder = video_encoder(module, name)
    encoders = list(_video_encoder_configs(encoder.build_config))
    if len(encoders) != 1 or encoder.fixed_clip_size:
        kind = "masked pretraining" if encoder.fixed_clip_size else "several encoders"
        raise WeightsError(where, f"{name} is a model of {kind}", "its own frames and image_size", "leave them out")
    if preprocessing.single_frame and frames not in (None, 1):
        raise RecipeError("frames", str(frames), "1: this model takes only the middle frame")
    path, config = encoders[0]
    sizes = {"frames": frames, "image_size": image_size}
    changes: dict[str, object] = {key: value for key, value in sizes.items() if value and hasattr(config, key)}
    if isinstance(config, VideoMAEConfig) and config.position_table == "native" and not config.learnable_positions:
        changes |= {"position_table": "resized", "native_clip": [config.image_size, config.frames]}
    for part in reversed(path):
        changes = {part: changes}
    settings: dict[str, Any] = {}
    if frames is not None:
        settings |= {
            "frames": frames,
            "sampled_frames": frames * preprocessing.temporal_stride if preprocessing.sampled_frames else 0,
        }
    if image_size is not None:  # the size before the crop grows with it
        sides = {"resize": preprocessing.resize, "short_side": preprocessing.short_side}
        settings |= {key: round(side * image_size / preprocessing.size) for key, side in sides.items() if side}
        settings["size"] = image_size
    preprocessing = preprocessing.with_settings(**settings)
    with skip_init():
        model = create_model(name, merge_overrides(overrides_of(name, module), changes))
    fitted, _ = fit_positions(model, module.state_dict())
    load_state(model, fitted, where)
    return model, preprocessing


def _video_encoder_configs(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, config) of each video encoder in the config of a model."""
    if hasattr(config, "image_size"):
        yield path, config
        return
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _video_encoder_configs(value, (*path, field.name))
