"""Processes started by torchrun, and devices: rank, gathering with exact gradients, choosing a device by name.

Without torchrun every function acts as for a single process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from internvideo.errors import InternVideoError, RecipeError, RunError


def world_size() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process; process 0 writes files."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


TIMEOUT_S = 1800.0
"""Default timeout of collectives in seconds: loading a large file takes minutes."""
_LOST = re.compile(r"gloo|NCCL|TCPStore|[Cc]onnection (closed|reset|refused)|Broken pipe|[Tt]imed out waiting")
"""Matches the message of a collective that failed because another process ended or does not answer."""


@contextmanager
def process_group(device: torch.device, timeout_s: float = TIMEOUT_S) -> Iterator[torch.device]:
    """Join torchrun's process group for the block; yields this process's device.

    CPU tensors use gloo, CUDA tensors NCCL. Without torchrun's variables, or inside another `process_group`, nothing
    is started.

    Args:
        device: device of the run; with CUDA each process takes its own.
        timeout_s: seconds without an answer after which another process counts as lost.

    Raises RunError: torchrun started more processes on this machine than it has CUDA devices; another process was lost.
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
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        yield device
    except RuntimeError as error:
        if isinstance(error, InternVideoError) or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
            raise
        found = f"process {os.environ['RANK']} lost another one, which ended or did not answer for {timeout_s:g} s"
        hint = "the process that ended first tells why; start the same command again to resume"
        raise RunError("torchrun", found, f"{os.environ['WORLD_SIZE']} processes", hint) from error
    finally:
        if dist.is_initialized():
            with suppress(RuntimeError):  # the group lost a process
                dist.destroy_process_group()


def any_process(flag: bool) -> bool:
    """Return whether `flag` is true in any process. Reduced on the CPU, so no device waits for it."""
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
    """Gather the picklable `item` of every process, in rank order, in every process."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def raise_together(error: InternVideoError | None) -> None:
    """Raise any process's error in every process, so that none waits forever for the others."""
    for found in collect(error):
        if found is not None:
            raise found


def first_alone(act: Callable[[], None]) -> None:
    """Run `act` in process 0 only, such as writing files; raise its error in every process."""
    error: InternVideoError | None = None
    if rank() == 0:
        try:
            act()
        except InternVideoError as found:
            error = found
    raise_together(error)


def divisor(count: Tensor) -> Tensor:
    """Return the divisor that turns this process's sum over `count` () items into its part of the global mean.

    It is the mean of the counts over the processes, with a total of at least 1. No host synchronization.
    """
    if world_size() == 1:
        return count.clamp(min=1)
    total = count.detach().to(torch.float32, copy=True)
    dist.all_reduce(total)
    return total.clamp(min=1) / world_size()


def gather_rows(tensor: Tensor) -> list[Tensor]:
    """Gather the rows (B, ...) of every process, in rank order, without gradients; B may differ.

    Half precision is gathered as float32, so that nothing is rounded on the way back.
    """
    local = _to_float32(tensor.detach())
    if world_size() == 1:
        return [local]
    lengths = [0] * world_size()
    lengths[rank()] = local.shape[0]
    shared = torch.tensor(lengths)  # on the CPU: asking for the sizes does not wait for the device
    dist.all_reduce(shared)
    lengths = shared.tolist()
    padded = local.new_zeros((max(lengths), *local.shape[1:]))
    padded[: local.shape[0]] = local
    rows = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(rows, padded)
    return [part[:length] for part, length in zip(rows, lengths, strict=True)]


class _Gather(torch.autograd.Function):
    """Gather rows; the backward pass takes this process's rows times the number of processes, no communication."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        parts = gather_rows(tensor)
        context.start = sum(len(part) for part in parts[: rank()])
        context.length = len(tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor]:
        return (gradients[0][context.start : context.start + context.length] * world_size(),)


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Join the rows of all processes, in rank order, with exact gradients; half precision becomes float32.

    DistributedDataParallel averages the parameters' gradients over the processes. A loss that every process computes
    from the gathered rows (the global batch) then has exactly the gradients of one process with the joined batch: the W
    processes compute equal gradients of these rows, and the average divides their sum by W. Because they are equal,
    the sum is W times the local gradient, so the backward pass needs no communication.

    Args:
        tensor: (B, ...) of this process; B may differ between processes.

    Returns: (sum of all B, ...).
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(_to_float32(tensor))  # type: ignore[no-untyped-call]  # torch leaves it so
    return gathered


def draw_rows(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """Draw this process's random rows (`rows`, ...) as a slice of the rows of all processes.

    Every process draws the rows of all with the same generator and keeps its slice, so each clip gets the same draw as
    in one process with the joined batch. `rows` must be equal in all processes.
    """
    if world_size() == 1:
        return draw(rows)
    return draw(rows * world_size())[rank() * rows : (rank() + 1) * rows]


def is_divided(tensor: object) -> bool:
    """Return whether a tensor is divided among processes (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor of all its shards; all processes must call it."""
    found: Tensor = cast(Any, tensor).full_tensor() if is_divided(tensor) else tensor
    return found


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def require_one_process(what: str) -> None:
    """Raise RecipeError if more than one process runs `what`."""
    if world_size() > 1:
        raise RecipeError("WORLD_SIZE", f"{world_size()} processes", f"1 for {what}")


def choose_device(name: str) -> torch.device:
    """Return the device of a name: auto (CUDA if available), cpu, cuda or cuda:N. Raises RecipeError."""
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
