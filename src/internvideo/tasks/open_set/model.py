"""Layers for uncertainty estimation in open-set recognition (DEAR, table 11).

The debiasing head is used in training only. The other layers replace the last linear layer of a classifier.
Legend: B batch, T, H, W grid of the last layer's tokens, D width of its features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from internvideo.extras import require

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

BRANCHES = ("motion", "shuffled", "still")
"""Branches of the debiasing head, by their use of time."""


@dataclass(frozen=True)
class BranchOutput:
    """Output of one branch: features (B, D) and logits (B, C)."""

    features: Tensor
    logits: Tensor


class DebiasHead(nn.Module):
    """Three branches on the token grid, used in training only.

    "motion": a 1x3x3 convolution; "shuffled": another one, of the frames in a random order; "still": a 2-D convolution
    of the mean frame. Each is followed by a norm, ReLU, the mean over the grid and a linear layer.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.motion = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.shuffled = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.still = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleDict({name: nn.GroupNorm(1, width) for name in BRANCHES})
        self.linears = nn.ModuleDict({name: nn.Linear(width, num_classes) for name in BRANCHES})

    def forward(self, grid: Tensor, generator: torch.Generator) -> dict[str, BranchOutput]:
        """Map (B, D, T, H, W) to the outputs of the three branches; each sample has its own random frame order."""
        order = torch.rand(len(grid), grid.shape[2], generator=generator, device=grid.device).argsort(dim=1)
        shuffled_grid = grid.gather(2, order[:, None, :, None, None].expand_as(grid))
        maps = {
            "motion": self.motion(grid),
            "shuffled": self.shuffled(shuffled_grid),
            "still": self.still(grid.mean(dim=2)),
        }
        outputs = {}
        for name, values in maps.items():
            features = F.relu(self.norms[name](values)).flatten(2).mean(dim=2)
            outputs[name] = BranchOutput(features, self.linears[name](features))
        return outputs


class BayesianLinear(nn.Module):
    """A linear layer whose weights are independent normal variables (mean-field variational inference).

    Every call samples new weights from the global generator. The prior of every weight is normal with mean 0.
    """

    def __init__(self, width: int, num_classes: int, prior: float = 1.0) -> None:
        super().__init__()
        self.prior = prior
        self.mean = nn.Parameter(torch.empty(num_classes, width + 1))
        self.spread = nn.Parameter(torch.full((num_classes, width + 1), -4.0))  # soft-plus gives the standard deviation
        nn.init.normal_(self.mean, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, D) to logits (B, C) with one sample of the weights."""
        weight = self.mean + F.softplus(self.spread) * torch.randn_like(self.mean)
        return F.linear(x, weight[:, :-1], weight[:, -1])

    def divergence(self) -> Tensor:
        """Compute the KL divergence of the weights from their prior, ()."""
        std_ratio = F.softplus(self.spread) / self.prior
        return 0.5 * (std_ratio.square() + (self.mean / self.prior).square() - 1 - 2 * std_ratio.log()).sum()


class ReciprocalPoints(nn.Module):
    """Reciprocal points: points that represent "not this class"; the logit grows with the distance (Chen et al. 2020).

    Attributes:
        points: (C, P, D). radius: (C,) bound of each class's open space.
    """

    def __init__(self, width: int, num_classes: int, points: int = 1) -> None:
        super().__init__()
        self.points = nn.Parameter(0.1 * torch.randn(num_classes, points, width))
        self.radius = nn.Parameter(torch.zeros(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, D) to logits (B, C): squared distance from a class's points, mean over points and D."""
        num_classes, points, width = self.points.shape
        distance = torch.cdist(x, self.points.flatten(0, 1)).square() / width
        return distance.view(-1, num_classes, points).mean(dim=2)

    def open_space(self, distances: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean squared difference of a sample's distance to its class from that class's radius, ()."""
        class_distance = distances.gather(1, labels[:, None]).squeeze(1)
        return (class_distance - self.radius[labels]).square().mean()


@dataclass(frozen=True)
class OpenMax:
    """OpenMax: logits recalibrated by how extreme a sample's distance from a class mean is (Bendale and Boult 2016).

    Attributes:
        means: (C, D). shape, scale: (C,) of the Weibull distribution of a class's largest distances; the scale is
            infinite for a class that is never recalibrated.
        num_ranks: number of top classes that are recalibrated; the amount falls linearly with the rank.
    """

    means: Floats
    shape: Floats
    scale: Floats
    num_ranks: int

    @classmethod
    def fit(cls, features: Floats, logits: Floats, labels: Ints, *, tail: int = 20, num_ranks: int = 10) -> OpenMax:
        """Fit means and Weibull distributions to correctly classified training samples.

        Args:
            features: (N, D). logits: (N, C). labels: (N,).
            tail: number of the largest distances of a class that the fit uses.
            num_ranks: see `OpenMax`, at most C.
        """
        require("fit", "OpenMax")
        from scipy.stats import weibull_min  # slow to import

        num_classes = logits.shape[1]
        means = np.zeros((num_classes, features.shape[1]))
        shape, scale = np.ones(num_classes), np.full(num_classes, np.inf)
        is_correct = logits.argmax(axis=1) == labels
        for label in range(num_classes):
            class_features = features[is_correct & (labels == label)]
            if len(class_features) == 0:  # no correctly classified sample: its distances are unknown
                continue
            means[label] = class_features.mean(axis=0)
            largest = np.sort(np.linalg.norm(class_features - means[label], axis=1))[-tail:]
            if len(largest) >= 3 and largest[-1] > largest[0] > 0:
                shape[label], _, scale[label] = weibull_min.fit(largest, floc=0)
        return cls(means, shape, scale, min(num_ranks, num_classes))

    def recalibrate(self, features: Floats, logits: Floats) -> Floats:
        """Recalibrate (N, D) features and (N, C) logits to logits (N, C + 1), the last one for "unknown".

        Fractions of non-negative logits are moved to "unknown", so each sample's smallest logit is subtracted first.
        """
        positive = logits - logits.min(axis=1, keepdims=True)
        distance = np.linalg.norm(features[:, None] - self.means, axis=2)
        extreme = 1 - np.exp(-((distance / self.scale) ** self.shape))
        rank = (-logits).argsort(axis=1, kind="stable").argsort(axis=1)
        moved = positive * extreme * np.clip((self.num_ranks - rank) / self.num_ranks, 0, 1)
        result: Floats = np.concatenate([positive - moved, moved.sum(axis=1, keepdims=True)], axis=1)
        return result
