"""Combine the saved predictions of several models to an ensemble's predictions and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from internvideo.errors import RunError
from internvideo.tasks.ensemble import Combined, Pool, combine, member
from internvideo.tasks.table import Predictions, print_results, save_result, short_names

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
    places = [_place(name) for name in names]
    files = [path for path, _ in places]
    short = short_names(files) if len(set(files)) == len(files) else names  # two columns of one file keep their names
    members = [member(name, Predictions.load(path), column) for name, (path, column) in zip(short, places, strict=True)]
    made = combine(members, weights)
    path = output / "ensemble.npz"
    _check_output(path, made.tables[keep])
    show(made, keep)
    made.tables[keep].save(path)
    save_result(made.result(keep), path.with_suffix(".json"))
    return path


def show(made: Combined, keep: Pool) -> None:
    """Members and ensembles side by side."""
    print_results(f"ensemble of {len(made.members)} models, kept: {keep}", made.rows)


def _place(name: str) -> tuple[Path, str | None]:
    """FILE:COLUMN, where no file has the whole name."""
    file, colon, column = name.rpartition(":")
    return (Path(file), column) if colon and not Path(name).exists() else (Path(name), None)


def _check_output(path: Path, table: Predictions) -> None:
    """Refuse to write over another ensemble."""
    if not path.exists():
        return
    try:
        theirs = Predictions.load(path).protocol
    except RunError:
        raise RunError(path, "is no table that was written here", "", "choose another --output") from None
    if any(theirs.get(key) != table.protocol.get(key) for key in _FACTS):
        raise RunError(path, "holds another ensemble", "", "choose another --output")
