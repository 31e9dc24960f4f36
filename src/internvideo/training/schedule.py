"""The learning rate of every step: functions of the step number, so nothing has to be stored to resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from internvideo.training.settings import ScheduleSettings


def linear_warmup(step: int, warmup: int, start: float, peak: float) -> float:
    """Value at `step` of `warmup` evenly spaced values of which the first is `start` and the last is `peak`."""
    return start + (peak - start) * step / (warmup - 1) if warmup > 1 else start


def cosine_with_warmup(
    step: int, total: int, *, peak: float, final: float, warmup: int = 0, start: float = 0.0
) -> float:
    """Linear warm-up, then half a cosine from `peak` towards `final` (mae.py).

    `step` counts from 0 to total - 1; the value `final` itself would be reached at step `total`.
    """
    if step < warmup:
        return linear_warmup(step, warmup, start, peak)
    progress = (step - warmup) / (total - warmup)
    return final + 0.5 * (peak - final) * (1.0 + math.cos(math.pi * progress))


def linear_with_warmup(
    step: int, total: int, *, peak: float, final: float, warmup: int = 0, start: float = 0.0
) -> float:
    """Linear warm-up, then a straight line from `peak` to `final` at step `total`."""
    if step < warmup:
        return linear_warmup(step, warmup, start, peak)
    return peak + (final - peak) * (step - warmup) / (total - warmup)


def warmup_whole_cosine(progress: float, warmup: float) -> float:
    """Factor of the retrieval recipe: linear up to the share `warmup`, then 0.5 (1 + cos(pi progress)).

    The cosine runs over the whole of the run, so the factor jumps down a little where the warm-up ends
    (Video-Text-Retrieval).

    Args:
        progress: share of the run that is over, 0..1.
        warmup: share of the run, 0..1.
    """
    return progress / warmup if progress < warmup else 0.5 * (1.0 + math.cos(math.pi * progress))


def step_factor(progress: float, drops: Sequence[float], factor: float = 0.1) -> float:
    """`factor` for each of `drops` (shares of the run) that `progress` has reached."""
    return factor ** sum(progress >= drop - 1e-9 for drop in drops)  # a drop falls on a whole step but for rounding


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step.

    Attributes:
        settings: shape, start and final rates.
        peak: learning rate at the top, after scaling.
        scale: what start and final rates are multiplied by (`OptimizerSettings.scale`).
        total, warmup: optimizer steps.
    """

    settings: ScheduleSettings
    peak: float
    scale: float
    total: int
    warmup: int

    def __call__(self, step: int) -> float:
        """Learning rate with which step number `step` (from 0) is made."""
        start, final = self.settings.start_lr * self.scale, self.settings.final_lr * self.scale
        match self.settings.shape:
            case "cosine":
                return cosine_with_warmup(
                    step, self.total, peak=self.peak, final=final, warmup=self.warmup, start=start
                )
            case "linear":
                return linear_with_warmup(
                    step, self.total, peak=self.peak, final=final, warmup=self.warmup, start=start
                )
            case "constant":
                return linear_warmup(step, self.warmup, start, self.peak) if step < self.warmup else self.peak
            case "steps":
                if step < self.warmup:
                    return linear_warmup(step, self.warmup, start, self.peak)
                return self.peak * step_factor(step / self.total, self.settings.drop_shares())
            case "whole_cosine":
                return self.peak * warmup_whole_cosine(step / self.total, self.warmup / self.total)
