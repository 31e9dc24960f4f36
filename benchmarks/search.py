"""Exact search in a collection beside plain NumPy and faiss: milliseconds per query, queries per second, users at once.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/search.py [--rows 1000000] [--dim 768] [--rounds 9]
    OMP_WAIT_POLICY=PASSIVE python benchmarks/search.py --rows 10000000 --dim 256 --storage float16 --ivf
    python benchmarks/search.py --rows 0 --users 200 --collection runs/demo/collection
    OMP_NUM_THREADS=1 python benchmarks/search.py --rows 0 --rounds 3 --index VIDEOS MODEL

All search the same unit vectors, random ones about 1,000 directions (cosine .5 with others of theirs), for the same ten
nearest; what they find must be equal (asserted, float16 by recall). Medians over rounds; who begins changes with every
round; CPU seconds of all threads stand beside, for machines that others use. faiss is measured if it is installed.
`--ivf` builds the index of `internvideo index --index ivf` instead, of windows of videos: 100 a video about a center of
its own (cosine .8 with each other), these about the directions (.4); it asks for other windows of 200 of the videos.
`--users` asks `internvideo serve COLLECTION` on this machine, each user a query a second, each query another text.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from internvideo.search import approximate, segments
from internvideo.search.store import Snapshot

Floats = NDArray[np.float32]
TOP = 10
DIRECTIONS = 1000
WINDOWS = 100
"""Of a video."""
MEMORY = segments.ProductMemory()


def clustered(draw: np.random.Generator, count: int, dim: int, videos: bool = False) -> Floats:
    """Random unit vectors about directions that are always the same, or about videos that lie about these."""
    centers = np.random.default_rng(7).standard_normal((DIRECTIONS, dim), dtype=np.float32)
    if not videos:
        made = centers[draw.integers(0, DIRECTIONS, count)] + draw.standard_normal((count, dim), dtype=np.float32)
        return unit(made)
    number = -(-count // WINDOWS)
    own = centers[draw.integers(0, DIRECTIONS, number)] + draw.standard_normal((number, dim), dtype=np.float32)
    return unit(np.repeat(own, WINDOWS, axis=0)[:count] + 0.7 * draw.standard_normal((count, dim), dtype=np.float32))


def unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def unit_rows(
    path: Path, rows: int, dim: int, storage: segments.StorageType, videos: bool = False
) -> list[segments.Floats]:
    """Random unit vectors in segments of the size that a collection has."""
    made, draw = list[segments.Floats](), np.random.default_rng(0)
    most = segments.SEGMENT_BYTES // (dim * np.dtype(storage).itemsize)
    while (done := sum(len(part) for part in made)) < rows:
        file, count = path / f"{storage}{len(made)}", min(most, rows - done)
        for first in range(0, count, 50_000):
            segments.append(file, first, clustered(draw, min(50_000, count - first), dim, videos), storage)
        made.append(segments.open_segment(file, count, dim, storage))
    return made


def ours(parts: list[segments.Floats], queries: Floats) -> NDArray[np.int64]:
    """What a collection does, which holds its memory too."""
    return np.stack([segments.largest(scores, TOP) for scores in segments.dot_products(parts, queries, MEMORY)])


def plain(matrix: Floats, queries: Floats) -> NDArray[np.int64]:
    """What a program without a library does."""
    scores = queries @ matrix.T if len(queries) > 1 else (matrix @ queries[0])[None]
    best = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
    return np.take_along_axis(best, order, axis=1)


class Took(NamedTuple):
    """Seconds on the clock, and of all threads on the CPU."""

    wall: float
    cpu: float


def measure(searches: dict[str, Callable[[Floats], object]], queries: list[Floats]) -> dict[str, Took]:
    """Medians of each search; who begins changes with every round."""
    names, took = list(searches), {name: list[Took]() for name in searches}
    for number, query in enumerate(queries):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began, before = time.perf_counter(), time.process_time()
            searches[name](query)
            took[name].append(Took(time.perf_counter() - began, time.process_time() - before))
    return {name: Took(*np.median(np.array(times), axis=0).tolist()) for name, times in took.items()}


def flat_faiss(matrix: Floats) -> Callable[[Floats], object] | None:
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(matrix.shape[1])
    index.add(matrix)
    return lambda queries: index.search(queries, TOP)[1]


def inverted_lists(rows: int, dim: int, storage: segments.StorageType) -> None:
    """Build the approximate index of a collection; print what its builder measured, and what other windows find."""
    with tempfile.TemporaryDirectory(prefix="internvideo-bench-") as name:
        folder = Path(name)
        parts = unit_rows(folder, rows, dim, storage, videos=True)
        owners = np.zeros(rows, np.int32)
        snapshot = Snapshot((), tuple(parts), owners, np.zeros((rows, 4)), (), tuple(range(len(parts))))
        store: Any = SimpleNamespace(
            snapshot=lambda: snapshot,
            dim=dim,
            folder=folder,
            vectors=None,
            records=SimpleNamespace(set_fact=lambda *_: 0),
        )
        print(f"{rows:,} x {dim} {storage}, {len(os.sched_getaffinity(0))} cores", flush=True)
        began, before = time.perf_counter(), time.process_time()
        facts = approximate.build(store, cast(Any, SimpleNamespace(capabilities=("video",))))
        took = Took(time.perf_counter() - began, time.process_time() - before)
        print(f"built in {took.wall:.0f} s, {took.cpu:.0f} CPU s: {facts}", flush=True)
        opened, draw = approximate.ApproximateIndex(folder, facts), np.random.default_rng(1)
        near = snapshot.vectors(np.sort(draw.choice(rows, 200, replace=False)))
        queries = unit(near + 0.4 * unit(draw.standard_normal((200, dim), dtype=np.float32)))
        expected = segments.nearest(parts, queries, TOP, owners < 0)

        def search(query: Floats) -> NDArray[np.int64]:
            rows = opened.rows(snapshot, query, approximate.CANDIDATES)
            return np.asarray(rows[segments.largest(snapshot.vectors(rows) @ query, TOP)])

        found = [len(np.intersect1d(search(query), rows)) for query, rows in zip(queries, expected, strict=True)]
        met = measure({"exact": lambda q: ours(parts, q[None]), "ivf": lambda q: search(q)}, [*queries[:5]])
        quick = measure({"ivf": search}, [*queries])["ivf"]
        print(f"exact {1000 * met['exact'].wall:.0f} ms a query, {1000 * met['exact'].cpu:.0f} of the CPU")
        told = f"ivf {1000 * quick.wall:.1f} ms a query, {1000 * quick.cpu:.1f} of the CPU"
        print(f"{told}; recall@10 of 200 others {np.mean(found) / TOP:.3f}")


def indexing_cost(videos: Path, encoder: str, rounds: int) -> None:
    """Print the CPU seconds of `index` and `embed` on the same windows of the same videos, in turns."""
    from internvideo.features.embedding import EmbeddingSettings, embed
    from internvideo.features.video_files import find_videos
    from internvideo.inference.loading import load
    from internvideo.search.indexing import IndexSettings, index_videos
    from internvideo.search.store import SCALES, STRIDE_RATIO, Store

    model, seconds = load(encoder), {"index": list[float](), "embed": list[float]()}
    settings = EmbeddingSettings(SCALES[0], SCALES[0] * STRIDE_RATIO)
    for number in range(rounds):
        for name in ("index", "embed") if number % 2 else ("embed", "index"):
            with tempfile.TemporaryDirectory() as folder:
                began = time.process_time()
                if name == "embed":
                    report = embed(find_videos([videos]), model, Path(folder) / "e.npy", settings, progress=False)
                else:
                    store = Store.create(Path(folder) / "c", model, scales=SCALES[:1])
                    report = index_videos(store, model, [videos], IndexSettings(progress=False))
                    store.close()
                seconds[name].append(time.process_time() - began)
                print(f"{name}: {report.vectors} windows, {seconds[name][-1]:.2f} CPU s")
    print(f"index takes {np.median(seconds['index']) / np.median(seconds['embed']):.3f} of the CPU time of embed")


class Load(NamedTuple):
    """What users met: 95th percentile in ms, errors, requests a second, CPU ms of the server a request."""

    p95: float
    errors: int
    rate: float
    cpu: float


async def ask(port: int, users: int, each: int) -> tuple[list[float], int]:
    """Seconds of each request of users who ask, read the answer until a second has passed, and ask again."""
    times, errors = list[float](), 0

    async def user(number: int) -> None:
        nonlocal errors
        await asyncio.sleep(number / users)  # they do not begin at the same moment
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for turn in range(each):
            began = time.perf_counter()
            path = f"/api/search?q=a+red+thing+{number + turn * users}+moves&top=10"  # every text is a new one
            writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost:{port}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
            times.append(time.perf_counter() - began)
            errors += b" 200 " not in head[:20]
            await asyncio.sleep(max(0.0, 1.0 - times[-1]))
        writer.close()

    await asyncio.gather(*(user(number) for number in range(users)))
    return times, errors


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load_test(collection: Path, users: int, each: int) -> Load:
    """Users of `internvideo serve`, which runs in a process of its own as it is run by hand."""
    command = [sys.executable, "-m", "internvideo", "serve", str(collection), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().rstrip("/\n").rpartition(":")[2])
            asyncio.run(ask(port, users, 1))  # what is loaded at the first use
            before, began = cpu_seconds(server.pid), time.perf_counter()
            times, errors = asyncio.run(ask(port, users, each))
            took, spent = time.perf_counter() - began, cpu_seconds(server.pid) - before
        finally:
            server.terminate()
    return Load(1000 * float(np.percentile(times, 95)), errors, len(times) / took, 1000 * spent / len(times))


def compare(rows: int, dim: int, rounds: int) -> None:
    """Print the table of all exact searches."""
    draw = np.random.default_rng(1)
    queries = [clustered(draw, 1, dim) for _ in range(rounds)]
    batches = [clustered(draw, 64, dim) for _ in range(rounds)]
    print(f"{rows:,} x {dim}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="internvideo-bench-") as folder:
        parts = unit_rows(Path(folder), rows, dim, "float32")
        matrix = np.concatenate(parts)
        products, right = torch.empty(64, rows), torch.from_numpy(matrix).T
        searches: dict[str, Callable[[Floats], object]] = {
            "ours, float32": lambda q: ours(parts, q),
            "NumPy, float32": lambda q: plain(matrix, q),
            "products alone": lambda q: torch.mm(torch.from_numpy(q), right, out=products[: len(q)]),
        }
        if (flat := flat_faiss(matrix)) is not None:
            searches["faiss, flat"] = flat
        expected = plain(matrix, queries[0])
        for name, search in searches.items():
            assert name == "products alone" or np.array_equal(np.asarray(search(queries[0])), expected), name
        single, many = measure(searches, queries), measure(searches, batches)
        for name in searches:
            rates = [64 * one / other for one, other in zip(single[name], many[name], strict=True)]
            told = f"{1000 * single[name].wall:7.1f} ms ({1000 * single[name].cpu:.0f} CPU)"
            ratio = single["NumPy, float32"].wall / single[name].wall
            batch = f"{64 / many[name].wall:.0f} queries/s ({many[name].cpu:.2f} CPU s)"
            print(f"{name:16s} {told}, {ratio:.2f} of NumPy's speed, batches of 64: {batch},", end=" ")
            print(f"{rates[0]:.1f} times the rate of single ones ({rates[1]:.1f} by CPU)", flush=True)
        searches.clear()
        halves = [np.asarray(part, np.float16) for part in parts]
        half = measure({"ours, float16": lambda q: ours(halves, q)}, queries)["ours, float16"]
        found = [len(set(ours(halves, q)[0]) & set(ours(parts, q)[0])) for q in queries]
        print(f"{'ours, float16':16s} {1000 * half.wall:7.1f} ms, recall@10 {np.mean(found) / TOP:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ivf", action="store_true", help="build the approximate index instead")
    parser.add_argument("--storage", choices=segments.STORAGE_TYPES, default="float32", help="with --ivf")
    parser.add_argument("--users", type=int, default=0)
    parser.add_argument("--collection", type=Path, help="that --users search, such as the demo's")
    parser.add_argument("--index", nargs=2, metavar=("VIDEOS", "MODEL"), help="compare indexing with embedding")
    given = parser.parse_args()
    if bool(given.users) != bool(given.collection):
        parser.error("--users and --collection go together")
    if given.ivf:
        inverted_lists(given.rows, given.dim, given.storage)
    elif given.rows:
        compare(given.rows, given.dim, given.rounds)
    if given.index:
        indexing_cost(Path(given.index[0]), given.index[1], given.rounds)
    if given.users:
        met = load_test(given.collection, given.users, 10)
        print(f"{given.users} users, a query a second each: 95 % within {met.p95:.0f} ms, {met.errors} errors,")
        print(f"{met.rate:.0f} requests/s, {met.cpu:.1f} CPU ms of the server a request")


if __name__ == "__main__":
    main()
