"""Learning-rate schedules. The rate is a function of the step, so resuming needs no saved state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from internvideo.training.settings import ScheduleSettings


def linear_warmup(step: int, warmup_steps: int, start: float, peak: float) -> float:
    """Interpolate from `start` at step 0 to `peak` at step `warmup_steps` - 1; a single warm-up step has `start`."""
    return start + (peak - start) * step / (warmup_steps - 1) if warmup_steps > 1 else start


def cosine_with_warmup(
    step: int, total_steps: int, *, peak: float, final: float, warmup_steps: int = 0, start: float = 0.0
) -> float:
    """Return the rate of a linear warm-up followed by a cosine decay from `peak` towards `final` (mae.py).

    `step` is 0 to total_steps - 1; the rate would be `final` at step `total_steps`.
    """
    if step < warmup_steps:
        return linear_warmup(step, warmup_steps, start, peak)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + 0.5 * (peak - final) * (1.0 + math.cos(math.pi * progress))


def cosine_including_warmup(progress: float, warmup_fraction: float) -> float:
    """Return the factor of the peak rate: a linear warm-up, then 0.5 (1 + cos(pi progress)) (Video-Text-Retrieval).

    Both arguments are fractions of the run, 0..1. The progress of the cosine counts from the start of the warm-up, so
    the factor drops slightly at the end of the warm-up.
    """
    return progress / warmup_fraction if progress < warmup_fraction else 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step.

    Attributes:
        settings: kind of schedule, `start_lr`, and `final_lr` of the kinds cosine and linear.
        peak: maximum learning rate, after scaling.
        scale: factor of `start_lr` and `final_lr` (`OptimizerSettings.scale`).
        total_steps, warmup_steps: numbers of optimizer steps.
    """

    settings: ScheduleSettings
    peak: float
    scale: float
    total_steps: int
    warmup_steps: int

    def __call__(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        settings, total, warmup, peak = self.settings, self.total_steps, self.warmup_steps, self.peak
        start, final = settings.start_lr * self.scale, settings.final_lr * self.scale
        if settings.kind == "cosine_including_warmup":
            return peak * cosine_including_warmup(step / total, warmup / total)
        if step < warmup:
            return linear_warmup(step, warmup, start, peak)
        match settings.kind:
            case "cosine":
                return cosine_with_warmup(step, total, peak=peak, final=final, warmup_steps=warmup, start=start)
            case "linear":
                return peak + (final - peak) * (step - warmup) / (total - warmup)
            case "constant":
                return peak
            case "multistep":  # 1e-9 for the rounding of milestones that fall on steps
                return peak * 0.1 ** sum(step / total >= at - 1e-9 for at in settings.relative_milestones())
