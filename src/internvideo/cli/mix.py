"""`internvideo mix`: interpolate the weights of a fine-tuned model and its base (WiSE-FT)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvideo.cli.options import Json, named_files, refuse_unused
from internvideo.terminal import tell


def mix(
    context: typer.Context,
    tuned: Annotated[
        list[Path],
        typer.Argument(
            help="model.safetensors of one run, or of several: averaged first; - reads names from standard input."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Safetensors file to write.")],
    base: Annotated[
        Path | None,
        typer.Option(help="CLIP (see `internvideo convert`) or the weights of an earlier run of this model."),
    ] = None,
    base_weight: Annotated[
        float, typer.Option(help="Weight of --base, 0 to 1; the tuned model has the rest. Published: 0.5, MSVD 0.25.")
    ] = 0.5,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe to store in the file: its model and its test preprocessing.")
    ] = None,
    tower: Annotated[str, typer.Option(help="Towers to interpolate: both, text or video.")] = "both",
    as_json: Json = False,
) -> None:
    """Interpolate weights, for better zero-shot accuracy and a better start of fine-tuning than either of the two.

    Every tensor of --tower that both have becomes base_weight x BASE + (1 - base_weight) x TUNED; the rest, and the
    logit scale, stay as tuned. Without --base the mean of the runs is written.
    """
    from internvideo.apps.mix import mix as mixing

    if base is None:
        refuse_unused(context, "--base", "base_weight", "tower")
    files = [Path(name) for name in named_files(tuned)]
    made = mixing(files, output, base=base, base_weight=base_weight, tower=tower, recipe=recipe)  # type: ignore[arg-type]  # checked there
    record = {"weights": made.file, "mixed": made.mixed, "kept": made.kept}
    done = f"{made.mixed} tensors mixed, {made.kept} as tuned"
    if base is None:
        done = f"{made.kept} tensors, runs averaged: {len(files)}"
    tell(record, f"weights: {made.file} ({done})")
