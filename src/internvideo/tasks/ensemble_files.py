"""Combine the saved predictions of several models to an ensemble's predictions and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from internvideo.tasks.ensemble import Weighting, combine, make_member
from internvideo.tasks.table import Predictions, check_overwrite, print_results, save_result, short_names

PROTOCOL_ENTRIES = ("members", "pool", "weights", "split_sha256")


def combine_files(
    names: Sequence[str], output: Path, *, weights: Sequence[float] | None = None, weighting: Weighting = "views"
) -> Path:
    """Combine saved predictions; print the metrics of members and ensembles, write `ensemble.npz` and `ensemble.json`.

    Args:
        names: FILE or FILE:COLUMN. output: folder. weights: one per file, for the weighting "models".
        weighting: of the ensemble that is saved.

    Raises:
        RunError: the tables cannot be combined, or `output` contains another ensemble.
    """
    sources = [_file_and_column(name) for name in names]
    files = [path for path, _ in sources]
    names_of_members = (
        short_names(files) if len(set(files)) == len(files) else names
    )  # for two columns of one file, FILE:COLUMN
    members = [
        make_member(name, Predictions.load(path), column)
        for name, (path, column) in zip(names_of_members, sources, strict=True)
    ]
    combined = combine(members, weights)
    path = output / "ensemble.npz"
    check_overwrite(path, combined.tables[weighting].protocol, PROTOCOL_ENTRIES, "ensemble")
    print_results(f"ensemble of {len(combined.members)} models, kept: {weighting}", combined.rows)
    combined.tables[weighting].save(path)
    save_result(combined.result(weighting), path.with_suffix(".json"))
    return path


def _file_and_column(name: str) -> tuple[Path, str | None]:
    """Split FILE:COLUMN, unless a file has the whole name."""
    file, colon, column = name.rpartition(":")
    return (Path(file), column) if colon and not Path(name).exists() else (Path(name), None)
