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
from internvideo.tasks.temporal_localization.data import FeatureSet, FeatureSettings, FeatureVideo, read_sequence
from internvideo.tasks.temporal_localization.model import ActionFormer
from internvideo.tasks.temporal_localization.nms import fuse_class_scores
from internvideo.tasks.temporal_localization.segment_decoding import DecodingSettings, detect

NAME = "temporal_localization"
FUSED_CLASSES = 2
"""Each class-agnostic segment gets this many of the video's top classes (ActionFormer)."""

RECALL_TIOU = 0.5
"""tIoU of the recall of moment queries."""

RecallProtocol = Literal["classes", "moments"]
RECALLS: dict[RecallProtocol, str] = {
    "classes": "mean over classes and tIoU, >=",
    "moments": "of all instances, > 0.5 of the hull (Ego4D)",
}
"""Definitions of recall, as text of the protocol."""

MATCHING = (
    "each prediction matches the best unmatched action of its class and video, tIoU >=; equal scores in file order; "
    "classes without an action left out"
)
"""Matching rule of the mAP, as text of the protocol."""

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


class Segments(NamedTuple):
    """Segments of a video by decreasing score: (N, 2) seconds, (N,) scores, (N,) class indices."""

    spans: Floats
    scores: Floats
    labels: Ints


def check_width(video: FeatureVideo, values: torch.Tensor, width: int) -> None:
    """Raise RunError if features (C, T) have another width than the model's."""
    if values.shape[0] != width:
        raise RunError(video.file, f"features of {values.shape[0]} channels", f"{width}, as in training")


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
        settings: of reading the features. decoding: settings of decoding.
        class_scores: (C,) of the whole video, to classify the segments of a class-agnostic model.

    Raises:
        RunError: the features cannot be read, or have another width.
    """
    features = read_sequence(video, settings)
    check_width(video, features.values, model.config.input_width)
    segments = Segments(*detect(model, features.values.to(device), features.grid, decoding))
    if class_scores is None:
        return segments
    return Segments(*fuse_class_scores(segments.spans, segments.scores, class_scores, num_classes=FUSED_CLASSES))


def read_class_scores(path: Path, classes: Sequence[str]) -> dict[str, Floats]:
    """Read video-level scores of a classifier, {"results": {video: [floats]}, "class": [names]}, as published.

    With "class" the columns are matched to `classes` by name; without it they must be those of `classes`, in order.

    Returns:
        video -> (C,) scores.

    Raises:
        ManifestError: the file cannot be read, lacks a class, or has a row of another length.
    """
    try:
        content = untrusted.read_json(path)
        scores_by_video: dict[str, Floats] = {
            name: np.asarray(row, dtype=np.float64).reshape(-1) for name, row in content["results"].items()
        }
        names = [str(name) for name in content.get("class", classes)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        expected = 'JSON: {"results": {video: [a score for each class]}}'
        raise ManifestError(path, f"no class scores ({error})", expected) from error
    missing_classes = [name for name in classes if name not in names]
    if missing_classes:
        raise ManifestError(
            path,
            f"no scores of {len(missing_classes)} classes, first '{missing_classes[0]}'",
            "every class of the videos",
        )
    for name, row in scores_by_video.items():
        if len(row) != len(names) or not np.isfinite(row).all():
            raise ManifestError(f"{path}: {name}", f"{len(row)} scores", f"{len(names)} finite numbers, one per class")
    columns = [names.index(name) for name in classes]
    return {name: row[columns] for name, row in scores_by_video.items()}


def predict(
    model: ActionFormer,
    features: FeatureSet,
    settings: FeatureSettings,
    decoding: DecodingSettings,
    device: torch.device,
    *,
    tiou_thresholds: Sequence[float],
    recall: RecallProtocol = "classes",
    model_name: str = "",
    class_scores: Mapping[str, Floats] | None = None,
) -> Predictions:
    """Find the segments of every video.

    Args:
        model: on `device`; put into evaluation mode.
        features: videos with their actions; labels are indices into the model's classes.
        settings, decoding: see `find_segments`. tiou_thresholds: of the mAP. recall: see `score`.
        model_name: for the protocol.
        class_scores: video -> (C,), for a class-agnostic model. Without them its segments are evaluated as proposals,
            with class-agnostic ground truth.

    Raises:
        RecipeError: a model with another number of classes, or a video without scores.
        RunError: the features of a video cannot be read.
    """
    num_classes = model.config.num_classes
    agnostic = num_classes == 1 and (settings.class_agnostic or len(features.classes) > 1)
    if not agnostic and num_classes != len(features.classes):
        raise RecipeError(features.source, f"{len(features.classes)} classes", f"{num_classes}, as the weights")
    if class_scores is not None and not agnostic:
        raise RecipeError("class scores", "given for a detector of several classes", "a class-agnostic detector")
    check_class_scores(class_scores, features)
    model.eval()
    segments_of_rank = {}
    for index in range(distributed.rank(), len(features), distributed.world_size()):
        video = features.videos[index]
        scores = None if class_scores is None else class_scores[video.id]
        segments_of_rank[index] = find_segments(model, video, settings, decoding, device, scores)
    segments_by_index = {
        index: segments
        for of_rank in distributed.all_gather_objects(segments_of_rank)
        for index, segments in of_rank.items()
    }
    segments = [segments_by_index[index] for index in range(len(features))]
    is_unlabeled = agnostic and class_scores is None
    classes = ("action",) if is_unlabeled else features.classes
    protocol = {
        **feature_protocol(model, features, model_name),
        "tiou": list(tiou_thresholds),
        "recall": RECALLS[recall],
        "classes": "none, proposals" if is_unlabeled else "scores of whole videos" if agnostic else "the detector's",
        "decoding": asdict(decoding),
    }
    return make_table(features, segments, classes, protocol)


def check_class_scores(class_scores: Mapping[str, Floats] | None, features: FeatureSet) -> None:
    """Raise RecipeError if scores are given, but not for every video."""
    missing = [video.id for video in features.videos if class_scores is not None and video.id not in class_scores]
    if missing:
        raise RecipeError("class scores", f"none for {len(missing)} videos, first '{missing[0]}'", "one row per video")


FEATURE_PROTOCOL_KEYS = ("model", "weights_sha256", "layer", "grid", "tiles", "window", "stride", "fps")


def feature_protocol(model: nn.Module, features: FeatureSet, model_name: str) -> dict[str, Any]:
    """Return the protocol entries that all tasks on features have: model, split and features."""
    return {
        "model": model_name,
        "weights_sha256": weights_hash(model),
        "split_sha256": features.fingerprint,
        "splits": sorted({video.subset for video in features.videos}),
        "source": str(features.source),
        "features": {key: features.protocol.get(key) for key in FEATURE_PROTOCOL_KEYS if key in features.protocol},
    }


def make_table(
    features: FeatureSet, segments_by_video: Sequence[Segments], classes: Sequence[str], protocol: Mapping[str, Any]
) -> Predictions:
    """Build the table of segments and ground truth; if `classes` has one class, all ground truth gets it."""
    truths = [np.zeros_like(video.labels) if len(classes) == 1 else video.labels for video in features.videos]
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.asarray([video.id for video in features.videos]),
        "duration": np.asarray([video.duration for video in features.videos]),
        "classes": np.asarray(classes),
        "video": _video_indices(segments.scores for segments in segments_by_video),
        "span": np.concatenate([np.zeros((0, 2)), *(segments.spans for segments in segments_by_video)]),
        "score": np.concatenate([np.zeros(0), *(segments.scores for segments in segments_by_video)]),
        "label": np.concatenate([np.zeros(0, np.int64), *(segments.labels for segments in segments_by_video)]),
        "truth_video": _video_indices(truths),
        "truth_span": np.concatenate([np.zeros((0, 2)), *(video.spans for video in features.videos)]),
        "truth_label": np.concatenate([np.zeros(0, np.int64), *truths]),
    }
    unreadable = [{"id": name, "path": "", "reason": "no features"} for name in features.missing]
    coverage = {"asked": len(features) + len(unreadable), "read": len(features), "unreadable": unreadable}
    return Predictions(NAME, arrays, dict(protocol), coverage)


def _video_indices(columns: Iterable[NDArray[Any]]) -> Ints:
    sizes = [len(column) for column in columns]
    return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)


def ground_truth(table: Predictions) -> Detections:
    """Return the ground truth of a table."""
    count = len(table["truth_video"])
    return Detections(table["truth_video"], table["truth_label"], table["truth_span"], np.zeros(count))


def predicted_segments(table: Predictions) -> Detections:
    """Return the predictions of a table."""
    return Detections(table["video"], table["label"], table["span"], table["score"])


def score(table: Predictions) -> Result:
    """Compute mAP per tIoU, mean_mAP over them, and recall with 1 and 5 predictions per ground-truth segment.

    Recall is the mean over classes and tIoU thresholds; with the protocol of Ego4D's moment queries (arXiv 2211.09529)
    it is computed over all instances at a tIoU above 0.5, with the hull as union. Intervals resample videos. Raises
    RunError for a table without ground truth.
    """
    truth, predicted = ground_truth(table), predicted_segments(table)
    if not len(truth):
        raise RunError("table", "no video has an action to find", "", "evaluate on a split with segments")
    tiou_thresholds = [float(threshold) for threshold in table.protocol["tiou"]]
    precision = average_precision(truth, predicted, tiou_thresholds)[0].mean(axis=1)
    num_videos = len(table["ids"])
    bounds = bootstrap.interval(map_statistic(truth, predicted, tiou_thresholds, num_videos), num_videos)
    metrics = MetricValues()
    metrics.add("mean_mAP", precision.mean(), bounds[:, -1])
    for index, overlap in enumerate(tiou_thresholds):
        metrics.add(f"mAP@{overlap:g}", precision[index], bounds[:, index])
    if table.protocol.get("recall") == RECALLS["moments"]:
        recall = recall_at_multiples(truth, predicted, (RECALL_TIOU,), average="instances", strict=True, union="hull")
    else:
        recall = recall_at_multiples(truth, predicted, tiou_thresholds)
    for column, k in enumerate((1, 5)):
        metrics.add(f"recall_{k}x", recall[:, column].mean())
    return metrics.result(table, videos=num_videos, actions=len(truth), segments=len(predicted), matching=MATCHING)


def submission(table: Predictions) -> dict[str, Any]:
    """Return the predictions in ActivityNet's format, {"results": {video: [{label, score, segment}]}, ...}."""
    names, classes = table["ids"].tolist(), table["classes"].tolist()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    rows = zip(table["video"], table["label"], table["score"], table["span"].tolist(), strict=True)
    for video, label, value, span in rows:
        results[names[video]].append({"label": classes[label], "score": float(value), "segment": span})
    return {"version": "1.3", "results": results, "external_data": dict(table.protocol)}
