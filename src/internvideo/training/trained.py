"""Weights of a run with what they were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from internvideo.distributed import choose_device
from internvideo.errors import WeightsError
from internvideo.models.declared import within
from internvideo.storage import class_names, read_safetensors
from internvideo.training.model_setup import build_model
from internvideo.training.recipe import Catalog, Recipe
from internvideo.training.recipe_files import recipe_inside
from internvideo.untrusted import json_in
from internvideo.weights.state import load_state


@dataclass(frozen=True)
class Trained:
    """A trained model and what it was trained with.

    Attributes:
        context: as in `Job`. others: more models, for tasks that average the similarities of several.
    """

    model: nn.Module
    recipe: Recipe
    classes: tuple[str, ...]
    context: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[Trained, ...] = ()


def load_trained(path: Path, catalog: Catalog, *, device: str = "auto") -> Trained:
    """Read a model.safetensors that `internvideo train` wrote, ready for evaluation.

    Raises:
        WeightsError: no such file, not written here, or tensors that do not fit.
    """
    state, metadata = read_safetensors(path)
    if "recipe" not in metadata or "classes" not in metadata:
        raise WeightsError(path, "carries no recipe", "a model.safetensors written by `internvideo train`")
    recipe = recipe_inside(metadata, path, catalog)
    classes = class_names(metadata, path)
    with within(state):
        model = build_model(recipe, len(classes))
    load_state(model, state, where=path)
    context = json_in(metadata, "context", path, WeightsError, "an object", "{}")
    return Trained(model.to(choose_device(device)).eval(), recipe, classes, context)
