"""`internvideo localize`: find the actions in a video and when they happen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from internvideo.cli import options
from internvideo.errors import VideoError
from internvideo.terminal import say, tell


def localize(
    videos: options.Inputs,
    encoder: options.Encoder,
    detector: Annotated[
        Path,
        typer.Option(
            "--detector", "-d", help="model.safetensors of a detector that was trained on the encoder's features."
        ),
    ],
    weights: options.Weights = None,
    score_threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave out segments below this score.")
    ] = 0.2,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for timeline plots, NAME.svg per video.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows per batch; 16 on a GPU, 4 on a CPU.", show_default=False)
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the features: an interrupted command resumes, a later one reads only new videos."
        ),
    ] = None,
    ray: options.Ray = None,
    as_json: options.Json = False,
    device: options.Device = "auto",
    damage: options.Damage = None,
    frame_rate: options.FrameRate = None,
    precision: options.Precision = "float32",
) -> None:
    """Print the actions of a video with start, end and score; with --output plot them on a timeline.

    The detector comes from `internvideo extract` and a recipe such as sample/temporal_localization;
    the encoder must be the one on whose features it was trained.
    """
    from internvideo.extras import require
    from internvideo.features.localize import Localization, extraction_settings, localize_all, write_plot
    from internvideo.features.localize import localize as run
    from internvideo.features.video_files import VideoFile, find_videos, unique_file_names
    from internvideo.tasks import CATALOG
    from internvideo.tasks.temporal_localization.evaluate import load_detector

    if output is not None:
        require("plots", "--output")
    video_files = find_videos(videos)
    names = dict(zip(video_files, unique_file_names(video_files), strict=True))
    trained = load_detector(detector, CATALOG, device=device)
    model = options.open_model(encoder, weights, device, precision)
    extraction_settings(model, trained)  # raises for another encoder

    def show(video: VideoFile, localization: Localization) -> None:
        above_threshold = [action for action in localization.actions if action.score >= score_threshold]
        record = {
            "path": localization.path,
            "duration": localization.duration,
            "actions": [asdict(action) for action in above_threshold],
        }
        tell(
            record,
            f"{localization.path}: {len(above_threshold)} actions, video of {localization.duration:.1f} s",
            *(
                f"  {options.clock(action.start, action.end)}  {action.score:.2f}  {action.label}"
                for action in sorted(above_threshold, key=lambda action: action.start)
            ),
        )
        if output is not None:
            target = output / f"{names[video]}.svg"
            write_plot(localization, target, score_threshold)
            say(f"  timeline: {target}")

    if features is None and ray is None:
        options.for_each(video_files, lambda video: show(video, run(video, model, trained, batch_size=batch_size)))
        return
    with TemporaryDirectory(prefix="internvideo-") as folder:
        report, results = localize_all(
            video_files, model, trained, features or Path(folder), batch_size=batch_size, ray=ray
        )
        for video, localization in results:
            show(video, localization)
    options.say_failures(report)
    if report.unreadable:
        raise VideoError("videos", f"{len(report.unreadable)} of {report.requested} could not be read")
