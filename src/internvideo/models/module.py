"""Typed `nn.Module`: a call has the return type of `forward`; at runtime it is torch's class.

torch declares that calling a module gives Any. Here a module whose `forward` returns one tensor derives from `Module`.
"""

# ruff: noqa: D101  # torch documents its own classes

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:

    class Module(nn.Module):
        """A module that returns one tensor."""

        __call__: Callable[..., Tensor]

    class Conv1d(nn.Conv1d, Module): ...

    class Conv2d(nn.Conv2d, Module): ...

    class Conv3d(nn.Conv3d, Module): ...

    class Dropout(nn.Dropout, Module): ...

    class Embedding(nn.Embedding, Module): ...

    class Identity(nn.Identity, Module): ...

    class LayerNorm(nn.LayerNorm, Module): ...

    class Linear(nn.Linear, Module): ...

    class RMSNorm(nn.RMSNorm, Module): ...

    class Sequential(nn.Sequential, Module): ...
else:
    Module = nn.Module
    Conv1d, Conv2d, Conv3d = nn.Conv1d, nn.Conv2d, nn.Conv3d
    Dropout, Embedding, Identity, LayerNorm = nn.Dropout, nn.Embedding, nn.Identity, nn.LayerNorm
    Linear, RMSNorm, Sequential = nn.Linear, nn.RMSNorm, nn.Sequential


def init_linears(module: nn.Module) -> None:
    """Draw the weights of all linear maps from a normal distribution of std 0.02, cut at +-2; biases are zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
