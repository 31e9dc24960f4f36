"""Evaluate weights on a task, and recompute the metrics of saved tables."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from internvideo import distributed
from internvideo.distributed import choose_device
from internvideo.errors import RecipeError, RunError
from internvideo.inference.trained_model import open_trained
from internvideo.tasks import TASKS, get_task
from internvideo.tasks.scoring import mean_of_splits
from internvideo.tasks.spatio_temporal_localization import predict as spatio_temporal
from internvideo.tasks.table import EARLIER_NAMES, Predictions, Result, print_result, print_results, short_names
from internvideo.tasks.task import EvaluateOptions, TaskSpec
from internvideo.training import run_folder

__all__ = ["evaluate_task", "score", "score_results", "score_table", "score_tables"]

RENAMED_OPTIONS = {
    "also": "ensemble_with", "bank": "querybank", "beams": "num_beams", "crops": "num_crops", "nucleus": "top_p",
    "train": "train_manifest", "unknown": "unknown_manifest", "views": "num_clips",
}  # fmt: skip
"""Name of an option in an earlier version -> present name."""


def find_task(name: str) -> TaskSpec:
    """Return the task of a name. Raises RecipeError."""
    task = get_task(name)
    if task is None:
        names = [task.name for task in TASKS]
        close = [EARLIER_NAMES[name]] if name in EARLIER_NAMES else difflib.get_close_matches(name, names, n=1)
        raise RecipeError("task", f"found '{name}'", ", ".join(names), f"did you mean '{close[0]}'?" if close else "")
    return task


def make_options(task: TaskSpec, given: Mapping[str, object]) -> EvaluateOptions:
    """Build the options of a task from plain values.

    Raises RecipeError: an option that the task does not read (the message lists the tasks that do); a value out of
    range.
    """
    known = [option.name for option in fields(task.options)]
    unknown = [name for name in given if name not in known]
    if unknown:
        found = ", ".join(option_names([name]) + _option_note(name) for name in unknown)
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {option_names(close)}?" if close else ""
        raise RecipeError(task.name, f"does not read {found}", option_names(known), hint)
    return task.options(**given)  # type: ignore[arg-type]  # each checks its values


def refuse_option(task: TaskSpec, option: str) -> None:
    """Raise RecipeError if an option ("--boxes") belongs to other tasks or was renamed; accept unknown ones."""
    name = option.removeprefix("--").replace("-", "_")
    if _option_note(name):
        make_options(task, {name: None})


def _option_note(name: str) -> str:
    """Return a note on which tasks read an option, or on its present name; "" for an unknown option."""
    if name in RENAMED_OPTIONS:
        return f" (now {option_names([RENAMED_OPTIONS[name]])})"
    readers = [task.name for task in TASKS if name in {option.name for option in fields(task.options)}]
    return f" (of {', '.join(readers)})" if readers else ""


def option_names(names: Sequence[str]) -> str:
    """Format options as on the command line."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def evaluate_task(
    name: str,
    weights: str | Path,
    manifest: Path,
    output: Path,
    options: Mapping[str, object] | None = None,
    *,
    split: str | None = None,
) -> Result:
    """Predict, save `TASK.npz` and `TASK.json` in `output`, print the metrics.

    Args:
        name: of a task. weights: anything that `internvideo.load` opens. manifest: of the test set. output: a folder.
        options: name -> value, of the task. split: use only rows of this split.

    Raises:
        RecipeError: no such task, a model of another task, or an option that the task does not read.
        ManifestError: the manifest cannot be read, or has a class that a recognition model was not trained on.
        RunError: `output` has the table of another model, other rows or other preprocessing, or another process writes
            there.
    """
    task = find_task(name)
    settings = make_options(task, options or {})
    with distributed.process_group(choose_device(settings.device)) as device:
        trained = open_trained(weights, device=str(device))
        members: tuple[Path, ...] = getattr(settings, "ensemble_with", ())
        trained = replace(trained, ensemble_members=tuple(open_trained(path, device=str(device)) for path in members))
        if not isinstance(trained.model, task.evaluates):
            names = ", ".join(kind.__name__ for kind in task.evaluates)
            found = f"holds a {type(trained.model).__name__}"
            raise RecipeError(weights, found, f"{names} for {task.name}", "choose another task")
        with run_folder.locked(output):
            return task.evaluate(trained, manifest, output, replace(settings, device=str(device)), split)


def score(table: Predictions) -> Result:
    """Compute the metrics of a saved table. Raises RunError: its task is unknown."""
    task = get_task(table.task)
    if task is None:
        names = ", ".join(task.name for task in TASKS)
        raise RunError("table", f"task '{table.task}'", names, "score it with the version that wrote it")
    return task.score(table)


def score_table(path: Path) -> Result:
    """Recompute and print the metrics of a saved table."""
    result = score(Predictions.load(path))
    print_result(result)
    return result


def score_results(results: Path, truth: Path | None, labels: Path | None, excluded: Path | None = None) -> Result:
    """Compute and print the metrics of a results file in AVA's format.

    Args:
        results: CSV of detections. truth: CSV of annotations. labels: PBTXT label map. excluded: CSV of frames to skip.

    Raises RunError: `truth` or `labels` is None. ManifestError: a malformed file.
    """
    if truth is None or labels is None:
        missing = "--truth" if truth is None else "--labels"
        raise RunError(results, f"results in AVA's format, without {missing}", "--truth CSV and --labels PBTXT")
    result = score(spatio_temporal.make_table_from_files(truth, results, labels, excluded))
    print_result(result)
    return result


def score_tables(paths: Sequence[Path]) -> Result:
    """Print the metrics of the tables of several splits of a data set (HMDB51 has three) and return their mean.

    Raises RunError: no tables, or tables that cannot be averaged.
    """
    tables = dict(zip(short_names(paths), map(Predictions.load, paths), strict=True))
    results = {name: score(table) for name, table in tables.items()}
    mean = mean_of_splits(tables, results)
    print_results(mean["task"].replace("_", " "), {**results, f"mean of {len(paths)}": mean})
    return mean
