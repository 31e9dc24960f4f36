"""Count the memory of a training step per tensor, or predict it from shapes."""

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
        bytes: peak. current: bytes kept now. uses: storage -> number of saved tensors that need it now.
    """

    bytes: int = 0
    uses: Counter[int] = field(default_factory=Counter)
    current: int = 0


class _Saved:
    """A tensor that the backward pass needs; its storage counts until it is freed."""

    def __init__(self, tensor: Tensor, counted: Activations) -> None:
        self.tensor, self.counted, self.storage = tensor, counted, _storage(tensor)
        if not counted.uses[self.storage]:
            counted.current += tensor.untyped_storage().nbytes()
            counted.bytes = max(counted.bytes, counted.current)
        counted.uses[self.storage] += 1

    def __del__(self) -> None:
        self.counted.uses[self.storage] -= 1
        if not self.counted.uses[self.storage]:
            self.counted.current -= self.tensor.untyped_storage().nbytes()


@contextmanager
def counted_activations(weights: Iterable[Tensor]) -> Iterator[Activations]:
    """Count what forward passes inside the block save for backward, without the storages of `weights`.

    Tensors freed by a backward pass inside are subtracted, recomputed ones are added. Temporary tensors are not
    counted.
    """
    counted, excluded = Activations(), {_storage(tensor) for tensor in weights}

    def pack(tensor: Tensor) -> Tensor | _Saved:
        return tensor if _storage(tensor) in excluded else _Saved(tensor, counted)

    def unpack(saved: Tensor | _Saved) -> Tensor:
        return saved.tensor if isinstance(saved, _Saved) else saved

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield counted


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # the address of the storage, which tensors without values have too


def predict_activations(stage: nn.Module, batch: Any, *, bfloat16: bool) -> tuple[int, int]:
    """Predict the memory of a forward and backward pass of a stage from shapes, without computing values.

    Returns:
        peak bytes kept by autograd, and floating-point operations of matrix products.

    Raises:
        RunError: shapes of this stage depend on values.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
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
            found = "shapes of this stage depend on values"
            raise RunError("prediction of memory", found, "", "it is measured where one step is made") from error
    return activations.bytes, operations.get_total_flops()


def _checks_pass() -> Any:
    """Return a mode in which tensors without values are true in conditions."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class ChecksPass(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it so
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
                return True
            return func(*args, **(kwargs or {}))

    return ChecksPass()  # type: ignore[no-untyped-call]  # torch leaves it so


def state_bytes(stage: nn.Module, settings: TrainingSettings, processes: int = 1) -> dict[str, int]:
    """Compute the bytes per process of parameters, gradients, optimizer state and averages.

    Args:
        processes: number that shards the parameters: all of "fsdp", those of one machine of "hsdp". Layers are
            gathered one after another; parameters outside of layers stay gathered.
    """
    every, repeated = tensor_bytes(stage.parameters()), [tensor_bytes(layer.parameters()) for layer in layers(stage)]
    trainable = tensor_bytes(p for p in stage.parameters() if p.requires_grad)
    shards = 1 if settings.loop.parallel == "ddp" else processes
    largest = max(repeated, default=0)
    gathered = (every - sum(repeated) + largest) * (shards - 1) // shards
    moments = {"adamw": 2, "bert_adam": 2, "sgd": 1}[settings.optimizer.kind]
    return {
        "parameters": every // shards + gathered + tensor_bytes(stage.buffers()),
        "gradients": trainable // shards + (largest if shards > 1 else 0),
        "optimizer": moments * trainable // shards,
        "averages": trainable // shards if settings.loop.ema_decay is not None else 0,
    }


def total(memory: Mapping[str, int]) -> int:
    """Sum of the kinds, in bytes."""
    return sum(memory.values())
