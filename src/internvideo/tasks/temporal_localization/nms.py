"""Apply hard or soft temporal NMS, segment voting and fusion with class scores (ActionFormer).

NumPy, no compiler. Times are in any one unit. Legend: N segments, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

_TINY = 1e-6


@dataclass(frozen=True)
class SuppressionSettings:
    """Settings of `soft_nms`.

    Attributes:
        decay: "gaussian" exp(-tIoU^power / sigma), "linear" 1 - tIoU above `overlap`, or "hard" (dropped above it).
        sigma, overlap: of the decay.
        min_score: segments whose score falls below it are dropped.
        max_segments: number of segments kept, best first.
        per_class: suppress within each class only.
        voting: minimum tIoU of the segments that are averaged into a kept one, 0 for no voting; only without
            `per_class`.
        voting_weight: "score" (the paper's code) or "score_x_overlap" (upstream).
        power: of tIoU in the Gaussian decay (TCANet 2.5).
        extent: added to every length inside suppression, as ActionFormer's kernel does (TCANet 0).
    """

    decay: Literal["gaussian", "linear", "hard"] = "gaussian"
    sigma: float = 0.5
    overlap: float = 0.1
    min_score: float = 0.001
    max_segments: int = 200
    per_class: bool = True
    voting: float = 0.0
    voting_weight: Literal["score", "score_x_overlap"] = "score"
    power: float = 2.0
    extent: float = _TINY

    def __post_init__(self) -> None:
        if self.sigma <= 0 or self.max_segments < 1 or not 0 <= self.voting <= 1:
            limits = f"sigma {self.sigma} must be positive, max_segments {self.max_segments} at least 1"
            raise ValueError(f"{limits}, voting in 0..1")


def _overlap(segment: Floats, others: Floats, extent: float) -> Floats:
    """Compute the tIoU of one segment with many, `extent` added to every length."""
    inside = np.maximum(np.minimum(segment[1], others[:, 1]) - np.maximum(segment[0], others[:, 0]), 0.0)
    lengths = others[:, 1] - others[:, 0] + extent
    result: Floats = inside / (segment[1] - segment[0] + extent + lengths - inside)
    return result


def suppress(segments: Floats, scores: Floats, settings: SuppressionSettings) -> tuple[Ints, Floats]:
    """Suppress segments (N, 2) with scores (N,) -> kept indices (K,), best first, and their decayed scores (K,).

    Of equal scores the first is taken, in the order that the published kernel's exchanges leave (ActionFormer).
    """
    hard = settings.decay == "hard"
    left = scores.astype(np.float64).copy()
    kept: list[int] = []
    alive = np.flatnonzero(left > settings.min_score) if hard and settings.min_score > 0 else np.arange(len(left))
    while len(alive):
        place = int(left[alive].argmax())
        best = int(alive[place])
        kept.append(best)
        if len(kept) == settings.max_segments:  # what follows changes neither these nor their scores
            break
        if hard:
            alive = np.delete(alive, place)
        else:  # the first takes the best one's place
            alive[place] = alive[0]
            alive = alive[1:]
        overlap = _overlap(segments[best], segments[alive], settings.extent)
        if hard:
            alive = alive[overlap < settings.overlap]
            continue
        if settings.decay == "gaussian":
            left[alive] *= np.exp(-(overlap**settings.power) / settings.sigma)
        else:
            left[alive] *= np.where(overlap >= settings.overlap, 1 - overlap, 1.0)
        alive = _without(alive, left[alive] >= settings.min_score)
    return np.asarray(kept, dtype=np.int64), left[kept]


def _without(alive: Ints, stays: NDArray[np.bool_]) -> Ints:
    """Drop segments in the order of the published kernel: the last one replaces a dropped one."""
    count = int(stays.sum())
    result = alive[:count].copy()
    result[~stays[:count]] = alive[count:][stays[count:]][::-1]
    return result


def vote(kept: Floats, segments: Floats, scores: Floats, settings: SuppressionSettings) -> Floats:
    """Replace each kept segment (K, 2) by the weighted mean of all segments (N, 2) that overlap it enough."""
    inside = np.minimum(kept[:, None, 1], segments[None, :, 1]) - np.maximum(kept[:, None, 0], segments[None, :, 0])
    inside = np.maximum(inside, 0.0)
    whole = (kept[:, 1] - kept[:, 0])[:, None] + (segments[:, 1] - segments[:, 0])[None] - inside
    overlap = inside / np.maximum(whole, _TINY)
    weights = np.where(overlap >= settings.voting, scores[None], 0.0)
    if settings.voting_weight == "score_x_overlap":
        weights = weights * overlap
    total = weights.sum(axis=1, keepdims=True)
    voted: Floats = np.where(total > 0, weights @ segments / np.where(total > 0, total, 1.0), kept)
    return voted


def soft_nms(
    segments: Floats, scores: Floats, labels: Ints, settings: SuppressionSettings
) -> tuple[Floats, Floats, Ints]:
    """Apply NMS (hard, linear or Gaussian) to all segments of one video.

    Args:
        segments: (N, 2) start and end. scores: (N,). labels: (N,) class indices.

    Returns:
        the same three for the kept segments, at most `settings.max_segments`, best first.
    """
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)] if settings.per_class else None
    parts: list[tuple[Floats, Floats, Ints]] = [(segments[:0], scores[:0].astype(np.float64), labels[:0])]
    for rows in groups if groups is not None else [np.arange(len(labels))]:
        index, decayed = suppress(segments[rows], scores[rows], settings)
        found = segments[rows][index]
        if groups is None and settings.voting > 0 and len(index):
            found = vote(found, segments, scores, settings)
        parts.append((found, decayed, labels[rows][index]))
    found_segments, found_scores, found_labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(-found_scores, kind="stable")[: settings.max_segments]
    return found_segments[order], found_scores[order], found_labels[order]


def fuse_class_scores(
    segments: Floats, scores: Floats, class_scores: Floats, *, num_classes: int = 2, max_segments: int | None = None
) -> tuple[Floats, Floats, Ints]:
    """Label class-agnostic segments with the video's best classes, with score sqrt(class score x segment score).

    Args:
        segments: (N, 2). scores: (N,).
        class_scores: (C,) of the whole video, or (1, C); values outside 0..1 are taken as logits (softmax is applied).
        num_classes: number of best classes; every segment is repeated for each.
        max_segments: number of best segments used; None for all.

    Returns:
        segments, scores and class indices: all of the best class, best first, then those of the next.
    """
    values = np.asarray(class_scores, dtype=np.float64).reshape(-1)
    if values.min() < 0 or values.max() > 1:
        values = np.exp(values - values.max())
        values = values / values.sum()
    best = np.argsort(-values, kind="stable")[:num_classes]
    order = np.argsort(-scores, kind="stable")[:max_segments]
    fused = np.sqrt(values[best][:, None] * scores[order][None]).reshape(-1)
    return np.tile(segments[order], (len(best), 1)), fused, np.repeat(best, len(order))
