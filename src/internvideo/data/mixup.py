"""Mixup and CutMix of a batch of clips with its reverse (run_class_finetuning.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def soft_targets(labels: Tensor, num_classes: int, smoothing: float, lam: float = 1.0) -> Tensor:
    """Return smoothed one-hot targets of a batch mixed with its reverse.

    Args:
        labels: (B,) int64 in [0, C).
        num_classes: C.
        smoothing: s; the true class has 1 - s + s / C, the others s / C.
        lam: lambda, weight of the label of a clip; the label of its partner in the reversed batch has 1 - lambda.

    Returns: (B, C) float32, rows sum to 1.

    Raises ValueError: a label outside [0, C), such as the -100 of a clip without one.
    """
    if labels.numel() and not bool(((labels >= 0) & (labels < num_classes)).all()):
        found = f"soft targets need labels in 0..{num_classes - 1}; found {int(labels.min())}..{int(labels.max())}"
        raise ValueError(found)
    off = smoothing / num_classes
    hard = torch.full((len(labels), num_classes), off, dtype=torch.float32, device=labels.device)
    hard.scatter_(1, labels[:, None], 1.0 - smoothing + off)
    return hard * lam + hard.flip(0) * (1.0 - lam)


def cutmix_box(height: int, width: int, lam: float, rng: np.random.RandomState) -> tuple[slice, slice]:
    """Sample the rows and columns of a box that covers about 1 - `lam` of the frame, clipped to the frame."""
    side = math.sqrt(1.0 - lam)
    spans = []
    for length in (height, width):
        half, middle = int(length * side) // 2, int(rng.randint(length))
        spans.append(slice(max(middle - half, 0), min(middle + half, length)))
    return spans[0], spans[1]


@dataclass(frozen=True)
class Mixup:
    """Mix a batch with its reverse: blend whole clips (mixup) or paste one box into all frames (CutMix).

    Attributes:
        num_classes: C.
        mixup_alpha, cutmix_alpha: alpha of lambda ~ Beta(alpha, alpha); 0 disables mixup or CutMix.
        probability: of mixing a batch.
        switch_probability: of CutMix if both are enabled.
        smoothing: label smoothing of the targets, mixed or not.
    """

    num_classes: int
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        fractions = (self.probability, self.switch_probability, self.smoothing)
        if (
            self.num_classes < 1
            or min(self.mixup_alpha, self.cutmix_alpha) < 0
            or not all(0 <= s <= 1 for s in fractions)
        ):
            raise ValueError(f"classes from 1, alphas from 0, probabilities and smoothing in 0..1: {self}")

    def __call__(self, video: Tensor, labels: Tensor, rng: np.random.RandomState) -> tuple[Tensor, Tensor]:
        """Mix one batch on its device.

        Args:
            video: (B, 3, T, S, S) uint8, or float in 0..255; not changed.
            labels: (B,) int64.
            rng: seeded per batch.

        Returns: (B, 3, T, S, S) float32 in 0..255 and (B, C) float32 targets.
        """
        mixed = video.to(torch.float32, copy=True)
        use_cutmix, lam = self._draw(rng)
        if use_cutmix:
            rows, columns = cutmix_box(video.shape[-2], video.shape[-1], lam, rng)
            mixed[..., rows, columns] = video.flip(0)[..., rows, columns].to(torch.float32)
            area = (rows.stop - rows.start) * (columns.stop - columns.start)
            lam = 1.0 - area / (video.shape[-2] * video.shape[-1])
        elif lam < 1:
            mixed = torch.lerp(mixed.flip(0), mixed, lam)
        return mixed, soft_targets(labels, self.num_classes, self.smoothing, lam)

    def _draw(self, rng: np.random.RandomState) -> tuple[bool, float]:
        """Draw whether to use CutMix, and lambda; (False, 1) for a batch that is not mixed."""
        kinds = [alpha > 0 for alpha in (self.mixup_alpha, self.cutmix_alpha)]
        if rng.uniform() >= self.probability or not any(kinds):
            return False, 1.0
        cut = kinds[1] and (not kinds[0] or rng.uniform() < self.switch_probability)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        return cut, float(rng.beta(alpha, alpha))
