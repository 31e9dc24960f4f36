"""An approximate index (inverted lists of faiss) for collections too large to compare every window with every query.

Only the windows that it names are compared, exactly, so a score is never approximate, but a window can be missed. How
many of the ten nearest it finds is measured when it is built; how many lists a search reads follows from that.
Windows that came later are all compared, and removed ones are dropped, so the answer belongs to the newest state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RunError
from internvideo.extras import require
from internvideo.inference.video_model import VideoModel
from internvideo.search.engines.postgres import MOST_KEPT, PostgresVectors
from internvideo.search.null_texts import generic_texts
from internvideo.search.segments import ROW_BITS, Floats, dot_products, largest, nearest
from internvideo.search.store import Snapshot, Store
from internvideo.storage import atomic_path

FILE = "windows.faiss"
FACT = "approximate"
LEAST_KEPT = 100
"""Candidates that a search of a database's index keeps, at least; see `PostgresVectors.nearest`."""
LEAST_RECALL = 0.98
NEAREST = 10
CANDIDATES = 500
QUERIES = 200
"""Queries of each kind, windows and generic texts, by which recall is measured."""
TRAINING_PER_LIST = 64
STALE = 0.1
"""The index is built again when so large a part of the windows is not in it, or of its windows removed."""


@dataclass(frozen=True)
class IndexFacts:
    """What is known of an index.

    Attributes:
        windows: in it. kind: "ivf", or "hnsw" of a database.
        lists: of windows that are near each other. probes: of these, read by each search; of "hnsw", candidates kept.
        recall: of the ten nearest windows, by kind of query.
        covered: segment -> its rows when the index was built.
    """

    windows: int
    lists: int
    probes: int
    recall: dict[str, float]
    covered: dict[str, int]
    kind: str = "ivf"

    def __str__(self) -> str:
        read = f"{self.probes} of {self.lists} lists read" if self.lists else f"{self.probes} candidates kept"
        recall = ", ".join(f"{value:.3f} of {kind} queries" for kind, value in self.recall.items())
        return f"{self.kind}, {self.windows:,} windows, {read}, recall@{NEAREST} {recall}"


class Candidates(Protocol):
    """What names the windows that a search compares; `filters`: it knows masks."""

    filters: bool

    def rows(
        self, snapshot: Snapshot, vector: Floats, count: int, mask: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """Return candidate rows of a snapshot for a query (D,), of those that count in a mask (N,)."""


class ApproximateIndex:
    """An index of a collection, opened. Several threads may search it at once. It knows no masks.

    Raises:
        RunError: the file is missing or cannot be read.
    """

    filters = False

    def __init__(self, folder: Path, facts: IndexFacts) -> None:
        require("ann", "an approximate index")
        import faiss

        self.facts = facts
        self._parameters = _reading(facts.probes)
        try:
            self._index = faiss.read_index(str(folder / FILE), faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            hint = "index with --index exact, or --index ivf to build it again"
            raise RunError(folder / FILE, "cannot be read", "", hint) from error

    def rows(
        self, snapshot: Snapshot, vector: Floats, count: int, mask: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """Return candidate rows of a snapshot for a query (D,): those of the index, and the best of the other rows."""
        ids: NDArray[np.int64] = self._index.search(vector[None], max(count, 1), params=self._parameters)[1][0]
        found = [snapshot.rows_of(ids[ids >= 0])]
        for first, part in _uncovered(snapshot, self.facts.covered):
            found.append(first + largest(dot_products([part], vector[None])[0], count))
        rows = np.concatenate(found)
        return rows[snapshot.video_index[rows] >= 0]


class DatabaseCandidates:
    """A database that names the windows to compare.

    Args:
        facts: of its index; None: it compares all vectors.
    """

    filters = True

    def __init__(self, vectors: PostgresVectors, facts: IndexFacts | None) -> None:
        self.vectors, self.facts = vectors, facts

    def rows(
        self, snapshot: Snapshot, vector: Floats, count: int, mask: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """Return the best rows of a snapshot for a query (D,)."""
        counted = snapshot.video_index >= 0 if mask is None else mask & (snapshot.video_index >= 0)
        among = None if mask is None else snapshot.ids_of(np.flatnonzero(counted))
        asked = wanted = min(count, int(counted.sum()))
        while True:  # the table also has rows of removed videos, and of other states
            kept = None if self.facts is None else max(self.facts.probes, asked)
            ids = self.vectors.nearest(vector, asked, kept=kept, among=among)
            rows = snapshot.rows_of(ids)
            rows = rows[counted[rows]]
            if len(rows) >= wanted or len(ids) < asked:
                return rows
            asked *= 2


def stored_facts(store: Store) -> IndexFacts | None:
    """Return what is known of the index of a collection, None without one."""
    found = store.kept(FACT, lambda: store.records.fact(FACT))
    return None if found is None else IndexFacts(**found)


def is_stale(store: Store, facts: IndexFacts) -> bool:
    """Return whether an index should be built again; a database keeps its own up to date."""
    if facts.kind == "hnsw":
        return False
    snapshot = store.snapshot()
    live = int((snapshot.video_index >= 0).sum())
    covered = sum(int((snapshot.video_index[part] >= 0).sum()) for part in _covered(snapshot, facts.covered))
    return live - covered > STALE * max(live, 1) or facts.windows - covered > STALE * facts.windows


def remove(store: Store) -> None:
    """Forget the index of a collection."""
    store.records.set_fact(FACT, None)
    if isinstance(store.vectors, PostgresVectors):
        store.vectors.remove_index()
    (store.folder / FILE).unlink(missing_ok=True)


def build(store: Store, model: VideoModel) -> IndexFacts:
    """Build the index of a collection as it is now, in its database if it has one, and measure its recall.

    Raises:
        ExtraError: faiss is not installed. RunError: the disk is full, or the database cannot be used.
    """
    facts = (
        _build_hnsw(store.vectors, store, model)
        if isinstance(store.vectors, PostgresVectors)
        else _build_ivf(store, model)
    )
    store.records.set_fact(FACT, asdict(facts))
    return facts


def _build_hnsw(vectors: PostgresVectors, store: Store, model: VideoModel) -> IndexFacts:
    vectors.build_index()

    def search(queries: Floats, count: int, kept: int) -> list[NDArray[np.int64]]:
        return [vectors.nearest(query, count, kept=kept) for query in queries]

    snapshot = store.snapshot()
    kept, recall = measure_recall(snapshot, model, search, LEAST_KEPT, MOST_KEPT)
    return IndexFacts(snapshot.num_windows, 0, kept, recall, {}, "hnsw")


def _build_ivf(store: Store, model: VideoModel) -> IndexFacts:
    require("ann", "an approximate index")
    import faiss

    snapshot = store.snapshot()
    live = int((snapshot.video_index >= 0).sum())
    # Building takes (lists + 640 lists^2 / windows) products a window, a search at most a few thousand windows a list.
    lists = max(1, min(int(live**0.5), live // 39))  # faiss warns of fewer windows a list
    quantizer = faiss.IndexFlatIP(store.dim)
    kind = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(quantizer, store.dim, lists, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(snapshot.vectors(snapshot.sample(TRAINING_PER_LIST * lists, seed=0)))
    for segment, first, part in _segments(snapshot):
        for start in range(0, len(part), 2**16):
            rows = np.arange(start, min(start + 2**16, len(part)))
            rows = rows[snapshot.video_index[first + rows] >= 0]
            index.add_with_ids(np.ascontiguousarray(part[rows], np.float32), rows + (segment << ROW_BITS))
    with atomic_path(store.folder / FILE) as path:
        try:
            faiss.write_index(index, str(path))
        except RuntimeError as error:  # what faiss makes of a full disk
            raise RunError(
                store.folder / FILE, "cannot be written", "", "free space, then --index ivf again"
            ) from error
    covered = {str(segment): len(part) for segment, _, part in _segments(snapshot)}

    def search(queries: Floats, count: int, probes: int) -> NDArray[np.int64]:
        ids: NDArray[np.int64] = index.search(queries, count, params=_reading(probes))[1]
        return ids

    # They hold twice the candidates of a search on average: moments are made of more windows than the ten nearest.
    least = 2 ** max(0, math.ceil(math.log2(2 * CANDIDATES * index.nlist / max(1, index.ntotal))))
    probes, recall = measure_recall(snapshot, model, search, least, index.nlist)
    return IndexFacts(live, lists, probes, recall, covered)


def measure_recall(
    snapshot: Snapshot,
    model: VideoModel,
    search: Callable[[Floats, int, int], Iterable[NDArray[np.int64]]],
    least: int,
    most: int,
) -> tuple[int, dict[str, float]]:
    """Double the effort of searches until the recall suffices for every kind of query; return effort and recalls.

    Args:
        search: ids of the windows that an index finds: queries (Q, D), number of windows, effort. least, most: effort.
    """
    queries = {"clip": snapshot.vectors(snapshot.sample(QUERIES, seed=2))}
    if "text" in model.capabilities:
        queries["text"] = model.encode_text(generic_texts(QUERIES)).numpy()
    gone = snapshot.video_index < 0
    wanted = {
        kind: [snapshot.ids_of(rows) for rows in nearest(snapshot.segments, vectors, NEAREST, gone)]
        for kind, vectors in queries.items()
    }
    effort = min(least, most)
    while True:
        recall = dict[str, float]()
        for kind, vectors in queries.items():
            found = search(vectors, CANDIDATES, effort)
            hits = [np.isin(want, got).mean() for want, got in zip(wanted[kind], found, strict=True)]
            recall[kind] = round(float(np.mean(hits)), 4)
        if min(recall.values()) >= LEAST_RECALL or effort >= most:
            return effort, recall
        effort = min(2 * effort, most)


def _reading(probes: int) -> Any:
    """Return the parameters of a search that reads so many lists."""
    import faiss

    parameters = faiss.SearchParametersIVF()
    parameters.nprobe = probes
    return parameters


def _segments(snapshot: Snapshot) -> Iterator[tuple[int, int, Floats]]:
    """Yield (segment, first row, mapped vectors)."""
    first = 0
    for segment, part in zip(snapshot.segment_ids, snapshot.segments, strict=True):
        yield segment, first, part
        first += len(part)


def _covered(snapshot: Snapshot, covered: dict[str, int]) -> Iterator[slice]:
    for segment, first, part in _segments(snapshot):
        yield slice(first, first + min(covered.get(str(segment), 0), len(part)))


def _uncovered(snapshot: Snapshot, covered: dict[str, int]) -> Iterator[tuple[int, Floats]]:
    """Yield (first row, mapped vectors) of what came after the index."""
    for segment, first, part in _segments(snapshot):
        begin = covered.get(str(segment), 0)
        if begin < len(part):
            yield first + begin, part[begin:]
