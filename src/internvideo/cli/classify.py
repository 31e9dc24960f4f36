"""`internvideo classify`: classify videos among labels that you give or those of a classifier."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from internvideo.cli import options
from internvideo.errors import VideoError
from internvideo.terminal import tell

if TYPE_CHECKING:
    from torch import Tensor

    from internvideo.features.embedding import EmbeddingSettings
    from internvideo.features.feature_layers import Encode
    from internvideo.features.video_files import VideoFile
    from internvideo.inference.video_model import VideoModel


class Classification(NamedTuple):
    """A way to classify.

    Attributes:
        make_encode: model -> function from clips to values, such as probabilities, features or logits.
        result: values of one clip -> the answer as JSON values and as text.
        meaning: what the values depend on beside the model, as JSON values.
    """

    make_encode: Callable[[VideoModel], Encode]
    result: Callable[[Tensor], tuple[dict[str, object], str]]
    meaning: object


def classify(
    context: typer.Context,
    inputs: options.Inputs,
    encoder: options.Encoder,
    weights: options.Weights = None,
    labels: options.Labels = None,
    labels_file: options.LabelsFile = None,
    model: options.Classifier = None,
    window_seconds: options.WindowSeconds = None,
    stride_seconds: options.StrideSeconds = None,
    unknown: Annotated[
        Path | None,
        typer.Option(
            help="The open_set.json of `internvideo evaluate open_set` on this classifier: one label with belief and "
            "uncertainty, or unknown."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of labels, the most probable first.")] = 5,
    recursive: options.Recursive = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="NAME.jsonl: write the results there instead; an interrupted command resumes."
        ),
    ] = None,
    ray: options.Ray = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    damage: options.Damage = None,
    frame_rate: options.FrameRate = None,
    precision: options.Precision = "float32",
) -> None:
    """Classify videos and print probabilities.

    Labels of your own need a model with a text tower and no training; a classifier of `internvideo fit` is given with
    --model; otherwise the model's own classes are used, with --unknown as belief and uncertainty. With
    --window-seconds a long video gets one line per window.
    """
    from internvideo.features.embedding import EmbeddingSettings
    from internvideo.features.video_files import find_videos
    from internvideo.features.windows import windows

    options.refuse_together(labels=labels, labels_file=labels_file, model=model, unknown=unknown)
    settings = EmbeddingSettings(window_seconds, stride_seconds, ray=ray)
    if overwrite and output is None:
        options.refuse_unused(context, "--output", "overwrite")
    videos = find_videos(inputs, recursive=recursive)
    video_model = options.open_model(encoder, weights, device, precision)
    if unknown is not None:
        options.refuse_unused(context, "several labels (--unknown names one)", "top")
        classification = _open_set(video_model, unknown)
    else:
        classification = _closed_set(video_model, options.read_labels(labels, labels_file), model, top)
    if output is not None or ray is not None:
        _classify_all(videos, video_model, classification, output, settings, overwrite)
        return
    encode = classification.make_encode(video_model)

    def answer(video: VideoFile) -> None:
        for start, end, clip in windows(
            video.source, video_model.preprocessing, window_seconds=window_seconds, stride_seconds=stride_seconds
        ):
            result, text = classification.result(encode(clip[None]))
            span = "" if window_seconds is None else f" {options.clock(start, end)}"
            tell({"path": video.path, "start": start, "end": end, **result}, f"{video.path}{span}: {text}")

    options.for_each(videos, answer)


def _classify_all(
    videos: list[VideoFile],
    video_model: VideoModel,
    classification: Classification,
    output: Path | None,
    settings: EmbeddingSettings,
    overwrite: bool,
) -> None:
    """Classify by the engine, here or on Ray; print or write the results in the order of the videos."""
    import torch

    from internvideo.apps.classify import encode_videos
    from internvideo.storage import write_text

    make_encode, result, meaning = classification
    lines = []
    with TemporaryDirectory(prefix="internvideo-") as folder:
        target = output or Path(folder) / "results.jsonl"
        writer = encode_videos(videos, video_model, make_encode, target, settings, meaning, overwrite=overwrite)
        for vectors in writer.read_finished():
            for (start, end), values in zip(vectors.spans.tolist(), torch.from_numpy(vectors.values), strict=True):
                found, text = result(values[None])
                record = {"path": vectors.path, "start": start, "end": end, **found}
                span = "" if settings.window_seconds is None else f" {options.clock(start, end)}"
                if output is None:
                    tell(record, f"{vectors.path}{span}: {text}")
                else:
                    lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    report = writer.report
    options.say_failures(report)
    if output is not None:
        write_text(output, "".join(lines))
        num_read = report.requested - len(report.unreadable)
        tell(
            {
                "output": output,
                "rows": len(lines),
                "videos": report.requested,
                "read": num_read,
                "resumed": report.resumed,
            },
            f"{output}: {len(lines)} rows of {num_read} of {report.requested} videos, {report.resumed} of them resumed",
            *([f"speed: {report.throughput}"] if report.throughput else ()),
        )
    elif report.unreadable:
        raise VideoError("videos", f"{len(report.unreadable)} of {report.requested} could not be read")


def _closed_set(video_model: VideoModel, labels: list[str] | None, model: Path | None, top: int) -> Classification:
    from internvideo.apps.classify import Scorer
    from internvideo.probing.probe import Probe

    scorer = Scorer(video_model, labels, None if model is None else Probe.load(model))

    def result(values: Tensor) -> tuple[dict[str, object], str]:
        top_labels = dict(list(scorer.results(values)[0].items())[:top])
        return {"labels": top_labels}, ", ".join(f"{label} {p:.3f}" for label, p in top_labels.items())

    features = None if scorer.probe is None else f"features: {scorer.probe.head.kind}"
    return Classification(scorer.make_encode, result, features or list(scorer.names))


def _open_set(video_model: VideoModel, evaluation: Path) -> Classification:
    from internvideo.apps.open_set import OpenSetRule

    rule = OpenSetRule.load(evaluation)
    rule.check(video_model)

    def result(values: Tensor) -> tuple[dict[str, object], str]:
        decision = rule.predict_logits(video_model, values)[0]
        label = decision.label if decision.known else f"unknown, nearest {decision.label}"
        return asdict(decision), f"{label}, belief {decision.belief:.3f}, uncertainty {decision.uncertainty:.3f}"

    return Classification(attrgetter("logits"), result, "logits")
