"""Count the memory of a training step per tensor, or predict it without computing: the same on every machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from internvideo.errors import RunError
from internvideo.training.settings import TrainingSettings
from internvideo.training.sharding import layers

MIB, GIB = 2**20, 2**30


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Sum the storage sizes of tensors in bytes; shared storages count once."""
    return sum({_storage(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@dataclass
class Activations:
    """Tensors that autograd keeps for the backward pass.

    Attributes:
        bytes: the most that are kept at once. uses: storage -> how many saved tensors need it now.
    """

    bytes: int = 0
    uses: Counter[int] = field(default_factory=Counter)
    kept: int = 0


class _Saved:
    """A tensor that the backward pass needs; its storage counts until it is freed."""

    def __init__(self, tensor: Tensor, counted: Activations) -> None:
        self.tensor, self.counted, self.storage = tensor, counted, _storage(tensor)
        if not counted.uses[self.storage]:
            counted.kept += tensor.untyped_storage().nbytes()
            counted.bytes = max(counted.bytes, counted.kept)
        counted.uses[self.storage] += 1

    def __del__(self) -> None:
        self.counted.uses[self.storage] -= 1
        if not self.counted.uses[self.storage]:
            self.counted.kept -= self.tensor.untyped_storage().nbytes()


@contextmanager
def counted_activations(weights: Iterable[Tensor]) -> Iterator[Activations]:
    """Count what forward passes inside the block save for backward, without the storages of `weights`.

    What is freed by a backward pass inside counts no longer; what it computes again does. Temporary tensors of the
    forward and the backward pass are not counted.
    """
    counted, own = Activations(), {_storage(tensor) for tensor in weights}

    def pack(tensor: Tensor) -> Tensor | _Saved:
        return tensor if _storage(tensor) in own else _Saved(tensor, counted)

    def unpack(saved: Tensor | _Saved) -> Tensor:
        return saved.tensor if isinstance(saved, _Saved) else saved

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield counted


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # the address of the storage, which tensors without values have too


def predict_activations(stage: nn.Module, batch: Any, *, bfloat16: bool) -> tuple[int, int]:
    """Predict a forward and backward pass of a stage, with shapes alone: nothing is computed, no device is needed.

    Returns:
        bytes that autograd keeps at most, and floating-point operations of matrix products.

    Raises:
        RunError: shapes of this stage follow from values.
    """
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )
    from torch.func import functional_call
    from torch.utils.flop_counter import FlopCounterMode

    named = {**dict(stage.named_parameters()), **dict(stage.named_buffers())}
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        weights: dict[str, Tensor] = {name: fake.from_tensor(tensor) for name, tensor in named.items()}
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16)
        try:
            with (
                FlopCounterMode(display=False) as operations,
                _checks_pass(),
                counted_activations((*named.values(), *weights.values())) as activations,
            ):
                with autocast:
                    losses = functional_call(stage, {**weights}, (batch, torch.Generator()))
                torch.autograd.backward(losses["loss"])
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            found = "shapes of this stage follow from values"
            raise RunError("prediction of memory", found, "", "it is measured where one step is made") from error
    return activations.bytes, operations.get_total_flops()


def _checks_pass() -> Any:
    """Return a mode in which what is asked of tensors without values as true or false is true."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class ChecksPass(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it so
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
                return True
            return func(*args, **(kwargs or {}))

    return ChecksPass()  # type: ignore[no-untyped-call]  # torch leaves it so


def state_bytes(stage: nn.Module, settings: TrainingSettings, processes: int = 1) -> dict[str, int]:
    """Bytes on each process of what a run keeps between steps, and of the gradients.

    Args:
        processes: that divide the parameters, where `loop.parallel` does: all of "fsdp", those of a machine of "hsdp".
            A layer is then gathered whole, one after another, and so is what lies in no layer.
    """
    every, repeated = tensor_bytes(stage.parameters()), [tensor_bytes(layer.parameters()) for layer in layers(stage)]
    learning = tensor_bytes(p for p in stage.parameters() if p.requires_grad)
    share = 1 if settings.loop.parallel == "ddp" else processes
    largest = max(repeated, default=0)
    gathered = (every - sum(repeated) + largest) * (share - 1) // share
    moments = {"adamw": 2, "bert_adam": 2, "sgd": 1}[settings.optimizer.kind]
    return {
        "parameters": every // share + gathered + tensor_bytes(stage.buffers()),
        "gradients": learning // share + (largest if share > 1 else 0),
        "optimizer": moments * learning // share,
        "averages": learning // share if settings.loop.ema_decay is not None else 0,
    }


def total(memory: Mapping[str, int]) -> int:
    """Sum of the kinds, in bytes."""
    return sum(memory.values())
