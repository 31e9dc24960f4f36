"""Evidential deep learning: class evidence as a Dirichlet distribution with its uncertainty (DEAR).

Pure functions. Legend: B batch, C classes, D width. Losses are per sample, (B,), before the mean.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Evidence = Literal["exp", "relu", "softplus"]
Kind = Literal["log", "digamma", "mse", "cross_entropy"]

_EPS = 1e-10


def evidence(logits: Tensor, kind: Evidence = "exp") -> Tensor:
    """Convert logits to class evidence >= 0, (B, C); the paper uses "exp" of logits clamped to -10..10."""
    if kind == "exp":
        return logits.clamp(-10.0, 10.0).exp()
    return F.relu(logits) if kind == "relu" else F.softplus(logits)


def opinion(evidence: Tensor) -> tuple[Tensor, Tensor]:
    """Return the expected probabilities (B, C) and the uncertainty C / sum(alpha), (B,), in 0..1."""
    alpha = evidence + 1.0
    total = alpha.sum(dim=-1, keepdim=True)
    return alpha / total, alpha.shape[-1] / total.squeeze(-1)


def annealing(
    epoch: Tensor, epochs: int, kind: Literal["step", "exp"], *, start: float = 0.01, step: int = 10
) -> Tensor:
    """Return the regularizers' weight lambda (), which increases to 1 within `step` epochs, or from `start` over all.

    Beyond them it stays 1: the published exponential would go on growing, and calibration's 1 - lambda turn negative.
    """
    epoch = epoch.double()  # on its device, so that nothing waits for it
    weight = epoch / step if kind == "step" else start * torch.exp(-math.log(start) / epochs * epoch)
    return weight.clamp(max=1.0)


def dirichlet_kl(alpha: Tensor, beta: Tensor | None = None) -> Tensor:
    """Compute KL(Dir(alpha) || Dir(beta)), beta all ones when None; (B, C) -> (B,)."""
    if beta is None:
        beta = torch.ones_like(alpha)
    total_a, total_b = alpha.sum(dim=-1), beta.sum(dim=-1)
    constant = torch.lgamma(total_a) - torch.lgamma(alpha).sum(dim=-1)
    constant = constant - torch.lgamma(total_b) + torch.lgamma(beta).sum(dim=-1)
    shift = torch.digamma(alpha) - torch.digamma(total_a).unsqueeze(-1)
    return constant + ((alpha - beta) * shift).sum(dim=-1)


def evidential_loss(evidence: Tensor, labels: Tensor, kind: Kind = "log") -> dict[str, Tensor]:
    """Compute the data term of the evidential loss.

    Args:
        evidence: (B, C). labels: (B,) int64. kind: "log" is the paper's.

    Returns:
        "loss_cls", and "loss_var" for the kinds with a variance term; each (B,).
    """
    alpha = evidence + 1.0
    total = alpha.sum(dim=-1, keepdim=True)
    label_alpha = alpha.gather(-1, labels[:, None])
    if kind == "log":
        return {"loss_cls": (total.log() - label_alpha.log()).squeeze(-1)}
    if kind == "digamma":
        return {"loss_cls": (torch.digamma(total) - torch.digamma(label_alpha)).squeeze(-1)}
    variance = (alpha * (total - alpha) / (total * total * (total + 1))).sum(dim=-1)
    if kind == "cross_entropy":
        return {"loss_cls": (total.log() - label_alpha.log()).squeeze(-1), "loss_var": variance}
    target = F.one_hot(labels, alpha.shape[-1]).to(alpha.dtype)
    return {"loss_cls": (target - alpha / total).square().sum(dim=-1), "loss_var": variance}


def wrong_evidence(evidence: Tensor, labels: Tensor) -> Tensor:
    """Compute the KL divergence to the uniform Dirichlet after removing the true class's evidence, (B,)."""
    is_wrong = torch.ones_like(evidence).scatter(-1, labels[:, None], 0.0)
    return dirichlet_kl(evidence * is_wrong + 1.0)


def calibration(evidence: Tensor, labels: Tensor, weight: Tensor | float, *, disentangled: bool = False) -> Tensor:
    """Compute the accuracy-versus-uncertainty loss: correct predictions should be certain, wrong ones uncertain, (B,).

    Args:
        evidence: (B, C). labels: (B,) int64.
        weight: lambda, of the right answers; 1 - lambda of the wrong ones.
        disentangled: put probability and uncertainty together inside the logarithm.
    """
    probabilities, uncertainty = opinion(evidence)
    best, predicted = probabilities.max(dim=-1)
    correct = (predicted == labels).to(best.dtype)
    if disentangled:
        certainty_loss = -torch.log(best * (1 - uncertainty) + _EPS)
        uncertainty_loss = -torch.log((1 - best) * uncertainty + _EPS)
    else:
        certainty_loss = -best * torch.log(1 - uncertainty + _EPS)
        uncertainty_loss = -(1 - best) * torch.log(uncertainty + _EPS)
    return weight * correct * certainty_loss + (1 - weight) * (1 - correct) * uncertainty_loss


def hsic(a: Tensor, b: Tensor, *, unbiased: bool = False, normalized: bool = True) -> Tensor:
    """Compute the Hilbert-Schmidt independence criterion of features (B, D), (B, D') -> (); 0 means independent.

    RBF kernels exp(-|x - y|^2 / (2 sigma^2)) with sigma = sqrt(D). The debiasing head of DEAR raises it between a
    branch with temporal input and one without.

    Args:
        a, b: features of the same samples.
        unbiased: the estimator without the diagonal. normalized: divide by its number of pairs.
    """
    n = len(a)
    kernels = [torch.exp(-torch.cdist(x, x).square() / (2 * x.shape[1])) for x in (a, b)]
    if not unbiased:
        centered = [k - k.mean(dim=0, keepdim=True) - k.mean(dim=1, keepdim=True) + k.mean() for k in kernels]
        return (centered[0] * centered[1]).sum() / (n - 1) ** 2
    k, m = (kernel - torch.diag_embed(kernel.diagonal()) for kernel in kernels)
    value = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(dim=0) * m.sum(dim=0)).sum()
    return value / (n * (n - 3)) if normalized else value


def mean_evidence(evidence: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean total evidence of correctly and of wrongly classified samples, 0 without any, for monitoring."""
    total, correct = evidence.sum(dim=-1), evidence.argmax(dim=-1) == labels
    mean_correct = (total * correct).sum() / correct.sum().clamp(min=1)
    return mean_correct, (total * ~correct).sum() / (~correct).sum().clamp(min=1)
