"""Evaluate a temporal detector on features: predictions, metrics, detections, timelines of videos."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from internvideo import distributed
from internvideo.distributed import choose_device
from internvideo.errors import ManifestError, RunError, WeightsError
from internvideo.metrics.temporal_detection import Detections
from internvideo.plots import charts
from internvideo.plots.style import write_plot
from internvideo.storage import write_text
from internvideo.tasks.table import Predictions, Result, check_overwrite, print_result, save_result
from internvideo.tasks.task import EvaluateOptions
from internvideo.tasks.temporal_localization import predict as localization
from internvideo.tasks.temporal_localization.build import FeatureData
from internvideo.tasks.temporal_localization.data import FeatureSet, read_feature_set
from internvideo.tasks.temporal_localization.model import ActionFormer
from internvideo.tasks.temporal_localization.stage import LocalizationSettings
from internvideo.training.recipe import Catalog
from internvideo.training.trained import Trained, load_trained

NUM_TIMELINES = 24
"""Largest number of timelines."""

MIN_PLOTTED_SCORE = 0.2
"""Smallest score of a segment in a timeline."""

COMPARED_KEYS = ("weights_sha256", "layer", "grid", "tiles", "window", "stride", "fps")
"""Protocol entries of features that must be equal to those of the training features."""


@dataclass(frozen=True, kw_only=True)
class DetectionOptions(EvaluateOptions):
    """Options of temporal localization evaluation."""

    class_scores: Annotated[Path | None, "JSON of video-level class scores, for class-agnostic segments."] = None


@dataclass(frozen=True)
class Detector:
    """A trained temporal detector with its settings."""

    trained: Trained
    model: ActionFormer
    settings: LocalizationSettings


def as_detector(trained: Trained, where: object) -> Detector:
    """Return a trained model as a `Detector`. Raises WeightsError if it is no temporal detector."""
    settings = trained.recipe.settings
    if not isinstance(trained.model, ActionFormer) or not isinstance(settings, LocalizationSettings):
        expected = "weights of a recipe with stage: temporal_localization"
        raise WeightsError(where, f"a {type(trained.model).__name__} is no temporal detector", expected)
    return Detector(trained, trained.model, settings)


def load_detector(path: Path, catalog: Catalog, *, device: str = "auto") -> Detector:
    """Load a temporal detector from weights of `internvideo train`. Raises WeightsError."""
    return as_detector(load_trained(path, catalog, device=device), path)


def check_protocol(training_protocol: Mapping[str, Any], features: FeatureSet) -> None:
    """Raise RunError if the features were extracted with other settings than the training features."""
    # Without entries, grid and tiles are 1. Features of other programs have no protocol and are not checked.
    defaults = {"grid": 1, "tiles": 1}
    features_protocol, training_protocol = (
        {**defaults, **protocol} if protocol else {} for protocol in (features.protocol, training_protocol)
    )
    for key in COMPARED_KEYS:
        if key in training_protocol and key in features_protocol and training_protocol[key] != features_protocol[key]:
            found = f"features with {key} {json.dumps(features_protocol[key])[:24]}"
            raise RunError(features.source, found, f"{json.dumps(training_protocol[key])[:24]}, as in training")


def map_labels_to_classes(features: FeatureSet, classes: tuple[str, ...]) -> FeatureSet:
    """Convert labels to indices into a detector's classes, by class name.

    Raises:
        ManifestError: the detector lacks the class of an action.
    """
    if features.classes == classes:
        return features
    index_of = {name: index for index, name in enumerate(classes)}
    used = sorted({int(label) for video in features.videos for label in video.labels})
    unknown = [features.classes[label] for label in used if features.classes[label] not in index_of]
    if unknown:
        found = f"the detector was not trained on the class '{unknown[0]}'"
        raise ManifestError(features.source, found, f"the {len(classes)} classes of the weights")
    new_index = np.asarray([index_of.get(name, 0) for name in features.classes], dtype=np.int64)
    videos = tuple(replace(video, labels=new_index[video.labels]) for video in features.videos)
    return replace(features, videos=videos, classes=classes)


def evaluate(trained: Trained, manifest: Path, output: Path, settings: DetectionOptions, split: str | None) -> Result:
    """Write temporal_localization.npz and .json, detections.json and timelines.html; print the metrics.

    `manifest` is a folder of features, or its index, with the actions of its videos.
    Raises WeightsError, ManifestError, RunError, RecipeError.
    """
    detector = as_detector(trained, "weights")
    recipe = detector.trained.recipe
    feature_settings = recipe.data_as(FeatureData).features.model_copy(update={"annotations": None, "folder": None})
    features = map_labels_to_classes(read_feature_set(manifest, feature_settings), detector.trained.classes)
    check_protocol(trained.extra_metadata, features)
    if split is not None:
        features = features.subset(split)
    scores = settings.class_scores
    target = output / f"{localization.NAME}.npz"
    table = localization.predict(
        detector.model,
        features,
        feature_settings,
        detector.settings.decoding(num_classes=detector.model.config.num_classes),
        choose_device(settings.device),
        tiou_thresholds=detector.settings.tiou_thresholds,
        recall=detector.settings.recall_protocol,
        model_name=recipe.model.name,
        class_scores=None if scores is None else localization.read_class_scores(scores, features.classes),
    )

    def save() -> None:
        check_overwrite(target, table.protocol)
        table.save(target)
        # Before the metrics, which raise an error for a test set without annotations.
        write_text(output / "detections.json", json.dumps(localization.submission(table)) + "\n")

    distributed.on_rank_zero(save)
    result = localization.score(table)

    def report() -> None:
        save_result(result, target.with_suffix(".json"))
        write_plot(
            output / "timelines.html", lambda: timelines_html(timelines(table, localization.predicted_segments(table)))
        )
        print_result(result)

    distributed.on_rank_zero(report)
    return result


def timelines(table: Predictions, detections: Detections, title: str = "") -> list[str]:
    """Plot ground truth and detections of the first videos, one <svg> each; `title` is appended to the video's name."""
    classes, truth = table["classes"].tolist(), localization.ground_truth(table)
    svgs = []
    for index, name in enumerate(table["ids"].tolist()[:NUM_TIMELINES]):
        video_truth, video_detections = truth.take(truth.video == index), detections.take(detections.video == index)
        video_detections = video_detections.take(video_detections.score >= MIN_PLOTTED_SCORE)
        labeled = zip(video_truth.span.tolist(), video_truth.label, strict=True)
        actions_in_steps = [(*span, classes[label]) for span, label in labeled]
        scored = zip(video_detections.span.tolist(), video_detections.label, video_detections.score, strict=True)
        segments = [(*span, classes[label], float(score)) for span, label, score in scored]
        svgs.append(charts.timeline(float(table["duration"][index]), segments, actions_in_steps, f"{name}{title}"))
    return svgs


def timelines_html(pictures: Sequence[str]) -> str:
    """Return an HTML page with the plots one below the other."""
    body = "\n".join(f'<figure style="max-width: 60rem">{picture}</figure>' for picture in pictures)
    head = '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
    return f"{head}<title>Timelines</title>\n<body style='font-family: sans-serif'>\n{body}\n</body>\n"
