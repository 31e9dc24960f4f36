"""Typed `nn.Module` whose call returns a Tensor for type checkers; at runtime it is torch's class.

torch annotates the call of a module with Any. A module whose `forward` returns one tensor derives from this `Module`.
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
    """Initialize the weights of all linear layers from a normal of std 0.02, truncated at +-2, the biases with 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
