"""Temporal localization: predict segments with class and score; mAP over tIoU, recall (ActionFormer)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from internvideo import distributed, untrusted
from internvideo.errors import ManifestError, RecipeError, RunError
from internvideo.metrics import bootstrap
from internvideo.metrics.temporal_detection import Detections, average_precision, map_statistic, recall_at_multiples
from internvideo.tasks.protocol import weights_hash
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.temporal_localization.data import FeatureSet, FeatureSettings, FeatureVideo, sequence
from internvideo.tasks.temporal_localization.model import ActionFormer
from internvideo.tasks.temporal_localization.nms import fuse_class_scores
from internvideo.tasks.temporal_localization.segment_decoding import DecodingSettings, detect

NAME = "temporal_localization"
FUSED_CLASSES = 2
"""Number of a video's top classes assigned to its class-agnostic segments (ActionFormer)."""

RECALL_OVERLAP = 0.5
"""tIoU of the recall of moment queries."""

Recall = Literal["classes", "moments"]
RECALLS: dict[Recall, str] = {
    "classes": "mean over classes and tIoU, >=",
    "moments": "of all instances, > 0.5 of the hull (Ego4D)",
}
"""Definitions of recall, as text of the protocol."""

MATCHING = (
    "each prediction the best free action of its class and video, tIoU >=; equal scores in file order; "
    "classes without an action left out"
)
"""Matching rule of the mAP, as text of the protocol."""

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


class Segments(NamedTuple):
    """Segments of a video, best first: (N, 2) seconds, (N,) scores, (N,) class indices."""

    spans: Floats
    scores: Floats
    labels: Ints


def check_width(video: FeatureVideo, values: torch.Tensor, width: int) -> None:
    """Raise RunError if features (C, T) have another width than the model's."""
    if values.shape[0] != width:
        raise RunError(video.file, f"features of {values.shape[0]} channels", f"{width}, which the model learned from")


def find_segments(
    model: ActionFormer,
    video: FeatureVideo,
    settings: FeatureSettings,
    decoding: DecodingSettings,
    device: torch.device,
    class_scores: Floats | None = None,
) -> Segments:
    """Find the segments of one video.

    Args:
        model: in evaluation mode, on `device`. video: its features and their grid.
        settings: reading of features. decoding: settings of decoding.
        class_scores: (C,) of the whole video, for a class-agnostic model: its segments get the top classes.

    Raises:
        RunError: features that cannot be read, or of another width.
    """
    made = sequence(video, settings)
    check_width(video, made.values, model.config.input_width)
    found = Segments(*detect(model, made.values.to(device), made.grid, decoding))
    if class_scores is None:
        return found
    return Segments(*fuse_class_scores(found.spans, found.scores, class_scores, num_classes=FUSED_CLASSES))


def read_class_scores(path: Path, classes: Sequence[str]) -> dict[str, Floats]:
    """Read another model's video-level scores, {"results": {video: [floats]}, "class": [names]}, as published.

    With "class" the columns of `classes` are selected by name; without it the file must have one column per class, in
    the order of `classes`.

    Returns:
        video -> (C,) scores.

    Raises:
        ManifestError: a file that cannot be read, without some class, or with rows of another length.
    """
    try:
        content = untrusted.read_json(path)
        found: dict[str, Floats] = {
            name: np.asarray(row, dtype=np.float64).reshape(-1) for name, row in content["results"].items()
        }
        names = [str(name) for name in content.get("class", classes)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        expected = 'JSON: {"results": {video: [a score for each class]}}'
        raise ManifestError(path, f"no class scores ({error})", expected) from error
    lost = [name for name in classes if name not in names]
    if lost:
        raise ManifestError(path, f"no scores of {len(lost)} classes, first '{lost[0]}'", "every class of the videos")
    for name, row in found.items():
        if len(row) != len(names) or not np.isfinite(row).all():
            raise ManifestError(f"{path}: {name}", f"{len(row)} scores", f"{len(names)} finite numbers, one a class")
    columns = [names.index(name) for name in classes]
    return {name: row[columns] for name, row in found.items()}


def predict(
    model: ActionFormer,
    features: FeatureSet,
    settings: FeatureSettings,
    decoding: DecodingSettings,
    device: torch.device,
    *,
    tiou_thresholds: Sequence[float],
    recall: Recall = "classes",
    model_name: str = "",
    class_scores: Mapping[str, Floats] | None = None,
) -> Predictions:
    """Find the segments of every video.

    Args:
        model: on `device`; put into evaluation mode.
        features: videos with their actions, in the model's classes.
        settings, decoding: see `find_segments`. tiou_thresholds: tIoU thresholds of the mAP. recall: see `score`.
        model_name: for the protocol.
        class_scores: for a class-agnostic model, video -> (C,). Without them its segments are scored as proposals
            against class-agnostic ground truth.

    Raises:
        RecipeError: a model with another number of classes, or no scores of a video.
        RunError: features that cannot be read.
    """
    count = model.config.num_classes
    agnostic = count == 1 and (settings.class_agnostic or len(features.classes) > 1)
    if not agnostic and count != len(features.classes):
        raise RecipeError(features.source, f"{len(features.classes)} classes", f"{count}, as the weights")
    if class_scores is not None and not agnostic:
        raise RecipeError("class scores", "for a detector with classes of its own", "one of a single class")
    check_class_scores(class_scores, features)
    model.eval()
    own = {}
    for index in range(distributed.rank(), len(features), distributed.world_size()):
        video = features.videos[index]
        scores = None if class_scores is None else class_scores[video.id]
        own[index] = find_segments(model, video, settings, decoding, device, scores)
    whole = {index: segments for share in distributed.all_gather_objects(own) for index, segments in share.items()}
    found = [whole[index] for index in range(len(features))]
    nameless = agnostic and class_scores is None
    classes = ("action",) if nameless else features.classes
    protocol = {
        **feature_facts(model, features, model_name),
        "tiou": list(tiou_thresholds),
        "recall": RECALLS[recall],
        "classes": "none, proposals" if nameless else "scores of whole videos" if agnostic else "the detector's",
        "decoding": asdict(decoding),
    }
    return make_table(features, found, classes, protocol)


def check_class_scores(class_scores: Mapping[str, Floats] | None, features: FeatureSet) -> None:
    """Raise RecipeError if scores are given, but not for every video."""
    lost = [video.id for video in features.videos if class_scores is not None and video.id not in class_scores]
    if lost:
        raise RecipeError("class scores", f"none for {len(lost)} videos, first '{lost[0]}'", "one row a video")


FEATURE_FACTS = ("model", "weights_sha256", "layer", "grid", "tiles", "window", "stride", "fps")


def feature_facts(model: nn.Module, features: FeatureSet, model_name: str) -> dict[str, Any]:
    """Return the part of the protocol that tasks on features share: model, split and features."""
    return {
        "model": model_name,
        "weights_sha256": weights_hash(model),
        "split_sha256": features.fingerprint,
        "splits": sorted({video.subset for video in features.videos}),
        "source": str(features.source),
        "features": {key: features.protocol.get(key) for key in FEATURE_FACTS if key in features.protocol},
    }


def make_table(
    features: FeatureSet, found: Sequence[Segments], classes: Sequence[str], protocol: Mapping[str, Any]
) -> Predictions:
    """Build the table of segments and ground truth; with one class in `classes` all ground truth has that class."""
    truths = [np.zeros_like(video.labels) if len(classes) == 1 else video.labels for video in features.videos]
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.asarray([video.id for video in features.videos]),
        "duration": np.asarray([video.duration for video in features.videos]),
        "classes": np.asarray(classes),
        "video": _owners(found_in.scores for found_in in found),
        "span": np.concatenate([np.zeros((0, 2)), *(segments.spans for segments in found)]),
        "score": np.concatenate([np.zeros(0), *(segments.scores for segments in found)]),
        "label": np.concatenate([np.zeros(0, np.int64), *(segments.labels for segments in found)]),
        "truth_video": _owners(truths),
        "truth_span": np.concatenate([np.zeros((0, 2)), *(video.spans for video in features.videos)]),
        "truth_label": np.concatenate([np.zeros(0, np.int64), *truths]),
    }
    lost = [{"id": name, "path": "", "reason": "no features"} for name in features.missing]
    coverage = {"asked": len(features) + len(lost), "read": len(features), "unreadable": lost}
    return Predictions(NAME, arrays, dict(protocol), coverage)


def _owners(columns: Iterable[NDArray[Any]]) -> Ints:
    sizes = [len(column) for column in columns]
    return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)


def truth_of(table: Predictions) -> Detections:
    """Return the ground truth of a table."""
    count = len(table["truth_video"])
    return Detections(table["truth_video"], table["truth_label"], table["truth_span"], np.zeros(count))


def found_of(table: Predictions) -> Detections:
    """Return the predictions of a table."""
    return Detections(table["video"], table["label"], table["span"], table["score"])


def score(table: Predictions) -> Result:
    """Compute mAP per tIoU, mean_mAP over them, and recall with 1 and 5 predictions per ground-truth segment.

    Recall is the mean over classes and tIoU; for moment queries (Ego4D, arXiv 2211.09529) it is over all instances at
    a tIoU above 0.5, with the hull as union. Intervals resample videos. Raises RunError for a table without ground
    truth.
    """
    truth, predicted = truth_of(table), found_of(table)
    if not len(truth):
        raise RunError("table", "no video has an action to find", "", "evaluate on a split with segments")
    tiou_thresholds = [float(level) for level in table.protocol["tiou"]]
    precision = average_precision(truth, predicted, tiou_thresholds)[0].mean(axis=1)
    videos = len(table["ids"])
    bounds = bootstrap.interval(map_statistic(truth, predicted, tiou_thresholds, videos), videos)
    metrics = MetricValues()
    metrics.add("mean_mAP", precision.mean(), bounds[:, -1])
    for level, overlap in enumerate(tiou_thresholds):
        metrics.add(f"mAP@{overlap:g}", precision[level], bounds[:, level])
    if table.protocol.get("recall") == RECALLS["moments"]:
        reached = recall_at_multiples(
            truth, predicted, (RECALL_OVERLAP,), average="instances", strict=True, union="hull"
        )
    else:
        reached = recall_at_multiples(truth, predicted, tiou_thresholds)
    for column, k in enumerate((1, 5)):
        metrics.add(f"recall_{k}x", reached[:, column].mean())
    return metrics.result(table, videos=videos, actions=len(truth), segments=len(predicted), matching=MATCHING)


def submission(table: Predictions) -> dict[str, Any]:
    """Return the predictions in ActivityNet's format, {"results": {video: [{label, score, segment}]}, ...}."""
    names, classes = table["ids"].tolist(), table["classes"].tolist()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    rows = zip(table["video"], table["label"], table["score"], table["span"].tolist(), strict=True)
    for video, label, value, span in rows:
        results[names[video]].append({"label": classes[label], "score": float(value), "segment": span})
    return {"version": "1.3", "results": results, "external_data": dict(table.protocol)}
