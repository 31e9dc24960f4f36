"""Predictions of a model on a split, the table that metrics are computed from without model or video; results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table as RichTable

from internvideo import untrusted, untrusted_arrays
from internvideo.errors import RunError
from internvideo.metrics import bootstrap
from internvideo.storage import atomic_path, write_text
from internvideo.terminal import Screen, results_as_json, say_json

FORMAT = 1
EARLIER_NAMES = {
    "answering": "question_answering",
    "localisation": "temporal_localization",
    "spatio_temporal": "spatio_temporal_localization",
}
"""Name of a task in tables of earlier versions -> its present name."""
_METADATA_ENTRY = "about.json"
"""Entry of the .npz file with task, protocol and coverage; the names of arrays have no dot."""


BOOTSTRAP = {"draws": bootstrap.DRAWS, "level": bootstrap.LEVEL, "seed": bootstrap.SEED, "method": "percentile"}
"""Settings of all bootstrap intervals, for the protocol."""
CHECKED_ENTRIES = {"weights_sha256": "weights", "split_sha256": "rows", "proposals_sha256": "proposals"}
"""Protocol entry that must be equal for a table to be overwritten -> its name in messages."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of one model on one split.

    Attributes:
        task: name of the task whose `score` computes the metrics.
        arrays: name -> array, documented by the task's `predict`.
        protocol: how the predictions were made, as JSON values.
        coverage: {"asked": int, "read": int, "unreadable": [{"id", "path", "reason"}]}.
    """

    task: str
    arrays: Mapping[str, NDArray[Any]]
    protocol: Mapping[str, Any]
    coverage: Mapping[str, Any]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one .npz file atomically; equal predictions give equal bytes. Raises RunError if that fails."""
        final = Path(path)
        if final.suffix != ".npz":
            final = final.with_name(final.name + ".npz")
        metadata = {"format": FORMAT, "task": self.task, "protocol": self.protocol, "coverage": self.coverage}
        text = json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode("utf-8", "backslashreplace")
        with atomic_path(final) as temporary:
            arrays = {_METADATA_ENTRY: np.frombuffer(text, dtype=np.uint8), **self.arrays}
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # its stub takes the bool option
        return final

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictions:
        """Read saved predictions. Raises RunError: no such file, or a corrupt file or one that `save` did not write."""
        file = Path(path)
        if not file.is_file():
            raise RunError(file, "no such file", "a table written by `internvideo evaluate`", "check the path")
        try:
            arrays = untrusted_arrays.read_npz(file)
            metadata = untrusted.parse_json(arrays.pop(_METADATA_ENTRY).tobytes(), finite=False)
            format = metadata["format"]
            table = cls(
                EARLIER_NAMES.get(metadata["task"], metadata["task"]),
                arrays,
                metadata["protocol"],
                metadata["coverage"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            expected = "a table written by `internvideo evaluate`"
            raise RunError(file, f"truncated or corrupt ({error})", expected, "evaluate again") from error
        if format != FORMAT:
            raise RunError(file, f"table format {format}", f"format {FORMAT}", "evaluate again with this version")
        return table

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return the array with this name. Raises RunError if there is none."""
        if name not in self.arrays:
            raise RunError(f"table of {self.task}", f"no array '{name}'", ", ".join(self.arrays), "evaluate again")
        return self.arrays[name]


class Result(TypedDict):
    """Metrics with their protocol, as JSON values.

    `figures` are metric values: fractions in 0..1, except ranks, pixels (name with "_px") and meters (name ends in
    "_m"). `intervals` are their 95 % bootstrap bounds. `coverage`: see `Predictions`.
    """

    task: str
    figures: dict[str, float]
    intervals: dict[str, list[float]]
    protocol: dict[str, Any]
    coverage: dict[str, Any]


class MetricValues:
    """Collect metric values with their confidence intervals."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.intervals: dict[str, list[float]] = {}

    def add(self, name: str, value: float, bounds: NDArray[np.float64] | None = None) -> None:
        """Add a metric and, if it has one, its (2,) interval."""
        self.values[name] = float(value)
        if bounds is not None:
            self.intervals[name] = [float(bounds[0]), float(bounds[1])]

    def add_mean(self, name: str, values: NDArray[Any], groups: NDArray[Any] | None = None) -> None:
        """Add the mean of values (n,) with its interval; values of one group (n,) are resampled together."""
        spread = bootstrap.interval(bootstrap.mean(values), len(values), groups=groups)
        self.add(name, values.mean(), spread)

    def result(self, table: Predictions, **extra_protocol: object) -> Result:
        """Return the result for predictions; `extra_protocol` is added to their protocol."""
        protocol = {**table.protocol, "bootstrap": BOOTSTRAP, **extra_protocol}
        return {
            "task": table.task,
            "figures": self.values,
            "intervals": self.intervals,
            "protocol": protocol,
            "coverage": dict(table.coverage),
        }


def check_overwrite(
    path: Path, protocol: Mapping[str, Any], entries: Iterable[str] = CHECKED_ENTRIES, command: str = "evaluate"
) -> None:
    """Raise RunError if `path` has a table whose protocol differs in one of these entries."""
    if not path.exists():
        return
    try:
        saved_protocol = Predictions.load(path).protocol
    except RunError:
        found = f"is not a table of `internvideo {command}`"
    else:
        different = [
            CHECKED_ENTRIES.get(name, name) for name in entries if saved_protocol.get(name) != protocol.get(name)
        ]
        if not different:
            return
        found = f"has a table with other {', '.join(different)}"
    raise RunError(path, found, "", "choose another --output")


def save_result(result: Result, path: str | os.PathLike[str]) -> None:
    """Write a result as JSON, atomically. Raises RunError."""
    write_text(path, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_result(result: Result, console: Screen | None = None) -> None:
    """Print metrics, intervals, coverage and protocol; with `--json` print the result as JSON."""
    if results_as_json():
        say_json(result)
        return
    out = console or Screen()
    grid = RichTable(title=result["task"].replace("_", " "), title_justify="left")
    grid.add_column("figure")
    grid.add_column("value", justify="right")
    grid.add_column("95 % interval", justify="right")
    for name, value in result["figures"].items():
        bounds = result["intervals"].get(name)
        grid.add_row(escape(name), _format_value(name, value), _format_interval(name, bounds))
    out.print(grid)
    coverage = result["coverage"]
    out.print(f"videos read: {coverage['read']} of {coverage['asked']}", highlight=False)
    for lost in coverage["unreadable"]:
        out.print(escape(f"  unreadable: {lost['id']} ({lost['path']}): {lost['reason']}"), highlight=False)
    protocol = ", ".join(
        f"{key} {_format_protocol_entry(value)}" for key, value in result["protocol"].items() if value not in ("", None)
    )
    out.print(escape(f"protocol: {protocol}"), highlight=False)


def short_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return distinct names for files: the names of the folders if these differ, else of the files, else the paths.

    Raises:
        RunError: a path is given twice.
    """
    texts = [str(path) for path in paths]
    duplicate = next((path for path in texts if texts.count(path) > 1), None)
    if duplicate is not None:
        raise RunError(duplicate, "given twice", "each table once")
    for names in ([Path(path).parent.name for path in texts], [Path(path).stem for path in texts]):
        if all(names) and len(set(names)) == len(names):
            return names
    return texts


def print_results(title: str, rows: Mapping[str, Result]) -> None:
    """Print several results, one line each: all metrics, the interval of the first, and the number of videos read.

    Lines are not wrapped, because a table of 80 columns has no room for the values.
    """
    if results_as_json():
        for label, result in rows.items():
            say_json({"name": label, **result})
        return
    out = Screen()
    names = list(dict.fromkeys(name for result in rows.values() for name in result["figures"]))
    lines = [[title, *(name.replace("_", " ") for name in names), f"95 % of {names[0]}", "videos"]]
    for label, result in rows.items():
        figures, bounds = result["figures"], result["intervals"].get(names[0])
        values = [_format_value(name, figures[name]) if name in figures else "" for name in names]
        coverage = result["coverage"]
        lines.append([label, *values, _format_interval(names[0], bounds), f"{coverage['read']} of {coverage['asked']}"])
    lines = [[cell.replace(" %", "") if number else cell for cell in line] for number, line in enumerate(lines)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for label, *cells in lines:
        text = "  ".join([label.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))])
        out.print(text, highlight=False, markup=False, soft_wrap=True)


def _format_interval(name: str, bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{_format_value(name, bounds[0])} to {_format_value(name, bounds[1])}"


def _format_value(name: str, value: float) -> str:
    if "_px" in name:
        return f"{value:.2f} px"
    if name.endswith("_m"):
        return f"{value:.2f} m"
    return f"{value:.2f}" if "rank" in name else f"{100 * value:.2f} %"


def _format_protocol_entry(value: object) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_format_protocol_entry(inner)}" for key, inner in value.items()) + ")"
    if isinstance(value, list | tuple):
        return f"{len(value)} entries" if len(value) > 4 else "/".join(_format_protocol_entry(entry) for entry in value)
    text = str(value)
    return text[:16] if len(text) == 64 and text.isalnum() else text
