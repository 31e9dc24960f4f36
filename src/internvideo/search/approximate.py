"""An approximate index (inverted lists of faiss) for collections too large to compare every window with every query.

Only the windows that it names are compared, exactly, so a score is never approximate, but a window can be missed. How
many of the ten nearest it finds is measured when it is built; how many lists a search reads follows from that.
Windows that came later are all compared, and removed ones are dropped, so the answer belongs to the newest state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RunError
from internvideo.extras import require
from internvideo.inference.video_model import VideoModel
from internvideo.search.null_texts import generic_texts
from internvideo.search.segments import Floats, dot_products, largest, nearest
from internvideo.search.store import Snapshot, Store
from internvideo.storage import atomic_path

FILE = "windows.faiss"
FACT = "approximate"
LEAST_RECALL = 0.98
NEAREST = 10
CANDIDATES = 500
QUERIES = 200
"""Queries of each kind, windows and generic texts, by which recall is measured."""
SAMPLE = 16_384
"""Windows whose scores stand for those of all in a query's mean and standard deviation."""
TRAINING_PER_LIST = 64
STALE = 0.1
"""The index is built again when so large a part of the windows is not in it, or of its windows removed."""
_ROW_BITS = 40


@dataclass(frozen=True)
class IndexFacts:
    """What is known of an index.

    Attributes:
        windows: in it. lists: of windows that are near each other; probes: of these, read by each search.
        recall: of the ten nearest windows, by kind of query.
        covered: segment -> its rows when the index was built.
    """

    windows: int
    lists: int
    probes: int
    recall: dict[str, float]
    covered: dict[str, int]

    def __str__(self) -> str:
        recall = ", ".join(f"{value:.3f} of {kind} queries" for kind, value in self.recall.items())
        return f"ivf, {self.windows:,} windows, {self.probes} of {self.lists} lists read, recall@{NEAREST} {recall}"


class ApproximateIndex:
    """An index of a collection, opened. Several threads may search it at once.

    Raises:
        RunError: the file is missing or cannot be read.
    """

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
        self._sample: tuple[Snapshot, Floats] | None = None

    def rows(self, snapshot: Snapshot, vector: Floats, count: int) -> NDArray[np.int64]:
        """Return candidate rows of a snapshot for a query (D,): those of the index, and the best of the other rows."""
        ids: NDArray[np.int64] = self._index.search(vector[None], max(count, 1), params=self._parameters)[1][0]
        found = [_rows_of(snapshot, ids[ids >= 0])]
        for first, part in _uncovered(snapshot, self.facts.covered):
            found.append(first + largest(dot_products([part], vector[None])[0], count))
        rows = np.concatenate(found)
        return rows[snapshot.video_index[rows] >= 0]

    def sample_scores(self, snapshot: Snapshot, vector: Floats) -> Floats:
        """Return the scores (n,) of a random sample of the windows."""
        if self._sample is None or self._sample[0] is not snapshot:
            self._sample = snapshot, snapshot.vectors(_sample(snapshot, SAMPLE, seed=1))
        return self._sample[1] @ vector


def stored_facts(store: Store) -> IndexFacts | None:
    """Return what is known of the index of a collection, None without one."""
    found = store.kept(FACT, lambda: store.records.fact(FACT))
    return None if found is None else IndexFacts(**found)


def is_stale(store: Store, facts: IndexFacts) -> bool:
    """Return whether an index should be built again."""
    snapshot = store.snapshot()
    live = int((snapshot.video_index >= 0).sum())
    covered = sum(int((snapshot.video_index[part] >= 0).sum()) for part in _covered(snapshot, facts.covered))
    return live - covered > STALE * max(live, 1) or facts.windows - covered > STALE * facts.windows


def remove(store: Store) -> None:
    """Forget the index of a collection."""
    store.records.set_fact(FACT, None)
    (store.folder / FILE).unlink(missing_ok=True)


def build(store: Store, model: VideoModel) -> IndexFacts:
    """Build the index of a collection as it is now, and measure its recall.

    Raises:
        ExtraError: faiss is not installed. RunError: the disk is full.
    """
    require("ann", "an approximate index")
    import faiss

    snapshot = store.snapshot()
    live = int((snapshot.video_index >= 0).sum())
    # Building takes (lists + 640 lists^2 / windows) products a window, a search at most a few thousand windows a list.
    lists = max(1, min(int(live**0.5), live // 39))  # faiss warns of fewer windows a list
    quantizer = faiss.IndexFlatIP(store.dim)
    kind = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(quantizer, store.dim, lists, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(snapshot.vectors(_sample(snapshot, TRAINING_PER_LIST * lists, seed=0)))
    for segment, first, part in _segments(snapshot):
        for start in range(0, len(part), 2**16):
            rows = np.arange(start, min(start + 2**16, len(part)))
            rows = rows[snapshot.video_index[first + rows] >= 0]
            index.add_with_ids(np.ascontiguousarray(part[rows], np.float32), rows + (segment << _ROW_BITS))
    with atomic_path(store.folder / FILE) as path:
        faiss.write_index(index, str(path))
    covered = {str(segment): len(part) for segment, _, part in _segments(snapshot)}
    probes, recall = _measure(index, snapshot, model)
    facts = IndexFacts(live, lists, probes, recall, covered)
    store.records.set_fact(FACT, asdict(facts))
    return facts


def _measure(index: Any, snapshot: Snapshot, model: VideoModel) -> tuple[int, dict[str, float]]:
    """Return the smallest power of two of lists whose recall suffices for every kind of query, and the recalls.

    They hold twice the candidates of a search on average: moments are made of more windows than the ten nearest.
    """
    queries = {"clip": snapshot.vectors(_sample(snapshot, QUERIES, seed=2))}
    if "text" in model.capabilities:
        queries["text"] = model.encode_text(generic_texts(QUERIES)).numpy()
    gone = snapshot.video_index < 0
    places = {kind: nearest(snapshot.segments, vectors, NEAREST, gone) for kind, vectors in queries.items()}
    probes = 2 ** max(0, math.ceil(math.log2(2 * CANDIDATES * index.nlist / max(1, index.ntotal))))
    while True:
        parameters, recall = _reading(probes), dict[str, float]()
        for kind, vectors in queries.items():
            ids = index.search(vectors, CANDIDATES, params=parameters)[1]
            hits = [np.isin(_ids_of(snapshot, want), got).mean() for want, got in zip(places[kind], ids, strict=True)]
            recall[kind] = round(float(np.mean(hits)), 4)
        if min(recall.values()) >= LEAST_RECALL or probes >= index.nlist:
            return min(probes, index.nlist), recall
        probes *= 2


def _reading(probes: int) -> Any:
    """Return the parameters of a search that reads so many lists."""
    import faiss

    parameters = faiss.SearchParametersIVF()
    parameters.nprobe = probes
    return parameters


def _sample(snapshot: Snapshot, count: int, *, seed: int) -> NDArray[np.int64]:
    """Return random rows of windows that were not removed, ascending."""
    rows = np.flatnonzero(snapshot.video_index >= 0)
    if len(rows) <= count:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))


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


def _ids_of(snapshot: Snapshot, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ids in the index of rows of a snapshot: segment and row in it."""
    firsts = np.array([first for _, first, _ in _segments(snapshot)], np.int64)
    place = np.searchsorted(firsts, rows, side="right") - 1
    ids: NDArray[np.int64] = (np.array(snapshot.segment_ids, np.int64)[place] << _ROW_BITS) + rows - firsts[place]
    return ids


def _rows_of(snapshot: Snapshot, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of a snapshot of ids; those of segments that are gone are dropped."""
    made = []
    for segment, first, part in _segments(snapshot):
        rows = ids[ids >> _ROW_BITS == segment] - (segment << _ROW_BITS)
        made.append(first + rows[rows < len(part)])
    return np.concatenate(made) if made else ids[:0]
