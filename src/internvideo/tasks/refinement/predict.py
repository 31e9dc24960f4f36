"""Refine the segments of a detector: mAP of the refined segments and of the original proposals (TCANet)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from internvideo.errors import RecipeError, RunError
from internvideo.metrics import bootstrap
from internvideo.metrics.temporal_detection import Detections, average_precision, map_statistic, tiou
from internvideo.tasks.refinement.data import Proposals, ProposalSet, read_padded_sequence
from internvideo.tasks.refinement.model import TCANet
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.temporal_localization import predict as localization
from internvideo.tasks.temporal_localization.data import FeatureSet, FeatureSettings, FeatureVideo
from internvideo.tasks.temporal_localization.nms import SuppressionSettings, fuse_class_scores, soft_nms
from internvideo.tasks.temporal_localization.predict import (
    FUSED_CLASSES,
    Segments,
    check_class_scores,
    check_width,
    feature_protocol,
    make_table,
)

NAME = "refinement"
ORIGINAL_PREFIX = "before_"
"""Prefix of the arrays and metrics of the original proposals."""

COLUMNS = ("video", "span", "score", "label")

Floats = NDArray[np.floating[Any]]


@torch.no_grad()
def refine(
    model: TCANet,
    video: FeatureVideo,
    proposals: Proposals,
    settings: FeatureSettings,
    device: torch.device,
    quality_power: float = 1.0,
) -> Segments:
    """Refine the ends of a video's proposals; score = detector score * quality ^ `quality_power` (last regressor).

    Args:
        model: in evaluation mode, on `device`. video: with features. proposals: of the video.
        settings: of reading the features.

    Raises:
        RunError: the features cannot be read, or have another width.
    """
    features = read_padded_sequence(video, settings)
    check_width(video, features.values, model.config.input_width)
    if not len(proposals):
        return Segments(proposals.spans, proposals.scores, proposals.labels)
    step = model.config.seconds_per_feature
    positions = torch.from_numpy(features.positions(proposals.spans)).float().to(device) * step
    video_index = torch.zeros(len(positions), dtype=torch.long, device=device)
    outputs, refined = model(features.values[None].to(device), video_index, positions)
    spans = features.seconds((refined.double().cpu() / step).numpy())
    scores = proposals.scores * outputs[-1].quality.double().sigmoid().cpu().numpy() ** quality_power
    is_valid = spans[:, 1] > spans[:, 0]
    return Segments(spans[is_valid], scores[is_valid], proposals.labels[is_valid])


def predict(
    model: TCANet,
    features: FeatureSet,
    proposals: ProposalSet,
    settings: FeatureSettings,
    suppression: SuppressionSettings,
    device: torch.device,
    *,
    tiou_thresholds: Sequence[float],
    quality_power: float = 1.0,
    model_name: str = "",
    class_scores: Mapping[str, Floats] | None = None,
) -> Predictions:
    """Refine the proposals of every video, apply NMS, and store the original proposals too.

    Args:
        model: on `device`; put into evaluation mode.
        features: videos with their actions. proposals: of these videos, with the same classes or class-agnostic.
        settings: of reading the features. suppression: NMS of the refined segments. tiou_thresholds: of the mAP.
        quality_power: see `refine`. model_name: for the protocol.
        class_scores: video -> (C,), to classify class-agnostic segments before and after. Without them such segments
            are evaluated as proposals, with class-agnostic ground truth.

    Raises:
        RecipeError: class scores for proposals that have classes, or a video without class scores.
        RunError: the features of a video cannot be read.
    """
    is_unlabeled = proposals.classes != features.classes
    if class_scores is not None and not is_unlabeled:
        raise RecipeError("class scores", "given for proposals with classes", "proposals without classes")
    check_class_scores(class_scores, features)
    model.eval()
    segments_before: list[Segments] = []
    segments_after: list[Segments] = []
    for video in features.videos:
        video_proposals = proposals.for_video(video)
        refined = Segments(
            *soft_nms(*refine(model, video, video_proposals, settings, device, quality_power), suppression)
        )
        for segments_list, segments in (
            (segments_before, Segments(video_proposals.spans, video_proposals.scores, video_proposals.labels)),
            (segments_after, refined),
        ):
            if class_scores is not None:
                scores = class_scores[video.id]
                segments = Segments(*fuse_class_scores(*segments[:2], scores, num_classes=FUSED_CLASSES))
            segments_list.append(segments)
    evaluate_as_proposals = is_unlabeled and class_scores is None
    classes = proposals.classes if evaluate_as_proposals else features.classes
    num_without_proposals = sum(not len(proposals.for_video(video)) for video in features.videos)
    protocol = {
        **feature_protocol(model, features, model_name),
        **proposals.provenance,
        "videos_without_proposals": num_without_proposals,
        "tiou": list(tiou_thresholds),
        "classes": "none, proposals"
        if evaluate_as_proposals
        else "scores of whole videos"
        if is_unlabeled
        else "the proposals'",
        "quality_power": quality_power,
        "suppression": asdict(suppression),
    }
    table, table_before = (
        make_table(features, segments_list, classes, protocol) for segments_list in (segments_after, segments_before)
    )
    return replace(
        table, task=NAME, arrays={**table.arrays, **{ORIGINAL_PREFIX + name: table_before[name] for name in COLUMNS}}
    )


def original_segments(table: Predictions) -> Detections:
    """Return the original proposals of a table."""
    return Detections(*(table[ORIGINAL_PREFIX + name] for name in ("video", "label", "span", "score")))


def score(table: Predictions) -> Result:
    """Compute mean_mAP and mAP at each tIoU threshold, of the refined and (before_) of the original segments.

    gain: difference of the two mean_mAP. reached: mean over the actions of `best_tiou`. Intervals resample videos, the
    same ones before and after. Raises RunError for a table without ground truth.
    """
    truth, after, before = (
        localization.ground_truth(table),
        localization.predicted_segments(table),
        original_segments(table),
    )
    if not len(truth):
        raise RunError("table", "no video has an action to find", "", "evaluate on a split with segments")
    tiou_thresholds = [float(threshold) for threshold in table.protocol["tiou"]]
    num_videos = len(table["ids"])
    statistics = [map_statistic(truth, segments, tiou_thresholds, num_videos) for segments in (before, after)]

    def before_and_after(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        old, new = (statistic(weights) for statistic in statistics)
        return np.concatenate([old, new, new[:, -1:] - old[:, -1:]], axis=1)

    bounds = bootstrap.interval(before_and_after, num_videos)
    means, metrics = [], MetricValues()
    for index, (prefix, segments) in enumerate(((ORIGINAL_PREFIX, before), ("", after))):
        precision = average_precision(truth, segments, tiou_thresholds)[0].mean(axis=1)
        means.append(precision.mean())
        first_column = index * (len(tiou_thresholds) + 1)
        metrics.add(f"{prefix}mean_mAP", means[-1], bounds[:, first_column + len(tiou_thresholds)])
        for threshold_index, threshold in enumerate(tiou_thresholds):
            metrics.add(
                f"{prefix}mAP@{threshold:g}", precision[threshold_index], bounds[:, first_column + threshold_index]
            )
        metrics.add(f"{prefix}reached", float(best_tiou(truth, segments).mean()))
    metrics.add("gain", means[1] - means[0], bounds[:, -1])
    counts = {"actions": len(truth), "proposals_before": len(before), "segments_after": len(after)}
    return metrics.result(table, videos=num_videos, **counts, matching=localization.MATCHING)


def best_tiou(truth: Detections, segments: Detections) -> NDArray[np.float64]:
    """Return for each action the largest tIoU with any segment of its video, of any class."""
    best = np.zeros(len(truth))
    for video in np.unique(truth.video):
        is_of_video = truth.video == video
        spans = segments.span[segments.video == video]
        if len(spans):
            best[is_of_video] = tiou(spans, truth.span[is_of_video]).max(axis=0)
    return best
