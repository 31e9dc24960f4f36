"""Queries that are answered together: each gets its own answer, and nobody waits for a thread that has ended."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest

pytest.importorskip("fastapi")

from internvideo.errors import RecipeError
from internvideo.search.batching import BusyError, Limits, QueryBatches
from internvideo.search.collection import Collection
from internvideo.search.finding import Answer
from internvideo.search.query import Query

LIMITS = Limits(10, "", None)


class Answers:
    """A collection that counts the calls; the query "wrong" cannot be answered."""

    def __init__(self) -> None:
        self.sizes = list[int]()
        self.go_on = threading.Event()
        self.go_on.set()

    def search_many(self, queries: list[Query], **limits: Any) -> list[Answer]:
        self.go_on.wait(10)
        self.sizes.append(len(queries))
        if any(query.text == "wrong" for query in queries):
            raise RecipeError("query", "wrong", "right")
        return [Answer((), (), None, len(query.text)) for query in queries]


def test_each_gets_its_own_answer_and_a_wrong_query_spoils_no_other() -> None:
    answers = Answers()

    async def ask() -> list[Any]:
        batches = QueryBatches(cast(Collection, answers))
        texts = ("a", "wrong", "bbb")
        return await asyncio.gather(*(batches.search(Query(text), LIMITS) for text in texts), return_exceptions=True)

    first, wrong, last = asyncio.run(ask())
    assert (first.windows, last.windows) == (1, 3)
    assert isinstance(wrong, RecipeError)
    assert answers.sizes[0] == 3


def test_nobody_waits_for_a_thread_that_is_shut_down() -> None:
    async def ask() -> None:
        batches = QueryBatches(cast(Collection, Answers()))
        batches._thread.shutdown()
        with pytest.raises(BusyError):
            await asyncio.wait_for(batches.search(Query("a"), LIMITS), 5)

    asyncio.run(ask())


def test_nobody_waits_for_a_task_that_is_canceled() -> None:
    """Neither those whose answer is computed nor those who wait for the next batch."""
    answers = Answers()
    answers.go_on.clear()

    async def ask() -> None:
        batches = QueryBatches(cast(Collection, answers))
        first = asyncio.create_task(batches.search(Query("a"), LIMITS))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(batches.search(Query("b"), LIMITS))
        await asyncio.sleep(0)
        assert batches._running is not None
        batches._running.cancel()
        answers.go_on.set()
        for waiting in (first, second):
            with pytest.raises(BusyError):
                await asyncio.wait_for(waiting, 5)
        assert (await asyncio.wait_for(batches.search(Query("abc"), LIMITS), 5)).windows == 3, "the next is answered"

    asyncio.run(ask())
