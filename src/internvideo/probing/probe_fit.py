"""Fit the head of a probe: regularized logistic regression, or attention pooling with learned queries.

The functions fit one head per value of the regularization grid, so that the caller can select one on held-out videos.

Shapes: n videos, N tokens, D dimension, H queries, C classes.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from internvideo.data.batch import Batch
from internvideo.errors import RunError
from internvideo.probing.cached_features import Kind
from internvideo.probing.probe import ProbeHead, pool_features
from internvideo.training.schedule import cosine_with_warmup
from internvideo.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings, TrainingSettings
from internvideo.training.step import TrainStep

Ints = NDArray[np.int64]

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""C of logistic regression: the inverse of the penalty, so larger values regularize less."""
WEIGHT_DECAY_GRID = (3.0, 0.3)
"""Weight decay of the attentive head: larger values regularize more."""
REGULARIZATION_GRID: dict[Kind, tuple[float, ...]] = {"video": C_GRID, "tokens": WEIGHT_DECAY_GRID}
"""Grid of each kind of features, from the strongest regularization to the weakest."""

DEFAULT_REGULARIZATION: dict[Kind, float] = {"video": 1e-2, "tokens": 0.3}
"""Used where there are too few videos to select a value."""

ABSENT_BIAS = -1e3
"""Bias of a class without a training video, which is never predicted."""

MAX_ITERATIONS = 1000
MAX_SINGLE_THREAD = 2**21
"""Number of feature values up to which one BLAS thread is faster than several."""

NUM_QUERIES = 8
BATCH_SIZE, EPOCHS, MAX_STEPS, PEAK_LR, WARMUP_FRACTION = 32, 100, 2000, 1e-2, 0.1


def fit_heads(
    features: Tensor, labels: Ints, num_classes: int, grid: tuple[float, ...], seed: int = 0
) -> list[ProbeHead]:
    """Fit one head per value of the grid, in its order.

    Args:
        features: (n, D) for linear heads, (n, N, D) for attentive ones. labels: (n,), of at least two classes.
        num_classes: C; a class without a video is never predicted.
        grid: C for linear heads, weight decays for attentive ones. seed: of the attentive heads.
    """
    if features.ndim == 2:
        from threadpoolctl import threadpool_limits  # a dependency of scikit-learn

        with threadpool_limits(1 if features.numel() <= MAX_SINGLE_THREAD else None, user_api="blas"):
            return _fit_linear_heads(features, labels, num_classes, grid)
    return [_fit_attentive_head(features, labels, num_classes, weight_decay, seed) for weight_decay in grid]


def mean_and_scale(features: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation (D,) over all but the last dimension; the latter is 1 if it is nearly 0."""
    flat = features.reshape(-1, features.shape[-1]).double()
    mean, spread = flat.mean(dim=0), flat.std(dim=0, correction=0)
    floor = 1e-6 * torch.maximum(mean.abs(), spread.max())
    return mean.float(), torch.where(spread > floor, spread, 1.0).float()


def standardize(features: Tensor) -> Tensor:
    """Scale every column to mean 0 and standard deviation 1."""
    mean, scale = mean_and_scale(features)
    return (features.float() - mean) / scale


def _fit_linear_heads(features: Tensor, labels: Ints, num_classes: int, grid: tuple[float, ...]) -> list[ProbeHead]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, scale = mean_and_scale(features)
    standardized = ((features.float() - mean) / scale).double().numpy()
    basis = None
    if standardized.shape[0] < standardized.shape[1]:
        # The penalty is invariant to rotations: with fewer rows than columns, fitting in the row space is equivalent.
        _, _, basis = np.linalg.svd(standardized, full_matrices=False)
        standardized = standardized @ basis.T
    classifier: Any = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    heads = []
    for c in grid:
        classifier.set_params(C=c)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # with a weak penalty it may stop before convergence
            classifier.fit(standardized, labels)
        slopes, offsets = classifier.coef_, classifier.intercept_
        if len(slopes) == 1:  # scikit-learn has one score for two classes, that of the second
            slopes, offsets = np.concatenate([-slopes, slopes]) / 2, np.concatenate([-offsets, offsets]) / 2
        weight = torch.zeros(num_classes, features.shape[1])
        bias = torch.full((num_classes,), ABSENT_BIAS)
        present = torch.from_numpy(classifier.classes_.astype(np.int64))
        weight[present] = torch.from_numpy(slopes if basis is None else slopes @ basis).float()
        bias[present] = torch.from_numpy(offsets).float()
        heads.append((weight, bias))
    pooled = (features.float() - mean) / scale
    return [ProbeHead(mean, scale, *layer, *_class_prototypes(pooled, labels, num_classes)) for layer in heads]


def _class_prototypes(pooled: Tensor, labels: Ints, num_classes: int) -> tuple[Tensor, Tensor]:
    """Compute the mean (W,) of pooled features (n, W) and the L2-normalized, centered class means (C, W)."""
    feature_mean = pooled.mean(dim=0)
    class_prototypes = torch.zeros(num_classes, pooled.shape[1])
    for label in np.unique(labels):
        class_prototypes[label] = F.normalize(pooled[np.flatnonzero(labels == label)].mean(dim=0) - feature_mean, dim=0)
    return feature_mean, class_prototypes


class AttentiveStage(nn.Module):
    """Pool standardized tokens by attention with learned queries, and classify linearly.

    Queries are initialized near zero, which averages all tokens: training starts from a linear probe.
    """

    def __init__(self, mean: Tensor, scale: Tensor, num_classes: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.mean, self.scale = mean, scale
        self.query = nn.Parameter(0.02 * torch.randn(NUM_QUERIES, len(mean), generator=generator))
        self.weight = nn.Parameter(torch.zeros(num_classes, NUM_QUERIES * len(mean)))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the cross-entropy of a batch whose `video` holds tokens (B, N, D)."""
        assert batch.labels is not None
        pooled = pool_features(batch.video, self.mean, self.scale, self.query)
        return {"loss": F.cross_entropy(F.linear(pooled, self.weight, self.bias), batch.labels)}


def _fit_attentive_head(features: Tensor, labels: Ints, num_classes: int, weight_decay: float, seed: int) -> ProbeHead:
    mean, scale = mean_and_scale(features)
    stage = AttentiveStage(mean, scale, num_classes, seed)
    num_videos = len(labels)
    batch_size = min(BATCH_SIZE, num_videos)
    num_steps = min(EPOCHS * -(-num_videos // batch_size), MAX_STEPS)
    optimizer = OptimizerSettings(base_lr=PEAK_LR, weight_decay=weight_decay)
    loop = LoopSettings(precision="float32", seed=seed)
    settings = TrainingSettings(optimizer=optimizer, schedule=ScheduleSettings(steps=num_steps), loop=loop)
    device = torch.device("cpu")
    train_step = TrainStep(stage, settings, num_steps, device, torch.Generator(device))
    targets = torch.from_numpy(labels)
    order = _sample_order(num_videos, batch_size, num_steps, seed)
    for step in range(num_steps):
        indices = order[step]
        batch = Batch(features[indices], tuple(str(index) for index in indices.tolist()), targets[indices])
        lr = cosine_with_warmup(step, num_steps, peak=PEAK_LR, final=0.0, warmup_steps=int(WARMUP_FRACTION * num_steps))
        train_step([batch], lr)
    if train_step.found_inf:
        raise RunError("attentive probe", "its loss became NaN or infinite", "", "check the model's weights")
    bias = stage.bias.detach().clone()
    bias[torch.from_numpy(np.setdiff1d(np.arange(num_classes), labels))] = ABSENT_BIAS
    query = stage.query.detach()
    empty = torch.zeros(NUM_QUERIES * len(mean))
    head = ProbeHead(mean, scale, stage.weight.detach(), bias, empty, empty.expand(num_classes, -1), query)
    feature_mean, class_prototypes = _class_prototypes(head.pool(features), labels, num_classes)
    return replace(head, feature_mean=feature_mean, class_prototypes=class_prototypes)


def _sample_order(num_videos: int, batch_size: int, num_steps: int, seed: int) -> Tensor:
    """Return the video indices of each step (num_steps, batch_size), from concatenated random permutations."""
    generator = torch.Generator().manual_seed(seed + 1)
    num_permutations = -(-num_steps * batch_size // num_videos)
    return torch.cat([torch.randperm(num_videos, generator=generator) for _ in range(num_permutations)])[
        : num_steps * batch_size
    ].reshape(-1, batch_size)
