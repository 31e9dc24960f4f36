"""`internvideo classify`: what is in videos, among labels that you name or a classifier knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from internvideo.commands.options import (
    Classifier,
    Device,
    Encoder,
    Json,
    Labels,
    LabelsFile,
    Precision,
    Stride,
    Weights,
    Window,
    clock,
    for_each,
    one_of,
    open_model,
    read_labels,
)

if TYPE_CHECKING:
    from internvideo.apps.video_files import VideoFile


def classify(
    inputs: Annotated[list[Path], typer.Argument(help="Video files, folders of them, or manifests.")],
    encoder: Encoder,
    weights: Weights = None,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    model: Classifier = None,
    window: Window = None,
    stride: Stride = None,
    top: Annotated[int, typer.Option(min=1, help="So many labels, the likeliest first.")] = 5,
    as_json: Json = False,
    device: Device = "auto",
    precision: Precision = "float32",
) -> None:
    """Say what is in videos, with probabilities.

    Labels of your own need a model with a text tower and no training; a classifier of `internvideo fit` is given with
    --model; otherwise the model's own classes are used. Long videos get a line for each --window.
    """
    from internvideo.apps.probe import Probe
    from internvideo.apps.scorer import Scorer
    from internvideo.apps.video_files import find_videos
    from internvideo.apps.windows import check_window, windows

    one_of(labels=labels, labels_file=labels_file, model=model)
    check_window(window, stride)
    videos = find_videos(inputs)
    opened = open_model(encoder, weights, device, precision)
    scorer = Scorer(opened, read_labels(labels, labels_file), None if model is None else Probe.load(model))

    def answer(video: VideoFile) -> None:
        for start, end, clip in windows(video.source, opened.preprocessing, window=window, stride=stride):
            shown = dict(list(scorer(clip[None])[0].items())[:top])
            if as_json:
                told = {"path": video.path, "start": start, "end": end, "labels": shown}
                typer.echo(json.dumps(told, ensure_ascii=False))
                continue
            piece = "" if window is None else f" {clock(start, end)}"
            typer.echo(f"{video.path}{piece}: " + ", ".join(f"{label} {share:.3f}" for label, share in shown.items()))

    for_each(videos, answer)
