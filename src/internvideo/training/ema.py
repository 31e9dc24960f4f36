"""Exponential moving average of the trainable parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def scaled_decay(decay: float, total_steps: int) -> float:
    """Limit the decay so that its time constant 1 / (1 - decay) is at most a tenth of the run.

    0.9999 has a time constant of 10,000 steps: after a run of 300 steps the average would still be close to the initial
    weights. With the limit, 1 - 10 / 300, their share in the average is about e^-10.
    """
    return min(decay, max(0.0, 1.0 - 10.0 / total_steps))


class Ema:
    """Moving averages in float32: average = decay * average + (1 - decay) * parameter.

    Only trainable parameters are averaged, not frozen ones and not buffers.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self._parameters = list(trainable.values())
        self.averages = {name: parameter.detach().float().clone() for name, parameter in trainable.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update every average with the current parameters."""
        values = [parameter.float() for parameter in self._parameters]
        torch._foreach_lerp_(list(self.averages.values()), values, 1.0 - self.decay)

    @torch.no_grad()
    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Copy averages by name. Raises ValueError if the names differ."""
        if averages.keys() != self.averages.keys():
            raise ValueError("the averages are of other parameters than the model's")
        for name, average in self.averages.items():
            average.copy_(averages[name])
