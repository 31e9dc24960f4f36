"""Communicate between the processes of torchrun (ranks, gathering with exact gradients); choose a device by name.

Without torchrun every function treats this process as the only one.
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
    """Return the rank of this process; rank 0 writes files."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


TIMEOUT_S = 1800.0
"""Default timeout of collectives in seconds: loading a large file takes minutes."""
_LOST_PROCESS = re.compile(r"gloo|NCCL|TCPStore|[Cc]onnection (closed|reset|refused)|Broken pipe|[Tt]imed out waiting")
"""Matches the message of a collective that failed because another process ended or does not answer."""


@contextmanager
def process_group(device: torch.device, timeout_s: float = TIMEOUT_S) -> Iterator[torch.device]:
    """Join torchrun's process group for the block; yield the device of this process.

    CPU tensors use gloo, CUDA tensors NCCL. Without torchrun's environment variables, or inside another
    `process_group`, nothing is started.

    Args:
        device: device of the run; with CUDA each process uses the device of its local rank.
        timeout_s: seconds after which a process that does not answer counts as lost.

    Raises RunError: torchrun started more processes on this machine than it has CUDA devices; another process was lost.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield device
        return
    backend = "gloo"
    if device.type == "cuda":
        local_rank, num_devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= num_devices:
            found = f"process {local_rank + 1} of this machine, {num_devices} CUDA devices"
            raise RunError("torchrun", found, f"at most {num_devices} processes per machine")
        device, backend = torch.device("cuda", local_rank), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        yield device
    except RuntimeError as error:
        if isinstance(error, InternVideoError) or not (
            isinstance(error, dist.DistError) or _LOST_PROCESS.search(str(error))
        ):
            raise
        found = f"process {os.environ['RANK']} lost another one, which ended or did not answer for {timeout_s:g} s"
        hint = "see the error of the process that ended first; start the same command again to resume"
        raise RunError("torchrun", found, f"{os.environ['WORLD_SIZE']} processes", hint) from error
    finally:
        if dist.is_initialized():
            with suppress(RuntimeError):  # the group lost a process
                dist.destroy_process_group()


def any_process(flag: bool) -> bool:
    """Return whether `flag` is true in any process. Reduced on the CPU, without a device sync."""
    if world_size() == 1:
        return flag
    shared = torch.tensor(int(flag))
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return bool(shared)


def sum_over_processes(value: float) -> float:
    """Return the sum of a number over the processes."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(shared)
    return float(shared)


def all_gather_objects(item: Any) -> list[Any]:
    """Return the picklable `item` of every process, in rank order, in every process."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def raise_on_all_ranks(error: InternVideoError | None) -> None:
    """Raise the first error of any process in every process, so that none waits forever for a failed one."""
    for raised in all_gather_objects(error):
        if raised is not None:
            raise raised


def on_rank_zero(act: Callable[[], None]) -> None:
    """Run `act` on rank 0 only, such as writing files; raise its error in every process."""
    error: InternVideoError | None = None
    if rank() == 0:
        try:
            act()
        except InternVideoError as raised:
            error = raised
    raise_on_all_ranks(error)


def divisor(count: Tensor) -> Tensor:
    """Return by what to divide a sum over the `count` () items of this process, so that DDP yields the global mean.

    DDP averages the gradients over the processes, so this is the mean of their counts, at least 1 in total. The result
    stays on the device (no host sync).
    """
    if world_size() == 1:
        return count.clamp(min=1)
    total = count.detach().to(torch.float32, copy=True)
    dist.all_reduce(total)
    return total.clamp(min=1) / world_size()


def gather_rows(tensor: Tensor) -> list[Tensor]:
    """Gather the rows (B, ...) of every process, in rank order, without gradients; B may differ.

    Half precision is gathered as float32, so that the backward pass does not round.
    """
    local = _to_float32(tensor.detach())
    if world_size() == 1:
        return [local]
    lengths = [0] * world_size()
    lengths[rank()] = local.shape[0]
    shared = torch.tensor(lengths)  # on the CPU, without a device sync
    dist.all_reduce(shared)
    lengths = shared.tolist()
    padded = local.new_zeros((max(lengths), *local.shape[1:]))
    padded[: local.shape[0]] = local
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    return [rows[:length] for rows, length in zip(gathered, lengths, strict=True)]


class _Gather(torch.autograd.Function):
    """Gather rows; the backward pass returns the gradient of the local rows times the number of processes."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        gathered = gather_rows(tensor)
        context.start = sum(len(rows) for rows in gathered[: rank()])
        context.length = len(tensor)
        return torch.cat(gathered)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor]:
        return (gradients[0][context.start : context.start + context.length] * world_size(),)


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all processes, in rank order, with exact gradients; half precision becomes float32.

    Every process computes the same loss from the gathered rows (the global batch), and so the same gradient of them.
    The exact gradient of the local rows is the sum of these W equal gradients, divided by W when DDP averages the
    parameter gradients over the W processes. The backward pass therefore multiplies the local gradient by W and needs
    no communication.

    Args:
        tensor: (B, ...) of this process; B may differ between processes.

    Returns: (sum of all B, ...).
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(_to_float32(tensor))  # type: ignore[no-untyped-call]  # untyped in torch
    return gathered


def draw_rows(draw: Callable[[int], Tensor], num_rows: int) -> Tensor:
    """Sample the random rows (num_rows, ...) of this process as a slice of the rows of all processes.

    Every process samples the rows of all processes with an equal generator and keeps its slice, so each clip gets the
    same values as in one process with the global batch. `num_rows` must be equal in all processes.
    """
    if world_size() == 1:
        return draw(num_rows)
    return draw(num_rows * world_size())[rank() * num_rows : (rank() + 1) * num_rows]


def is_sharded(tensor: object) -> bool:
    """Return whether a tensor is sharded over the processes (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather all shards of a DTensor, and return any other tensor as it is; all processes must call it."""
    gathered: Tensor = cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor
    return gathered


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
