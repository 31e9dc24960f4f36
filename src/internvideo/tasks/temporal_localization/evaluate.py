"""A trained detector on a folder of features: table, figures, detections, a timeline of every video."""

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
from internvideo.plots.style import write_picture
from internvideo.storage import write_text
from internvideo.tasks.table import Predictions, Result, print_result, save_result
from internvideo.tasks.task import EvaluateOptions
from internvideo.tasks.temporal_localization import predict as localization
from internvideo.tasks.temporal_localization.build import FeatureData
from internvideo.tasks.temporal_localization.data import FeatureSet, read_feature_set
from internvideo.tasks.temporal_localization.model import ActionFormer
from internvideo.tasks.temporal_localization.stage import LocalizationSettings
from internvideo.training.recipe import Catalog
from internvideo.training.trained import Trained, load_trained

SHOWN = 24
"""Timelines that an evaluation draws."""

LIKELY = 0.2
"""Segments below this score are not drawn."""

SAME = ("weights_sha256", "layer", "grid", "tiles", "window", "stride", "fps")
"""What features must share with those that a model learned from."""

PARTS = {"weights": "weights_sha256", "videos": "split_sha256", "proposals": "proposals_sha256"}
"""What only a table of the same measurement shares, and where its protocol tells it."""


@dataclass(frozen=True, kw_only=True)
class DetectionOptions(EvaluateOptions):
    """Options of the evaluation."""

    class_scores: Annotated[Path | None, "JSON of whole videos' class scores for class-agnostic segments."] = None


@dataclass(frozen=True)
class Detector:
    """A trained detector with its settings."""

    trained: Trained
    model: ActionFormer
    settings: LocalizationSettings


def detector_of(trained: Trained, where: object) -> Detector:
    """A trained model as a detector. Raises WeightsError for anything else."""
    settings = trained.recipe.settings
    if not isinstance(trained.model, ActionFormer) or not isinstance(settings, LocalizationSettings):
        allowed = "weights of a recipe with stage: temporal_localization"
        raise WeightsError(where, f"holds a {type(trained.model).__name__}, no detector", allowed)
    return Detector(trained, trained.model, settings)


def load_detector(path: Path, catalog: Catalog, *, device: str = "auto") -> Detector:
    """Read a detector that `internvideo train` wrote. Raises WeightsError for anything else."""
    return detector_of(load_trained(path, catalog, device=device), path)


def check_protocol(learned: Mapping[str, Any], features: FeatureSet) -> None:
    """Raise RunError for features made otherwise than those that a model learned from, which `learned` tells."""
    # Without a grid or tiles nothing is told of them; features that others made tell nothing at all.
    alone = {"grid": 1, "tiles": 1}
    given, learned = ({**alone, **told} if told else {} for told in (features.protocol, learned))
    for key in SAME:
        if key in learned and key in given and learned[key] != given[key]:
            found = f"features with {key} {json.dumps(given[key])[:24]}"
            raise RunError(features.source, found, f"{json.dumps(learned[key])[:24]}, as the model learned from")


def under_classes(features: FeatureSet, classes: tuple[str, ...]) -> FeatureSet:
    """The same with labels as indices into a detector's classes, found by name.

    Raises:
        ManifestError: an action of a class that the detector does not know.
    """
    if features.classes == classes:
        return features
    place = {name: index for index, name in enumerate(classes)}
    used = sorted({int(label) for video in features.videos for label in video.labels})
    unknown = [features.classes[label] for label in used if features.classes[label] not in place]
    if unknown:
        found = f"the detector was not trained on the class '{unknown[0]}'"
        raise ManifestError(features.source, found, f"the {len(classes)} classes of the weights")
    moved = np.asarray([place.get(name, 0) for name in features.classes], dtype=np.int64)
    videos = tuple(replace(video, labels=moved[video.labels]) for video in features.videos)
    return replace(features, videos=videos, classes=classes)


def evaluate(trained: Trained, manifest: Path, output: Path, settings: DetectionOptions, split: str | None) -> Result:
    """Write temporal_localization.npz and .json, detections.json (ActivityNet's form) and timelines; print the figures.

    Args:
        trained: a detector. manifest: folder of features, or its index, with the actions of its videos.
        output: folder. settings: device and class scores. split: only its videos.

    Raises:
        WeightsError, ManifestError, RunError, RecipeError: what does not fit together.
    """
    detector = detector_of(trained, "weights")
    recipe = detector.trained.recipe
    how = recipe.data_as(FeatureData).features.model_copy(update={"annotations": None, "folder": None})
    features = under_classes(read_feature_set(manifest, how), detector.trained.classes)
    check_protocol(trained.context, features)
    if split is not None:
        features = features.subset(split)
    fused = None
    if settings.class_scores is not None:
        fused = localization.read_class_scores(settings.class_scores, features.classes)
    target = output / f"{localization.NAME}.npz"
    table = localization.predict(
        detector.model,
        features,
        how,
        detector.settings.decoding(classes=detector.model.config.classes),
        choose_device(settings.device),
        tiou_thresholds=detector.settings.tiou_thresholds,
        recall=detector.settings.recall_protocol,
        model_name=recipe.model.name,
        class_scores=fused,
    )

    def keep() -> None:
        check_output(target, table)
        table.save(target)
        # Before the figures: videos whose actions nobody knows have detections all the same.
        write_text(output / "detections.json", json.dumps(localization.submission(table)) + "\n")

    distributed.first_alone(keep)
    result = localization.score(table)

    def tell() -> None:
        save_result(result, target.with_suffix(".json"))
        draw(table, output / "timelines.html")
        print_result(result)

    distributed.first_alone(tell)
    return result


def check_output(target: Path, table: Predictions) -> None:
    """Raise RunError where the table of another measurement lies."""
    if not target.exists():
        return
    try:
        known: Any = Predictions.load(target).protocol
    except RunError:
        known = {}
    others = [part for part, key in PARTS.items() if known.get(key) != table.protocol.get(key)]
    if others:
        raise RunError(target, f"holds a table of other {' and other '.join(others)}", "", "choose another --output")


def draw(table: Predictions, target: Path) -> None:
    """The timelines of a table's first videos as one page. Raises RunError."""
    write_picture(target, lambda: page(timelines(table, localization.found_of(table))))


def timelines(table: Predictions, found: Detections, title: str = "") -> list[str]:
    """Truth and segments of a table's first videos, an <svg> each; `title` stands behind their names."""
    classes, truth = table["classes"].tolist(), localization.truth_of(table)
    parts = []
    for number, name in enumerate(table["ids"].tolist()[:SHOWN]):
        own, seen = truth.take(truth.video == number), found.take(found.video == number)
        seen = seen.take(seen.score >= LIKELY)
        actions = [(*span, classes[label]) for span, label in zip(own.span.tolist(), own.label, strict=True)]
        likely = [
            (*span, classes[label], float(score))
            for span, label, score in zip(seen.span.tolist(), seen.label, seen.score, strict=True)
        ]
        parts.append(figures.timeline(float(table["duration"][number]), likely, actions, f"{name}{title}"))
    return parts


def page(pictures: Sequence[str]) -> str:
    """Pictures under one another as an HTML page."""
    body = "\n".join(f'<figure style="max-width: 60rem">{picture}</figure>' for picture in pictures)
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>Timelines</title>'
    )
    return f"{head}\n<body style='font-family: sans-serif'>\n{body}\n</body>\n"
