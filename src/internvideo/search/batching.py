"""Answer the queries of many users together: those that arrive while others are computed are the next batch."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from internvideo.search.collection import Collection
from internvideo.search.finding import Answer
from internvideo.search.query import Query

MAX_BATCH = 64
MAX_WAITING = 1024
"""Queries that wait at the same time; further ones are refused."""


class BusyError(Exception):
    """Too many queries wait, or the server ends."""


class Limits(NamedTuple):
    """What queries that are answered together have in common; see `Collection.search`."""

    top: int
    where: str
    threshold: float | None


class QueryBatches:
    """Queries of a collection, answered by one thread; for one event loop."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._thread = ThreadPoolExecutor(1, "search")
        self._waiting: list[tuple[Limits, Query, asyncio.Future[Answer]]] = []
        self._running: asyncio.Task[None] | None = None

    async def search(self, query: Query, limits: Limits) -> Answer:
        """Answer a query. Raises BusyError, and InternVideoError as `Collection.search`."""
        if len(self._waiting) >= MAX_WAITING:
            raise BusyError
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((limits, query, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        taken = list[tuple[Limits, Query, asyncio.Future[Answer]]]()
        try:
            while self._waiting:
                taken, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                groups = defaultdict[Limits, list[tuple[Query, asyncio.Future[Answer]]]](list)
                for limits, query, future in taken:
                    if not future.done():  # else its client has gone
                        groups[limits].append((query, future))
                for limits, group in groups.items():
                    await self._answer(group, limits)
        finally:  # after all are answered, or when this task is canceled: nobody waits for an answer that never comes
            for *_, future in [*taken, *self._waiting]:
                if not future.done():
                    future.set_exception(BusyError())
            self._waiting.clear()

    async def _answer(self, group: Sequence[tuple[Query, asyncio.Future[Answer]]], limits: Limits) -> None:
        queries = [query for query, _ in group]
        answers: Sequence[Answer | Exception]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answers, queries, limits)
        except RuntimeError:  # the thread is shut down and takes no more work
            answers = [BusyError()] * len(queries)
        for (_, future), answer in zip(group, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Answer):
                future.set_result(answer)
            else:
                future.set_exception(answer)

    def _answers(self, queries: Sequence[Query], limits: Limits) -> Sequence[Answer | Exception]:
        try:
            return self._collection.search_many(queries, **limits._asdict())
        except Exception as error:  # goes to the one client whose query it is
            if len(queries) == 1:
                return [error]
        return [answer for query in queries for answer in self._answers([query], limits)]  # a query spoils no other's
