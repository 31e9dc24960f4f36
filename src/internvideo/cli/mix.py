"""`internvideo mix`: weights between a tuned model and what it started from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvideo.cli.options import unread
from internvideo.terminal import say


def mix(
    context: typer.Context,
    tuned: Annotated[list[Path], typer.Argument(help="model.safetensors of one run, or of several: averaged first.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Safetensors file to write.")],
    base: Annotated[
        Path | None,
        typer.Option("--with", help="CLIP (see `internvideo convert`) or the weights of an earlier run of this model."),
    ] = None,
    share: Annotated[
        float, typer.Option(help="Of --with; the tuned model has the rest. Published: 0.5, MSVD 0.25.")
    ] = 0.5,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe the file shall carry: its model, and how test clips are cut.")
    ] = None,
    tower: Annotated[str, typer.Option(help="Mix both towers, or one alone: both, text or video.")] = "both",
) -> None:
    """Mix weights: better zero-shot figures, and a better start of fine-tuning, than either of the two.

    Every tensor that both have becomes share x WITH + (1 - share) x TUNED; the rest stays as tuned.
    """
    from internvideo.apps.mix import mix as mixing

    if base is None:
        unread(context, "--with", "share", "tower")
    made = mixing(tuned, output, base=base, share=share, tower=tower, recipe=recipe)  # type: ignore[arg-type]  # checked there
    say(f"weights: {made.file} ({made.mixed} tensors mixed, {made.kept} as tuned)")
