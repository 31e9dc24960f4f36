"""Apply hard or soft temporal NMS, segment voting and fusion with class scores (ActionFormer).

NumPy only. Times may have any unit. Legend: N segments, C classes.
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
        decay: factor of the scores of segments that overlap a better one: "gaussian": exp(-tIoU^power / sigma);
            "linear": 1 - tIoU if the tIoU is `overlap` or more; "hard": 0 if it is `overlap` or more.
        sigma, overlap: see `decay`.
        min_score: segments whose decayed score is below this are dropped.
        max_segments: largest number of segments in the result.
        per_class: suppress only segments of the same class.
        voting: smallest tIoU of the segments that are averaged into a result, 0 for no voting; not with `per_class`.
        voting_weight: weights of this average: "score" (the paper's code) or "score_x_overlap" (upstream).
        power: of the tIoU in the Gaussian decay (TCANet 2.5).
        extent: added to every length in the tIoU, as in ActionFormer's kernel (TCANet 0).
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


def _tiou(segment: Floats, others: Floats, extent: float) -> Floats:
    """Compute the tIoU of one segment with others (N, 2), with `extent` added to every length."""
    intersection = np.maximum(np.minimum(segment[1], others[:, 1]) - np.maximum(segment[0], others[:, 0]), 0.0)
    lengths = others[:, 1] - others[:, 0] + extent
    result: Floats = intersection / (segment[1] - segment[0] + extent + lengths - intersection)
    return result


def suppress(segments: Floats, scores: Floats, settings: SuppressionSettings) -> tuple[Ints, Floats]:
    """Apply NMS to segments (N, 2) with scores (N,): return indices (K,), best first, and decayed scores (K,).

    Of equal scores the first is taken, in an order that depends on the swaps of the published kernel (ActionFormer).
    """
    hard = settings.decay == "hard"
    decayed = scores.astype(np.float64).copy()
    kept: list[int] = []
    remaining = (
        np.flatnonzero(decayed > settings.min_score) if hard and settings.min_score > 0 else np.arange(len(decayed))
    )
    while len(remaining):
        position = int(decayed[remaining].argmax())
        best = int(remaining[position])
        kept.append(best)
        if len(kept) == settings.max_segments:  # later steps would not change these
            break
        if hard:
            remaining = np.delete(remaining, position)
        else:  # as the published kernel, which swaps the best and the first
            remaining[position] = remaining[0]
            remaining = remaining[1:]
        overlap = _tiou(segments[best], segments[remaining], settings.extent)
        if hard:
            remaining = remaining[overlap < settings.overlap]
            continue
        if settings.decay == "gaussian":
            decayed[remaining] *= np.exp(-(overlap**settings.power) / settings.sigma)
        else:
            decayed[remaining] *= np.where(overlap >= settings.overlap, 1 - overlap, 1.0)
        remaining = _drop(remaining, decayed[remaining] >= settings.min_score)
    return np.asarray(kept, dtype=np.int64), decayed[kept]


def _drop(remaining: Ints, is_kept: NDArray[np.bool_]) -> Ints:
    """Drop segments like the published kernel, which replaces a dropped one by the last one."""
    count = int(is_kept.sum())
    result = remaining[:count].copy()
    result[~is_kept[:count]] = remaining[count:][is_kept[count:]][::-1]
    return result


def vote(kept: Floats, segments: Floats, scores: Floats, settings: SuppressionSettings) -> Floats:
    """Replace each kept segment (K, 2) by the weighted mean of all segments (N, 2) with a tIoU of `voting` or more."""
    intersection = np.minimum(kept[:, None, 1], segments[None, :, 1]) - np.maximum(
        kept[:, None, 0], segments[None, :, 0]
    )
    intersection = np.maximum(intersection, 0.0)
    union = (kept[:, 1] - kept[:, 0])[:, None] + (segments[:, 1] - segments[:, 0])[None] - intersection
    overlap = intersection / np.maximum(union, _TINY)
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
    results: list[tuple[Floats, Floats, Ints]] = [(segments[:0], scores[:0].astype(np.float64), labels[:0])]
    for rows in groups if groups is not None else [np.arange(len(labels))]:
        index, decayed = suppress(segments[rows], scores[rows], settings)
        kept_segments = segments[rows][index]
        if groups is None and settings.voting > 0 and len(index):
            kept_segments = vote(kept_segments, segments, scores, settings)
        results.append((kept_segments, decayed, labels[rows][index]))
    all_segments, all_scores, all_labels = (np.concatenate(column) for column in zip(*results, strict=True))
    order = np.argsort(-all_scores, kind="stable")[: settings.max_segments]
    return all_segments[order], all_scores[order], all_labels[order]


def fuse_class_scores(
    segments: Floats, scores: Floats, class_scores: Floats, *, num_classes: int = 2, max_segments: int | None = None
) -> tuple[Floats, Floats, Ints]:
    """Repeat class-agnostic segments for the video's top classes, with score sqrt(class score * segment score).

    Args:
        segments: (N, 2). scores: (N,).
        class_scores: (C,) or (1, C) of the whole video; softmax is applied if a value is outside 0..1.
        num_classes: number of top classes.
        max_segments: largest number of segments to use, by score; None for all.

    Returns:
        segments, scores and class indices: those of the top class by decreasing score, then those of the next class.
    """
    values = np.asarray(class_scores, dtype=np.float64).reshape(-1)
    if values.min() < 0 or values.max() > 1:
        values = np.exp(values - values.max())
        values = values / values.sum()
    best = np.argsort(-values, kind="stable")[:num_classes]
    order = np.argsort(-scores, kind="stable")[:max_segments]
    fused = np.sqrt(values[best][:, None] * scores[order][None]).reshape(-1)
    return np.tile(segments[order], (len(best), 1)), fused, np.repeat(best, len(order))
