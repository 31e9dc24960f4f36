"""`internvideo caption`: generate a caption for a video, or for every window of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from internvideo.cli import options
from internvideo.errors import RecipeError
from internvideo.terminal import tell

if TYPE_CHECKING:
    from internvideo.features.video_files import VideoFile


def caption(
    inputs: options.Inputs,
    encoder: options.Encoder,
    weights: options.Weights = None,
    num_beams: Annotated[
        int | None, typer.Option(min=1, help="Beam search with this many beams, by default 4; 1 is greedy decoding.")
    ] = None,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling with this probability mass instead; 0 is off.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Of the sampling with --top-p, by default 0.")] = None,
    max_length: Annotated[
        int, typer.Option(min=0, help="Maximum tokens, start and end included; 0 is the context length of the model.")
    ] = 0,
    window_seconds: options.WindowSeconds = None,
    stride_seconds: options.StrideSeconds = None,
    recursive: options.Recursive = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    damage: options.Damage = None,
    frame_rate: options.FrameRate = None,
    precision: options.Precision = "float32",
) -> None:
    """Generate captions of videos. The model needs a caption decoder, such as internvideo-mm-l14-caption."""
    from internvideo.features.video_files import find_videos
    from internvideo.features.windows import check_window, windows

    check_window(window_seconds, stride_seconds)
    if seed is not None and not top_p:
        raise RecipeError("--seed", f"{seed} without --top-p, where nothing is sampled", "with --top-p")
    videos = find_videos(inputs, recursive=recursive)
    model = options.open_model(encoder, weights, device, precision)
    num_beams = num_beams or (1 if top_p else 4)
    # Raises for settings that the model does not support before a video is opened.
    generate = model.caption_generator(num_beams=num_beams, top_p=top_p, seed=seed or 0, max_length=max_length)

    def show(video: VideoFile) -> None:
        for start, end, clip in windows(
            video.source, model.preprocessing, window_seconds=window_seconds, stride_seconds=stride_seconds
        ):
            (text,) = generate(clip[None].to(model.device))
            record = {"path": video.path, "start": start, "end": end, "caption": text}
            tell(record, f"{video.path}{'' if window_seconds is None else ' ' + options.clock(start, end)}: {text}")

    options.for_each(videos, show)
