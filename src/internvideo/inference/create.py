"""Define `internvideo.create_model`: create a module by name, as timm's `create_model` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from internvideo.errors import RecipeError
from internvideo.inference.loading import RANDOM, load
from internvideo.model_table import MODELS
from internvideo.model_table import create_model as build
from internvideo.models.encoder import VideoEncoder


def create_model(
    name: str,
    overrides: Mapping[str, object] | None = None,
    *,
    pretrained: str | Path | bool = False,
    num_classes: int | None = None,
    **settings: object,
) -> nn.Module:
    """Create a module with random or pretrained weights; `internvideo.load` returns it with its preprocessing.

    Args:
        name: a key of `list_models()`.
        overrides: settings of the model config to change; nested configs take mappings.
        settings: the same as keywords.
        pretrained: weights as in `load`: a file, a folder, hf://ORGANISATION/REPOSITORY. False for random ones.
        num_classes: number of classes of a new, randomly initialized head.

    Raises:
        RecipeError: no such name or setting, or `pretrained=True`: the package contains no weights.
        WeightsError: as `load`.
    """
    changes = {**(overrides or {}), **settings}
    if pretrained is True:
        hint = "docs/models.md lists published weights"
        raise RecipeError("pretrained", "True", "a file, a folder or hf://ORGANISATION/REPOSITORY", hint)
    if name not in MODELS or (num_classes is None and not pretrained):
        return build(name, changes)
    weights = str(pretrained) if pretrained else RANDOM
    model: VideoEncoder = load(name, weights=weights, num_classes=num_classes, overrides=changes, device="cpu").module
    return model
