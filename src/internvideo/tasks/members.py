"""Combine the predictions of several video-text models on the same rows by averaging their similarities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RunError
from internvideo.metrics.classification import l2_normalize
from internvideo.tasks.table import Predictions


def join_tables(
    tables: Sequence[Predictions], shared_arrays: Sequence[str], member_names: Sequence[str], difference: str
) -> Predictions:
    """Join the tables of an ensemble's models: arrays NAME of the first model, NAME:1, NAME:2 of the others.

    Args:
        tables: of one task. shared_arrays: names of the arrays that must be equal in all tables.
        member_names: names of the arrays that are stored for every model.
        difference: what differs if the shared arrays do, for the message.

    Raises:
        RunError: shared arrays differ.
    """
    first, arrays = tables[0], dict(tables[0].arrays)
    for member, other in enumerate(tables[1:], 1):
        if any(not np.array_equal(first[name], other[name]) for name in shared_arrays) or any(
            (name in first.arrays) != (name in other.arrays) for name in member_names
        ):
            raise RunError(first.task, f"tables of different {difference}", "equal ones", "evaluate them again")
        arrays |= {f"{name}:{member}": other[name] for name in member_names if name in other.arrays}
    if len(tables) == 1:
        return first
    members = [{name: table.protocol.get(name) for name in ("model", "weights_sha256")} for table in tables]
    return Predictions(first.task, arrays, {**first.protocol, "ensemble": describe_ensemble(members)}, first.coverage)


def describe_ensemble(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe an ensemble for the protocol: names and weights of its models."""
    return {"mean_of": "similarities", "members": [dict(member) for member in members]}


def member_arrays(table: Predictions, name: str) -> list[NDArray[Any]]:
    """Return the array `name` of every model of an ensemble's table."""
    num_others = sum(key.startswith(f"{name}:") for key in table.arrays)
    return [table[name], *(table[f"{name}:{member}"] for member in range(1, num_others + 1))]


def normalized_member_arrays(table: Predictions, name: str) -> list[NDArray[np.floating[Any]]]:
    """Return the array `name` of every model of an ensemble's table, L2-normalized, in float64."""
    return [l2_normalize(array.astype(np.float64)) for array in member_arrays(table, name)]
