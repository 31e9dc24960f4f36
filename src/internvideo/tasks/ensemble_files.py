"""Combine the saved predictions of several models to an ensemble's predictions and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from internvideo.tasks.ensemble import Pool, combine, member
from internvideo.tasks.table import Predictions, check_overwrite, print_results, save_result, short_names

_FACTS = ("members", "pool", "weights", "split_sha256")


def combine_files(
    names: Sequence[str], output: Path, *, weights: Sequence[float] | None = None, keep: Pool = "views"
) -> Path:
    """Combine tables, print members and ensembles, write `ensemble.npz` (of the weighting `keep`) and `ensemble.json`.

    Args:
        names: FILE or FILE:COLUMN. output: folder. weights: for the mean of models. keep: the weighting to keep.

    Raises:
        RunError: tables that do not belong together, or `output` holds another ensemble.
    """
    sources = [_file_and_column(name) for name in names]
    files = [path for path, _ in sources]
    short = short_names(files) if len(set(files)) == len(files) else names  # two columns of one file keep their names
    members = [
        member(name, Predictions.load(path), column) for name, (path, column) in zip(short, sources, strict=True)
    ]
    combined = combine(members, weights)
    path = output / "ensemble.npz"
    check_overwrite(path, combined.tables[keep].protocol, _FACTS, "ensemble")
    print_results(f"ensemble of {len(combined.members)} models, kept: {keep}", combined.rows)
    combined.tables[keep].save(path)
    save_result(combined.result(keep), path.with_suffix(".json"))
    return path


def _file_and_column(name: str) -> tuple[Path, str | None]:
    """Split FILE:COLUMN, unless a file has the whole name."""
    file, colon, column = name.rpartition(":")
    return (Path(file), column) if colon and not Path(name).exists() else (Path(name), None)
