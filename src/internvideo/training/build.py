"""Job: a recipe with everything that it names built, and the steps that all kinds of jobs share."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from internvideo import distributed
from internvideo.errors import RecipeError
from internvideo.models.factory import create_model
from internvideo.recipe import MODELS, STAGES, Recipe
from internvideo.terminal import say
from internvideo.training import positions
from internvideo.training.head import HeadRule
from internvideo.training.loop import BatchSource
from internvideo.weights.initialize import initialise


@dataclass(frozen=True)
class Job:
    """A recipe with everything that it names built; `fingerprint` is that of the training rows and their classes.

    `context` is what else must be known to use the model later, and is kept beside its weights: how the features were
    made that a detector learned from, the words of an instruction. It must be ready for JSON. `head` tells where the
    classification head comes from, where the recipe says something of it. `facts` are fingerprints of what else is
    learned from: a run is resumed only where they are the same.
    """

    recipe: Recipe
    stage: nn.Module
    loader: BatchSource
    classes: tuple[str, ...]
    fingerprint: str
    context: Mapping[str, Any] = field(default_factory=dict)
    head: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The model that the stage trains."""
        model = self.stage.model
        if not isinstance(model, nn.Module):
            raise TypeError(f"{type(self.stage).__name__}.model is no module")
        return model


def training_path(recipe: Recipe) -> Path:
    """What the recipe learns from. Raises RecipeError when it does not say."""
    if recipe.data.train is None:
        raise RecipeError("data.train", "is missing", "a manifest or a folder of videos", "add data.train=PATH")
    return recipe.data.train


def build_model(recipe: Recipe, classes: int) -> nn.Module:
    """The recipe's model; a classifier without a number of classes gets that of the manifest.

    So does one whose head is not that of `init`: a recipe's own number of classes is then that of its data set alone.

    Raises:
        RecipeError: the recipe's number of classes is not that of the manifest.
    """
    overrides = copy.deepcopy(recipe.model.overrides)
    entry = STAGES[recipe.stage]
    if "features" in entry.reads and recipe.data.features.class_agnostic:
        classes = 1
    if entry.heads and not classes:
        raise RecipeError("data.train", "has no labels", "a label in every row")
    for part in entry.heads:
        place, settings = "model.overrides", overrides
        if part:
            place, settings = f"model.overrides.{part}", overrides.setdefault(part, {})
        if not isinstance(settings, dict):
            raise RecipeError(place, f"found {settings!r}", "settings of the model")
        asked = settings.setdefault(entry.outputs, classes)
        if recipe.init_head != "same":
            settings[entry.outputs] = classes
        elif asked != classes:
            found = f"{asked}, but the manifest has {classes} {entry.outputs}"
            raise RecipeError(f"{place}.{entry.outputs}", found, str(classes))
    return create_model(recipe.model.name, overrides, MODELS)


def draw_model(recipe: Recipe, classes: int) -> nn.Module:
    """The recipe's model, its weights drawn from the recipe's seed.

    Raises:
        RecipeError: the recipe's stage does not train such a model.
    """
    torch.manual_seed(recipe.loop.seed)  # of the initial weights; the loop seeds its own generators
    model = build_model(recipe, classes)
    entry = STAGES[recipe.stage]
    if not isinstance(model, entry.trains):
        names = ", ".join(kind.__name__ for kind in entry.trains)
        raise RecipeError("model.name", f"'{recipe.model.name}' is a {type(model).__name__}", f"{names} for this stage")
    return model


def start_model(model: nn.Module, recipe: Recipe, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Fill the model with the weights of `init`, and let it recompute activations where the recipe says so.

    Args:
        classes: of the training rows, for a model with a head that `init_head` is about.

    Returns:
        what was done with the head, to be told.

    Raises:
        WeightsError: `init` cannot be used. RecipeError, ManifestError: `init_head` cannot.
    """
    if classes is None and recipe.init_head != "same":
        raise RecipeError("init_head", recipe.init_head, "same, in this stage")
    if classes is None and recipe.init_class_map is not None:
        raise RecipeError("init_class_map", str(recipe.init_class_map), "none, in this stage")
    rule = None if classes is None else HeadRule(recipe, classes)
    for line in (*positions.told(recipe), *initialise(model, recipe.init, rule)):
        if distributed.rank() == 0:
            say(f"positions: {line}", err=True)
    if recipe.loop.activation_checkpointing:
        for module in model.modules():
            if hasattr(module, "checkpointing"):
                setattr(module, "checkpointing", True)  # noqa: B010  # a plain attribute, unknown to nn.Module's types
    return () if rule is None else rule.told(recipe)


@contextmanager
def setting(place: str) -> Iterator[None]:
    """What a class says of an argument becomes the mistake in the setting that it came from."""
    try:
        yield
    except ValueError as error:
        raise RecipeError(place, str(error)) from error
