"""`internvideo ensemble`: the saved scores of several models on one split as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvideo.terminal import say


def ensemble(
    tables: Annotated[
        list[str],
        typer.Argument(
            help="Two or more recognition.npz of `internvideo evaluate recognition` on one split; of a table with "
            "several score columns FILE:COLUMN, such as FILE:fused."
        ),
    ],
    weights: Annotated[
        str | None, typer.Option(help="A number above 0 for each table, such as 0.6,0.4, for the mean of models.")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            help="Which one to keep as a table: views, where every view of every model counts once (as published; the "
            "default), or models, the mean of each model's mean (the default with --weights)."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for ensemble.npz and ensemble.json.")] = Path(
        "runs/ensemble"
    ),
) -> None:
    """Print the figures of several models and of their ensemble, in both weightings side by side.

    InternVideo-D and -T of the paper are such ensembles. No model and no video is needed; the kept table is scored
    again by `internvideo score`. Only videos that every model read enter.
    """
    from internvideo.errors import RunError
    from internvideo.tasks.ensemble_files import combine_files

    chosen = pool or ("views" if weights is None else "models")
    if chosen not in ("views", "models"):
        raise RunError("--pool", f"found '{chosen}'", "views, models")
    if weights is not None and chosen == "views":
        raise RunError("--weights", "views are pooled without weights", "--pool models")
    numbers = None if weights is None else _numbers(weights)
    path = combine_files(tables, output, weights=numbers, keep="views" if chosen == "views" else "models")
    say(f"table: {path}")


def _numbers(text: str) -> list[float]:
    from internvideo.errors import RunError

    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise RunError("--weights", f"found '{text}'", "numbers above 0, such as 0.6,0.4") from None
