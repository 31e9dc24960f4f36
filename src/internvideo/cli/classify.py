"""`internvideo classify`: classify videos among labels that you give or those of a classifier."""

from __future__ import annotations

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
    Inputs,
    Json,
    Labels,
    LabelsFile,
    Precision,
    Recursive,
    StrideSeconds,
    Weights,
    WindowSeconds,
    clock,
    for_each,
    one_of,
    open_model,
    read_labels,
    unread,
)
from internvideo.terminal import tell

if TYPE_CHECKING:
    from torch import Tensor

    from internvideo.features.video_files import VideoFile
    from internvideo.inference.video_model import VideoModel

    ClassifyFn = Callable[[Tensor], tuple[dict[str, object], str]]  # clip -> result as JSON values, and as text


def classify(
    context: typer.Context,
    inputs: Inputs,
    encoder: Encoder,
    weights: Weights = None,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    model: Classifier = None,
    window_seconds: WindowSeconds = None,
    stride_seconds: StrideSeconds = None,
    unknown: Annotated[
        Path | None,
        typer.Option(
            help="The open_set.json of `internvideo evaluate open_set` on this classifier: one label with belief and "
            "uncertainty, or unknown."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of labels, the most probable first.")] = 5,
    recursive: Recursive = False,
    as_json: Json = False,
    device: Device = "auto",
    damage: Damage = None,
    frame_rate: FrameRate = None,
    precision: Precision = "float32",
) -> None:
    """Classify videos and print probabilities.

    Labels of your own need a model with a text tower and no training; a classifier of `internvideo fit` is given with
    --model; otherwise the model's own classes are used, with --unknown as belief and uncertainty. With
    --window-seconds a long video gets one line per window.
    """
    from internvideo.features.video_files import find_videos
    from internvideo.features.windows import check_window, windows

    one_of(labels=labels, labels_file=labels_file, model=model, unknown=unknown)
    check_window(window_seconds, stride_seconds)
    videos = find_videos(inputs, recursive=recursive)
    opened = open_model(encoder, weights, device, precision)
    if unknown is not None:
        unread(context, "several labels (--unknown names one)", "top")
        classify_clip = _open_set(opened, unknown)
    else:
        classify_clip = _closed_set(opened, read_labels(labels, labels_file), model, top)

    def answer(video: VideoFile) -> None:
        for start, end, clip in windows(
            video.source, opened.preprocessing, window_seconds=window_seconds, stride_seconds=stride_seconds
        ):
            result, text = classify_clip(clip[None])
            piece = "" if window_seconds is None else f" {clock(start, end)}"
            tell({"path": video.path, "start": start, "end": end, **result}, f"{video.path}{piece}: {text}")

    for_each(videos, answer)


def _closed_set(opened: VideoModel, labels: list[str] | None, model: Path | None, top: int) -> ClassifyFn:
    from internvideo.apps.classify import Scorer
    from internvideo.probing.probe import Probe

    scorer = Scorer(opened, labels, None if model is None else Probe.load(model))

    def classify_clip(clips: Tensor) -> tuple[dict[str, object], str]:
        shown = dict(list(scorer(clips)[0].items())[:top])
        return {"labels": shown}, ", ".join(f"{label} {p:.3f}" for label, p in shown.items())

    return classify_clip


def _open_set(opened: VideoModel, evaluation: Path) -> ClassifyFn:
    from internvideo.apps.open_set import OpenSetRule

    rule = OpenSetRule.load(evaluation)
    rule.check(opened)

    def classify_clip(clips: Tensor) -> tuple[dict[str, object], str]:
        decision = rule(opened, clips)[0]
        named = decision.label if decision.known else f"unknown, nearest {decision.label}"
        return asdict(decision), f"{named}, belief {decision.belief:.3f}, uncertainty {decision.uncertainty:.3f}"

    return classify_clip
