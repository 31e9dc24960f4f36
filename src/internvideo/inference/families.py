"""What inference asks of a model of the table: its encoder, its test clips, its settings as plain values."""

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
    """The module as a model that sees videos. Raises RecipeError for a part that sees no video by itself."""
    if isinstance(module, VideoEncoder):
        return module
    raise RecipeError(f"model {name}", f"a {type(module).__name__} sees no video by itself", "a whole model")


def published_preprocessing(encoder: VideoEncoder) -> Preprocessing:
    """How the published tests of a model cut clips."""
    return Preprocessing(**encoder.test_clips)


def overrides_of(name: str, module: nn.Module) -> dict[str, object]:
    """What `create_model(name, ...)` needs to build this module again, as plain values."""
    return differences(MODELS[name].config, video_encoder(module, name).build_config)
