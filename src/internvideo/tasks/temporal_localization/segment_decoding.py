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
        min_score: smallest score of a point and class. pre_nms_top_k: candidates per level. min_length: in steps.
        suppression: see `soft_nms`.
    """

    min_score: float = 0.001
    pre_nms_top_k: int = 2000
    min_length: float = 0.05
    suppression: SuppressionSettings = field(default_factory=SuppressionSettings)


def candidates(
    points: Sequence[Tensor], found: Detection, row: int, settings: DecodingSettings
) -> tuple[Floats, Floats, Ints]:
    """Decode one sequence: segments (N, 2) in steps, scores (N,) and classes (N,), before suppression."""
    segments, scores, labels = [], [], []
    for level, point in enumerate(points):
        probability = found.logits[level][row].sigmoid() * found.masks[level][row, :, None]
        flat = probability.flatten()
        chosen = torch.nonzero(flat > settings.min_score).squeeze(-1)
        order = flat[chosen].argsort(descending=True, stable=True)[: settings.pre_nms_top_k]
        chosen = chosen[order]
        place, label = chosen // probability.shape[1], chosen % probability.shape[1]
        offset, stride, time = found.offsets[level][row][place], point[place, 3], point[place, 0]
        segment = torch.stack([time - offset[:, 0] * stride, time + offset[:, 1] * stride], dim=1)
        kept = segment[:, 1] - segment[:, 0] > settings.min_length
        segments.append(segment[kept])
        scores.append(flat[chosen][kept])
        labels.append(label[kept])
    parts = (torch.cat(column).detach().cpu().numpy() for column in (segments, scores, labels))
    return tuple(parts)  # type: ignore[return-value]  # three of them


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
    padded = model.config.padded_length(length)
    mask = torch.arange(padded, device=features.device)[None] < length
    found = model(torch.nn.functional.pad(features, (0, padded - length))[None], mask)
    rows = candidates(model.points(padded, features.device), found, 0, settings)
    segments, scores, labels = soft_nms(*rows, settings.suppression)
    return grid.to_seconds(segments), scores, labels
