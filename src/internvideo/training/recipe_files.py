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
from internvideo.training.earlier_recipes import new_name, new_value, upgraded
from internvideo.training.recipe import Catalog, EvaluationRecipe, Recipe
from internvideo.training.settings import LoopSettings
from internvideo.weights.layouts import flatten_overrides

LARGEST = 10**7
"""Largest value of a numeric setting: counts of samples, words or panoramas are limited by memory."""
LARGER = (
    *("loop.seed", "data.loader.seed", "schedule.steps", "schedule.warmup", "schedule.milestones"),
    *("loop.log_every", "loop.checkpoint_every", "loop.keep_checkpoints", "data.loader.cache_megabytes"),
)
"""Settings without this limit: seeds, steps, and upper bounds that cost no memory."""

NEEDS = {
    "loop.ema_scaled": ("loop.ema_decay",),
    "data.augment.mix_probability": ("data.augment.mixup", "data.augment.cutmix"),
    "data.augment.mix_smoothing": ("data.augment.mixup", "data.augment.cutmix"),
}
"""Setting -> settings of which at least one must be enabled for it to have an effect."""


def shipped_recipes() -> dict[str, Path]:
    """List the shipped recipes: name ("sample/masked") -> file."""
    inside = Path(str(resources.files("internvideo"))) / "recipes"
    folder = inside if inside.is_dir() else Path(__file__).parents[3] / "recipes"
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.yaml"))}


def read_recipe(name: str | Path, overrides: Sequence[str], catalog: Catalog) -> EvaluationRecipe:
    """Read a recipe file, or a shipped one by name, and apply `key.key=value` changes.

    Raises:
        RecipeError: no such recipe, invalid YAML, an unknown, missing or unused key, an invalid value.
    """
    path = _find(name)
    try:
        tree = untrusted.read_yaml(path)
    except (OSError, ValueError) as error:
        raise RecipeError(path, f"cannot be read as YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(path, f"holds {type(tree).__name__}, not settings", "a mapping with stage, model, data ...")
    if "version" in tree:
        tree = upgraded(tree, catalog)
    for override in overrides:
        apply_override(tree, override)
    recipe = build_recipe(tree, path, catalog)
    check_needed(recipe, path)
    if isinstance(recipe, Recipe) and recipe.init_head != "exact" and not recipe.spec.classifiers:
        heads = ", ".join(name for name, spec in catalog.stages.items() if spec.classifiers)
        found = f"'init_head' counts in {heads}, not in the stage '{recipe.stage}'"
        raise RecipeError(path, found, "leave init_head out")
    return recipe


def build_recipe(tree: Mapping[str, Any], where: object, catalog: Catalog) -> EvaluationRecipe:
    """Build a recipe from plain values: for a run, or without optimizer and schedule for evaluation.

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


def saved_recipe(tree: Mapping[str, Any], where: object, catalog: Catalog) -> EvaluationRecipe:
    """Build a recipe from plain values saved by this or an earlier version. Raises RecipeError as `build_recipe`."""
    return build_recipe(upgraded(tree, catalog), where, catalog)


def recipe_inside(metadata: Mapping[str, str], where: object, catalog: Catalog) -> EvaluationRecipe:
    """Read the recipe in weights' metadata. Raises WeightsError: none; RecipeError as `build_recipe`."""
    tree = untrusted.parse_json_entry(metadata, "recipe", where, WeightsError, "weights of a run")
    if not isinstance(tree, Mapping):
        raise WeightsError(where, f"carries a {type(tree).__name__} as its recipe", "weights of a run")
    return saved_recipe(tree, where, catalog)


RECIPE_FILE = "recipe.json"
"""File name of a run's full recipe, next to its weights."""


def recipe_beside(weights: Path, catalog: Catalog) -> Recipe | None:
    """Read the recipe file next to a run's weights; None if absent."""
    try:
        tree = untrusted.read_json(weights.with_name(RECIPE_FILE), untrusted.MAX_SETTINGS_BYTES)
        recipe = saved_recipe(tree, weights.with_name(RECIPE_FILE), catalog)
    except (OSError, ValueError, AttributeError, TypeError, RecipeError):
        return None
    return recipe if isinstance(recipe, Recipe) else None


def _find(name: str | Path) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(name) in shipped:
        return shipped[str(name)]
    hint = suggestion(str(name), shipped) or "`internvideo list recipes` lists the shipped ones"
    raise RecipeError(name, "no such recipe file", "a YAML file or the name of a shipped recipe", hint)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one "key.key=value" (YAML) in nested settings. Raises RecipeError for anything else."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(override, "is no override of a setting", "key.key=value")
    try:
        value = untrusted.parse_yaml(text)
    except ValueError as error:
        raise RecipeError(override, f"the value is not YAML: {error}") from error
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 (no dot) as text
        with contextlib.suppress(ValueError):
            value = number if math.isfinite(number := float(value)) else value
    *parents, last, node = *key.split("."), tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise RecipeError(override, f"'{parent}' holds a value, not settings")
        node = child
    node[last] = value


def check_numbers(given: Mapping[str, Any], values: Mapping[str, Any], where: object) -> None:
    """Check that numbers are at most `LARGEST` and no booleans, including numbers in lists.

    Args:
        given: the recipe as written. values: the parsed recipe. where: for messages.

    Raises:
        RecipeError: naming the setting. Sizes of models are checked where they are built.
    """
    given_leaves = flatten_overrides(given)
    for name, parsed in flatten_overrides(values).items():
        if name.startswith("model."):
            continue
        parsed_values, given_values = (
            list(value) if isinstance(value, list | tuple) else [value] for value in (parsed, given_leaves.get(name))
        )
        for value, raw in zip_longest(parsed_values, given_values):
            if type(value) not in (int, float):
                continue
            if isinstance(raw, bool):
                raise RecipeError(where, f"'{name}' is {str(raw).lower()}", "a number")
            if abs(value) > LARGEST and name not in LARGER:
                raise RecipeError(where, f"'{name}' is {value:g}", f"at most {LARGEST:,}")


def check_needed(recipe: EvaluationRecipe, where: object) -> None:
    """Raise RecipeError for settings of a feature that is switched off (`NEEDS`)."""
    data = type(recipe.data)(loader=recipe.data.loader)
    defaults = flatten_overrides({"data": data.model_dump(), "loop": LoopSettings().model_dump()})
    values = flatten_overrides(recipe.model_dump())
    for name, needed in NEEDS.items():
        changed = name in defaults and name in values and values[name] != defaults[name]
        if changed and not any(values[other] for other in needed):
            found = f"'{name}' is {str(values[name]).lower()} without {' or '.join(needed)}"
            raise RecipeError(where, found, f"with one, or without {name}")


def _explain(item: Any, tree: Mapping[str, Any], catalog: Catalog) -> str:
    location = item["loc"]
    key = ".".join(str(part) for part in location)
    if item["type"] == "missing":
        return f"'{key}' is missing"
    if item["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):  # of models, of dataclasses
        message: str = item["msg"].removeprefix("Value error, ")
        if now := new_value(key, item["input"]):
            return f"'{key}': '{item['input']}' is '{now}' now"
        if message.startswith(f"{key}."):  # it names the keys itself
            return message
        return f"'{key}': {message}" + ("" if item["type"] == "value_error" else f", found {item['input']!r}")
    stage = str(tree.get("stage"))
    others = []
    if location[0] in ("settings", "data"):
        others = [other for other in catalog.stages if location[-1] in _siblings(location, other, catalog)]
    if others:
        of = f"stage '{stage}'" if "stage" in tree else f"task '{tree.get('task')}'"
        return f"no setting '{key}' in the {of}, it is of {', '.join(others)}"
    if location[-1] in Recipe.model_fields and len(location) == 1:
        return f"no setting '{key}' in a recipe for evaluation, without optimizer and schedule"
    if now := new_name(key):
        return f"no setting '{key}', now '{now}'"
    elsewhere = [name for name in _dotted(location[:1], stage, catalog) if name.endswith(f".{location[-1]}")]
    hint = suggestion(str(location[-1]), _siblings(location, stage, catalog))
    if elsewhere:
        hint = f"did you mean '{elsewhere[0]}'?"
    return f"no setting '{key}'" + (f", {hint}" if hint else "")


def _dotted(above: Sequence[int | str], stage: str, catalog: Catalog) -> list[str]:
    """List the dotted names of all settings in the section `above` of a stage's recipe."""
    names = _siblings((*above, ""), stage, catalog) if len(above) < 4 else []
    dotted = [".".join((*map(str, above), name)) for name in names]
    return [*dotted, *(inner for name in names for inner in _dotted((*above, name), stage, catalog))]


def _siblings(location: Sequence[int | str], stage: str, catalog: Catalog) -> list[str]:
    """List the names of the settings in the same section as `location`."""
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
