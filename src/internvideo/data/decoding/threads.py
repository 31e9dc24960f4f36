"""Threads that decode and augment the clips of a batch together."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_SET_THREADS_LOCK = threading.Lock()


def use_one_torch_thread() -> None:
    """Set the number of torch threads to 1 for this thread only; other and later threads keep their number.

    Two OpenMP teams with together more threads than cores slow each other down: with model and reader on all cores
    each, a video took 1.6 times as long (benchmarks/extract.py, two cores).
    """
    with _SET_THREADS_LOCK:
        count = torch.get_num_threads()  # asked first: a new thread takes the number of the process at its first use
        torch.set_num_threads(1)  # of this thread and of those that start later
        with ThreadPoolExecutor(1) as another:
            another.submit(torch.set_num_threads, count).result()


class ThreadMap:
    """`map` on `threads` threads, which start at the first use in each process; with 1, in the calling thread."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results in the order of `items`; the first error in this order is raised."""
        if self.threads == 1:
            yield from map(function, items)
            return
        if self._pool is None or self._pool[0] != os.getpid():
            executor = ThreadPoolExecutor(self.threads, "clips", initializer=use_one_torch_thread)
            self._pool = os.getpid(), executor
        pending = [self._pool[1].submit(function, item) for item in items]
        try:
            for future in pending:
                yield future.result()
        finally:
            for future in pending:
                future.cancel()

    def __getstate__(self) -> dict[str, object]:
        return {"threads": self.threads, "_pool": None}
