"""Exponential moving average of the learning parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def scaled_decay(decay: float, steps: int) -> float:
    """Decay whose memory of 1 / (1 - decay) steps is at most a tenth of a run of `steps`.

    0.9999 remembers 10,000 steps; in a run of 300 steps the average would still be the initial weights. There the
    decay becomes 1 - 10 / 300, with which the initial weights keep a share of about e^-10.
    """
    return min(decay, max(0.0, 1.0 - 10.0 / steps))


class Ema:
    """average = decay * average + (1 - decay) * parameter, in float32, after every step.

    Only parameters that learn are averaged; frozen ones and buffers are those of the module.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        learning = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._parameters = [parameter for _, parameter in learning]
        self.averages = {name: parameter.detach().float().clone() for name, parameter in learning}

    @torch.no_grad()
    def update(self) -> None:
        """Move every average a little towards its parameter."""
        values = [parameter.float() for parameter in self._parameters]
        torch._foreach_lerp_(list(self.averages.values()), values, 1.0 - self.decay)

    @torch.no_grad()
    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Take over averages by name; the names must be the same."""
        if averages.keys() != self.averages.keys():
            raise ValueError("averages of other parameters")
        for name, average in self.averages.items():
            average.copy_(averages[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the module holds the averages in place of its parameters (for evaluation)."""
        kept = [parameter.detach().clone() for parameter in self._parameters]
        self._write(list(self.averages.values()))
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
