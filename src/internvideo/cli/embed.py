"""`internvideo embed`: videos to vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvideo.cli.options import (
    Damage,
    Device,
    Encoder,
    FrameRate,
    Precision,
    Recursive,
    Stride,
    Weights,
    open_model,
)
from internvideo.terminal import say


def embed(
    inputs: Annotated[list[Path], typer.Argument(help="Video files, folders of them, or manifests.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The table: NAME.parquet, or NAME.npy with NAME.jsonl.")
    ],
    encoder: Encoder,
    weights: Weights = None,
    window: Annotated[
        float | None, typer.Option(help="Seconds; one vector for each window. Without it one for each video.")
    ] = None,
    stride: Stride = None,
    recursive: Recursive = False,
    normalize: Annotated[bool, typer.Option(help="Vectors of length one.")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at once.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode; 0 decodes beside the model.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew instead of going on.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be read; read nothing.")] = False,
    device: Device = "auto",
    damage: Damage = None,
    frame_rate: FrameRate = None,
    precision: Precision = "float32",
) -> None:
    """Write one vector for every video, or for every window of it.

    Interrupt it at any time: the same command goes on where it was, and later ones skip what is done (it is kept in
    OUTPUT.parts). Files that cannot be read are named in NAME.skipped.jsonl.
    """
    from internvideo.features.embedding import EmbeddingSettings, embed, plan
    from internvideo.features.video_files import find_videos

    settings = EmbeddingSettings(window, stride, normalize, batch_size, workers)
    videos = find_videos(inputs, recursive=recursive)
    if dry_run:
        for line in plan(videos, output, fresh=fresh):
            say(line)
        return
    model = open_model(encoder, weights, device, precision)
    found = embed(videos, model, output, settings, fresh=fresh)
    done = found.asked - len(found.unreadable)
    earlier = f", {found.earlier} of them before" if found.earlier else ""
    say(f"{output}: {found.vectors} vectors of {found.width} numbers from {done} videos{earlier}")
    partly, lost = len(found.partly), len(found.unreadable)
    told = f"coverage: {done} of {found.asked} videos read" + (f", {partly} of them in part" if partly else "")
    say(told + (f"; see {output.with_suffix('.skipped.jsonl')}" if partly or lost else ""))
    if found.pace:
        say(f"speed: {found.pace}")
