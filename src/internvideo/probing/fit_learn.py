"""Fit and evaluate a probe by nested cross-validation.

`fit_probe` selects regularization, temperature and threshold on inner folds of its training data. `cross_validate` runs
`fit_probe` without one outer fold at a time and predicts the videos of that fold.

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
from internvideo.probing.fit_split import assign_folds
from internvideo.probing.probe import ProbeHead
from internvideo.probing.probe_fit import DEFAULT_REGULARIZATION, REGULARIZATION_GRID, fit_heads, mean_and_scale
from internvideo.tasks.open_set.metrics import auroc, rejection_threshold

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
LogFn = Callable[[str], None]

INNER_FOLDS: dict[Kind, int] = {"video": 5, "tokens": 3}
"""Number of inner folds of the nested cross-validation."""
MIN_HELD_OUT = 10
"""With fewer held-out videos, default hyperparameters are used."""
MAX_LEFT_OUT_CLASSES: dict[Kind, int] = {"video": 12, "tokens": 4}
"""Largest number of classes that `leave_one_class_out` leaves out, one at a time."""


@dataclass(frozen=True)
class LabeledFeatures:
    """Features, labels (n,) and groups (n,) of videos; a group is never split between folds."""

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
    """Number of classes, fraction of videos of known classes to accept, and seed of splits and heads."""

    num_classes: int
    accept_known: float
    seed: int


@dataclass(frozen=True)
class FittedProbe:
    """A head, and hyperparameters selected on `num_held_out` held-out videos; 0 for default hyperparameters."""

    head: ProbeHead
    regularization: float
    temperature: float
    threshold: float
    num_held_out: int


def accepting_threshold(id_scores: Floats, accept_known: float) -> float:
    """Return the threshold that accepts the fraction `accept_known` of videos with these scores (n,)."""
    return -rejection_threshold(-id_scores, accept_known)


def fit_probe(data: LabeledFeatures, config: FitConfig) -> FittedProbe:
    """Select the hyperparameters, then train on all of the data.

    Each value of the regularization gives held-out logits, to which a temperature is fitted; the value with the
    smallest held-out log loss is selected. The threshold is fitted to its held-out id_scores. A held-out video is
    ignored if the other folds have no video of its class.
    """
    grid = REGULARIZATION_GRID[data.kind]
    held_out_logits = np.zeros((len(grid), len(data), config.num_classes))
    id_scores = np.zeros((len(grid), len(data)))
    usable = np.zeros(len(data), dtype=bool)
    fold_ids = assign_folds(data.labels, data.groups, INNER_FOLDS[data.kind], config.seed)
    for fold in np.unique(fold_ids):
        train, held_out = data.subset(fold_ids != fold), data.subset(fold_ids == fold)
        if len(np.unique(train.labels)) < 2:
            continue
        for index, head in enumerate(fit_heads(train.features, train.labels, config.num_classes, grid, config.seed)):
            scores = head.logits_and_id_scores(held_out.features)
            held_out_logits[index, fold_ids == fold], id_scores[index, fold_ids == fold] = scores
        usable[fold_ids == fold] = np.isin(held_out.labels, train.labels)
    if usable.sum() < MIN_HELD_OUT:
        regularization = DEFAULT_REGULARIZATION[data.kind]
        (head,) = fit_heads(data.features, data.labels, config.num_classes, (regularization,), config.seed)
        return FittedProbe(head, regularization, 1.0, -1.0, 0)
    labels = data.labels[usable]
    temperatures = [fit_temperature(logits[usable], labels) for logits in held_out_logits]
    calibrated = zip(held_out_logits, temperatures, strict=True)
    best = int(np.argmin([cross_entropy(logits[usable] / t, labels) for logits, t in calibrated]))
    (head,) = fit_heads(data.features, data.labels, config.num_classes, (grid[best],), config.seed)
    threshold = accepting_threshold(id_scores[best][usable], config.accept_known)
    return FittedProbe(head, grid[best], temperatures[best], threshold, int(usable.sum()))


@dataclass(frozen=True)
class OutOfFoldPredictions:
    """Predictions for videos that were not used in training.

    Attributes:
        logits: (n, C). id_scores: (n,), see `ProbeHead`.
        temperature, threshold: (n,) of the probe that predicted the video. fold: (n,) outer fold of the video.
        nearest: (n,) class with the nearest mean. majority: (n,) most frequent class of the training data. Both are
            predictions of baselines.
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
        """Mask (n,) of the videos that are not rejected as unknown."""
        return np.asarray(self.id_scores >= self.threshold)


def predict_nearest_mean(train: LabeledFeatures, test: LabeledFeatures) -> Ints:
    """Predict (n,) the class whose mean of standardized training features has the largest cosine to the test video."""
    mean_features = [
        data.features.float().reshape(len(data), -1, data.features.shape[-1]).mean(dim=1) for data in (train, test)
    ]
    mean, scale = mean_and_scale(mean_features[0])
    train_features, test_features = (((features - mean) / scale).double().numpy() for features in mean_features)
    classes = np.unique(train.labels)
    class_means = np.stack([train_features[train.labels == label].mean(axis=0) for label in classes])
    nearest: Ints = classes[(l2_normalize(test_features) @ l2_normalize(class_means).T).argmax(axis=1)]
    return nearest


def predict_held_out(
    fitted: FittedProbe, train: LabeledFeatures, test: LabeledFeatures, config: FitConfig, fold: int = 0
) -> OutOfFoldPredictions:
    """Predict the test videos with a probe and with the two baselines; `fold` is recorded."""
    n = len(test)
    return OutOfFoldPredictions(
        *fitted.head.logits_and_id_scores(test.features),
        np.full(n, fitted.temperature),
        np.full(n, fitted.threshold),
        np.full(n, fold, dtype=np.int64),
        predict_nearest_mean(train, test),
        np.full(n, np.bincount(train.labels).argmax(), dtype=np.int64),
    )


def cross_validate(data: LabeledFeatures, config: FitConfig, num_folds: int, log: LogFn) -> OutOfFoldPredictions:
    """Predict every video once, with a probe that was fitted without the videos of the same group."""
    fold_ids = assign_folds(data.labels, data.groups, num_folds, config.seed)
    predictions: list[tuple[NDArray[np.bool_], OutOfFoldPredictions]] = []
    for fold in np.unique(fold_ids):
        train, test = data.subset(fold_ids != fold), data.subset(fold_ids == fold)
        result = predict_held_out(fit_probe(train, config), train, test, config, int(fold))
        predictions.append((fold_ids == fold, result))
        accuracy = float((result.logits.argmax(axis=1) == test.labels).mean())
        log(f"fold {fold + 1} of {fold_ids.max() + 1}: {100 * accuracy:.1f} % of {len(test)} videos")
    order = np.argsort(np.concatenate([np.flatnonzero(mask) for mask, _ in predictions]))
    columns = {
        name: np.concatenate([getattr(result, name) for _, result in predictions])[order]
        for name in vars(predictions[0][1])
    }
    return OutOfFoldPredictions(**columns)


@dataclass(frozen=True)
class UnknownCheck:
    """Results of out-of-distribution detection with each class left out in turn.

    Attributes:
        auroc: of the id_score for known against left-out classes; mean over left-out classes.
        rejected: fraction of videos of the left-out class that are rejected; mean over left-out classes.
        accepted: fraction of videos of known classes that are accepted; mean over left-out classes.
        per_class: (auroc, rejected) by index of the left-out class.
    """

    auroc: float
    rejected: float
    accepted: float
    per_class: dict[int, tuple[float, float]]


def leave_one_class_out(
    data: LabeledFeatures, fitted: FittedProbe, fold: Ints, config: FitConfig
) -> UnknownCheck | None:
    """Evaluate the detection of classes that a probe was not trained on; None with fewer than 3 classes.

    For each left-out class, a head is trained on the other classes in all folds but one, with the regularization of
    `fitted`. The threshold accepts the fraction `accept_known` of the known classes' videos in the remaining fold. The
    videos of the left-out class are tested, except those whose group has training videos.
    """
    labels = np.unique(data.labels)
    if len(labels) < 3:
        return None
    fold_indices, num_left_out = np.unique(fold), min(MAX_LEFT_OUT_CLASSES[data.kind], len(labels))
    aurocs, per_class, accepted = [], {}, []
    for index, label in enumerate(labels[np.linspace(0, len(labels) - 1, num_left_out).round().astype(int)]):
        held_out = fold == fold_indices[index % len(fold_indices)]
        train = data.subset(~held_out & (data.labels != label))
        known = data.subset(held_out & (data.labels != label) & np.isin(data.labels, train.labels))
        left_out = data.subset((data.labels == label) & ~np.isin(data.groups, train.groups))
        if not len(known) or not len(left_out) or len(np.unique(train.labels)) < 2:
            continue
        (head,) = fit_heads(train.features, train.labels, config.num_classes, (fitted.regularization,), config.seed)
        known_scores, unknown_scores = (head.logits_and_id_scores(data.features)[1] for data in (known, left_out))
        threshold = accepting_threshold(known_scores, config.accept_known)
        aurocs.append(auroc(-known_scores, -unknown_scores))
        per_class[int(label)] = (aurocs[-1], float((unknown_scores < threshold).mean()))
        accepted.append(float((known_scores >= threshold).mean()))
    if not aurocs:
        return None
    rejected = float(np.mean([fraction for _, fraction in per_class.values()]))
    return UnknownCheck(float(np.mean(aurocs)), rejected, float(np.mean(accepted)), per_class)
