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
from internvideo.plots import charts as figures
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

SHOWN = 24
"""Number of timelines that are drawn."""

MIN_SCORE_SHOWN = 0.2
"""Segments of lower scores are not drawn."""

SAME = ("weights_sha256", "layer", "grid", "tiles", "window", "stride", "fps")
"""Protocol entries that must agree with those of the training features."""


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


def detector_of(trained: Trained, where: object) -> Detector:
    """Check that a trained model is a temporal detector, and return it as one. Raises WeightsError."""
    settings = trained.recipe.settings
    if not isinstance(trained.model, ActionFormer) or not isinstance(settings, LocalizationSettings):
        expected = "weights of a recipe with stage: temporal_localization"
        raise WeightsError(where, f"a {type(trained.model).__name__} is no temporal detector", expected)
    return Detector(trained, trained.model, settings)


def load_detector(path: Path, catalog: Catalog, *, device: str = "auto") -> Detector:
    """Load a temporal detector from weights of `internvideo train`. Raises WeightsError: another model."""
    return detector_of(load_trained(path, catalog, device=device), path)


def check_protocol(learned: Mapping[str, Any], features: FeatureSet) -> None:
    """Raise RunError if features were made in another way than the training features, of protocol `learned`."""
    # A protocol without grid and tiles means 1; features of other programs have no protocol and are not checked.
    defaults = {"grid": 1, "tiles": 1}
    given, learned = ({**defaults, **protocol} if protocol else {} for protocol in (features.protocol, learned))
    for key in SAME:
        if key in learned and key in given and learned[key] != given[key]:
            found = f"features with {key} {json.dumps(given[key])[:24]}"
            raise RunError(features.source, found, f"{json.dumps(learned[key])[:24]}, as in training")


def under_classes(features: FeatureSet, classes: tuple[str, ...]) -> FeatureSet:
    """Map labels to indices into a detector's classes, by name.

    Raises:
        ManifestError: an action of a class that the detector does not have.
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
    detector = detector_of(trained, "weights")
    recipe = detector.trained.recipe
    feature_settings = recipe.data_as(FeatureData).features.model_copy(update={"annotations": None, "folder": None})
    features = under_classes(read_feature_set(manifest, feature_settings), detector.trained.classes)
    check_protocol(trained.context, features)
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
        write_plot(output / "timelines.html", lambda: page(timelines(table, localization.found_of(table))))
        print_result(result)

    distributed.on_rank_zero(report)
    return result


def timelines(table: Predictions, detections: Detections, title: str = "") -> list[str]:
    """Draw ground truth and detections of the first videos, one <svg> each; `title` is appended to their names."""
    classes, truth = table["classes"].tolist(), localization.truth_of(table)
    parts = []
    for number, name in enumerate(table["ids"].tolist()[:SHOWN]):
        video_truth, video_detections = truth.take(truth.video == number), detections.take(detections.video == number)
        video_detections = video_detections.take(video_detections.score >= MIN_SCORE_SHOWN)
        labeled = zip(video_truth.span.tolist(), video_truth.label, strict=True)
        actions = [(*span, classes[label]) for span, label in labeled]
        scored = zip(video_detections.span.tolist(), video_detections.label, video_detections.score, strict=True)
        segments = [(*span, classes[label], float(score)) for span, label, score in scored]
        parts.append(figures.timeline(float(table["duration"][number]), segments, actions, f"{name}{title}"))
    return parts


def page(pictures: Sequence[str]) -> str:
    """Return an HTML page with the drawings one below the other."""
    body = "\n".join(f'<figure style="max-width: 60rem">{picture}</figure>' for picture in pictures)
    head = '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
    return f"{head}<title>Timelines</title>\n<body style='font-family: sans-serif'>\n{body}\n</body>\n"
