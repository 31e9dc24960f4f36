"""Read recipes from YAML files, from plain values or from the metadata of weights, with `key=value` overrides.

Recipes refer to entries of `tasks.TASKS`, `tasks.STAGES`, `tasks.MODELS` and `data.sampling.SAMPLERS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from internvideo.tasks import CATALOG
from internvideo.training import recipe_files
from internvideo.training.recipe import EvaluationRecipe, Recipe
from internvideo.training.recipe_files import shipped_recipes

__all__ = [
    "EvaluationRecipe", "Recipe", "build_recipe", "read_recipe", "recipe_inside", "saved_recipe", "shipped_recipes",
]  # fmt: skip


def read_recipe(name: str | Path, overrides: Sequence[str] = ()) -> EvaluationRecipe:
    """Read a recipe file, or a shipped recipe by name, and apply `key.key=value` overrides.

    Raises RecipeError: no such recipe, not YAML, a key that is unknown, missing or unused, an invalid value.
    """
    return recipe_files.read_recipe(name, overrides, CATALOG)


def build_recipe(tree: Mapping[str, Any], where: object = "recipe") -> EvaluationRecipe:
    """Build a recipe from plain values. Raises RecipeError that lists all invalid keys."""
    return recipe_files.build_recipe(tree, where, CATALOG)


def saved_recipe(tree: Mapping[str, Any], where: object = "recipe") -> EvaluationRecipe:
    """Build a recipe from plain values that this or any earlier version saved. Raises RecipeError."""
    return recipe_files.saved_recipe(tree, where, CATALOG)


def recipe_inside(metadata: Mapping[str, str], where: object) -> EvaluationRecipe:
    """Read the recipe from the metadata of weights. Raises WeightsError: no recipe; RecipeError as `build_recipe`."""
    return recipe_files.recipe_inside(metadata, where, CATALOG)
