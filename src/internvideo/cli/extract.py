"""`internvideo extract`: extract features of long videos for temporal localization."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvideo.cli import options
from internvideo.terminal import tell


def extract(
    inputs: options.Inputs,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder: ID.npy of every video, index.json.")],
    encoder: options.Encoder,
    weights: options.Weights = None,
    window_frames: Annotated[int, typer.Option(min=1, help="Length of a window.")] = 16,
    stride_frames: Annotated[
        int, typer.Option(min=1, help="From one window to the next: 4 for THUMOS14, 16 for ActivityNet.")
    ] = 4,
    fps: Annotated[
        float | None, typer.Option(help="Frames per second that windows are counted in; by default the file's.")
    ] = None,
    layer: Annotated[
        str, typer.Option(help="pooled, the number of a layer (mean of its tokens; -1 the last), or scores.")
    ] = "pooled",
    spatial_pool_size: Annotated[
        int,
        typer.Option(
            min=1, help="Spatial pooling: average the tokens of --layer in N x N cells and concatenate these."
        ),
    ] = 1,
    tiles: Annotated[
        int, typer.Option(min=1, help="For small actors: encode N x N overlapping crops of larger frames one by one.")
    ] = 1,
    recursive: options.Recursive = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows per batch; 16 on a GPU, 4 on a CPU.", show_default=False)
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=0, help="Decoders: processes, and threads of one video if fewer are left; 0 decodes in a thread."
        ),
    ] = 0,
    ray: options.Ray = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    device: options.Device = "auto",
    damage: options.Damage = None,
    frame_rate: options.FrameRate = None,
    precision: options.Precision = "float32",
    as_json: options.Json = False,
) -> None:
    """Write one vector per sliding window: OUTPUT/ID.npy (T x C) of each video, and OUTPUT/index.json.

    ActionFormer and OpenTAD read the folder as it is: index.json is their annotation file, classes.txt their class map.
    After an interruption the same command resumes. Started several times, on several GPUs or machines with one OUTPUT,
    the processes share the videos among them.
    """
    from internvideo.features.extract import ExtractSettings, plan
    from internvideo.features.extract import extract as run
    from internvideo.features.feature_folder import INDEX, find_items
    from internvideo.features.window_sampling import WindowRule

    rule = WindowRule(window_frames, stride_frames, fps)
    settings = ExtractSettings(rule, layer, batch_size, workers, spatial_pool_size, tiles, ray)
    items, classes = find_items(inputs, recursive=recursive)
    if dry_run:
        for line in plan(items, output, rule, overwrite=overwrite):
            tell({"plan": line}, line)
        return
    model = options.open_model(encoder, weights, device, precision)
    report = run(items, model, output, settings, classes=classes, overwrite=overwrite)
    num_done, elsewhere = report.read + report.resumed, report.other_workers - len(report.unreadable)
    resumed = f"{report.resumed} of them resumed"
    summary = f"{output / INDEX}: {num_done} of {report.requested} videos, {resumed}, dim {report.dim}"
    options.say_failures(report)
    leased = [f"{elsewhere} videos are leased by other processes on the same folder"] if elsewhere > 0 else []
    speed = [f"speed: {report.vectors} vectors, {report.throughput}"] if report.throughput else []
    record = {
        "index": output / INDEX, "videos": report.requested, "read": num_done, "resumed": report.resumed,
        "vectors": report.vectors, "dim": report.dim, "elsewhere": max(elsewhere, 0),
    }  # fmt: skip
    tell(record, summary, *leased, *speed)
