"""Combine the predictions of several video-text models on the same rows by averaging their similarities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RunError
from internvideo.metrics.classification import l2_normalize
from internvideo.tasks.table import Predictions


def joined(tables: Sequence[Predictions], same: Sequence[str], each: Sequence[str], what: str) -> Predictions:
    """Join tables: NAME of the first model, NAME:1, NAME:2 of the others.

    Args:
        tables: of one task. same: arrays that must be equal in all. each: arrays that every model has of its own.
        what: what differs where `same` does, in the message.

    Raises:
        RunError: tables of other rows.
    """
    first, arrays = tables[0], dict(tables[0].arrays)
    for number, other in enumerate(tables[1:], 1):
        if any(not np.array_equal(first[name], other[name]) for name in same) or any(
            (name in first.arrays) != (name in other.arrays) for name in each
        ):
            raise RunError(first.task, f"tables of different {what}", "the same in all", "evaluate them again")
        arrays |= {f"{name}:{number}": other[name] for name in each if name in other.arrays}
    if len(tables) == 1:
        return first
    members = [{name: table.protocol.get(name) for name in ("model", "weights_sha256")} for table in tables]
    return Predictions(first.task, arrays, {**first.protocol, "ensemble": described(members)}, first.coverage)


def described(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe an ensemble for the protocol: names and weights of its models."""
    return {"mean_of": "similarities", "members": [dict(member) for member in members]}


def of_each(table: Predictions, name: str) -> list[NDArray[Any]]:
    """Return the array `name` of every model of a table."""
    more = sum(key.startswith(f"{name}:") for key in table.arrays)
    return [table[name], *(table[f"{name}:{number}"] for number in range(1, more + 1))]


def units_of_each(table: Predictions, name: str) -> list[NDArray[np.floating[Any]]]:
    """Return the array `name` of every model as L2-normalized float64."""
    return [l2_normalize(part.astype(np.float64)) for part in of_each(table, name)]
