"""Videos are read ahead of the model: the same pieces in the same order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import IterableDataset

from internvideo.errors import VideoError
from internvideo.features.read_ahead import QUEUE_SIZE, from_thread, read_ahead


class Numbers(IterableDataset[int]):
    def __init__(self, end: int, fails: bool = False) -> None:
        self.end, self.fails, self.read = end, fails, 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.end):
            self.read += 1
            yield number
        if self.fails:
            raise VideoError("x", "broke off")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "reading videos"]


def test_all_pieces_come_in_order_and_only_some_ahead() -> None:
    numbers = Numbers(50)
    found = []
    for piece in read_ahead(numbers, 0):
        found.append(piece)
        time.sleep(0.002)
        assert numbers.read <= piece + QUEUE_SIZE + 2
    assert found == list(range(50))
    assert threads() == []


def test_an_error_comes_behind_the_pieces_before_it_and_leaving_ends_the_thread() -> None:
    stream = read_ahead(Numbers(3, fails=True), 0)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(VideoError, match="broke off"):
        next(stream)
    stream = read_ahead(Numbers(10**6), 0)
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert threads() == []


def test_only_the_threads_that_read_are_held_to_one_torch_thread() -> None:
    def nested() -> Iterator[int]:
        yield torch.get_num_threads()
        yield from from_thread(torch.get_num_threads() for _ in range(2))
        yield torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert list(from_thread(nested())) == [1, 1, 1, 1]
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), later) == (3, [3])
    finally:
        torch.set_num_threads(before)
