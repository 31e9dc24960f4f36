"""`internvideo extract`: features of long videos for temporal localisation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvideo.cli.options import Damage, Device, Encoder, FrameRate, Precision, Weights, open_model
from internvideo.terminal import say


def extract(
    inputs: Annotated[list[Path], typer.Argument(help="Video files, folders of them, or manifests.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder: ID.npy of every video, index.json.")],
    encoder: Encoder,
    weights: Weights = None,
    window: Annotated[int, typer.Option(min=1, help="Frames of a window.")] = 16,
    stride: Annotated[
        int, typer.Option(min=1, help="Frames from one window to the next: 4 for THUMOS14, 16 for ActivityNet.")
    ] = 4,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second that windows are counted in; by default the file's.")
    ] = None,
    layer: Annotated[
        str, typer.Option(help="pooled, the number of a layer (mean of its tokens; -1 the last), or scores.")
    ] = "pooled",
    grid: Annotated[
        int,
        typer.Option(min=1, help="Keep where things are: tokens of --layer averaged in N x N cells, side by side."),
    ] = 1,
    tiles: Annotated[
        int,
        typer.Option(min=1, help="For small actors: N x N overlapping squares of larger frames are seen one by one."),
    ] = 1,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Also the folders inside folders.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows at once; 16 on a GPU, 4 on a CPU.", show_default=False)
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="Decoders: processes, and threads of one video where fewer are left; 0 decodes beside the model.",
        ),
    ] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew instead of going on.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be read; read nothing.")] = False,
    device: Device = "auto",
    damage: Damage = None,
    frame_rate: FrameRate = None,
    precision: Precision = "float32",
) -> None:
    """Write one vector for every sliding window: OUTPUT/ID.npy (T x C) of each video, and OUTPUT/index.json.

    ActionFormer and OpenTAD read the folder as it is: index.json is their annotation file, classes.txt their class map.
    Interrupt it at any time: the same command goes on where it was. Start it several times, on several GPUs or
    machines with one OUTPUT, and the processes share the videos out among them.
    """
    from internvideo.features.extract import ExtractSettings, plan
    from internvideo.features.extract import extract as run
    from internvideo.features.feature_folder import INDEX, find_items
    from internvideo.features.window_sampling import WindowRule

    rule = WindowRule(window, stride, fps)
    settings = ExtractSettings(rule, layer, batch_size, workers, grid, tiles)
    items, classes = find_items(inputs, recursive=recursive)
    if dry_run:
        for line in plan(items, output, rule, fresh=fresh):
            say(line)
        return
    model = open_model(encoder, weights, device, precision)
    found = run(items, model, output, settings, classes=classes, fresh=fresh)
    done = found.read + found.earlier
    say(f"{output / INDEX}: {done} of {found.asked} videos, {found.earlier} of them before, width {found.width}")
    for kind, troubles in (("read in part", found.partly), ("unreadable", found.unreadable)):
        for lost in troubles:
            say(f"{kind}: {lost.path}: {lost.reason}", err=True)
    if found.elsewhere > len(found.unreadable):
        say(f"{found.elsewhere - len(found.unreadable)} videos are with other processes on the same folder")
    if found.pace:
        say(f"speed: {found.vectors} vectors, {found.pace}")
