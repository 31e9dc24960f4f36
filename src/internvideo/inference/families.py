"""Return the video encoder, the published preprocessing and the overrides of a built model."""

from __future__ import annotations

from typing import Literal

from torch import nn

from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import RecipeError
from internvideo.model_table import MODELS
from internvideo.models.encoder import VideoEncoder
from internvideo.models.factory import differences

Precision = Literal["float32", "bfloat16", "float16"]


def video_encoder(module: nn.Module, name: str) -> VideoEncoder:
    """Return the module as a VideoEncoder. Raises RecipeError for a module that does not encode videos by itself."""
    if isinstance(module, VideoEncoder):
        return module
    raise RecipeError(f"model {name}", f"a {type(module).__name__} does not encode videos by itself", "a whole model")


def published_preprocessing(encoder: VideoEncoder) -> Preprocessing:
    """Return the published test preprocessing of a model."""
    return Preprocessing(**encoder.test_clips)


def overrides_of(name: str, module: nn.Module) -> dict[str, object]:
    """Return the overrides with which `create_model(name, ...)` builds this module again, as JSON values."""
    return differences(MODELS[name].config, video_encoder(module, name).build_config)
