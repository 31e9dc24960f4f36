"""Build the model of a recipe: seeded random weights, then those of `init`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from internvideo import distributed
from internvideo.errors import RecipeError
from internvideo.models.factory import create_model
from internvideo.terminal import LOGGER
from internvideo.training import positions
from internvideo.training.head import HeadInitializer
from internvideo.training.recipe import EvaluationRecipe, Recipe
from internvideo.training.sharding import builds_on_meta
from internvideo.weights.initialize import initialize

ModelT = TypeVar("ModelT", bound=nn.Module)


def training_path(recipe: Recipe) -> Path:
    """Return the path of the training data. Raises RecipeError without one."""
    if recipe.data.train is None:
        raise RecipeError("data.train", "is missing", "a manifest or a folder of videos", "add data.train=PATH")
    return recipe.data.train


def build_model(recipe: EvaluationRecipe, num_classes: int) -> nn.Module:
    """Build the recipe's model with `model_overrides`. Raises RecipeError as `create_model` and `model_overrides`."""
    return create_model(recipe.model.name, model_overrides(recipe, num_classes), recipe.catalog.models)


def model_overrides(recipe: EvaluationRecipe, num_classes: int) -> dict[str, Any]:
    """Return the model's overrides with the manifest's number of classes for every classifier.

    A number in the recipe must be equal, unless `init_head` replaces the head: then it is overwritten.

    Raises:
        RecipeError: the recipe's number of classes is not that of the manifest.
    """
    overrides = copy.deepcopy(recipe.model.overrides)
    spec = recipe.catalog.stages.get(recipe.stage)
    if spec is None:  # a recipe of a task, for evaluation
        return overrides
    if getattr(getattr(recipe.data, "features", None), "class_agnostic", False):
        num_classes = 1
    if spec.classifier_paths and not num_classes:
        raise RecipeError("data.train", "has no labels", "a label in every row")
    for path in spec.classifier_paths:
        key, settings = "model.overrides", overrides
        if path:
            key, settings = f"model.overrides.{path}", overrides.setdefault(path, {})
        if not isinstance(settings, dict):
            raise RecipeError(key, repr(settings), "settings of the model")
        given = settings.setdefault(spec.num_classes_key, num_classes)
        if isinstance(recipe, Recipe) and recipe.init_head != "exact":
            settings[spec.num_classes_key] = num_classes
        elif given != num_classes:
            found = f"{given}, but the manifest has {num_classes} {spec.num_classes_key.removeprefix('num_')}"
            raise RecipeError(f"{key}.{spec.num_classes_key}", found, str(num_classes))
    return overrides


def init_model(recipe: Recipe, num_classes: int, *kinds: type[ModelT]) -> ModelT:
    """Build the recipe's model with random weights of its seed. Raises RecipeError if its class is none of `kinds`."""
    torch.manual_seed(recipe.loop.seed)  # for the initial weights only: the loop seeds its own generators
    with torch.device("meta") if builds_on_meta(recipe.loop.parallel) else nullcontext():
        model = build_model(recipe, num_classes)
    if not isinstance(model, kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        raise RecipeError("model.name", f"'{recipe.model.name}' is a {type(model).__name__}", f"{names} for this stage")
    return model


def load_init_weights(model: nn.Module, recipe: Recipe, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Load the weights of `init` into the model, and switch on activation checkpointing if the recipe has it.

    Args:
        classes: class names of the training rows, for a stage with a classification head; None for other stages.

    Returns:
        log lines that describe the initialization of the head.

    Raises:
        WeightsError: the files of `init` do not fit the model.
        RecipeError, ManifestError: `init_head` or `init_class_map` do not fit.
    """
    if classes is None and recipe.init_head != "exact":
        raise RecipeError("init_head", recipe.init_head, "exact, in this stage")
    if classes is None and recipe.init_class_map is not None:
        raise RecipeError("init_class_map", str(recipe.init_class_map), "none, in this stage")
    if recipe.loop.activation_checkpointing:
        for module in model.modules():
            if hasattr(module, "checkpointing"):
                setattr(module, "checkpointing", True)  # noqa: B010  # a plain attribute, unknown to nn.Module's types
    head_initializer = None if classes is None else HeadInitializer(recipe, classes)
    if builds_on_meta(recipe.loop.parallel):  # rank 0 loads the weights and sends them
        return ()
    for line in (*positions.summary(recipe), *initialize(model, recipe.init, head_initializer)):
        if distributed.rank() == 0:
            LOGGER.info(f"positions: {line}")
    return () if head_initializer is None else head_initializer.summary(recipe)


@contextmanager
def setting_errors(key: str) -> Iterator[None]:
    """Within the block, convert a ValueError to a RecipeError of the setting `key`."""
    try:
        yield
    except ValueError as error:
        raise RecipeError(key, str(error)) from error
