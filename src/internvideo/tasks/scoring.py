"""Average metrics over several splits of one data set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from internvideo.errors import RunError
from internvideo.tasks.table import Predictions, Result

SAME = ("frames", "size", "views", "crops", "sampling", "resizing")
"""Protocol entries that must agree if metrics of several splits are averaged."""


def mean_of_splits(tables: Mapping[str, Predictions], results: Mapping[str, Result]) -> Result:
    """Average each metric over several splits of one data set with equal weights (HMDB51: three).

    The mean has no interval, because the splits share clips; the protocol lists the metrics of each split.

    Args:
        tables: name -> table, two or more. results: of the same names.

    Raises:
        RunError: tables of several tasks, of one split, with other classes or other preprocessing.
    """
    first, *others = tables
    for name in others:
        _check_alike(first, tables[first], name, tables[name])
    for number, name in enumerate(others, start=1):
        for earlier in list(tables)[:number]:
            if tables[earlier].protocol.get("split_sha256") == tables[name].protocol.get("split_sha256"):
                raise RunError(name, f"the same split as {earlier}", "tables of different splits")
    each = [one["figures"] for one in results.values()]
    names = [figure for figure in each[0] if all(figure in one for one in each)]
    coverage = [one["coverage"] for one in results.values()]
    return {
        "task": tables[first].task,
        "figures": {name: float(np.mean([one[name] for one in each])) for name in names},
        "intervals": {},
        "protocol": {
            "mean_of": list(tables),
            "splits": {name: {**one["protocol"], "figures": one["figures"]} for name, one in results.items()},
        },
        "coverage": {
            "asked": sum(one["asked"] for one in coverage),
            "read": sum(one["read"] for one in coverage),
            "unreadable": [lost for one in coverage for lost in one["unreadable"]],
        },
    }


def _check_alike(first: str, one: Predictions, name: str, other: Predictions) -> None:
    if one.task != other.task:
        raise RunError(name, f"a table of {other.task}", f"{one.task}, as {first}")
    if sorted(one.arrays) != sorted(other.arrays):
        raise RunError(name, "other columns", f"those of {first}: {', '.join(one.arrays)}")
    if "classes" in one.arrays and not np.array_equal(one["classes"], other["classes"]):
        raise RunError(name, f"other classes than {first}", "splits of one set, with its classes in one order")
    changed = [key for key in SAME if one.protocol.get(key) != other.protocol.get(key)]
    if changed:
        raise RunError(name, f"other {', '.join(changed)} than {first}", "clips that are cut the same way")
