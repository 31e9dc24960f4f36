"""General video foundation models: pretrain, combine, evaluate and use video encoders.

The names below are imported when they are first used, so that `import internvideo` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from internvideo.data.manifest import read_manifest
    from internvideo.data.preprocessing import Preprocessing, Span
    from internvideo.data.tokenizer import Tokenizer
    from internvideo.errors import InternVideoError
    from internvideo.inference.create import create_model
    from internvideo.inference.encoder import InternVideoEncoder
    from internvideo.inference.loading import load
    from internvideo.inference.video_model import VideoModel
    from internvideo.model_table import list_models
    from internvideo.pipeline import load_trained, run_recipe
    from internvideo.recipe import Recipe, read_recipe
    from internvideo.sample_world.generate import WorldSettings, generate
    from internvideo.video.reader import Video, read_video_info

__version__ = "0.2.0"

__all__ = [
    "InternVideoEncoder",
    "InternVideoError",
    "Preprocessing",
    "Recipe",
    "Span",
    "Tokenizer",
    "Video",
    "VideoModel",
    "WorldSettings",
    "__version__",
    "create_model",
    "generate",
    "list_models",
    "load",
    "load_trained",
    "read_manifest",
    "read_recipe",
    "read_video_info",
    "run_recipe",
]

_HOMES = {
    "InternVideoEncoder": "internvideo.inference.encoder",
    "InternVideoError": "internvideo.errors",
    "Preprocessing": "internvideo.data.preprocessing",
    "Recipe": "internvideo.recipe",
    "Span": "internvideo.data.preprocessing",
    "Tokenizer": "internvideo.data.tokenizer",
    "Video": "internvideo.video.reader",
    "VideoModel": "internvideo.inference.video_model",
    "WorldSettings": "internvideo.sample_world.generate",
    "create_model": "internvideo.inference.create",
    "generate": "internvideo.sample_world.generate",
    "list_models": "internvideo.model_table",
    "load": "internvideo.inference.loading",
    "load_trained": "internvideo.pipeline",
    "read_manifest": "internvideo.data.manifest",
    "read_recipe": "internvideo.recipe",
    "read_video_info": "internvideo.video.reader",
    "run_recipe": "internvideo.pipeline",
}
"""Public name -> the module it lives in."""


def __getattr__(name: str) -> object:
    """Import a public name from its home and keep it."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
