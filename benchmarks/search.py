"""Exact search in a collection beside plain NumPy and faiss: milliseconds per query, queries per second, users at once.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/search.py [--rows 1000000] [--dim 768] [--rounds 9] [--users 200] [--ivf]

All search the same unit vectors, random ones about 1,000 directions (cosine .5 with others of theirs), for the same ten
nearest; what they find must be equal (asserted, float16 by recall). Medians over rounds; who begins changes with every
round. faiss is measured if it is installed. `--ivf` also builds the index of `internvideo index --index ivf`. `--users`
asks a server on this machine, each user a query a second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from internvideo.search import approximate, segments
from internvideo.search.store import Snapshot

Floats = NDArray[np.float32]
TOP = 10
DIRECTIONS = 1000


def clustered(draw: np.random.Generator, count: int, dim: int) -> Floats:
    """Random unit vectors about directions that are always the same."""
    centers = np.random.default_rng(7).standard_normal((DIRECTIONS, dim), dtype=np.float32)
    made = centers[draw.integers(0, DIRECTIONS, count)] + draw.standard_normal((count, dim), dtype=np.float32)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def unit_rows(path: Path, rows: int, dim: int, storage: segments.StorageType) -> list[segments.Floats]:
    """Random unit vectors in segments of the size that a collection has."""
    made, draw = list[segments.Floats](), np.random.default_rng(0)
    most = segments.SEGMENT_BYTES // (dim * np.dtype(storage).itemsize)
    while (done := sum(len(part) for part in made)) < rows:
        file, count = path / f"{storage}{len(made)}", min(most, rows - done)
        for first in range(0, count, 50_000):
            segments.append(file, first, clustered(draw, min(50_000, count - first), dim), storage)
        made.append(segments.open_segment(file, count, dim, storage))
    return made


def ours(parts: list[segments.Floats], queries: Floats) -> NDArray[np.int64]:
    return np.stack([segments.largest(scores, TOP) for scores in segments.dot_products(parts, queries)])


def plain(matrix: Floats, queries: Floats) -> NDArray[np.int64]:
    """What a program without a library does."""
    scores = queries @ matrix.T if len(queries) > 1 else (matrix @ queries[0])[None]
    best = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
    return np.take_along_axis(best, order, axis=1)


def measure(searches: dict[str, Callable[[Floats], object]], queries: list[Floats]) -> dict[str, float]:
    """Median seconds of each search; who begins changes with every round."""
    names, seconds = list(searches), {name: list[float]() for name in searches}
    for number, query in enumerate(queries):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            searches[name](query)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def flat_faiss(matrix: Floats) -> Callable[[Floats], object] | None:
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(matrix.shape[1])
    index.add(matrix)
    return lambda queries: index.search(queries, TOP)[1]


def inverted_lists(folder: Path, parts: list[segments.Floats]) -> Callable[[Floats], NDArray[np.int64]]:
    """The approximate index of a collection that holds these vectors; prints what its builder measured."""
    rows, dim = sum(map(len, parts)), parts[0].shape[1]
    index = np.zeros(rows, np.int32)
    snapshot = Snapshot((), tuple(parts), index, np.zeros((rows, 4)), (), tuple(range(len(parts))))
    store: Any = SimpleNamespace(
        snapshot=lambda: snapshot, dim=dim, folder=folder, records=SimpleNamespace(set_fact=lambda *_: None)
    )
    began = time.perf_counter()
    facts = approximate.build(store, cast(Any, SimpleNamespace(capabilities=("video",))))
    print(f"built in {time.perf_counter() - began:.0f} s: {facts}")
    opened = approximate.ApproximateIndex(folder, facts)

    def search(queries: Floats) -> NDArray[np.int64]:
        candidates = opened.rows(snapshot, queries[0], approximate.CANDIDATES)
        return candidates[segments.largest(snapshot.vectors(candidates) @ queries[0], TOP)][None]

    return search


async def load_test(users: int, each: int) -> tuple[float, int]:
    """95th percentile in ms, and errors, of users who ask a server in this process again and again."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    import httpx
    import use_world
    import uvicorn

    from internvideo.search.collection import Collection
    from internvideo.search.server import KEEP_ALIVE_SECONDS, create_app

    with tempfile.TemporaryDirectory() as folder:
        collection = Collection.create(Path(folder) / "c", use_world.language())
        collection.add([use_world.clips()])
        server = uvicorn.Server(
            uvicorn.Config(create_app(collection), port=0, log_level="critical", timeout_keep_alive=KEEP_ALIVE_SECONDS)  # type: ignore[arg-type]
        )
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        times, errors = list[float](), 0

        async def user(client: httpx.AsyncClient, number: int) -> None:
            nonlocal errors
            await asyncio.sleep(number / users)  # they do not begin at the same moment
            for turn in range(each):
                began = time.perf_counter()
                answer = await client.get("/api/search", params={"q": f"thing {(number + turn) % 50}", "top": 10})
                times.append(time.perf_counter() - began)
                errors += answer.status_code != 200
                await asyncio.sleep(max(0.0, 1.0 - times[-1]))  # a person reads the answer for a second

        limits = httpx.Limits(max_connections=users)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
            await asyncio.gather(*(user(client, number) for number in range(users)))
        server.should_exit = True
        await task
    return 1000 * float(np.percentile(times, 95)), errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ivf", action="store_true")
    parser.add_argument("--users", type=int, default=0)
    given = parser.parse_args()
    draw = np.random.default_rng(1)
    queries = [clustered(draw, 1, given.dim) for _ in range(given.rounds)]
    batches = [clustered(draw, 64, given.dim) for _ in range(3)]
    print(f"{given.rows:,} x {given.dim}, {len(os.sched_getaffinity(0))} cores")
    with tempfile.TemporaryDirectory(prefix="internvideo-bench-") as folder:
        parts = unit_rows(Path(folder), given.rows, given.dim, "float32")
        matrix = np.concatenate(parts)
        searches: dict[str, Callable[[Floats], object]] = {
            "ours, float32": lambda q: ours(parts, q),
            "NumPy, float32": lambda q: plain(matrix, q),
        }
        if (flat := flat_faiss(matrix)) is not None:
            searches["faiss, flat"] = flat
        expected = plain(matrix, queries[0])
        for name, search in searches.items():
            assert np.array_equal(np.asarray(search(queries[0])), expected), name
        single, many = measure(searches, queries), measure(searches, batches)
        for name in searches:
            rate = 64 / many[name]
            ratio = single["NumPy, float32"] / single[name]
            told = f"{ratio:.2f} of NumPy's speed, batches of 64: {rate:.0f} queries/s, {rate * single[name]:.1f} times"
            print(f"{name:16s} {1000 * single[name]:7.1f} ms, {told} the rate of single ones")
        searches.clear()
        halves = unit_rows(Path(folder), given.rows, given.dim, "float16")
        half = measure({"ours, float16": lambda q: ours(halves, q)}, queries)
        found = [len(set(ours(halves, q)[0]) & set(ours(parts, q)[0])) for q in queries]
        print(f"{'ours, float16':16s} {1000 * half['ours, float16']:7.1f} ms, recall@10 {np.mean(found) / TOP:.3f}")
        if given.ivf:
            lists = inverted_lists(Path(folder), parts)
            found = [len(set(lists(q)[0]) & set(ours(parts, q)[0])) for q in queries]
            took = measure({"ivf": lists}, queries)["ivf"]
            print(f"{'ours, ivf':16s} {1000 * took:7.1f} ms, recall@10 {np.mean(found) / TOP:.3f}")
    if given.users:
        percentile, errors = asyncio.run(load_test(given.users, 5))
        print(f"{given.users} users, a query a second each: 95 % within {percentile:.0f} ms, {errors} errors")


if __name__ == "__main__":
    main()
