"""Average metrics over several splits of one data set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from internvideo.errors import RunError
from internvideo.tasks.table import Predictions, Result

COMPARED_KEYS = ("frames", "size", "views", "crops", "sampling", "resizing")
"""Protocol entries that must be equal in tables whose metrics are averaged."""


def mean_of_splits(tables: Mapping[str, Predictions], results: Mapping[str, Result]) -> Result:
    """Average each metric over several splits of one data set with equal weights (HMDB51 has three splits).

    The mean has no interval, because the splits share clips; the protocol lists the metrics of each split.

    Args:
        tables: name -> table, two or more. results: name -> result, of the same names.

    Raises:
        RunError: the tables differ in task, classes or preprocessing, or two are of the same split.
    """
    first, *others = tables
    for name in others:
        _check_comparable(first, tables[first], name, tables[name])
    for index, name in enumerate(others, start=1):
        for earlier in list(tables)[:index]:
            if tables[earlier].protocol.get("split_sha256") == tables[name].protocol.get("split_sha256"):
                raise RunError(name, f"the same split as {earlier}", "tables of different splits")
    metrics = [result["figures"] for result in results.values()]
    names = [figure for figure in metrics[0] if all(figure in result for result in metrics)]
    coverage = [result["coverage"] for result in results.values()]
    return {
        "task": tables[first].task,
        "figures": {name: float(np.mean([result[name] for result in metrics])) for name in names},
        "intervals": {},
        "protocol": {
            "mean_of": list(tables),
            "splits": {name: {**result["protocol"], "figures": result["figures"]} for name, result in results.items()},
        },
        "coverage": {
            "asked": sum(result["asked"] for result in coverage),
            "read": sum(result["read"] for result in coverage),
            "unreadable": [lost for result in coverage for lost in result["unreadable"]],
        },
    }


def _check_comparable(first: str, result: Predictions, name: str, other: Predictions) -> None:
    if result.task != other.task:
        raise RunError(name, f"a table of {other.task}", f"{result.task}, as {first}")
    if sorted(result.arrays) != sorted(other.arrays):
        raise RunError(name, "other columns", f"those of {first}: {', '.join(result.arrays)}")
    if "classes" in result.arrays and not np.array_equal(result["classes"], other["classes"]):
        raise RunError(name, f"other classes than {first}", "splits of one set, with its classes in one order")
    changed = [key for key in COMPARED_KEYS if result.protocol.get(key) != other.protocol.get(key)]
    if changed:
        raise RunError(name, f"other {', '.join(changed)} than {first}", "equal sampling and preprocessing of clips")
