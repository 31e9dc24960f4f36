"""Fresh processes that need not import torch again: each is forked off a server that has, and has done nothing else."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple
from unittest import mock

SECONDS = 120
"""After so long a process counts as hanging."""
IMPORTED = ["pytest", "torch", "torch.distributed", "torch.optim", "torch.nn.parallel", "in_process"]
IMPORTED += ["torch.distributed.fsdp", "torch.distributed.checkpoint"]
IMPORTED += ["internvideo.evaluation", "internvideo.features.extract"]


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    sources = os.pathsep.join(path for path in sys.path if path)
    with mock.patch.dict(os.environ, PYTHONPATH=sources, OMP_NUM_THREADS="1"):
        forkserver.ensure_running()
    return context


class Forked(NamedTuple):
    """A process that runs a function."""

    pid: int
    connection: Connection
    process: BaseProcess

    def told(self) -> Any:
        """What the function returned, or the next thing that it yielded; EOFError when it ended without."""
        assert self.connection.poll(SECONDS), f"process {self.pid} hangs"
        return self.connection.recv()

    def ended(self) -> int | None:
        """The exit code."""
        self.process.join(SECONDS)
        return self.process.exitcode


def fork(function: Callable[..., object], *arguments: object, **environment: str) -> Forked:
    """Run a function of a module in a process of its own; `environment` is added to what it was at the first call."""
    ours, theirs = multiprocessing.Pipe()
    process = _server().Process(target=_run, args=(theirs, function, arguments, environment), daemon=True)
    process.start()
    theirs.close()
    assert process.pid is not None
    return Forked(process.pid, ours, process)


def two(function: Callable[..., object], *arguments: object) -> tuple[Any, Any]:
    """What a function returns in each of two processes that know of each other, as torchrun starts them."""
    one, other = meeting(function, *arguments)
    return one.told(), other.told()


def meeting(
    function: Callable[..., object], *arguments: object, processes: int = 2, **environment: str
) -> list[Forked]:
    """Run a function in several processes that know of each other, as torchrun starts them."""
    with socket.create_server(("localhost", 0)) as free:
        known = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
        known |= environment
    ranks = ({**known, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes))
    return [fork(function, *arguments, **environment) for environment in ranks]


def _run(
    connection: Connection, function: Callable[..., object], arguments: tuple[object, ...], environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    result = function(*arguments)
    for item in result if isinstance(result, Iterator) else [result]:
        connection.send(item)
