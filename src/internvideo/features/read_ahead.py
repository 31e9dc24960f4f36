"""Videos are read while a model is at work: by a thread, or by worker processes."""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset

from internvideo.errors import RunError

Read = TypeVar("Read")

AHEAD = 8
"""Pieces that the thread may have ready."""


def stream_of(reader: IterableDataset[Read], workers: int) -> Iterator[Read]:
    """What the reader gives, through worker processes or, with none, a thread.

    Raises:
        RunError: a worker died. Whatever the reader raises.
    """
    if not workers:
        yield from from_thread(reader)
        return
    loader: DataLoader[Read] = DataLoader(
        reader, batch_size=None, num_workers=workers, collate_fn=_as_it_is, in_order=False, generator=torch.Generator()
    )
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of fork beside threads; the workers use none of the parent's.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            stream = iter(loader)
        yield from stream
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        do = "it may have run out of memory: lower workers or the size of the batch"
        raise RunError("reading videos", f"a worker died ({error})", "", do) from error


def _as_it_is(piece: Any) -> Any:
    return piece


def from_thread(reader: Iterable[Read], ahead: int = AHEAD) -> Generator[Read]:
    """What the reader gives, read by a thread that is gone when this ends; it may have so many pieces ready."""
    ready: queue.Queue[tuple[Any, bool]] = queue.Queue(ahead)
    stop, trouble = threading.Event(), list[BaseException]()

    def put(piece: Any, more: bool) -> None:
        while not stop.is_set():
            try:
                ready.put((piece, more), timeout=0.1)
            except queue.Full:
                continue
            return

    def read() -> None:
        try:
            for piece in reader:
                put(piece, True)
                if stop.is_set():
                    break
        except BaseException as error:
            trouble.append(error)
        put(None, False)

    thread = threading.Thread(target=read, name="reading videos", daemon=True)
    thread.start()
    try:
        while (got := ready.get())[1]:
            yield got[0]
    finally:
        stop.set()
        thread.join()
    if trouble:
        raise trouble[0]
