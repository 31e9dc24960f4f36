"""Average the class probabilities of several models on one split: InternVideo-D and -T (paper table 2, ensemble.py).

Two weightings are reported: `views` weights every view of every model equally, so a model with more views has a larger
weight (as in the released code); `models` averages the means of the models, with or without weights.
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

Weighting = Literal["views", "models"]
WEIGHTINGS: tuple[Weighting, ...] = ("views", "models")
MEMBER_ENTRIES = (
    "model", "weights_sha256", "frames", "size", "views", "crops", "sampling", "precision", "resizing", "classes_kept",
)  # fmt: skip
GAIN_METRIC = "over_best_member"


@dataclass(frozen=True)
class Member:
    """Scores of one model: display name, table and its column."""

    name: str
    table: Predictions
    column: str


@dataclass(frozen=True)
class EnsembleResults:
    """Results of the members, by name, and of their ensembles, by weighting, on the videos that all members read."""

    members: dict[str, Result]
    ensembles: dict[str, Result]
    tables: dict[str, Predictions]

    @property
    def rows(self) -> dict[str, Result]:
        """Return all results by name, members first."""
        return {**self.members, **{f"ensemble of {weighting}": result for weighting, result in self.ensembles.items()}}

    def result(self, weighting: str) -> Result:
        """Return all metrics as NAME.METRIC in one result, with the protocol of the ensemble with this weighting."""
        results = {**self.members, **self.ensembles}.items()
        return {
            **self.ensembles[weighting],
            "figures": {f"{name}.{key}": value for name, one in results for key, value in one["figures"].items()},
            "intervals": {f"{name}.{key}": bounds for name, one in results for key, bounds in one["intervals"].items()},
        }


def make_member(name: str, table: Predictions, column: str | None = None) -> Member:
    """Make a member of an ensemble from a table and, if that has several, the name of a column of logits.

    Raises:
        RunError: not a recognition table, the table of an ensemble, an unknown or missing column.
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


def combine(members: Sequence[Member], weights: Sequence[float] | None = None) -> EnsembleResults:
    """Compute the metrics of the members and of both ensembles.

    Args:
        members: two or more, of one split, with different names.
        weights: one per member, above 0, for the weighting "models"; by default equal.

    Raises:
        RunError: fewer than two members, the same predictions twice, another split or classes, wrong weights.
    """
    _check_members(members, weights)
    tables: dict[str, Predictions] = {
        weighting: join(members, weighting, {"models": weights}.get(weighting)) for weighting in WEIGHTINGS
    }
    ids = _common_ids(members)  # metrics of members and ensembles are of the same videos
    single = {member.name: join([member], ids=ids) for member in members}
    results = {name: recognition.score(table) for name, table in single.items()}
    best = max(results, key=lambda name: results[name]["figures"]["top1"])
    ensembles = {}
    for weighting, table in tables.items():
        result = recognition.score(table)
        gain = recognition.difference(table, single[best])
        result["figures"][GAIN_METRIC], result["intervals"][GAIN_METRIC] = gain["top1"], gain["interval"]
        result["protocol"]["best_member"] = best
        ensembles[weighting] = result
    return EnsembleResults(results, ensembles, tables)


def join(
    members: Sequence[Member], weighting: Weighting = "models", weights: Sequence[float] | None = None,
    *, ids: Sequence[str] | None = None,
) -> Predictions:  # fmt: skip
    """Join all members' views in one table for `recognition.score`.

    Args:
        members: of one split. weighting, weights: see `combine`.
        ids: the videos to use; by default those that every member read.

    Raises:
        RunError: no common video, another split or classes, wrong weights.
    """
    _check_splits(members)
    weights = _check_weights(members, weights)
    ids = _common_ids(members) if ids is None else ids
    member_rows = [_member_rows(member, ids) for member in members]
    row_weights = [
        weight / np.bincount(sample, minlength=len(ids))[sample] if weighting == "models" else np.ones(len(sample))
        for (_, sample, _), weight in zip(member_rows, weights, strict=True)
    ]
    first = members[0].table
    row_of = {name: row for row, name in enumerate(first["ids"].tolist())}
    rows = np.asarray([row_of[name] for name in ids], dtype=np.int64)
    arrays: dict[str, NDArray[Any]] = {
        "ids": first["ids"][rows],
        "labels": first["labels"][rows],
        "sample": np.concatenate([sample for _, sample, _ in member_rows]),
        "view": np.concatenate([view for _, _, view in member_rows]),
        **{name: first[name] for name in ("classes",) if name in first.arrays},
        f"logits:{recognition.COLUMN}": np.concatenate([logits for logits, _, _ in member_rows]),
        **{name: first[name][rows] for name in first.arrays if name.startswith("subset:")},
    }
    if len(members) > 1:
        arrays["weight"] = np.concatenate(row_weights)
    unreadable = {entry["id"]: entry for member in members for entry in member.table.coverage["unreadable"]}
    unreadable_entries = [unreadable[name] for name in sorted(unreadable)]
    coverage = {"asked": first.coverage["asked"], "read": len(ids), "unreadable": unreadable_entries}
    return Predictions(recognition.NAME, arrays, _protocol(members, weighting, weights), coverage)


def _protocol(members: Sequence[Member], weighting: Weighting, weights: Sequence[float]) -> dict[str, Any]:
    split = {key: members[0].table.protocol.get(key) for key in ("split_sha256", "splits", "source")}
    member_entries = []
    for member in members:
        entries = {key: member.table.protocol[key] for key in MEMBER_ENTRIES if key in member.table.protocol}
        member_entries.append({"name": member.name, "column": member.column, **entries})
    if len(members) == 1:
        return {**member_entries[0], **split, "merge": "softmax mean"}
    description = "every view of every model once" if weighting == "views" else "mean of each model's mean"
    return {
        "members": member_entries,
        "pool": weighting,
        **({"weights": [weight / sum(weights) for weight in weights]} if weighting == "models" else {}),
        **split,
        "merge": f"softmax mean, {description}",
    }


def _member_rows(member: Member, ids: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """Return logits, index into `ids` and view index of every row of the videos `ids`, each (video, view) once."""
    table, row_of = member.table, {name: number for number, name in enumerate(ids)}
    row_index = np.asarray([row_of.get(name, -1) for name in table["ids"].tolist()], dtype=np.int64)[table["sample"]]
    keys = np.stack([table["sample"], table["view"]], axis=1)
    rows = np.sort(np.unique(keys, axis=0, return_index=True)[1])  # the first row of each (video, view)
    rows = rows[row_index[rows] >= 0]
    return table[f"logits:{member.column}"][rows], row_index[rows], table["view"][rows]


def _common_ids(members: Sequence[Member]) -> list[str]:
    common = set.intersection(*(set(member.table["ids"].tolist()) for member in members))
    ids = [name for name in members[0].table["ids"].tolist() if name in common]
    if not ids:
        raise RunError("ensemble", "no video that every model read", "", "evaluate on one readable split")
    return ids


def _check_weights(members: Sequence[Member], weights: Sequence[float] | None) -> list[float]:
    values = [1.0] * len(members) if weights is None else [float(weight) for weight in weights]
    if len(values) != len(members) or not all(np.isfinite(values)) or min(values) <= 0:
        found = ", ".join(f"{weight:g}" for weight in values)
        raise RunError("weights", f"found {found}", f"{len(members)} numbers above 0, one per table")
    return values


def _check_members(members: Sequence[Member], weights: Sequence[float] | None) -> None:
    if len(members) < 2:
        raise RunError("ensemble", f"{len(members)} table", "two or more")
    if len({member.name for member in members}) != len(members):
        raise RunError("ensemble", "two members of one name", "names of their own")
    _check_splits(members)
    _check_weights(members, weights)
    for number, member in enumerate(members):
        for other in members[:number]:
            mine, theirs = member.table[f"logits:{member.column}"], other.table[f"logits:{other.column}"]
            if mine.shape == theirs.shape and np.array_equal(mine, theirs):
                raise RunError(
                    "ensemble", f"{other.name} and {member.name} hold the same predictions", "different models"
                )


def _check_splits(members: Sequence[Member]) -> None:
    """Raise RunError unless all members are of one split: the same rows, labels and order of classes."""
    first = members[0]
    for member in members[1:]:
        widths = [entry.table[f"logits:{entry.column}"].shape[1] for entry in (first, member)]
        if widths[0] != widths[1]:
            found = f"{first.name} scores {widths[0]} classes, {member.name} {widths[1]}"
            hint = "evaluate the model of more classes with --restrict"
            raise RunError("ensemble", found, "the same number", hint)
        if first.table.protocol.get("split_sha256") != member.table.protocol.get("split_sha256"):
            names = [entry.table.arrays.get("classes") for entry in (first, member)]
            other = "split"
            if names[0] is not None and names[1] is not None and not np.array_equal(names[0], names[1]):
                other = "classes" if set(names[0].tolist()) != set(names[1].tolist()) else "order of classes"
            found, expected = (
                f"{member.name} is of another {other} than {first.name}",
                "one split, its classes in one order",
            )
            raise RunError("ensemble", found, expected, "evaluate all on one manifest")
