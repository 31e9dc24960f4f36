"""Checks of a whole recipe: settings that its stage does not read, and numbers beyond any run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from internvideo.errors import RecipeError
from internvideo.tables import STAGES

LARGEST = 10**7
"""Largest number of a setting: what counts samples, words or panoramas is held in memory."""
LARGER = (
    *("loop.seed", "data.loader.seed", "schedule.steps", "schedule.warmup", "schedule.drops"),
    *("loop.log_every", "loop.checkpoint_every", "loop.keep_checkpoints", "data.loader.cache_megabytes"),
)
"""Settings that may be larger: seeds, steps, and limits that take nothing by being large."""


NEEDS = {
    "loop.ema_scaled": ("loop.ema_decay",),
    "data.augment.mix_probability": ("data.augment.mixup", "data.augment.cutmix"),
    "data.augment.mix_smoothing": ("data.augment.mixup", "data.augment.cutmix"),
}
"""Settings -> those of which one must be on, or they say something about what is not done."""


def leaves(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted name -> value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inside = isinstance(value, Mapping) and bool(value)
        found |= leaves(value, f"{above}{name}.") if inside else {f"{above}{name}": value}
    return found


def check_numbers(given: Mapping[str, Any], values: Mapping[str, Any], where: object) -> None:
    """Refuse numbers above `LARGEST`, and true or false where a number is meant; those of lists as well.

    Args:
        given: the recipe as it was written. values: as it was understood. where: for messages.

    Raises:
        RecipeError: naming the setting. Sizes of models are checked where they are built.
    """
    written = leaves(given)
    for name, found in leaves(values).items():
        if name.startswith("model."):
            continue
        told = written.get(name)
        each = list(found) if isinstance(found, list | tuple) else [found]
        as_told = list(told) if isinstance(told, list | tuple) else [told]
        for number, value in enumerate(each):
            if type(value) not in (int, float):
                continue
            if number < len(as_told) and isinstance(as_told[number], bool):
                raise RecipeError(where, f"'{name}' is {str(as_told[number]).lower()}", "a number")
            if abs(value) > LARGEST and name not in LARGER:
                raise RecipeError(where, f"'{name}' is {value:g}", f"at most {LARGEST:,}")


def check_needed(values: Mapping[str, Any], usual: Mapping[str, Any], where: object) -> None:
    """Refuse settings of what is switched off (`NEEDS`). Arguments as for `check_read`, of whole recipes."""
    found, defaults = leaves(values), leaves(usual)
    for name, needed in NEEDS.items():
        if name in defaults and found[name] != defaults[name] and not any(found[other] for other in needed):
            told = str(found[name]).lower()
            raise RecipeError(
                where, f"'{name}' is {told} without {' or '.join(needed)}", f"with one, or without {name}"
            )


def check_read(data: Mapping[str, Any], usual: Mapping[str, Any], stage: str, init_head: str, where: object) -> None:
    """Refuse what is set and counts only in other stages: it would be passed over in silence.

    Args:
        data: settings below `data`. usual: the same of a recipe that says nothing. stage, init_head: of the recipe.

    Raises:
        RecipeError: naming the stages that read it.
    """
    if init_head != "same" and not STAGES[stage].heads:
        heads = ", ".join(name for name, entry in STAGES.items() if entry.heads)
        raise RecipeError(where, f"'init_head' counts in {heads}, not in the stage '{stage}'", "leave init_head out")
    defaults = leaves(usual)
    changed = [name for name, value in leaves(data).items() if name != "train" and value != defaults.get(name)]
    unread = [name for name in changed if not _is_read(name, stage)]
    if unread:
        told = (
            f"'data.{name}' counts in {', '.join(other for other in STAGES if _is_read(name, other))}"
            for name in unread
        )
        sections = dict.fromkeys(name.partition(".")[0] for name in STAGES[stage].reads)
        allowed = ", ".join(f"data.{name}" for name in ("train", *sections, "loader"))
        raise RecipeError(where, f"not read in the stage '{stage}': {', '.join(told)}", allowed)


def _is_read(name: str, stage: str) -> bool:
    return any(f"{name}.".startswith(f"{read}.") for read in STAGES[stage].reads)
