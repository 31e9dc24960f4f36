"""Refinement of another detector's segments: mAP of the refined segments and of the original proposals (TCANet)."""

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
from internvideo.tasks.refinement.data import Proposals, ProposalSet, whole_sequence
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
    feature_facts,
    make_table,
)

NAME = "refinement"
BEFORE = "before_"
"""Prefix of the table's columns and of the metrics of the original proposals."""

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
    """Refine a video's proposals in order: new ends, score = old score * last regressor's quality ^ `quality_power`.

    Args:
        model: in evaluation mode, on `device`. video: its features. proposals: of the video. settings: of reading.

    Raises:
        RunError: features that cannot be read, or of another width.
    """
    made = whole_sequence(video, settings)
    check_width(video, made.values, model.config.input_width)
    if not len(proposals):
        return Segments(proposals.spans, proposals.scores, proposals.labels)
    step = model.config.seconds_per_feature
    places = torch.from_numpy(made.positions(proposals.spans)).float().to(device) * step
    rows = torch.zeros(len(places), dtype=torch.long, device=device)
    outputs, refined = model(made.values[None].to(device), rows, places)
    spans = made.seconds((refined.double().cpu() / step).numpy())
    scores = proposals.scores * outputs[-1].quality.double().sigmoid().cpu().numpy() ** quality_power
    inside = spans[:, 1] > spans[:, 0]
    return Segments(spans[inside], scores[inside], proposals.labels[inside])


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
        settings: reading of features. suppression: NMS of the refined segments. tiou_thresholds: of the mAP.
        quality_power: see `refine`. model_name: for the protocol.
        class_scores: for class-agnostic proposals, video -> (C,), classes of the segments before and after. Without
            them such segments are scored as proposals against class-agnostic ground truth.

    Raises:
        RecipeError: class scores for proposals that have classes, or not for every video.
        RunError: features that cannot be read.
    """
    nameless = proposals.classes != features.classes
    if class_scores is not None and not nameless:
        raise RecipeError("class scores", "for proposals with classes of their own", "proposals without classes")
    check_class_scores(class_scores, features)
    model.eval()
    before: list[Segments] = []
    after: list[Segments] = []
    for video in features.videos:
        own = proposals.of(video)
        refined = Segments(*soft_nms(*refine(model, video, own, settings, device, quality_power), suppression))
        for found, segments in ((before, Segments(own.spans, own.scores, own.labels)), (after, refined)):
            if class_scores is not None:
                scores = class_scores[video.id]
                segments = Segments(*fuse_class_scores(*segments[:2], scores, num_classes=FUSED_CLASSES))
            found.append(segments)
    unnamed = nameless and class_scores is None
    classes = proposals.classes if unnamed else features.classes
    without = sum(not len(proposals.of(video)) for video in features.videos)
    protocol = {
        **feature_facts(model, features, model_name),
        **proposals.about,
        "videos_without_proposals": without,
        "tiou": list(tiou_thresholds),
        "classes": "none, proposals" if unnamed else "scores of whole videos" if nameless else "the proposals'",
        "quality_power": quality_power,
        "suppression": asdict(suppression),
    }
    table, old = (make_table(features, found, classes, protocol) for found in (after, before))
    return replace(table, task=NAME, arrays={**table.arrays, **{BEFORE + name: old[name] for name in COLUMNS}})


def before_of(table: Predictions) -> Detections:
    """Return the original proposals of a table."""
    return Detections(*(table[BEFORE + name] for name in ("video", "label", "span", "score")))


def score(table: Predictions) -> Result:
    """Compute mAP before and after: mean_mAP and mAP at every tIoU; "gain" is the difference of the means.

    "reached" is the mean over actions of the best tIoU of any segment of their video. Intervals resample videos, with
    the same resamples before and after. Raises RunError for a table without ground truth.
    """
    truth, after, before = localization.truth_of(table), localization.found_of(table), before_of(table)
    if not len(truth):
        raise RunError("table", "no video has an action to find", "", "evaluate on a split with segments")
    tiou_thresholds = [float(level) for level in table.protocol["tiou"]]
    videos = len(table["ids"])
    statistics = [map_statistic(truth, found, tiou_thresholds, videos) for found in (before, after)]

    def both(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        old, new = (statistic(weights) for statistic in statistics)
        return np.concatenate([old, new, new[:, -1:] - old[:, -1:]], axis=1)

    bounds = bootstrap.interval(both, videos)
    means, metrics = [], MetricValues()
    for number, (prefix, found) in enumerate(((BEFORE, before), ("", after))):
        precision = average_precision(truth, found, tiou_thresholds)[0].mean(axis=1)
        means.append(precision.mean())
        first = number * (len(tiou_thresholds) + 1)
        metrics.add(f"{prefix}mean_mAP", means[-1], bounds[:, first + len(tiou_thresholds)])
        for level, overlap in enumerate(tiou_thresholds):
            metrics.add(f"{prefix}mAP@{overlap:g}", precision[level], bounds[:, first + level])
        metrics.add(f"{prefix}reached", float(reached(truth, found).mean()))
    metrics.add("gain", means[1] - means[0], bounds[:, -1])
    counts = {"actions": len(truth), "proposals_before": len(before), "segments_after": len(after)}
    return metrics.result(table, videos=videos, **counts, matching=localization.MATCHING)


def reached(truth: Detections, found: Detections) -> NDArray[np.float64]:
    """Return for every action the best tIoU with any segment of its video, ignoring classes."""
    best = np.zeros(len(truth))
    for video in np.unique(truth.video):
        own = truth.video == video
        spans = found.span[found.video == video]
        if len(spans):
            best[own] = tiou(spans, truth.span[own]).max(axis=0)
    return best
