"""`internvideo ensemble`: combine the saved predictions of several models on one split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvideo.cli.options import Json, named_files, parse_numbers
from internvideo.terminal import tell


def ensemble(
    tables: Annotated[
        list[str],
        typer.Argument(
            help="Two or more recognition.npz of `internvideo evaluate recognition` on one split; of a table with "
            "several score columns FILE:COLUMN, such as FILE:fused; - reads names from standard input."
        ),
    ],
    weights: Annotated[
        str | None, typer.Option(help="A number above 0 per table, such as 0.6,0.4, for the mean of models.")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            help="Which ensemble to write: views, the mean over all views of all models (as published; default), or "
            "models, the mean of the models' means (the default with --weights)."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for ensemble.npz and ensemble.json.")] = Path(
        "runs/ensemble"
    ),
    as_json: Json = False,
) -> None:
    """Print the metrics of several models and of their ensemble, in both weightings.

    InternVideo-D and -T of the paper are such ensembles. No model and no video is needed; `internvideo score` scores
    the written table again. Only videos that every model could read are used.
    """
    from internvideo.errors import RunError
    from internvideo.tasks.ensemble_files import combine_files

    mode = pool or ("views" if weights is None else "models")
    if mode not in ("views", "models"):
        raise RunError("--pool", f"found '{mode}'", "views, models")
    if weights is not None and mode == "views":
        raise RunError("--weights", "views are pooled without weights", "--pool models")
    shares = None if weights is None else parse_numbers("--weights", weights, "numbers above 0, such as 0.6,0.4")
    path = combine_files(
        named_files(tables), output, weights=shares, weighting="views" if mode == "views" else "models"
    )
    tell({"table": path}, f"table: {path}")
