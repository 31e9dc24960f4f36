"""Classification metrics: top-k, class means, views, ensembles, zero-shot, answers (run_class_finetuning.py).

NumPy only. All accuracies are fractions in 0..1.
Legend: N samples, R rows (one per view), C classes, P templates, E joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

IGNORE_INDEX = -100
"""Label of a sample without a known class."""


def softmax(scores: Floats) -> Floats:
    """Compute the softmax along the last axis (shifted by the maximum), in the dtype of `scores`."""
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def l2_normalize(vectors: Floats) -> Floats:
    """L2-normalize vectors along the last axis; zero vectors stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: Floats = vectors / np.where(length == 0, 1, length).astype(vectors.dtype)
    return result


def _check_scores(scores: Floats, labels: Ints) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores {scores.shape} need the shape (N, C) and labels {labels.shape} the shape (N,)")
    if len(scores) == 0:
        raise ValueError("no samples: an accuracy of nothing is undefined")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity: they cannot be ranked")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels {labels.min()}..{labels.max()} do not fit {scores.shape[1]} classes")


def label_ranks(scores: Floats, labels: Ints) -> Ints:
    """Return the rank (0 is best) of the labeled class of every sample, (N,).

    Classes with the same score as the labeled one rank before it, so that constant scores give no hit.
    """
    _check_scores(scores, labels)
    true_scores = np.take_along_axis(scores, labels[:, None], axis=1)
    ranks: Ints = np.count_nonzero(scores >= true_scores, axis=1).astype(np.int64) - 1
    return ranks


def top_k_hits(scores: Floats, labels: Ints, k: int) -> Bools:
    """Return (N,) bool, whether the labeled class is among the k classes of highest score."""
    if k < 1:
        raise ValueError(f"k is {k}, it must be at least 1")
    hits: Bools = label_ranks(scores, labels) < k
    return hits


def mean_class_accuracy(predictions: Ints, labels: Ints, *, match_official_evaluator: bool = False) -> float:
    """Compute the mean over classes of their accuracy (recall).

    Args:
        predictions: (N,) predicted class. labels: (N,) true class.
        match_official_evaluator: count a class that is predicted but never true as 0, as the published evaluator does;
            otherwise average over the classes with samples.
    """
    if len(labels) == 0 or predictions.shape != labels.shape:
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape} must agree and not be empty")
    num_classes = int(max(predictions.max(), labels.max())) + 1
    total = np.bincount(labels, minlength=num_classes)
    correct = np.bincount(labels[predictions == labels], minlength=num_classes)
    is_averaged = total > 0
    if match_official_evaluator:
        is_averaged |= np.bincount(predictions, minlength=num_classes) > 0
    return float((correct[is_averaged] / np.maximum(total[is_averaged], 1)).mean())


def confusion_matrix(predictions: Ints, labels: Ints, num_classes: int) -> Ints:
    """Count (C, C): row = true class, column = predicted class."""
    flat = np.bincount(labels * num_classes + predictions, minlength=num_classes * num_classes)
    matrix: Ints = flat.reshape(num_classes, num_classes).astype(np.int64)
    return matrix


def merge_rows(values: Floats, sample: Ints, num_samples: int, weight: Floats | None = None) -> Floats:
    """Compute the weighted mean of the rows of each sample.

    Args:
        values: (R, ...) one row per view.
        sample: (R,) index of the sample of each row, in any order; each sample has at least one row. num_samples: N.
        weight: (R,) above 0; None for equal weights.

    Returns:
        (N, ...) float64.
    """
    counts = np.bincount(sample, minlength=num_samples)
    if len(counts) != num_samples or (counts == 0).any():
        raise ValueError("every sample needs at least one row, and every row one of the samples")
    order = np.argsort(sample, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    row_weight = np.ones(len(sample)) if weight is None else weight.astype(np.float64)
    if not (row_weight > 0).all():
        raise ValueError("the weight of a row must be above 0")
    rows = values.astype(np.float64) * row_weight.reshape(-1, *[1] * (values.ndim - 1))
    sums = np.add.reduceat(rows[order], starts, axis=0)
    return sums / np.bincount(sample, row_weight, num_samples).reshape(-1, *[1] * (values.ndim - 1))


def merge_views(logits: Floats, sample: Ints, num_samples: int, weight: Floats | None = None) -> Floats:
    """Average the softmax of the views of each video, (N, C) float64; arguments as `merge_rows`."""
    return merge_rows(softmax(logits.astype(np.float64)), sample, num_samples, weight)


def zero_shot_probabilities(video: Floats, text: Floats, scale: float) -> Floats:
    """Average the softmax over classes over the templates (multi-modalities-downstream), (N, C) float64.

    Args:
        video: (N, E), need not be L2-normalized.
        text: (P, C, E) text vector of each template and class, need not be L2-normalized.
        scale: exp of the logit scale (100 in CLIP).
    """
    return zero_shot_ensemble([(video, text, scale)])


def zero_shot_ensemble(models: Sequence[tuple[Floats, Floats, float]]) -> Floats:
    """Average the scaled cosines of several models before the softmax (Video-Text-Retrieval).

    Args:
        models: video, text and scale of each, as in `zero_shot_probabilities`, of the same rows, templates and classes.
    """
    videos = [l2_normalize(video.astype(np.float64)) for video, _, _ in models]
    total: Floats = np.zeros((len(videos[0]), models[0][1].shape[1]))
    for template in range(len(models[0][1])):
        cosines = [
            scale * features @ l2_normalize(text[template].astype(np.float64)).T
            for features, (_, text, scale) in zip(videos, models, strict=True)
        ]
        total += softmax(np.add.reduce(cosines) / len(models))
    return total / len(models[0][1])


def cross_entropy(logits: Floats, labels: Ints) -> float:
    """Compute the mean cross-entropy over the samples whose label is not IGNORE_INDEX."""
    known = labels != IGNORE_INDEX
    known_logits = logits[known].astype(np.float64)
    peak = known_logits.max(axis=1)
    log_sum_exp = peak + np.log(np.exp(known_logits - peak[:, None]).sum(axis=1))
    return float((log_sum_exp - np.take_along_axis(known_logits, labels[known][:, None], axis=1)[:, 0]).mean())


def choice_scores(video: Floats, options: Floats, scale: float) -> Floats:
    """Compute scale x cosine of videos (N, E) and options (N, K, E), (N, K) float64 (multi-modalities-downstream)."""
    scores: Floats = scale * np.einsum(
        "ne,nke->nk", l2_normalize(video.astype(np.float64)), l2_normalize(options.astype(np.float64)), optimize=True
    )
    return scores
