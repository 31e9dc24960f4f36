"""List and build models by name: all sizes of the backbones and of the task networks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from internvideo.models import factory
from internvideo.tasks import MODELS

__all__ = ["MODELS", "create_model", "list_models"]


def list_models() -> dict[str, str]:
    """Return name -> description of every model that `create_model` builds."""
    return factory.list_models(MODELS)


def create_model(name: str, overrides: Mapping[str, object] | None = None) -> nn.Module:
    """Build and initialize a model of `MODELS`; see `models.factory.create_model`.

    Args:
        name: a key of `MODELS`.
        overrides: settings of the model's config to change; nested configs take nested mappings.

    Raises RecipeError: an unknown name or setting, a value of the wrong kind, sizes that do not fit together.
    """
    return factory.create_model(name, overrides, MODELS)
