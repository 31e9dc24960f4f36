"""Average the scores of several models on one split: InternVideo-D and -T (paper table 2, ensemble.py).

Two weightings are reported: `views` weights every view of every model equally, so a model with more views weighs
more (the released merge); `models` averages the models' means, with or without weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RunError
from internvideo.tasks.recognition import predict as recognition
from internvideo.tasks.table import Predictions, Result

Pool = Literal["views", "models"]
POOLS: tuple[Pool, ...] = ("views", "models")
_MEMBER = (
    "model", "weights_sha256", "frames", "size", "views", "crops", "sampling", "precision", "resizing", "classes_kept",
)  # fmt: skip
_GAIN = "over_best_member"


@dataclass(frozen=True)
class Member:
    """Scores of one model: display name, table and its column."""

    name: str
    table: Predictions
    column: str


@dataclass(frozen=True)
class Combined:
    """Members, by name, and their ensembles, by weighting, on the videos that all members read."""

    members: dict[str, Result]
    ensembles: dict[str, Result]
    tables: dict[str, Predictions]

    @property
    def rows(self) -> dict[str, Result]:
        """Return all results by name, members first."""
        return {**self.members, **{f"ensemble of {pool}": result for pool, result in self.ensembles.items()}}

    def result(self, pool: str) -> Result:
        """Return all metrics as NAME.METRIC in one result, with the protocol of the saved ensemble."""
        kept = self.ensembles[pool]
        every = {**self.members, **self.ensembles}.items()
        return {
            **kept,
            "figures": {f"{name}.{key}": value for name, one in every for key, value in one["figures"].items()},
            "intervals": {f"{name}.{key}": span for name, one in every for key, span in one["intervals"].items()},
        }


def member(name: str, table: Predictions, column: str | None = None) -> Member:
    """Make a member of an ensemble.

    Raises:
        RunError: no recognition table, an ensemble itself, a column that is not there or must be named.
    """
    if table.task != recognition.NAME:
        raise RunError(name, f"a table of {table.task}", f"tables of {recognition.NAME}")
    if "weight" in table.arrays:
        raise RunError(name, "an ensemble already", "", "give the tables of its members")
    columns = recognition.columns(table)
    if column is None and len(columns) != 1:
        raise RunError(name, f"{len(columns)} score columns", ", ".join(columns), "name one: TABLE:COLUMN")
    if column is not None and column not in columns:
        raise RunError(name, f"no score column '{column}'", ", ".join(columns))
    return Member(name, table, column or columns[0])


def combine(members: Sequence[Member], weights: Sequence[float] | None = None) -> Combined:
    """Score members and both ensembles of them.

    Args:
        members: two or more, of one split, with different names.
        weights: one per member, above 0, for the ensemble of models; by default equal.

    Raises:
        RunError: fewer than two members, the same predictions twice, another split or classes, wrong weights.
    """
    _check(members, weights)
    tables: dict[str, Predictions] = {pool: join(members, pool, {"models": weights}.get(pool)) for pool in POOLS}
    ids = _common(members)  # members' figures and the ensembles' are of the same videos
    single = {one.name: join([one], ids=ids) for one in members}
    results = {name: recognition.score(table) for name, table in single.items()}
    best = max(results, key=lambda name: results[name]["figures"]["top1"])
    ensembles = {}
    for pool, table in tables.items():
        result = recognition.score(table)
        gap = recognition.difference(table, single[best])
        result["figures"][_GAIN], result["intervals"][_GAIN] = gap["top1"], gap["interval"]
        result["protocol"]["best_member"] = best
        ensembles[pool] = result
    return Combined(results, ensembles, tables)


def join(
    members: Sequence[Member], pool: Pool = "models", weights: Sequence[float] | None = None,
    *, ids: Sequence[str] | None = None,
) -> Predictions:  # fmt: skip
    """Join all members' views in one table for `recognition.score`.

    Args:
        members: of one split. pool: the weighting. weights: one per member, above 0.
        ids: the videos to use; by default those that every member read.

    Raises:
        RunError: no common video, another split or classes, wrong weights.
    """
    _check_splits(members)
    shares = _check_weights(members, weights)
    ids = _common(members) if ids is None else ids
    parts = [_rows(one, ids) for one in members]
    weight = [
        amount / np.bincount(sample, minlength=len(ids))[sample] if pool == "models" else np.ones(len(sample))
        for (_, sample, _), amount in zip(parts, shares, strict=True)
    ]
    first = members[0].table
    row_of = {name: row for row, name in enumerate(first["ids"].tolist())}
    kept = np.asarray([row_of[name] for name in ids], dtype=np.int64)
    arrays: dict[str, NDArray[Any]] = {
        "ids": first["ids"][kept],
        "labels": first["labels"][kept],
        "sample": np.concatenate([sample for _, sample, _ in parts]),
        "view": np.concatenate([view for _, _, view in parts]),
        **{name: first[name] for name in ("classes",) if name in first.arrays},
        f"logits:{recognition.COLUMN}": np.concatenate([logits for logits, _, _ in parts]),
        **{name: first[name][kept] for name in first.arrays if name.startswith("subset:")},
    }
    if len(members) > 1:
        arrays["weight"] = np.concatenate(weight)
    unreadable = {entry["id"]: entry for one in members for entry in one.table.coverage["unreadable"]}
    lost = [unreadable[name] for name in sorted(unreadable)]
    coverage = {"asked": first.coverage["asked"], "read": len(ids), "unreadable": lost}
    return Predictions(recognition.NAME, arrays, _protocol(members, pool, shares), coverage)


def _protocol(members: Sequence[Member], pool: Pool, shares: Sequence[float]) -> dict[str, Any]:
    split = {key: members[0].table.protocol.get(key) for key in ("split_sha256", "splits", "source")}
    member_facts = []
    for one in members:
        facts = {key: one.table.protocol[key] for key in _MEMBER if key in one.table.protocol}
        member_facts.append({"name": one.name, "column": one.column, **facts})
    if len(members) == 1:
        return {**member_facts[0], **split, "merge": "softmax mean"}
    weighting = "every view of every model once" if pool == "views" else "mean of each model's mean"
    return {
        "members": member_facts,
        "pool": pool,
        **({"weights": [amount / sum(shares) for amount in shares]} if pool == "models" else {}),
        **split,
        "merge": f"softmax mean, {weighting}",
    }


def _rows(one: Member, ids: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """Return logits, index in `ids` and view of every row, each (video, clip, crop) once."""
    table, row_of = one.table, {name: number for number, name in enumerate(ids)}
    row_index = np.asarray([row_of.get(name, -1) for name in table["ids"].tolist()], dtype=np.int64)[table["sample"]]
    keys = np.stack([table["sample"], table["view"]], axis=1)
    rows = np.sort(np.unique(keys, axis=0, return_index=True)[1])  # a repeated key: its first row counts
    rows = rows[row_index[rows] >= 0]
    return table[f"logits:{one.column}"][rows], row_index[rows], table["view"][rows]


def _common(members: Sequence[Member]) -> list[str]:
    common = set.intersection(*(set(one.table["ids"].tolist()) for one in members))
    ids = [name for name in members[0].table["ids"].tolist() if name in common]
    if not ids:
        raise RunError("ensemble", "no video that every model read", "", "evaluate on one readable split")
    return ids


def _check_weights(members: Sequence[Member], weights: Sequence[float] | None) -> list[float]:
    values = [1.0] * len(members) if weights is None else [float(amount) for amount in weights]
    if len(values) != len(members) or not all(np.isfinite(values)) or min(values) <= 0:
        found = ", ".join(f"{amount:g}" for amount in values)
        raise RunError("weights", f"found {found}", f"{len(members)} numbers above 0, one per table")
    return values


def _check(members: Sequence[Member], weights: Sequence[float] | None) -> None:
    if len(members) < 2:
        raise RunError("ensemble", f"{len(members)} table", "two or more")
    if len({one.name for one in members}) != len(members):
        raise RunError("ensemble", "two members of one name", "names of their own")
    _check_splits(members)
    _check_weights(members, weights)
    for number, one in enumerate(members):
        for other in members[:number]:
            mine, theirs = one.table[f"logits:{one.column}"], other.table[f"logits:{other.column}"]
            if mine.shape == theirs.shape and np.array_equal(mine, theirs):
                raise RunError("ensemble", f"{other.name} and {one.name} hold the same predictions", "different models")


def _check_splits(members: Sequence[Member]) -> None:
    """Raise RunError unless all members are of one split: the same rows, labels and order of classes."""
    first = members[0]
    for one in members[1:]:
        widths = [entry.table[f"logits:{entry.column}"].shape[1] for entry in (first, one)]
        if widths[0] != widths[1]:
            found = f"{first.name} scores {widths[0]} classes, {one.name} {widths[1]}"
            hint = "of a model of more classes take a table made with --restrict"
            raise RunError("ensemble", found, "the same", hint)
        if first.table.protocol.get("split_sha256") != one.table.protocol.get("split_sha256"):
            names = [entry.table.arrays.get("classes") for entry in (first, one)]
            other = "split"
            if names[0] is not None and names[1] is not None and not np.array_equal(names[0], names[1]):
                other = "classes" if set(names[0].tolist()) != set(names[1].tolist()) else "order of classes"
            found, expected = (
                f"{one.name} is of another {other} than {first.name}",
                "one split, its classes in one order",
            )
            raise RunError("ensemble", found, expected, "evaluate all on one manifest")
