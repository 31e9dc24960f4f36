"""Read recipes from YAML with `key=value` overrides, or from a saved run; every error names its key."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from internvideo import untrusted
from internvideo.errors import RecipeError, WeightsError, suggestion
from internvideo.training.earlier_recipes import new_name, new_value, upgrade
from internvideo.training.recipe import Catalog, EvaluationRecipe, Recipe
from internvideo.training.settings import LoopSettings
from internvideo.weights.layouts import flatten_overrides

MAX_NUMBER = 10**7
"""Largest value of a numeric setting, since counts of samples, words or panoramas take memory."""
UNLIMITED_KEYS = (
    *("loop.seed", "data.loader.seed", "schedule.steps", "schedule.warmup", "schedule.milestones"),
    *("loop.log_every", "loop.checkpoint_every", "loop.keep_checkpoints", "data.loader.cache_megabytes"),
)
"""Settings without this limit: seeds, steps and upper bounds, which take no memory."""

REQUIRED_KEYS = {
    "loop.ema_scaled": ("loop.ema_decay",),
    "data.augment.mix_probability": ("data.augment.mixup", "data.augment.cutmix"),
    "data.augment.mix_smoothing": ("data.augment.mixup", "data.augment.cutmix"),
}
"""Setting -> the settings it depends on; it has an effect only if at least one of them is set."""


def shipped_recipes() -> dict[str, Path]:
    """List the shipped recipes: name ("sample/masked") -> file."""
    installed = Path(str(resources.files("internvideo"))) / "recipes"
    folder = installed if installed.is_dir() else Path(__file__).parents[3] / "recipes"
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.yaml"))}


def read_recipe(name: str | Path, overrides: Sequence[str], catalog: Catalog) -> EvaluationRecipe:
    """Read a recipe file, or a shipped one by name, and apply `key.key=value` changes.

    Raises:
        RecipeError: no such recipe, invalid YAML, an unknown, missing or unused key, an invalid value.
    """
    path = _find_recipe(name)
    try:
        tree = untrusted.read_yaml(path)
    except (OSError, ValueError) as error:
        raise RecipeError(path, f"cannot be read as YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(
            path,
            "is empty" if tree is None else f"contains a {type(tree).__name__}",
            "a mapping with stage, model, data ...",
        )
    if "version" in tree:
        tree = upgrade(tree, catalog)
    for override in overrides:
        apply_override(tree, override)
    recipe = build_recipe(tree, path, catalog)
    check_required_keys(recipe, path)
    if isinstance(recipe, Recipe) and recipe.init_head != "exact" and not recipe.spec.classifier_paths:
        stages = ", ".join(name for name, spec in catalog.stages.items() if spec.classifier_paths)
        found = f"'init_head' is a setting of {stages}, not of the stage '{recipe.stage}'"
        raise RecipeError(path, found, "leave init_head out")
    return recipe


def build_recipe(tree: Mapping[str, Any], where: object, catalog: Catalog) -> EvaluationRecipe:
    """Build a recipe from JSON values: a `Recipe`, or an `EvaluationRecipe` without optimizer and schedule.

    Raises:
        RecipeError: naming every wrong key at once.
    """
    kind = Recipe if {"optimizer", "schedule"} & set(tree) else EvaluationRecipe
    if not {"stage", "task"} & set(tree):
        raise RecipeError(where, "'stage' is missing", ", ".join(catalog.stages))
    try:
        recipe = kind.model_validate(tree, context=catalog)
    except ValidationError as error:
        raise RecipeError(where, "; ".join(_explain(item, tree, catalog) for item in error.errors())) from error
    check_numbers(tree, recipe.resolved(), where)
    if isinstance(recipe, Recipe) and recipe.loop.grad_accum_steps > 1 and not recipe.data.loader.drop_last:
        found = f"'loop.grad_accum_steps' is {recipe.loop.grad_accum_steps} and 'data.loader.drop_last' false"
        raise RecipeError(where, f"{found}: a smaller last batch would count as much as the others", "one of them")
    return recipe


def build_saved_recipe(tree: Mapping[str, Any], where: object, catalog: Catalog) -> EvaluationRecipe:
    """Build a recipe from JSON values saved by this or an earlier version. Raises RecipeError as `build_recipe`."""
    return build_recipe(upgrade(tree, catalog), where, catalog)


def read_metadata_recipe(metadata: Mapping[str, str], where: object, catalog: Catalog) -> EvaluationRecipe:
    """Read the recipe in the metadata of a weights file. Raises WeightsError without one; else as `build_recipe`."""
    tree = untrusted.parse_json_entry(metadata, "recipe", where, WeightsError, "weights of a run")
    if not isinstance(tree, Mapping):
        raise WeightsError(where, f"contains a {type(tree).__name__} as its recipe", "weights of a run")
    return build_saved_recipe(tree, where, catalog)


RECIPE_FILE = "recipe.json"
"""File name of the full recipe of a run, in the folder of its weights."""


def read_recipe_beside(weights: Path, catalog: Catalog) -> Recipe | None:
    """Read the recipe file in the folder of a run's weights; None if it is missing or not a recipe of a run."""
    try:
        tree = untrusted.read_json(weights.with_name(RECIPE_FILE), untrusted.MAX_SETTINGS_BYTES)
        recipe = build_saved_recipe(tree, weights.with_name(RECIPE_FILE), catalog)
    except (OSError, ValueError, AttributeError, TypeError, RecipeError):
        return None
    return recipe if isinstance(recipe, Recipe) else None


def _find_recipe(name: str | Path) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(name) in shipped:
        return shipped[str(name)]
    hint = suggestion(str(name), shipped) or "`internvideo list recipes` lists the shipped ones"
    raise RecipeError(name, "no such recipe file", "a YAML file or the name of a shipped recipe", hint)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one value in nested settings, in place, from "key.key=value" (YAML). Raises RecipeError for other forms."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(override, "is not an override of a setting", "key.key=value")
    try:
        value = untrusted.parse_yaml(text)
    except ValueError as error:
        raise RecipeError(override, f"the value is not YAML: {error}") from error
    if isinstance(value, str):  # YAML 1.1 parses 1e-4 (without a dot) as text
        with contextlib.suppress(ValueError):
            value = number if math.isfinite(number := float(value)) else value
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise RecipeError(override, f"'{parent}' is a value, not a group of settings")
        node = child
    node[last] = value


def check_numbers(given: Mapping[str, Any], values: Mapping[str, Any], where: object) -> None:
    """Check the numbers of a recipe, also in lists: at most `MAX_NUMBER`, and not written as booleans.

    Args:
        given: the recipe as written. values: the parsed recipe. where: location for messages.

    Raises:
        RecipeError: naming the setting.
    """
    given_leaves = flatten_overrides(given)
    for name, parsed in flatten_overrides(values).items():
        if name.startswith("model."):  # checked by models.factory
            continue
        parsed_values, given_values = (
            list(value) if isinstance(value, list | tuple) else [value] for value in (parsed, given_leaves.get(name))
        )
        for value, raw in zip_longest(parsed_values, given_values):
            if type(value) not in (int, float):
                continue
            if isinstance(raw, bool):
                raise RecipeError(where, f"'{name}' is {str(raw).lower()}", "a number")
            if abs(value) > MAX_NUMBER and name not in UNLIMITED_KEYS:
                raise RecipeError(where, f"'{name}' is {value:g}", f"at most {MAX_NUMBER:,}")


def check_required_keys(recipe: EvaluationRecipe, where: object) -> None:
    """Raise RecipeError for a changed setting without effect, because none of its `REQUIRED_KEYS` is set."""
    data = type(recipe.data)(loader=recipe.data.loader)
    defaults = flatten_overrides({"data": data.model_dump(), "loop": LoopSettings().model_dump()})
    values = flatten_overrides(recipe.model_dump())
    for name, required in REQUIRED_KEYS.items():
        changed = name in defaults and name in values and values[name] != defaults[name]
        if changed and not any(values[other] for other in required):
            found = f"'{name}' is {str(values[name]).lower()} without {' or '.join(required)}"
            raise RecipeError(where, found, f"one of these, or no {name}")


def _explain(item: Any, tree: Mapping[str, Any], catalog: Catalog) -> str:
    """Describe one error of pydantic (an item of `ValidationError.errors()`) with dotted keys and suggestions."""
    location = item["loc"]
    key = ".".join(str(part) for part in location)
    if item["type"] == "missing":
        return f"'{key}' is missing"
    if item["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):  # unknown key of a model, a dataclass
        message: str = item["msg"].removeprefix("Value error, ")
        if now := new_value(key, item["input"]):
            return f"'{key}': '{item['input']}' is '{now}' now"
        if message.startswith(f"{key}."):  # the message names the keys itself
            return message
        return f"'{key}': {message}" + ("" if item["type"] == "value_error" else f", found {item['input']!r}")
    stage = str(tree.get("stage"))
    others = []
    if location[0] in ("settings", "data"):
        others = [other for other in catalog.stages if location[-1] in _list_sibling_keys(location, other, catalog)]
    if others:
        user = f"stage '{stage}'" if "stage" in tree else f"task '{tree.get('task')}'"
        return f"no setting '{key}' in the {user}, it is a setting of {', '.join(others)}"
    if location[-1] in Recipe.model_fields and len(location) == 1:
        return f"no setting '{key}' in a recipe for evaluation, without optimizer and schedule"
    if now := new_name(key):
        return f"no setting '{key}', now '{now}'"
    same_name = [name for name in _list_dotted_keys(location[:1], stage, catalog) if name.endswith(f".{location[-1]}")]
    hint = suggestion(str(location[-1]), _list_sibling_keys(location, stage, catalog))
    if same_name:
        hint = f"did you mean '{same_name[0]}'?"
    return f"no setting '{key}'" + (f", {hint}" if hint else "")


def _list_dotted_keys(section: Sequence[int | str], stage: str, catalog: Catalog) -> list[str]:
    """List the dotted keys of all settings below a section of a stage's recipe."""
    names = _list_sibling_keys((*section, ""), stage, catalog) if len(section) < 4 else []
    dotted = [".".join((*map(str, section), name)) for name in names]
    return [*dotted, *(key for name in names for key in _list_dotted_keys((*section, name), stage, catalog))]


def _list_sibling_keys(location: Sequence[int | str], stage: str, catalog: Catalog) -> list[str]:
    """List the names of the settings in the section of `location` (keys from the root of the recipe)."""
    kind: Any = Recipe
    for part in location[:-1]:
        if kind is Recipe and part in ("settings", "data"):
            spec = catalog.stages.get(stage)
            kind = getattr(spec, str(part), None)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = get_type_hints(kind).get(str(part)) if is_dataclass(kind) or _is_model(kind) else None
    if is_dataclass(kind):
        return [field.name for field in fields(kind)]
    return list(kind.model_fields) if _is_model(kind) else []


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
