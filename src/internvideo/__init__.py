"""General video foundation models: video files in; pretrained, interacting encoders and their figures out.

The names below are imported when they are first used, so that `import internvideo` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from internvideo.apps.door import load
    from internvideo.apps.encoder import InternVideoEncoder
    from internvideo.apps.preprocessing import Preprocessing, Span
    from internvideo.apps.video_model import VideoModel
    from internvideo.data.manifest import read_manifest
    from internvideo.data.sample_world import WorldSettings, generate
    from internvideo.data.tokenizer import Tokenizer
    from internvideo.data.video import Video, probe
    from internvideo.errors import InternVideoError
    from internvideo.models.factory import create_model, list_models
    from internvideo.pipeline import load_trained, run_recipe
    from internvideo.recipe import Recipe, read_recipe

__version__ = "0.1.0"

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
    "probe",
    "read_manifest",
    "read_recipe",
    "run_recipe",
]

_HOMES = {
    "InternVideoEncoder": "internvideo.apps.encoder",
    "InternVideoError": "internvideo.errors",
    "Preprocessing": "internvideo.apps.preprocessing",
    "Recipe": "internvideo.recipe",
    "Span": "internvideo.apps.preprocessing",
    "Tokenizer": "internvideo.data.tokenizer",
    "Video": "internvideo.data.video",
    "VideoModel": "internvideo.apps.video_model",
    "WorldSettings": "internvideo.data.sample_world",
    "create_model": "internvideo.models.factory",
    "generate": "internvideo.data.sample_world",
    "list_models": "internvideo.models.factory",
    "load": "internvideo.apps.door",
    "load_trained": "internvideo.pipeline",
    "probe": "internvideo.data.video",
    "read_manifest": "internvideo.data.manifest",
    "read_recipe": "internvideo.recipe",
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
