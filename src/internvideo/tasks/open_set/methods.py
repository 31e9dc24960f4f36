"""Open-set methods of table 11: each trains a last layer on features, then predicts class and uncertainty (DEAR).

A method maps training features and labels to a judge; a judge maps features to (probabilities, uncertainty). All
methods are trained on the same frozen features with the same settings.

Legend: M training samples, N samples, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from internvideo.metrics.classification import softmax
from internvideo.objectives.evidential import Evidence, evidence, evidential_loss, opinion
from internvideo.tasks.open_set.metrics import mutual_information
from internvideo.tasks.open_set.model import BayesianLinear, OpenMax, ReciprocalPoints

Floats = NDArray[np.floating[Any]]
Opinion = tuple[Floats, Floats]
Judge = Callable[[Tensor], Opinion]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Learning:
    """Training settings of every last layer: AdamW with cosine decay to 0.

    Attributes:
        dropout: of the features, also for MC dropout.
        draws: number of samples of weights or dropout masks in testing.
    """

    num_classes: int
    epochs: int = 60
    batch_size: int = 256
    rate: float = 1e-2
    weight_decay: float = 1e-2
    dropout: float = 0.5
    draws: int = 10
    seed: int = 0


Method = Callable[[Tensor, Tensor, Learning], Judge]


def evidential_opinion(logits: Tensor, kind: Evidence = "exp") -> Opinion:
    """Compute expected probabilities and uncertainty (C / total evidence) from logits (N, C)."""
    probabilities, uncertainty = opinion(evidence(logits.double(), kind))
    return probabilities.numpy(), uncertainty.numpy()


def softmax_opinion(logits: Tensor) -> Opinion:
    """Compute softmax and 1 - maximum probability from logits (N, C)."""
    probabilities = softmax(logits.double().numpy())
    return probabilities, 1 - probabilities.max(axis=1)


def _drawn_opinion(logits: list[Tensor]) -> Opinion:
    """Compute mean probabilities and BALD (mutual information) from the logits of several samples."""
    drawn = np.stack([np.clip(softmax(one.double().numpy()), 1e-12, 1.0) for one in logits], axis=2)
    return drawn.mean(axis=2), mutual_information(drawn)


def _learn(head: nn.Module, loss: Loss, features: Tensor, labels: Tensor, learning: Learning) -> None:
    """Train a last layer; batches and dropout use the global generator."""
    parameters = list(head.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning.rate, weight_decay=learning.weight_decay)
    batches = max(1, round(len(labels) / learning.batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, learning.epochs * batches)
    with torch.enable_grad():
        for _ in range(learning.epochs):
            for chosen in torch.randperm(len(labels)).tensor_split(batches):
                x = F.dropout(features[chosen], learning.dropout)
                gradients = torch.autograd.grad(loss(x, labels[chosen]), parameters)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                schedule.step()


def _linear(features: Tensor, labels: Tensor, learning: Learning, loss: Loss = F.cross_entropy) -> nn.Linear:
    """Train a linear layer with a loss of (logits, labels)."""
    head = nn.Linear(features.shape[1], learning.num_classes)
    _learn(head, lambda x, y: loss(head(x), y), features, labels, learning)
    return head


def soft_max(features: Tensor, labels: Tensor, learning: Learning) -> Judge:
    """Softmax baseline: the uncertainty is 1 - maximum probability."""
    head = _linear(features, labels, learning)
    return lambda x: softmax_opinion(head(x))


def open_max(features: Tensor, labels: Tensor, learning: Learning) -> Judge:
    """OpenMax: reduce logits by the extreme-value distribution of distances to the class means.

    The uncertainty is the log odds of the unknown class, because its probability rounds to 1 for many samples.
    """
    head = _linear(features, labels, learning)
    rule = OpenMax.fit(features.double().numpy(), head(features).double().numpy(), labels.numpy())

    def judge(x: Tensor) -> Opinion:
        from scipy.special import logsumexp  # slow to import

        revised = rule.revise(x.double().numpy(), head(x).double().numpy())
        known = revised[:, :-1]
        return softmax(known), revised[:, -1] - logsumexp(known, axis=1)

    return judge


def mc_dropout(features: Tensor, labels: Tensor, learning: Learning) -> Judge:
    """MC dropout: the softmax baseline with dropout in testing; the uncertainty is BALD."""
    head = _linear(features, labels, learning)
    return lambda x: _drawn_opinion([head(F.dropout(x, learning.dropout)) for _ in range(learning.draws)])


def bayesian(features: Tensor, labels: Tensor, learning: Learning) -> Judge:
    """BNN SVI: weights are distributions; the uncertainty is BALD over samples of them."""
    head = BayesianLinear(features.shape[1], learning.num_classes)
    share = 1 / len(labels)
    _learn(head, lambda x, y: F.cross_entropy(head(x), y) + share * head.divergence(), features, labels, learning)
    return lambda x: _drawn_opinion([head(x) for _ in range(learning.draws)])


def reciprocal_points(features: Tensor, labels: Tensor, learning: Learning) -> Judge:
    """RPL: the logit of a class is the distance to its reciprocal points; uncertainty is 1 - maximum probability."""
    head = ReciprocalPoints(features.shape[1], learning.num_classes)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        distances = head(x)
        return F.cross_entropy(distances, y) + 0.1 * head.open_space(distances, y)

    _learn(head, loss, features, labels, learning)
    return lambda x: softmax_opinion(head(x))


def evidential(features: Tensor, labels: Tensor, learning: Learning) -> Judge:
    """The paper's evidential method: log loss with exponential evidence, without further terms."""
    head = _linear(features, labels, learning, lambda z, y: evidential_loss(evidence(z), y)["loss_cls"].mean())
    return lambda x: evidential_opinion(head(x))


METHODS: dict[str, Method] = {
    "softmax": soft_max,
    "openmax": open_max,
    "mc_dropout": mc_dropout,
    "bnn_svi": bayesian,
    "rpl": reciprocal_points,
    "evidential": evidential,
}
"""Name -> method, the rows of the table."""


def judge_all(
    train: Floats, labels: NDArray[np.int64], test: Floats, learning: Learning
) -> dict[str, tuple[Opinion, Opinion]]:
    """Train every method on features (M, D), and predict these and other features (N, D).

    Features are standardized with the statistics of the training features. The same seed gives the same judges.
    """
    mean, scale = train.mean(axis=0), train.std(axis=0) + 1e-6
    known, asked = (torch.from_numpy(((part - mean) / scale).astype(np.float32)) for part in (train, test))
    opinions = {}
    for name, method in METHODS.items():
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
            torch.manual_seed(learning.seed)
            judge = method(known, torch.from_numpy(labels), learning)
            opinions[name] = (judge(known), judge(asked))
    return opinions
