"""What a step keeps in memory, counted tensor by tensor: the same figures on every run and machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

MIB = 2**20


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind tensors; what several of them share counts once."""
    return sum({_place(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@dataclass
class Activations:
    """What autograd keeps of a forward pass for the backward pass: bytes by where they lie."""

    kept: dict[int, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(self.kept.values())


@contextmanager
def counted_activations(module: nn.Module) -> Iterator[Activations]:
    """Count what the forward passes inside the block keep beside the module's own parameters and buffers.

    Passing results that nothing keeps, and what a backward pass needs for a moment, are not in it.
    """
    found = Activations()
    own = {_place(tensor) for tensor in (*module.parameters(), *module.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        if _place(tensor) not in own:
            found.kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
