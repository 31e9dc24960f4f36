"""Whose a run folder is: the recipe in run.json, what of it may differ in a later session; the checkpoints in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from internvideo import distributed, untrusted
from internvideo.errors import RecipeError, RunError
from internvideo.storage import alone_in, write_text

FOLDER = "checkpoints"
RUN_FILE = "run.json"
FREE = ("loop.log_every", "loop.checkpoint_every", "loop.keep_checkpoints", "loop.tensorboard")
"""Settings of the loop that change nothing in what is computed."""
LENGTHS = ("schedule.steps", "schedule.epochs")
"""Settings that may grow unasked, or be again what they were in this run: a run can be made longer."""
CHANGEABLE = (
    *(f"optimizer.{name}" for name in ("base_lr", "lr_scaling", "betas", "eps", "momentum", "weight_decay")),
    *(f"optimizer.{name}" for name in ("no_decay", "layer_decay", "lr_multipliers")),
    *(f"schedule.{name}" for name in ("steps", "epochs", "warmup", "start_lr", "final_lr", "shape", "drops")),
    *(f"loop.{name}" for name in ("gradient_clip", "accumulate", "precision", "activation_checkpointing", "compile")),
)
"""Settings that can be changed on purpose between two sessions: a checkpoint fits all their values."""

Change = tuple[Any, Any]
"""What a setting was, and is."""
Recipe = Mapping[str, Any]
"""Resolved settings, plain values."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """`storage.alone_in` for a run of several processes: rank 0 has the lock. Raises RunError in all of them."""
    with ExitStack() as stack:
        distributed.first_alone(lambda: stack.enter_context(alone_in(folder)))
        yield


def newest(folder: Path) -> Path | None:
    """The checkpoint of the largest step in a run folder, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run folder by their step."""
    numbered = {}
    for path in (folder / FOLDER).glob("step-*.safetensors"):
        if match := re.fullmatch(r"step-(\d+)\.safetensors", path.name):
            numbered[int(match.group(1))] = path
    return [numbered[step] for step in sorted(numbered)]


def claim(
    folder: Path,
    recipe: Recipe,
    may_differ: Collection[str] = (),
    changes: Collection[str] = (),
    complete: Callable[[Recipe], Recipe] = dict,
    results: Collection[str] = (),
) -> dict[str, Change]:
    """Make the folder this run's own (run.json) or find that it already is.

    A folder without `results` in which no step was logged or saved is free: a failed first attempt does not keep it.

    Args:
        folder, recipe: of this run.
        may_differ: dotted keys that change nothing in what is computed, beside `FREE`.
        changes: dotted keys that are meant to differ, below `CHANGEABLE`. A longer schedule need not be named.
        complete: fills up a recipe of an earlier version with the settings that it did not have.
        results: names of files that such a run leaves behind, where it makes no steps.

    Returns:
        what differs from run.json, for `record`.

    Raises:
        RunError: it holds another run, or cannot be written. RecipeError: `changes` that cannot be made.
    """
    for key in changes:
        if not _below(key, CHANGEABLE):
            do = "start in another folder, with init.weights=FILE to begin from what was learned"
            raise RecipeError("--change", f"'{key}' cannot change within a run", ", ".join(CHANGEABLE), do)
    found: dict[str, Change] = {}
    distributed.first_alone(lambda: found.update(_claim(folder, recipe, may_differ, changes, complete, results)))
    mine: dict[str, Change] = distributed.collect(found)[0]
    return mine


def _claim(
    folder: Path,
    recipe: Recipe,
    may_differ: Collection[str],
    changes: Collection[str],
    complete: Callable[[Recipe], Recipe],
    results: Collection[str],
) -> dict[str, Change]:
    file, log = folder / RUN_FILE, folder / "metrics.jsonl"
    begun = newest(folder) is not None or (log.exists() and log.stat().st_size > 0)
    begun = begun or any((folder / name).exists() for name in results)
    if begun and not file.exists():
        raise RunError(folder, f"holds a run without {RUN_FILE}", "an empty folder", "choose another output folder")
    told = _read(file) if file.exists() else {}
    if not begun:
        write_text(file, _as_json(recipe, []))
        return {}
    found = differences(complete(told["recipe"]), recipe, (*FREE, *may_differ))
    before = [session["settings"].get(key) for session in told["changes"] for key in LENGTHS]
    had = [change[0] for change in before if change]
    meant = {key: change for key, change in found.items() if _is_length(key, *change, had) or _below(key, changes)}
    _refuse(folder, {key: change for key, change in found.items() if key not in meant})
    for left in (folder / FOLDER).glob(".step-*.partial.safetensors"):  # of a session that was killed
        left.unlink()
    return meant


def _is_length(key: str, was: object, now: object, had: list[Any]) -> bool:
    """Whether a length is larger than it was, or one that the run `had`."""
    if key not in LENGTHS or not isinstance(was, int | float) or not isinstance(now, int | float):
        return False
    return now > was or now in had


def _below(key: str, names: Collection[str]) -> bool:
    return f"{key}.".startswith(tuple(f"{name}." for name in names))


def _read(file: Path) -> dict[str, Any]:
    try:
        told = untrusted.read_json(file, finite=False)
        changes = [{**session, "settings": dict(session["settings"])} for session in told.get("changes", [])]
        return {"recipe": dict(told["recipe"]), "changes": changes}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(file, f"is not the file of a run ({error})", "", "choose another output folder") from error


def _as_json(recipe: Recipe, changes: list[Any]) -> str:
    return json.dumps({"recipe": recipe, **({"changes": changes} if changes else {})}, indent=1, default=str) + "\n"


def record(folder: Path, recipe: Recipe, changes: Mapping[str, Change], step: int) -> None:
    """Make changed settings those of the run from a step on, and keep in run.json what they were. Raises RunError."""
    file = folder / RUN_FILE

    def write() -> None:
        write_text(file, _as_json(recipe, [*_read(file)["changes"], {"after_step": step, "settings": changes}]))

    distributed.first_alone(write)


def same_recipe(where: Path, written: Recipe, now: Recipe, may_differ: Collection[str] = ()) -> None:
    """Raise RunError naming the keys in which two recipes differ."""
    _refuse(where, differences(written, now, may_differ))


def _refuse(where: Path, found: Mapping[str, Change]) -> None:
    if not found:
        return
    changes = [f"{key} was {was!r}, is {now!r}" for key, (was, now) in found.items()]
    do = "choose another output folder, or take back the change to resume"
    if all(_below(key, CHANGEABLE) for key in found):
        do += f"; to change it on purpose: {' '.join(f'--change {key}=VALUE' for key in found)}"
    raise RunError(where, f"belongs to another run: {', '.join(changes)}", "the same recipe", do)


def differences(written: Recipe, now: Recipe, may_differ: Collection[str] = ()) -> dict[str, Change]:
    """What two recipes differ in, by dotted key, apart from `may_differ` and everything below it."""
    # Through JSON, because that is how the written one came: tuples are lists, keys are texts.
    before, after = (
        dict(_leaves(written)),
        dict(_leaves(untrusted.parse_json(json.dumps(now, default=str), finite=False))),
    )
    return {
        key: (before.get(key, "not there"), after.get(key, "not there"))
        for key in sorted(before.keys() | after.keys())
        if (key not in before or key not in after or before[key] != after[key]) and not _below(key, may_differ)
    }


def _leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, tree
