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
    "InternVideoEncoder", "InternVideoError", "Preprocessing", "Recipe", "Span", "Tokenizer", "Video", "VideoModel",
    "WorldSettings", "__version__", "create_model", "generate", "list_models", "load", "load_trained", "read_manifest",
    "read_recipe", "read_video_info", "run_recipe",
]  # fmt: skip

_MODULES = {
    name: f"{__name__}.{module}"
    for module, names in {
        "data.manifest": ("read_manifest",),
        "data.preprocessing": ("Preprocessing", "Span"),
        "data.tokenizer": ("Tokenizer",),
        "errors": ("InternVideoError",),
        "inference.create": ("create_model",),
        "inference.encoder": ("InternVideoEncoder",),
        "inference.loading": ("load",),
        "inference.video_model": ("VideoModel",),
        "model_table": ("list_models",),
        "pipeline": ("load_trained", "run_recipe"),
        "recipe": ("Recipe", "read_recipe"),
        "sample_world.generate": ("WorldSettings", "generate"),
        "video.reader": ("Video", "read_video_info"),
    }.items()
    for name in names
}
"""Public name -> module that defines it."""


def __getattr__(name: str) -> object:
    """Import a public name from its module and cache it here."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
