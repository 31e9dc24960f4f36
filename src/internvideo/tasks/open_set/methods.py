"""Open-set methods of table 11: each trains a last layer on features, then predicts class and uncertainty (DEAR).

A method is a function (training features, labels, settings) -> predictor, and a predictor a function features ->
(probabilities, uncertainty). All methods are trained on the same frozen features with the same settings.

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
Prediction = tuple[Floats, Floats]
Predictor = Callable[[Tensor], Prediction]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class HeadTrainingSettings:
    """Settings of the training of a last layer, with AdamW and cosine decay to 0.

    Attributes:
        lr: initial learning rate.
        dropout: rate of the dropout on the features, also of MC dropout.
        num_samples: samples of weights or dropout masks per prediction.
    """

    num_classes: int
    epochs: int = 60
    batch_size: int = 256
    lr: float = 1e-2
    weight_decay: float = 1e-2
    dropout: float = 0.5
    num_samples: int = 10
    seed: int = 0


MethodFn = Callable[[Tensor, Tensor, HeadTrainingSettings], Predictor]


def evidential_prediction(logits: Tensor, kind: Evidence = "exp") -> Prediction:
    """Compute expected probabilities and uncertainty (C / total evidence) from logits (N, C)."""
    probabilities, uncertainty = opinion(evidence(logits.double(), kind))
    return probabilities.numpy(), uncertainty.numpy()


def softmax_prediction(logits: Tensor) -> Prediction:
    """Compute probabilities, and 1 - maximum probability as uncertainty, from logits (N, C)."""
    probabilities = softmax(logits.double().numpy())
    return probabilities, 1 - probabilities.max(axis=1)


def _sampled_prediction(logits: list[Tensor]) -> Prediction:
    """Compute mean probabilities, and BALD (mutual information) as uncertainty, from the logits of several samples."""
    sampled = np.stack(
        [np.clip(softmax(sample_logits.double().numpy()), 1e-12, 1.0) for sample_logits in logits], axis=2
    )
    return sampled.mean(axis=2), mutual_information(sampled)


def _train_head(head: nn.Module, loss: Loss, features: Tensor, labels: Tensor, settings: HeadTrainingSettings) -> None:
    """Train a last layer, in place; batch order and dropout use torch's global generator."""
    parameters = list(head.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    batches = max(1, round(len(labels) / settings.batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * batches)
    with torch.enable_grad():
        for _ in range(settings.epochs):
            for indices in torch.randperm(len(labels)).tensor_split(batches):
                x = F.dropout(features[indices], settings.dropout)
                gradients = torch.autograd.grad(loss(x, labels[indices]), parameters)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                schedule.step()


def _train_linear(
    features: Tensor, labels: Tensor, settings: HeadTrainingSettings, loss: Loss = F.cross_entropy
) -> nn.Linear:
    """Train a linear layer with a loss of (logits, labels)."""
    head = nn.Linear(features.shape[1], settings.num_classes)
    _train_head(head, lambda x, y: loss(head(x), y), features, labels, settings)
    return head


def train_softmax(features: Tensor, labels: Tensor, settings: HeadTrainingSettings) -> Predictor:
    """Softmax baseline: the uncertainty is 1 - maximum probability."""
    head = _train_linear(features, labels, settings)
    return lambda x: softmax_prediction(head(x))


def train_openmax(features: Tensor, labels: Tensor, settings: HeadTrainingSettings) -> Predictor:
    """OpenMax: recalibrate logits with the extreme-value distribution of distances to the class means.

    The uncertainty is the log odds of the unknown class, because its probability is rounded to 1 for many samples.
    """
    head = _train_linear(features, labels, settings)
    openmax = OpenMax.fit(features.double().numpy(), head(features).double().numpy(), labels.numpy())

    def predictor(x: Tensor) -> Prediction:
        from scipy.special import logsumexp  # slow to import

        recalibrated = openmax.recalibrate(x.double().numpy(), head(x).double().numpy())
        train_features = recalibrated[:, :-1]
        return softmax(train_features), recalibrated[:, -1] - logsumexp(train_features, axis=1)

    return predictor


def train_mc_dropout(features: Tensor, labels: Tensor, settings: HeadTrainingSettings) -> Predictor:
    """MC dropout: the softmax baseline with dropout at test time; the uncertainty is BALD."""
    head = _train_linear(features, labels, settings)
    return lambda x: _sampled_prediction([head(F.dropout(x, settings.dropout)) for _ in range(settings.num_samples)])


def train_bayesian(features: Tensor, labels: Tensor, settings: HeadTrainingSettings) -> Predictor:
    """BNN SVI: a Bayesian linear layer, trained by variational inference; the uncertainty is BALD."""
    head = BayesianLinear(features.shape[1], settings.num_classes)
    kl_weight = 1 / len(labels)
    _train_head(
        head, lambda x, y: F.cross_entropy(head(x), y) + kl_weight * head.divergence(), features, labels, settings
    )
    return lambda x: _sampled_prediction([head(x) for _ in range(settings.num_samples)])


def train_reciprocal_points(features: Tensor, labels: Tensor, settings: HeadTrainingSettings) -> Predictor:
    """RPL: the logit of a class is the distance to its reciprocal points; the uncertainty is 1 - max probability."""
    head = ReciprocalPoints(features.shape[1], settings.num_classes)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        distances = head(x)
        return F.cross_entropy(distances, y) + 0.1 * head.open_space(distances, y)

    _train_head(head, loss, features, labels, settings)
    return lambda x: softmax_prediction(head(x))


def train_evidential(features: Tensor, labels: Tensor, settings: HeadTrainingSettings) -> Predictor:
    """DEAR: evidential learning with the log loss and exponential evidence, without further terms, as in the paper."""
    head = _train_linear(features, labels, settings, lambda z, y: evidential_loss(evidence(z), y)["loss_cls"].mean())
    return lambda x: evidential_prediction(head(x))


METHODS: dict[str, MethodFn] = {
    "softmax": train_softmax,
    "openmax": train_openmax,
    "mc_dropout": train_mc_dropout,
    "bnn_svi": train_bayesian,
    "rpl": train_reciprocal_points,
    "evidential": train_evidential,
}
"""Name -> method, in the order of table 11."""


def predict_with_all_methods(
    train: Floats, labels: NDArray[np.int64], test: Floats, settings: HeadTrainingSettings
) -> dict[str, tuple[Prediction, Prediction]]:
    """Train every method on features (M, D), and predict these and the test features (N, D).

    Features are standardized with the statistics of the training features. Results depend only on data and settings.

    Returns:
        name of the method -> predictions of the training features, and of the test features.
    """
    mean, scale = train.mean(axis=0), train.std(axis=0) + 1e-6
    train_features, test_features = (
        torch.from_numpy(((features - mean) / scale).astype(np.float32)) for features in (train, test)
    )
    predictions = {}
    for name, method in METHODS.items():
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
            torch.manual_seed(settings.seed)
            predictor = method(train_features, torch.from_numpy(labels), settings)
            predictions[name] = (predictor(train_features), predictor(test_features))
    return predictions
