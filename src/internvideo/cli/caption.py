"""`internvideo caption`: a sentence for a video, or for every window of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from internvideo.cli.options import (
    Damage,
    Device,
    Encoder,
    FrameRate,
    Json,
    Precision,
    Recursive,
    Stride,
    Weights,
    Window,
    clock,
    for_each,
    open_model,
)
from internvideo.errors import RecipeError
from internvideo.terminal import say

if TYPE_CHECKING:
    from internvideo.features.video_files import VideoFile


def caption(
    inputs: Annotated[list[Path], typer.Argument(help="Video files, folders of them, or manifests.")],
    encoder: Encoder,
    weights: Weights = None,
    beams: Annotated[
        int | None, typer.Option(min=1, help="Beginnings kept while writing, by default 4; 1 is the quickest.")
    ] = None,
    nucleus: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Draw words instead, from the likeliest that hold this share.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Of the draws of --nucleus, by default 0.")] = None,
    max_length: Annotated[int, typer.Option(min=0, help="Most word pieces; 0 is as many as the model can.")] = 0,
    window: Window = None,
    stride: Stride = None,
    recursive: Recursive = False,
    as_json: Json = False,
    device: Device = "auto",
    damage: Damage = None,
    frame_rate: FrameRate = None,
    precision: Precision = "float32",
) -> None:
    """Describe videos in words. The model needs a caption decoder, such as internvideo-mm-l14-caption."""
    from internvideo.features.video_files import find_videos
    from internvideo.features.windows import check_window, windows

    check_window(window, stride)
    if seed is not None and not nucleus:
        raise RecipeError("--seed", f"{seed} without --nucleus, where nothing is drawn", "with --nucleus")
    videos = find_videos(inputs, recursive=recursive)
    model = open_model(encoder, weights, device, precision)
    beams = beams or (1 if nucleus else 4)
    # Tells what does not fit before a video is opened.
    writer = model.writer(beams=beams, nucleus=nucleus, seed=seed or 0, max_length=max_length)

    def write(video: VideoFile) -> None:
        for start, end, clip in windows(video.source, model.preprocessing, window=window, stride=stride):
            (text,) = writer(clip[None].to(model.device))
            if as_json:
                told = {"path": video.path, "start": start, "end": end, "caption": text}
                say(json.dumps(told, ensure_ascii=False))
            else:
                say(f"{video.path}{'' if window is None else ' ' + clock(start, end)}: {text}")

    for_each(videos, write)
