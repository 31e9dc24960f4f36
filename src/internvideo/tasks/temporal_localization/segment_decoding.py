"""Decode a temporal detector's outputs to segments in seconds (ActionFormer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo.tasks.temporal_localization.feature_index import FeatureGrid as FeatureGrid
from internvideo.tasks.temporal_localization.model import ActionFormer, Detection
from internvideo.tasks.temporal_localization.nms import SuppressionSettings, soft_nms

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class DecodingSettings:
    """Thresholds of decoding.

    Attributes:
        min_score: smallest score of a point and class. pre_nms_top_k: largest number of segments per level before NMS.
        min_length: smallest length of a segment, in feature steps.
        suppression: see `soft_nms`.
    """

    min_score: float = 0.001
    pre_nms_top_k: int = 2000
    min_length: float = 0.05
    suppression: SuppressionSettings = field(default_factory=SuppressionSettings)


def decode_points(
    points: Sequence[Tensor], detection: Detection, row: int, settings: DecodingSettings
) -> tuple[Floats, Floats, Ints]:
    """Decode sequence `row` of a batch: segments (N, 2) in steps, scores (N,) and classes (N,), before NMS."""
    segments, scores, labels = [], [], []
    for level, point in enumerate(points):
        probability = detection.logits[level][row].sigmoid() * detection.masks[level][row, :, None]
        flat = probability.flatten()
        index = torch.nonzero(flat > settings.min_score).squeeze(-1)
        order = flat[index].argsort(descending=True, stable=True)[: settings.pre_nms_top_k]
        index = index[order]
        point_index, label = index // probability.shape[1], index % probability.shape[1]
        offset, stride, time = detection.offsets[level][row][point_index], point[point_index, 3], point[point_index, 0]
        segment = torch.stack([time - offset[:, 0] * stride, time + offset[:, 1] * stride], dim=1)
        is_long_enough = segment[:, 1] - segment[:, 0] > settings.min_length
        segments.append(segment[is_long_enough])
        scores.append(flat[index][is_long_enough])
        labels.append(label[is_long_enough])
    columns = (torch.cat(column).detach().cpu().numpy() for column in (segments, scores, labels))
    return tuple(columns)  # type: ignore[return-value]  # three of them


@torch.no_grad()
def detect(
    model: ActionFormer, features: Tensor, grid: FeatureGrid, settings: DecodingSettings
) -> tuple[Floats, Floats, Ints]:
    """Detect the segments of one video.

    Args:
        model: in evaluation mode. features: (C, T) on the model's device. grid: of the features.
        settings: of decoding and suppression.

    Returns:
        segments (N, 2) in seconds, scores (N,), classes (N,); best first.
    """
    length = features.shape[-1]
    padded_length = model.config.padded_length(length)
    mask = torch.arange(padded_length, device=features.device)[None] < length
    detection = model(torch.nn.functional.pad(features, (0, padded_length - length))[None], mask)
    rows = decode_points(model.points(padded_length, features.device), detection, 0, settings)
    segments, scores, labels = soft_nms(*rows, settings.suppression)
    return grid.to_seconds(segments), scores, labels
