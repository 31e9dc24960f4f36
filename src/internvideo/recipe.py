"""Recipes of all that this package can train: read from YAML, changed by `key=value`, or taken out of weights.

What there is: `tasks.TASKS`, `tasks.STAGES`, `tasks.MODELS`, `data.sampling.SAMPLERS`.
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
    """Read a recipe file, or a shipped one by name, and apply `key.key=value` changes.

    Raises RecipeError: no such recipe, not YAML, a key that is unknown, missing or not read, a value that does not fit.
    """
    return recipe_files.read_recipe(name, overrides, CATALOG)


def build_recipe(tree: Mapping[str, Any], where: object = "recipe") -> EvaluationRecipe:
    """Build a recipe from plain values. Raises RecipeError naming every wrong key at once."""
    return recipe_files.build_recipe(tree, where, CATALOG)


def saved_recipe(tree: Mapping[str, Any], where: object = "recipe") -> EvaluationRecipe:
    """Build a recipe from plain values that this or any earlier version saved. Raises RecipeError."""
    return recipe_files.saved_recipe(tree, where, CATALOG)


def recipe_inside(metadata: Mapping[str, str], where: object) -> EvaluationRecipe:
    """Read the recipe that weights carry. Raises WeightsError: none; RecipeError as `build_recipe`."""
    return recipe_files.recipe_inside(metadata, where, CATALOG)
