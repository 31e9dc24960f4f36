"""Learning-rate schedules: functions of the step, so nothing has to be stored to resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from internvideo.training.settings import ScheduleSettings


def linear_warmup(step: int, warmup: int, start: float, peak: float) -> float:
    """Interpolate linearly: step 0 gives `start`, step `warmup` - 1 gives `peak`."""
    return start + (peak - start) * step / (warmup - 1) if warmup > 1 else start


def cosine_with_warmup(
    step: int, total: int, *, peak: float, final: float, warmup: int = 0, start: float = 0.0
) -> float:
    """Linear warm-up, then cosine decay from `peak` towards `final` (mae.py).

    `step` runs from 0 to total - 1; `final` itself would be reached at step `total`.
    """
    if step < warmup:
        return linear_warmup(step, warmup, start, peak)
    progress = (step - warmup) / (total - warmup)
    return final + 0.5 * (peak - final) * (1.0 + math.cos(math.pi * progress))


def linear_with_warmup(
    step: int, total: int, *, peak: float, final: float, warmup: int = 0, start: float = 0.0
) -> float:
    """Linear warm-up, then linear decay from `peak` to `final` at step `total`."""
    if step < warmup:
        return linear_warmup(step, warmup, start, peak)
    return peak + (final - peak) * (step - warmup) / (total - warmup)


def cosine_including_warmup(progress: float, warmup: float) -> float:
    """Linear warm-up, then a cosine over the whole run: 0.5 (1 + cos(pi progress)) (Video-Text-Retrieval).

    The cosine includes the warm-up, so the factor drops slightly where the warm-up ends.

    Args:
        progress: completed fraction of the run, 0..1.
        warmup: warm-up fraction of the run, 0..1.
    """
    return progress / warmup if progress < warmup else 0.5 * (1.0 + math.cos(math.pi * progress))


def multi_step_factor(progress: float, milestones: Sequence[float], factor: float = 0.1) -> float:
    """Multi-step decay: multiply by `factor` at each of `milestones` (fractions of the run) that was reached."""
    # Milestones fall on steps, up to rounding.
    return factor ** sum(progress >= milestone - 1e-9 for milestone in milestones)


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step.

    Attributes:
        settings: kind of schedule, start and final learning rates.
        peak: maximum learning rate, after scaling.
        scale: factor on the start and final rates (`OptimizerSettings.scale`).
        total, warmup: optimizer steps.
    """

    settings: ScheduleSettings
    peak: float
    scale: float
    total: int
    warmup: int

    def __call__(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        start, final = self.settings.start_lr * self.scale, self.settings.final_lr * self.scale
        match self.settings.kind:
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
            case "multistep":
                if step < self.warmup:
                    return linear_warmup(step, self.warmup, start, self.peak)
                return self.peak * multi_step_factor(step / self.total, self.settings.relative_milestones())
            case "cosine_including_warmup":
                return self.peak * cosine_including_warmup(step / self.total, self.warmup / self.total)
