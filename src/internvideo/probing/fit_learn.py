"""Fit and evaluate a probe by nested cross-validation.

`fit_probe` selects regularization, temperature and threshold on videos held out of its training data (inner folds).
`cross_validate` runs that whole procedure once per outer fold and evaluates it on the fold that it was not given.

Shapes: n videos, C classes, K folds. Features are (n, D), or (n, N, D) for an attentive head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from internvideo.metrics.calibration import fit_temperature
from internvideo.metrics.classification import cross_entropy, l2_normalize, softmax
from internvideo.probing.cached_features import Kind
from internvideo.probing.fit_split import folds
from internvideo.probing.probe import ProbeHead
from internvideo.probing.probe_fit import DEFAULT_REGULARIZATION, REGULARIZATION_GRID, fit_heads, statistics
from internvideo.tasks.open_set.metrics import auroc, rejection_threshold

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
LogFn = Callable[[str], None]

INNER_FOLDS: dict[Kind, int] = {"video": 5, "tokens": 3}
"""Inner folds of the nested cross-validation."""
MIN_HELD_OUT = 10
"""With fewer held-out videos the defaults are used instead of selecting on them."""
MAX_LEFT_OUT_CLASSES: dict[Kind, int] = {"video": 12, "tokens": 4}
"""Number of classes that `leave_one_class_out` leaves out in turn."""


@dataclass(frozen=True)
class LabeledFeatures:
    """Features, labels and groups of videos; a group is never split between folds."""

    features: Tensor
    labels: Ints
    groups: Ints

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def kind(self) -> Kind:
        """Kind of the features."""
        return "video" if self.features.ndim == 2 else "tokens"

    def subset(self, mask: NDArray[np.bool_]) -> LabeledFeatures:
        """Select the videos where the mask is True."""
        return LabeledFeatures(self.features[np.flatnonzero(mask)], self.labels[mask], self.groups[mask])


@dataclass(frozen=True)
class FitConfig:
    """Number of classes, fraction of in-distribution videos to accept, and seed of the procedure."""

    num_classes: int
    accept_known: float
    seed: int


@dataclass(frozen=True)
class FittedProbe:
    """A head with the values that were selected on `num_held_out` held-out videos of its training data."""

    head: ProbeHead
    regularization: float
    temperature: float
    threshold: float
    num_held_out: int


def threshold_for(id_scores: Floats, accept_known: float) -> float:
    """Return the threshold that accepts this fraction of in-distribution videos (n,)."""
    return -rejection_threshold(-id_scores, accept_known)


def fit_probe(data: LabeledFeatures, config: FitConfig) -> FittedProbe:
    """Select the hyperparameters, then train on all of the data.

    The regularization is the one with the smallest held-out log loss at its own best temperature; temperature and
    threshold are fitted to its held-out logits. A held-out video whose class has no training video in its fold is
    ignored.
    """
    grid = REGULARIZATION_GRID[data.kind]
    held_out_logits = np.zeros((len(grid), len(data), config.num_classes))
    id_scores = np.zeros((len(grid), len(data)))
    usable = np.zeros(len(data), dtype=bool)
    fold_ids = folds(data.labels, data.groups, INNER_FOLDS[data.kind], config.seed)
    for fold in np.unique(fold_ids):
        inside, outside = data.subset(fold_ids != fold), data.subset(fold_ids == fold)
        if len(np.unique(inside.labels)) < 2:
            continue
        for index, head in enumerate(fit_heads(inside.features, inside.labels, config.num_classes, grid, config.seed)):
            scores = head.logits_and_id_scores(outside.features)
            held_out_logits[index, fold_ids == fold], id_scores[index, fold_ids == fold] = scores
        usable[fold_ids == fold] = np.isin(outside.labels, inside.labels)
    if usable.sum() < MIN_HELD_OUT:
        regularization = DEFAULT_REGULARIZATION[data.kind]
        (head,) = fit_heads(data.features, data.labels, config.num_classes, (regularization,), config.seed)
        return FittedProbe(head, regularization, 1.0, -1.0, 0)
    labels = data.labels[usable]
    temperatures = [fit_temperature(logits[usable], labels) for logits in held_out_logits]
    pairs = zip(held_out_logits, temperatures, strict=True)
    best = int(np.argmin([cross_entropy(logits[usable] / t, labels) for logits, t in pairs]))
    (head,) = fit_heads(data.features, data.labels, config.num_classes, (grid[best],), config.seed)
    threshold = threshold_for(id_scores[best][usable], config.accept_known)
    return FittedProbe(head, grid[best], temperatures[best], threshold, int(usable.sum()))


@dataclass(frozen=True)
class OutOfFoldPredictions:
    """Predictions for videos that were not used in training.

    Attributes:
        logits: (n, C). id_scores: (n,), see `ProbeHead`.
        temperature, threshold: (n,) of the probe that predicted. fold: (n,) index of that probe.
        nearest: (n,) nearest class mean. majority: (n,) most frequent class of the training data. Both are baselines.
    """

    logits: Floats
    id_scores: Floats
    temperature: Floats
    threshold: Floats
    fold: Ints
    nearest: Ints
    majority: Ints

    @property
    def probabilities(self) -> Floats:
        """Calibrated probabilities (n, C)."""
        return softmax(self.logits / self.temperature[:, None])

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """(n,) True where the video was not rejected as unknown."""
        return np.asarray(self.id_scores >= self.threshold)


def nearest_means(train: LabeledFeatures, test: LabeledFeatures) -> Ints:
    """Predict (n,) the class whose mean training feature has the largest cosine; features are standardized first."""
    plain = [
        part.features.float().reshape(len(part), -1, part.features.shape[-1]).mean(dim=1) for part in (train, test)
    ]
    mean, scale = statistics(plain[0])
    train_features, test_features = (((features - mean) / scale).double().numpy() for features in plain)
    present = np.unique(train.labels)
    means = np.stack([train_features[train.labels == label].mean(axis=0) for label in present])
    nearest: Ints = present[(l2_normalize(test_features) @ l2_normalize(means).T).argmax(axis=1)]
    return nearest


def predict_held_out(
    learned: FittedProbe, train: LabeledFeatures, test: LabeledFeatures, config: FitConfig, fold: int = 0
) -> OutOfFoldPredictions:
    """Predict the test videos with a probe and with the two baselines."""
    n = len(test)
    return OutOfFoldPredictions(
        *learned.head.logits_and_id_scores(test.features),
        np.full(n, learned.temperature),
        np.full(n, learned.threshold),
        np.full(n, fold, dtype=np.int64),
        nearest_means(train, test),
        np.full(n, np.bincount(train.labels).argmax(), dtype=np.int64),
    )


def cross_validate(data: LabeledFeatures, config: FitConfig, num_folds: int, log: LogFn) -> OutOfFoldPredictions:
    """Predict every video once, by a probe whose fitting did not use any video of its group."""
    fold_ids = folds(data.labels, data.groups, num_folds, config.seed)
    predictions: list[tuple[NDArray[np.bool_], OutOfFoldPredictions]] = []
    for fold in np.unique(fold_ids):
        train, test = data.subset(fold_ids != fold), data.subset(fold_ids == fold)
        result = predict_held_out(fit_probe(train, config), train, test, config, int(fold))
        predictions.append((fold_ids == fold, result))
        accuracy = float((result.logits.argmax(axis=1) == test.labels).mean())
        log(f"fold {fold + 1} of {fold_ids.max() + 1}: {100 * accuracy:.1f} % of {len(test)} videos")
    order = np.argsort(np.concatenate([np.flatnonzero(mask) for mask, _ in predictions]))
    columns = {
        name: np.concatenate([getattr(part, name) for _, part in predictions])[order]
        for name in vars(predictions[0][1])
    }
    return OutOfFoldPredictions(**columns)


@dataclass(frozen=True)
class UnknownCheck:
    """Results of out-of-distribution detection with each class left out in turn.

    Attributes:
        auroc: of the id_score for known against left-out classes; mean over left-out classes.
        rejected: fraction of the left-out classes' videos rejected as unknown. accepted: fraction of known videos that
            are not.
        per_class: class index -> (auroc, rejected).
    """

    auroc: float
    rejected: float
    accepted: float
    per_class: dict[int, tuple[float, float]]


def leave_one_class_out(
    data: LabeledFeatures, learned: FittedProbe, fold: Ints, config: FitConfig
) -> UnknownCheck | None:
    """Evaluate the detection of classes that a probe was not trained on; None with fewer than 3 classes.

    For each class in turn a probe is trained on the other classes from all folds but one, at the regularization that
    was selected before. The threshold accepts `accept_known` of that fold's known videos; all videos of the left-out
    class whose groups were not trained on are tested.
    """
    labels = np.unique(data.labels)
    if len(labels) < 3:
        return None
    fold_indices, count = np.unique(fold), min(MAX_LEFT_OUT_CLASSES[data.kind], len(labels))
    areas, per_class, accepted = [], {}, []
    for index, label in enumerate(labels[np.linspace(0, len(labels) - 1, count).round().astype(int)]):
        held_out = fold == fold_indices[index % len(fold_indices)]
        train = data.subset(~held_out & (data.labels != label))
        known = data.subset(held_out & (data.labels != label) & np.isin(data.labels, train.labels))
        unseen = data.subset((data.labels == label) & ~np.isin(data.groups, train.groups))
        if not len(known) or not len(unseen) or len(np.unique(train.labels)) < 2:
            continue
        (head,) = fit_heads(train.features, train.labels, config.num_classes, (learned.regularization,), config.seed)
        known_scores, unknown_scores = (head.logits_and_id_scores(part.features)[1] for part in (known, unseen))
        threshold = threshold_for(known_scores, config.accept_known)
        areas.append(auroc(-known_scores, -unknown_scores))
        per_class[int(label)] = (areas[-1], float((unknown_scores < threshold).mean()))
        accepted.append(float((known_scores >= threshold).mean()))
    if not areas:
        return None
    rejected = float(np.mean([fraction for _, fraction in per_class.values()]))
    return UnknownCheck(float(np.mean(areas)), rejected, float(np.mean(accepted)), per_class)
