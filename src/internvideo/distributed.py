"""Processes started by torchrun, and devices: rank, gathering with exact gradients, a device by its name.

Without torchrun every function is the identity of a single process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from internvideo.errors import InternVideoError, RecipeError, RunError


def world_size() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 is the one that writes files."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started and leave them at the end; yields this process's device.

    Tensors of the CPU travel by gloo, those of CUDA by NCCL. Without torchrun's variables, or inside another
    `process_group`, nothing is started.

    Raises:
        RunError: torchrun started more processes on this machine than it has CUDA devices.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield device
        return
    backend = "gloo"
    if device.type == "cuda":
        local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= devices:
            raise RunError("torchrun", f"process {local + 1} of this machine, {devices} CUDA devices", f"<= {devices}")
        device, backend = torch.device("cuda", local), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def any_process(flag: bool) -> bool:
    """True when `flag` is true in any process. Travels by the CPU, so no device waits for it."""
    if world_size() == 1:
        return flag
    shared = torch.tensor(int(flag))
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return bool(shared)


def sum_over_processes(value: float) -> float:
    """Sum of a number over the processes."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(shared)
    return float(shared)


def collect(item: Any) -> list[Any]:
    """The picklable `item` of every process, in rank order, in every process."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def raise_together(error: InternVideoError | None) -> None:
    """Raise in every process the error that any of them has, so that none waits for the others for ever."""
    for found in collect(error):
        if found is not None:
            raise found


def first_alone(act: Callable[[], None]) -> None:
    """Let the first process do something, such as write files; what goes wrong is raised in every process."""
    error: InternVideoError | None = None
    if rank() == 0:
        try:
            act()
        except InternVideoError as found:
            error = found
    raise_together(error)


def divisor(count: Tensor) -> Tensor:
    """What a sum over `count` () things of this process is divided by, where the mean over all processes' is meant.

    It is the mean of the counts over the processes, at least 1 thing in all. The host waits for nothing.
    """
    if world_size() == 1:
        return count.clamp(min=1)
    total = count.detach().to(torch.float32, copy=True)
    dist.all_reduce(total)
    return total.clamp(min=1) / world_size()


class _Gather(torch.autograd.Function):
    """All processes' rows, padded to the longest; the gradient of a row is summed over the processes that used it."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, lengths: list[int]) -> Tensor:
        longest = max(lengths)
        padded = tensor.new_zeros((longest, *tensor.shape[1:]))
        padded[: tensor.shape[0]] = tensor
        rows = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(rows, padded)
        context.lengths = lengths
        return torch.cat([part[:length] for part, length in zip(rows, lengths, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        start = sum(context.lengths[: rank()])
        return summed[start : start + context.lengths[rank()]], None


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Join the rows of all processes, in rank order, with exact gradients.

    DistributedDataParallel averages the parameters' gradients over the processes. A loss that every process computes
    from the gathered rows, the whole global batch, then has exactly the gradients of one process with the joined batch:
    the backward pass sums the equal contributions of the W processes and the average divides them by W.

    Args:
        tensor: (B, ...) of this process; B may differ between processes.

    Returns:
        (sum of all B, ...).
    """
    if world_size() == 1:
        return tensor
    lengths = [0] * world_size()
    lengths[rank()] = tensor.shape[0]
    shared = torch.tensor(lengths)  # on the CPU: asking for the sizes does not wait for the device
    dist.all_reduce(shared)
    gathered: Tensor = _Gather.apply(tensor, shared.tolist())  # type: ignore[no-untyped-call]  # torch leaves it so
    return gathered


def require_one_process(what: str) -> None:
    """Raise RecipeError where several processes would do what only one can."""
    if world_size() > 1:
        raise RecipeError("WORLD_SIZE", f"{world_size()} processes", f"1 for {what}")


def choose_device(name: str) -> torch.device:
    """Device of a name: auto (CUDA where there is one), cpu, cuda or cuda:N. Raises RecipeError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name, re.ASCII)
    if match is None:
        raise RecipeError("--device", f"found '{name}'", "auto, cpu, cuda or cuda:N")
    if name != "cpu" and not torch.cuda.is_available():
        raise RecipeError("--device", "no CUDA device is available here", "cpu")
    if match[1] is not None and int(match[1]) >= torch.cuda.device_count():
        raise RecipeError("--device", f"found '{name}'", f"cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return torch.device(name)
