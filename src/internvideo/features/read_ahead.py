"""Read videos ahead of the model, in a thread or in worker processes."""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset

from internvideo.data.decoding.threads import use_one_torch_thread
from internvideo.errors import RunError

Item = TypeVar("Item")

QUEUE_SIZE = 8
"""Maximum number of items that the thread reads ahead."""


def read_ahead(dataset: IterableDataset[Item], workers: int, *, in_order: bool = False) -> Iterator[Item]:
    """Yield the items of a dataset, read by `workers` processes or, if that is 0, by a thread.

    `in_order` takes the items of the workers in turn (round robin), otherwise the item that is ready first.

    Raises:
        RunError: a worker died. Also the errors of the dataset.
    """
    if not workers:
        yield from from_thread(dataset)
        return
    options: dict[str, Any] = {"batch_size": None, "collate_fn": _identity, "generator": torch.Generator()}
    loader: DataLoader[Item] = DataLoader(dataset, num_workers=workers, in_order=in_order, **options)
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork in a process with threads; the workers use no lock of the parent's threads.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            stream = iter(loader)
        yield from stream
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        hint = "it may have run out of memory: lower workers or the size of the batch"
        raise RunError("reading videos", f"a worker died ({error})", "", hint) from error


def _identity(item: Any) -> Any:
    return item


def from_thread(dataset: Iterable[Item], queue_size: int = QUEUE_SIZE) -> Generator[Item]:
    """Yield the items of a dataset, read up to `queue_size` ahead by a thread that is joined at the end."""
    ready: queue.Queue[tuple[Any, bool]] = queue.Queue(queue_size)
    stop, errors = threading.Event(), list[BaseException]()

    def put(item: Any, is_item: bool) -> None:
        while not stop.is_set():
            try:
                ready.put((item, is_item), timeout=0.1)
            except queue.Full:
                continue
            return

    def read() -> None:
        use_one_torch_thread()
        try:
            for item in dataset:
                put(item, True)
                if stop.is_set():
                    break
        except BaseException as error:
            errors.append(error)
        put(None, False)

    thread = threading.Thread(target=read, name="reading videos", daemon=True)
    thread.start()
    try:
        while (entry := ready.get())[1]:
            yield entry[0]
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]
