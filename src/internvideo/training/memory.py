"""Measure the activation memory of a training step per tensor: the same on every run and machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

MIB = 2**20


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Sum the storage sizes of tensors in bytes; shared storages count once."""
    return sum({_storage_pointer(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@dataclass
class Activations:
    """Tensors that autograd saves for the backward pass: storage pointer -> bytes."""

    bytes_by_storage: dict[int, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Total bytes."""
        return sum(self.bytes_by_storage.values())


@contextmanager
def counted_activations(module: nn.Module) -> Iterator[Activations]:
    """Count the tensors that forward passes inside the block save for backward, without parameters and buffers.

    Temporary tensors of the forward and the backward pass are not counted.
    """
    saved = Activations()
    parameter_storages = {_storage_pointer(tensor) for tensor in (*module.parameters(), *module.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        if _storage_pointer(tensor) not in parameter_storages:
            saved.bytes_by_storage[_storage_pointer(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _storage_pointer(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
