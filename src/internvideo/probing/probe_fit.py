"""How the head of a probe learns: regularised logistic regression, or queries that read tokens.

Each function gives one head for every strength of regularisation, so that a caller can choose among them on videos
that none of them has seen.

Shapes: n videos, N tokens, D width, H queries, C classes.
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
from internvideo.probing.probe import Head, pool
from internvideo.training.schedule import cosine_with_warmup
from internvideo.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings, TrainingSettings
from internvideo.training.step import TrainStep

Ints = NDArray[np.int64]

STRENGTHS: dict[Kind, tuple[float, ...]] = {
    "video": (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
    "tokens": (3.0, 0.3),
}
"""From the strongest regularisation to the weakest: C of logistic regression; weight decay of the attentive head."""

MIDDLE: dict[Kind, float] = {"video": 1e-2, "tokens": 0.3}
"""Taken where there are too few videos to choose."""

ABSENT = -1e3
"""Bias of a class without a training video: it is never the answer."""

MOST_ITERATIONS = 1000
SMALL = 2**21
"""Numbers in a table up to which one thread solves it faster than several that wait for each other."""

QUERIES = 8
BATCH, EPOCHS, MOST_STEPS, PEAK, WARMUP = 32, 100, 2000, 1e-2, 0.1


def fit_heads(features: Tensor, labels: Ints, classes: int, strengths: tuple[float, ...], seed: int = 0) -> list[Head]:
    """One head a strength, in their order.

    Args:
        features: (n, D) for linear heads, (n, N, D) for attentive ones. labels: (n,), of at least two classes.
        classes: C; a class without a video is never the answer of the head.
        strengths: see STRENGTHS. seed: of the attentive heads.
    """
    if features.ndim == 2:
        from threadpoolctl import threadpool_limits  # scikit-learn's own

        with threadpool_limits(1 if features.numel() <= SMALL else None, user_api="blas"):
            return _linear(features, labels, classes, strengths)
    return [_attentive(features, labels, classes, strength, seed) for strength in strengths]


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) over all but the last dimension; 1 where nothing varies."""
    flat = features.reshape(-1, features.shape[-1]).double()
    mean, spread = flat.mean(dim=0), flat.std(dim=0, correction=0)
    floor = 1e-6 * torch.maximum(mean.abs(), spread.max())
    return mean.float(), torch.where(spread > floor, spread, 1.0).float()


def standardised(features: Tensor) -> Tensor:
    """Every column with mean 0 and standard deviation 1."""
    mean, scale = statistics(features)
    return (features.float() - mean) / scale


def _linear(features: Tensor, labels: Ints, classes: int, strengths: tuple[float, ...]) -> list[Head]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, scale = statistics(features)
    table = ((features.float() - mean) / scale).double().numpy()
    basis = None
    if table.shape[0] < table.shape[1]:
        # The penalty does not see rotations: with fewer videos than columns, their own space gives the same answer.
        _, _, basis = np.linalg.svd(table, full_matrices=False)
        table = table @ basis.T
    learner: Any = LogisticRegression(max_iter=MOST_ITERATIONS, warm_start=True)
    heads = []
    for strength in strengths:
        learner.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a weak penalty may end a little before its optimum
            learner.fit(table, labels)
        slopes, offsets = learner.coef_, learner.intercept_
        if len(slopes) == 1:  # of two classes only the second is scored
            slopes, offsets = np.concatenate([-slopes, slopes]) / 2, np.concatenate([-offsets, offsets]) / 2
        weight = torch.zeros(classes, features.shape[1])
        bias = torch.full((classes,), ABSENT)
        present = torch.from_numpy(learner.classes_.astype(np.int64))
        weight[present] = torch.from_numpy(slopes if basis is None else slopes @ basis).float()
        bias[present] = torch.from_numpy(offsets).float()
        heads.append((weight, bias))
    read = (features.float() - mean) / scale
    return [Head(mean, scale, *layer, *_directions(read, labels, classes)) for layer in heads]


def _directions(read: Tensor, labels: Ints, classes: int) -> tuple[Tensor, Tensor]:
    """Centre (W,) of what is classified (n, W), and the directions (C, W) of the class means seen from it."""
    centre = read.mean(dim=0)
    directions = torch.zeros(classes, read.shape[1])
    for label in np.unique(labels):
        directions[label] = F.normalize(read[np.flatnonzero(labels == label)].mean(dim=0) - centre, dim=0)
    return centre, directions


class AttentiveStage(nn.Module):
    """Queries that read standardised tokens, and a linear classifier of what they read.

    Queries begin near zero, which is the mean of all tokens: a linear probe is what it starts from.
    """

    def __init__(self, mean: Tensor, scale: Tensor, classes: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.mean, self.scale = mean, scale
        self.query = nn.Parameter(0.02 * torch.randn(QUERIES, len(mean), generator=generator))
        self.weight = nn.Parameter(torch.zeros(classes, QUERIES * len(mean)))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """A batch whose `video` holds tokens (B, N, D) -> the cross-entropy."""
        assert batch.labels is not None
        read = pool(batch.video, self.mean, self.scale, self.query)
        return {"loss": F.cross_entropy(F.linear(read, self.weight, self.bias), batch.labels)}


def _attentive(features: Tensor, labels: Ints, classes: int, strength: float, seed: int) -> Head:
    mean, scale = statistics(features)
    stage = AttentiveStage(mean, scale, classes, seed)
    n = len(labels)
    size = min(BATCH, n)
    total = min(EPOCHS * -(-n // size), MOST_STEPS)
    settings = TrainingSettings(
        optimizer=OptimizerSettings(base_lr=PEAK, weight_decay=strength),
        schedule=ScheduleSettings(steps=total),
        loop=LoopSettings(precision="float32", seed=seed),
    )
    device = torch.device("cpu")
    stepper = TrainStep(stage, settings, total, device, torch.Generator(device))
    targets = torch.from_numpy(labels)
    order = _order(n, size, total, seed)
    for step in range(total):
        chosen = order[step]
        batch = Batch(features[chosen], tuple(str(index) for index in chosen.tolist()), targets[chosen])
        stepper([batch], cosine_with_warmup(step, total, peak=PEAK, final=0.0, warmup=int(WARMUP * total)))
    if stepper.found_inf:
        raise RunError("attentive probe", "its loss became NaN or infinite", "", "check the model's weights")
    bias = stage.bias.detach().clone()
    bias[torch.from_numpy(np.setdiff1d(np.arange(classes), labels))] = ABSENT
    query = stage.query.detach()
    empty = torch.zeros(QUERIES * len(mean))
    head = Head(mean, scale, stage.weight.detach(), bias, empty, empty.expand(classes, -1), query)
    centre, directions = _directions(head.read(features), labels, classes)
    return replace(head, centre=centre, directions=directions)


def _order(n: int, size: int, total: int, seed: int) -> Tensor:
    """(total, size) numbers of videos: all of them in a new order again and again."""
    generator = torch.Generator().manual_seed(seed + 1)
    rounds = -(-total * size // n)
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(rounds)])[: total * size].reshape(-1, size)
