"""`internvideo prepare`: convert the annotation files of a benchmark to manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvideo.cli.options import unread
from internvideo.terminal import say


def prepare(
    context: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="A name of `internvideo list benchmarks`.")],
    annotations: Annotated[Path, typer.Option(help="The official annotation file, or the folder of them.")],
    videos: Annotated[
        Path | None, typer.Option(help="The folder of the videos; without it none are looked for.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the manifests; by default runs/prepare/BENCHMARK.")
    ] = None,
    check_videos: Annotated[bool, typer.Option("--check-videos", help="Open every video too.")] = False,
    offset: Annotated[
        float,
        typer.Option(
            min=0.0, help="Of films that were cut: the second of the film with which the files begin (AVA's often 900)."
        ),
    ] = 0.0,
    frame_rate: Annotated[
        float | None,
        typer.Option(help="Frames per second of folders of frames; by default as published."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that open videos; by default a few.")] = None,
) -> None:
    """Write the manifests of a benchmark, one per split, from its official annotation files.

    Prints the numbers of present, missing and unreadable videos, a fingerprint of each split, and all differences from
    the official release.
    """
    from internvideo.datasets.prepare import prepare as prepare_benchmark

    if videos is None:
        unread(context, "--videos", "check_videos", "workers")
    folder = output or Path("runs/prepare") / benchmark
    prepare_benchmark(
        benchmark,
        annotations,
        folder,
        videos=videos,
        check_videos=check_videos,
        offset=offset,
        frame_rate=frame_rate,
        workers=workers,
        told=say,
    )
    say(f"manifests: {folder}")
