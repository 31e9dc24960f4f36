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
    """Memory of the tensors that autograd saves for the backward pass.

    Attributes:
        peak_bytes, current_bytes: largest and current size.
        uses: address of a storage -> number of saved tensors that share it.
    """

    peak_bytes: int = 0
    uses: Counter[int] = field(default_factory=Counter)
    current_bytes: int = 0


class _SavedTensor:
    """A tensor saved for the backward pass; its storage is counted until the last such tensor is freed."""

    def __init__(self, tensor: Tensor, activations: Activations) -> None:
        self.tensor, self.activations, self.storage = tensor, activations, _storage(tensor)
        if not activations.uses[self.storage]:
            activations.current_bytes += tensor.untyped_storage().nbytes()
            activations.peak_bytes = max(activations.peak_bytes, activations.current_bytes)
        activations.uses[self.storage] += 1

    def __del__(self) -> None:
        self.activations.uses[self.storage] -= 1
        if not self.activations.uses[self.storage]:
            self.activations.current_bytes -= self.tensor.untyped_storage().nbytes()


@contextmanager
def count_activations(weights: Iterable[Tensor]) -> Iterator[Activations]:
    """Within the block, count the tensors that forward passes save for backward, except those of `weights`.

    Tensors that a backward pass frees are subtracted, recomputed ones are added. Temporary tensors are not counted.
    """
    activations, excluded = Activations(), {_storage(tensor) for tensor in weights}

    def pack(tensor: Tensor) -> Tensor | _SavedTensor:
        return tensor if _storage(tensor) in excluded else _SavedTensor(tensor, activations)

    def unpack(saved: Tensor | _SavedTensor) -> Tensor:
        return saved.tensor if isinstance(saved, _SavedTensor) else saved

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield activations


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # address of the storage, which fake tensors have too


def predict_activations(stage: nn.Module, batch: Any, *, bfloat16: bool) -> tuple[int, int]:
    """Predict the memory of a forward and backward pass of a stage with fake tensors, which have shapes but no values.

    Returns:
        peak bytes saved by autograd, and floating-point operations of matrix products.

    Raises:
        RunError: shapes of this stage depend on values.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
    from torch.func import functional_call
    from torch.utils.flop_counter import FlopCounterMode

    named = {**dict(stage.named_parameters()), **dict(stage.named_buffers())}
    with FakeTensorMode(allow_non_fake_inputs=True) as fake_mode:
        weights: dict[str, Tensor] = {name: fake_mode.from_tensor(tensor) for name, tensor in named.items()}
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16)
        try:
            with (
                FlopCounterMode(display=False) as flop_counter,
                _assume_true(),
                count_activations((*named.values(), *weights.values())) as activations,
            ):
                with autocast:
                    losses = functional_call(stage, {**weights}, (batch, torch.Generator()))
                torch.autograd.backward(losses["loss"])
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            found = "shapes of this stage depend on values"
            raise RunError("prediction of memory", found, "", "run one step to measure it") from error
    return activations.peak_bytes, flop_counter.get_total_flops()


def _assume_true() -> Any:
    """Return a torch mode in which fake tensors are true in conditions, so that checks of values pass."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class AssumeTrue(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it so
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
                return True
            return func(*args, **(kwargs or {}))

    return AssumeTrue()  # type: ignore[no-untyped-call]  # torch leaves it so


def state_bytes(stage: nn.Module, settings: TrainingSettings, num_shards: int = 1) -> dict[str, int]:
    """Compute the bytes per process of parameters, gradients, optimizer state and averages.

    Args:
        num_shards: number of processes that share the parameters: all for "fsdp", those of one machine for "hsdp", not
            used for "ddp". Of the layers, one at a time is gathered; parameters outside of layers stay gathered.
    """
    all_parameters, layer_sizes = (
        tensor_bytes(stage.parameters()),
        [tensor_bytes(layer.parameters()) for layer in layers(stage)],
    )
    trainable = tensor_bytes(p for p in stage.parameters() if p.requires_grad)
    num_shards = 1 if settings.loop.parallel == "ddp" else num_shards
    largest_layer = max(layer_sizes, default=0)
    gathered = (all_parameters - sum(layer_sizes) + largest_layer) * (num_shards - 1) // num_shards
    moments = {"adamw": 2, "bert_adam": 2, "sgd": 1}[settings.optimizer.kind]
    return {
        "parameters": all_parameters // num_shards + gathered + tensor_bytes(stage.buffers()),
        "gradients": trainable // num_shards + (largest_layer if num_shards > 1 else 0),
        "optimizer": moments * trainable // num_shards,
        "averages": trainable // num_shards if settings.loop.ema_decay is not None else 0,
    }


def sum_bytes(memory: Mapping[str, int]) -> int:
    """Return the sum over the kinds of memory."""
    return sum(memory.values())
