"""Learning-rate schedules: functions of the step, so nothing has to be stored to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass

from internvideo.training.settings import ScheduleSettings


def linear_warmup(step: int, warmup: int, start: float, peak: float) -> float:
    """Interpolate linearly: step 0 gives `start`, step `warmup` - 1 gives `peak`; a single step, `start`."""
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


def cosine_including_warmup(progress: float, warmup_fraction: float) -> float:
    """Linear warm-up, then a cosine over the whole run: 0.5 (1 + cos(pi progress)) (Video-Text-Retrieval).

    Both arguments are fractions of the run, 0..1. The cosine includes the warm-up, so the factor drops slightly where
    the warm-up ends.
    """
    return progress / warmup_fraction if progress < warmup_fraction else 0.5 * (1.0 + math.cos(math.pi * progress))


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
        settings, total, warmup, peak = self.settings, self.total, self.warmup, self.peak
        start, final = settings.start_lr * self.scale, settings.final_lr * self.scale
        if settings.kind == "cosine_including_warmup":
            return peak * cosine_including_warmup(step / total, warmup / total)
        if step < warmup:
            return linear_warmup(step, warmup, start, peak)
        match settings.kind:
            case "cosine":
                return cosine_with_warmup(step, total, peak=peak, final=final, warmup=warmup, start=start)
            case "linear":
                return peak + (final - peak) * (step - warmup) / (total - warmup)
            case "constant":
                return peak
            case "multistep":  # milestones fall on steps, up to rounding
                return peak * 0.1 ** sum(step / total >= at - 1e-9 for at in settings.relative_milestones())
