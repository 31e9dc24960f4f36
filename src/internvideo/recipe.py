"""Read and build recipes of all stages, tasks and models of this package: `training.recipe_files` with the `CATALOG`.

Available names: `tasks.TASKS`, `tasks.STAGES`, `tasks.MODELS`, `data.sampling.SAMPLERS`.
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
    "EvaluationRecipe",
    "Recipe",
    "build_recipe",
    "build_saved_recipe",
    "read_metadata_recipe",
    "read_recipe",
    "shipped_recipes",
]  # fmt: skip


def read_recipe(name: str | Path, overrides: Sequence[str] = ()) -> EvaluationRecipe:
    """Read a recipe file, or a shipped one by name, and apply `key.key=value` changes.

    Raises RecipeError: no such recipe, invalid YAML, an unknown, missing or unused key, an invalid value.
    """
    return recipe_files.read_recipe(name, overrides, CATALOG)


def build_recipe(tree: Mapping[str, Any], where: object = "recipe") -> EvaluationRecipe:
    """Build a recipe from JSON values. Raises RecipeError naming every wrong key at once."""
    return recipe_files.build_recipe(tree, where, CATALOG)


def build_saved_recipe(tree: Mapping[str, Any], where: object = "recipe") -> EvaluationRecipe:
    """Build a recipe from JSON values that this or an earlier version saved. Raises RecipeError."""
    return recipe_files.build_saved_recipe(tree, where, CATALOG)


def read_metadata_recipe(metadata: Mapping[str, str], where: object) -> EvaluationRecipe:
    """Read the recipe in the metadata of a weights file. Raises WeightsError without one; else as `build_recipe`."""
    return recipe_files.read_metadata_recipe(metadata, where, CATALOG)
