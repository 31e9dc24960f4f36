"""Run folders: run.json with the recipe, the settings that may change on resume, and the list of checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from internvideo import distributed, untrusted
from internvideo.errors import RecipeError, RunError
from internvideo.storage import folder_lock, write_text
from internvideo.training.settings import OptimizerSettings, ScheduleSettings
from internvideo.training.sharded_checkpoint import is_finished
from internvideo.weights.layouts import flatten_overrides

CHECKPOINT_FOLDER = "checkpoints"
RUN_FILE = "run.json"
IGNORED_KEYS = (
    *(f"loop.{name}" for name in ("log_every", "checkpoint_every", "keep_checkpoints", "tensorboard", "timeout_s")),
    *(f"loop.{name}" for name in ("parallel", "reshard_after_forward")),
)
"""Loop settings that do not affect the result, except for rounding."""
EXTENDABLE_KEYS = ("schedule.steps", "schedule.epochs")
"""Settings that may increase, or return to an earlier value of this run, without `--change`."""
CHANGEABLE_KEYS = (
    *(f"optimizer.{name}" for name in OptimizerSettings.model_fields if name != "kind"),
    *(f"schedule.{name}" for name in ScheduleSettings.model_fields),
    *(f"loop.{name}" for name in ("max_grad_norm", "grad_accum_steps", "precision")),
    *("loop.activation_checkpointing", "loop.compile"),
)
"""Settings that `--change` may change between two sessions; checkpoints do not depend on their values."""

RENAMED_VALUES: dict[str, dict[bool, str]] = {"loop.compile": {True: "blocks", False: "none"}}
"""Setting -> value of an earlier version -> its present name."""

Change = tuple[Any, Any]
"""(old, new) value of a setting."""
Recipe = Mapping[str, Any]
"""Resolved settings as JSON values."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder as `storage.folder_lock`, on rank 0 for all processes. Raises RunError on every rank."""
    with ExitStack() as stack:
        distributed.on_rank_zero(lambda: stack.enter_context(folder_lock(folder)))
        yield


def newest(folder: Path) -> Path | None:
    """Return the checkpoint with the largest step in a run folder, or None."""
    paths = checkpoints(folder)
    return paths[-1] if paths else None


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a run folder in order of their steps."""
    by_step = {}
    for path in (folder / CHECKPOINT_FOLDER).glob("step-*"):
        match = re.fullmatch(r"step-(\d+)(\.safetensors)?", path.name)
        if match and (path.is_file() if match[2] else is_finished(path)):
            by_step[int(match[1])] = path
    return [by_step[step] for step in sorted(by_step)]


def init_run_dir(
    folder: Path,
    recipe: Recipe,
    ignore_keys: Collection[str] = (),
    changes: Collection[str] = (),
    fill_defaults: Callable[[Recipe], Recipe] = dict,
    results: Collection[str] = (),
) -> dict[str, Change]:
    """Create run.json, or check that an existing one has the same recipe.

    run.json is overwritten while the folder has no logged step, no checkpoint and none of `results`, so a failed first
    attempt does not block the folder.

    Args:
        folder, recipe: those of this run.
        ignore_keys: dotted keys that do not affect the result, in addition to `IGNORED_KEYS`.
        changes: dotted keys, equal to or below those of `CHANGEABLE_KEYS`, that the user changed on purpose; a longer
            schedule need not be among them.
        fill_defaults: adds the settings that a recipe of an earlier version lacks.
        results: names of the output files of a run without optimizer steps.

    Returns:
        dotted key -> (old, new) of the settings that differ from run.json, for `record`.

    Raises:
        RunError: the folder contains another run, or is not writable.
        RecipeError: a key of `changes` is not changeable.
    """
    for key in changes:
        if not _is_under(key, CHANGEABLE_KEYS):
            hint = "start in another folder, with init.weights=FILE to start from these weights"
            raise RecipeError("--change", f"'{key}' cannot change within a run", ", ".join(CHANGEABLE_KEYS), hint)
    changed: dict[str, Change] = {}

    def init() -> None:
        file, log = folder / RUN_FILE, folder / "metrics.jsonl"
        has_progress = newest(folder) is not None or (log.exists() and log.stat().st_size > 0)
        has_progress = has_progress or any((folder / name).exists() for name in results)
        if has_progress and not file.exists():
            found = f"contains a run without {RUN_FILE}"
            raise RunError(folder, found, "an empty folder", "choose another output folder")
        saved = _read(file) if file.exists() else {}
        if has_progress:
            different = differences(fill_defaults(saved["recipe"]), recipe, (*IGNORED_KEYS, *ignore_keys))
            changed.update(_accepted_changes(folder, different, saved, changes))
            # Files of a session that was killed.
            for partial in (folder / CHECKPOINT_FOLDER).glob(".step-*.partial.safetensors"):
                partial.unlink()
        else:
            write_text(file, _as_json(recipe, []))

    distributed.on_rank_zero(init)
    from_rank_zero: dict[str, Change] = distributed.all_gather_objects(changed)[0]
    return from_rank_zero


def _accepted_changes(
    folder: Path, changed: dict[str, Change], saved: Mapping[str, Any], changes: Collection[str]
) -> dict[str, Change]:
    """Return the changes that a run may resume with. Raises RunError for others."""
    earlier_changes = [session["settings"].get(key) for session in saved["changes"] for key in EXTENDABLE_KEYS]
    earlier_values = [change[0] for change in earlier_changes if change]
    accepted = {
        key: change
        for key, change in changed.items()
        if _is_valid_length(key, *change, earlier_values) or _is_under(key, changes)
    }
    _raise_if_changed(folder, {key: change for key, change in changed.items() if key not in accepted})
    return accepted


def _is_valid_length(key: str, old: object, new: object, earlier_values: list[Any]) -> bool:
    """Return whether a length of the schedule increased, or returns to an earlier value of this run."""
    if key not in EXTENDABLE_KEYS or not isinstance(old, int | float) or not isinstance(new, int | float):
        return False
    return new > old or new in earlier_values


def _is_under(key: str, prefixes: Collection[str]) -> bool:
    return f"{key}.".startswith(tuple(f"{name}." for name in prefixes))


def _read(file: Path) -> dict[str, Any]:
    try:
        saved = untrusted.read_json(file, finite=False)
        changes = [{**session, "settings": dict(session["settings"])} for session in saved.get("changes", [])]
        return {"recipe": dict(saved["recipe"]), "changes": changes}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(file, f"is not a valid run.json ({error})", "", "choose another output folder") from error


def _as_json(recipe: Recipe, changes: list[Any]) -> str:
    return json.dumps({"recipe": recipe, **({"changes": changes} if changes else {})}, indent=1, default=str) + "\n"


def record(folder: Path, recipe: Recipe, changes: Mapping[str, Change], step: int) -> None:
    """Write changed settings to run.json, with their old values and the step of the change. Raises RunError."""
    file = folder / RUN_FILE

    def write() -> None:
        write_text(file, _as_json(recipe, [*_read(file)["changes"], {"after_step": step, "settings": changes}]))

    distributed.on_rank_zero(write)


def _raise_if_changed(where: Path, changed: Mapping[str, Change]) -> None:
    if not changed:
        return
    changes = [f"{key} was {old!r}, is {new!r}" for key, (old, new) in changed.items()]
    hint = "choose another output folder, or undo the change to resume"
    if all(_is_under(key, CHANGEABLE_KEYS) for key in changed):
        hint += f"; to change it on purpose: {' '.join(f'--change {key}=VALUE' for key in changed)}"
    raise RunError(where, f"belongs to another run: {', '.join(changes)}", "the same recipe", hint)


def differences(saved: Recipe, recipe: Recipe, ignore_keys: Collection[str] = ()) -> dict[str, Change]:
    """Return dotted key -> (old, new) of the settings that differ, except `ignore_keys` and the keys below them."""
    # Through JSON like the saved recipe: tuples become lists, keys become strings.
    before, after = (
        flatten_overrides(saved),
        flatten_overrides(untrusted.parse_json(json.dumps(recipe, default=str), finite=False)),
    )
    before |= {
        key: RENAMED_VALUES[key][old] for key, old in before.items() if key in RENAMED_VALUES and isinstance(old, bool)
    }
    # A setting that the saved recipe lacks, because an earlier version did not have it, counts as None.
    before |= {key: None for key, value in after.items() if value is None and key not in before}
    return {
        key: (before.get(key, "not there"), after.get(key, "not there"))
        for key in sorted(before.keys() | after.keys())
        if (key not in before or key not in after or before[key] != after[key]) and not _is_under(key, ignore_keys)
    }
