"""Calibrate scores: how often does a query that nothing in the collection fits score as high as this one?

A query's scores are standardized by the mean and standard deviation of its own scores over all windows, nearly all of
which do not fit it; so queries become comparable. The largest standardized score of each of many null queries, which
nothing fits, is the null distribution. The p-value of a match, (1 + number of null queries that score at least as high)
/ (1 + number of null queries), is at most a level with a probability of at most that level, if the query is another
draw from the null queries (split conformal prediction; Vovk et al., "Algorithmic Learning in a Random World", 2005).

Null queries are generic texts (`null_texts`) or given ones; for clips, windows of the collection compared with those of
other videos. Texts of another kind than the null texts can deviate from the level: give null texts of that kind.

Shapes: Q queries, N windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RecipeError
from internvideo.inference.video_model import VideoModel
from internvideo.search.null_texts import generic_texts
from internvideo.search.segments import scan
from internvideo.search.store import Snapshot, Store

Floats = NDArray[np.floating[Any]]
NULL_CLIPS = 500
"""Windows that stand for clips which nothing fits, at most."""
BLOCK_SCORES = 8192


def mean_and_spread(scores: Floats) -> tuple[float, float]:
    """Return mean and standard deviation of the finite scores (N,) of a query; (0, 1) for fewer than two."""
    finite = scores if not len(scores) or np.isfinite(scores.min()) else scores[np.isfinite(scores)]
    if len(finite) < 2:
        return 0.0, 1.0
    total = squares = 0.0
    for start in range(0, len(finite), BLOCK_SCORES):  # in the cache: .std takes twice as long
        block = finite[start : start + BLOCK_SCORES].astype(np.float64)
        total, squares = total + float(block.sum()), squares + float(block @ block)
    mean = total / len(finite)
    return mean, max((squares / len(finite) - mean * mean), 1e-18) ** 0.5


@dataclass(frozen=True)
class NullDistribution:
    """The largest standardized scores of queries that nothing fits, ascending."""

    maxima: NDArray[np.float64]

    @property
    def count(self) -> int:
        """Number of null queries."""
        return len(self.maxima)

    def p_value(self, score: float) -> float:
        """Return how often a query that nothing fits scores at least as high: 1 / (count + 1) to 1."""
        return float(1 + self.count - np.searchsorted(self.maxima, score, side="left")) / (self.count + 1)

    def check_level(self, level: float) -> None:
        """Raise RecipeError for a level below what so many null queries can tell."""
        if not 0 < level < 1:
            raise RecipeError("threshold", f"{level:g}", "above 0 %, below 100 %, such as 1%")
        if level * (self.count + 1) < 1 - 1e-9:
            expected = f"{1 / (self.count + 1):.3%} or more with {self.count} null queries"
            raise RecipeError("threshold", f"{level:.3%}", expected, "index with more --null-texts")


def parse_level(text: str) -> float:
    """Read a level: 1% or 0.01. Raises RecipeError."""
    try:
        level = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        level = -1.0
    if not 0 < level < 1:
        raise RecipeError("threshold", f"'{text[:30]}'", "above 0 %, below 100 %, such as 1% or 0.01")
    return level


def null_maxima(snapshot: Snapshot, queries: Floats, excluded: NDArray[np.int32] | None = None) -> NDArray[np.float64]:
    """Compute the largest standardized score (Q,) of queries (Q, D); `excluded` is a video of each to leave out."""
    counts, totals, squares = (np.zeros(len(queries)) for _ in range(3))
    maxima = np.full(len(queries), -np.inf)
    for first, block in scan(snapshot.segments, queries):
        owners = snapshot.video_index[first : first + block.shape[1]]
        counted = np.broadcast_to(owners >= 0, block.shape)
        if excluded is not None:
            counted = counted & (excluded[:, None] != owners)
        scores = np.where(counted, block, 0.0)
        counts += counted.sum(axis=1)
        totals += scores.sum(axis=1, dtype=np.float64)
        squares += np.einsum("qn,qn->q", scores, scores, dtype=np.float64)
        maxima = np.maximum(maxima, np.where(counted, block, -np.inf).max(axis=1))
    means = totals / np.maximum(counts, 1)
    return (maxima - means) / np.sqrt(np.maximum(squares / np.maximum(counts, 1) - means**2, 1e-18))


def calibrate(store: Store, model: VideoModel, texts: Sequence[str] | None = None) -> Mapping[str, NullDistribution]:
    """Compute and store the null distributions of the collection as it is now.

    Args:
        texts: null texts, which nothing in the collection fits; kept for later calls. None: those of the last call,
            at first the generic ones.

    Raises:
        RecipeError: fewer than 20 texts.
    """
    snapshot = store.snapshot()
    given = list(dict.fromkeys(texts)) if texts is not None else store.records.fact("null_texts")
    if given is not None and len(given) < 20:
        raise RecipeError("null texts", f"{len(given)}", "20 or more; 100 for a threshold of 1 %")
    made: dict[str, NullDistribution] = {}
    if "text" in model.capabilities and len(snapshot.video_index):
        vectors = model.encode_text(given or generic_texts()).numpy()
        made["text"] = NullDistribution(np.sort(null_maxima(snapshot, vectors)))
    if len(snapshot.videos) > 1:
        rows = np.flatnonzero(snapshot.video_index >= 0)
        rows = np.random.default_rng(0).permutation(rows)[:NULL_CLIPS]
        maxima = null_maxima(snapshot, snapshot.vectors(rows), snapshot.video_index[rows])
        made["clip"] = NullDistribution(np.sort(maxima))
    with store.records.transaction():
        if texts is not None:
            store.records.set_fact("null_texts", given)
        store.records.set_fact("null", {kind: null.maxima.round(5).tolist() for kind, null in made.items()})
    return made


def stored_null(store: Store) -> dict[str, NullDistribution]:
    """Return the null distributions of the last `calibrate`, by kind of query; {} for none."""

    def read() -> dict[str, NullDistribution]:
        found = store.records.fact("null", {})
        return {kind: NullDistribution(np.array(values, np.float64)) for kind, values in found.items()}

    return store.kept("null", read)
