"""`internvideo classify`: what is in videos, among labels that you name or a classifier knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from internvideo.cli.options import (
    Classifier,
    Damage,
    Device,
    Encoder,
    FrameRate,
    Json,
    Labels,
    LabelsFile,
    Precision,
    Recursive,
    Stride,
    Weights,
    Window,
    clock,
    for_each,
    one_of,
    open_model,
    read_labels,
    unread,
)
from internvideo.terminal import say

if TYPE_CHECKING:
    from torch import Tensor

    from internvideo.features.video_files import VideoFile
    from internvideo.inference.video_model import VideoModel

    Tell = Callable[[Tensor], tuple[dict[str, object], str]]  # a clip to what is told of it: values, and a line


def classify(
    context: typer.Context,
    inputs: Annotated[list[Path], typer.Argument(help="Video files, folders of them, or manifests.")],
    encoder: Encoder,
    weights: Weights = None,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    model: Classifier = None,
    window: Window = None,
    stride: Stride = None,
    unknown: Annotated[
        Path | None,
        typer.Option(
            help="The open_set.json of `internvideo evaluate open_set` on this classifier: one label with belief and "
            "uncertainty, or unknown."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="So many labels, the likeliest first.")] = 5,
    recursive: Recursive = False,
    as_json: Json = False,
    device: Device = "auto",
    damage: Damage = None,
    frame_rate: FrameRate = None,
    precision: Precision = "float32",
) -> None:
    """Say what is in videos, with probabilities.

    Labels of your own need a model with a text tower and no training; a classifier of `internvideo fit` is given with
    --model; otherwise the model's own classes are used, with --unknown as belief and uncertainty. Long videos get a
    line for each --window.
    """
    from internvideo.features.video_files import find_videos
    from internvideo.features.windows import check_window, windows

    one_of(labels=labels, labels_file=labels_file, model=model, unknown=unknown)
    check_window(window, stride)
    videos = find_videos(inputs, recursive=recursive)
    opened = open_model(encoder, weights, device, precision)
    if unknown is not None:
        unread(context, "several labels (--unknown names one)", "top")
        tell = _open_set(opened, unknown)
    else:
        tell = _closed_set(opened, read_labels(labels, labels_file), model, top)

    def answer(video: VideoFile) -> None:
        for start, end, clip in windows(video.source, opened.preprocessing, window=window, stride=stride):
            told, text = tell(clip[None])
            if as_json:
                line = {"path": video.path, "start": start, "end": end, **told}
                say(json.dumps(line, ensure_ascii=False))
                continue
            piece = "" if window is None else f" {clock(start, end)}"
            say(f"{video.path}{piece}: {text}")

    for_each(videos, answer)


def _closed_set(opened: VideoModel, labels: list[str] | None, model: Path | None, top: int) -> Tell:
    from internvideo.apps.classify import Scorer
    from internvideo.probing.probe import Probe

    scorer = Scorer(opened, labels, None if model is None else Probe.load(model))

    def tell(clips: Tensor) -> tuple[dict[str, object], str]:
        shown = dict(list(scorer(clips)[0].items())[:top])
        return {"labels": shown}, ", ".join(f"{label} {share:.3f}" for label, share in shown.items())

    return tell


def _open_set(opened: VideoModel, evaluation: Path) -> Tell:
    from internvideo.apps.open_set import OpenSetRule

    rule = OpenSetRule.load(evaluation)
    rule.check(opened)

    def tell(clips: Tensor) -> tuple[dict[str, object], str]:
        said = rule(opened, clips)[0]
        named = said.label if said.known else f"unknown, nearest {said.label}"
        return asdict(said), f"{named}, belief {said.belief:.3f}, uncertainty {said.uncertainty:.3f}"

    return tell
