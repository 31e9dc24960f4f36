"""Compute text-video retrieval metrics: ranks, recall, median and mean rank, dual softmax (Video-Text-Retrieval).

NumPy only. Rows of a similarity are texts (Q), columns are videos (V). Recalls are fractions in 0..1, ranks start at 1
in the metrics and at 0 internally. A similarity matrix is read once per direction, never copied or transposed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Ties = Literal["official", "optimistic", "pessimistic"]

RECALLS = (1, 5, 10)
BANK_BETA = 0.2
"""Inverse temperature for similarities with a scale of about 100; equals the authors' 20 for cosines."""
_FEW = 32  # rows of a product made at a time
_BLOCK = 128  # rows read at a time by the column pass: their counts fit one byte, so the sum stays vectorised


def _check(similarity: Floats, owner: Ints, queries: int) -> None:
    if similarity.ndim != 2 or owner.shape != (queries,) or queries == 0:
        raise ValueError(f"similarity {similarity.shape} needs one target for each query, found {owner.shape}")
    if not np.isfinite(similarity).all():
        raise ValueError("similarities hold NaN or infinity: they cannot be ranked")


def _row_bounds(similarity: Floats, target: Ints) -> tuple[Ints, Ints]:
    """Count per row the entries above the target entry, and those above or equal (without the target)."""
    better = np.empty(len(similarity), dtype=np.int64)
    level = np.empty_like(better)
    flags = np.empty(similarity.shape[1], dtype=np.bool_)
    # One row at a time stays in the cache, and counting a contiguous row of flags is the fastest reduction there is.
    for i, (row, j) in enumerate(zip(similarity, target.tolist(), strict=True)):
        value = row[j]
        better[i] = np.count_nonzero(np.greater(row, value, out=flags))
        level[i] = np.count_nonzero(np.greater_equal(row, value, out=flags)) - 1
    return better, level


def _column_bounds(similarity: Floats, target: Ints) -> tuple[Ints, Ints]:
    """Count per column as `_row_bounds`, reading the matrix in row order."""
    rows, columns = similarity.shape
    value = similarity[target, np.arange(columns)]
    better = np.zeros(columns, dtype=np.int64)
    level = np.full(columns, -1, dtype=np.int64)
    flags = np.empty((_BLOCK, columns), dtype=np.bool_)
    for start in range(0, rows, _BLOCK):
        block = similarity[start : start + _BLOCK]
        part = flags[: len(block)]
        np.greater(block, value, out=part)
        better += np.add.reduce(part.view(np.uint8), axis=0, dtype=np.uint8)
        np.greater_equal(block, value, out=part)
        level += np.add.reduce(part.view(np.uint8), axis=0, dtype=np.uint8)
    return better, level


def _settle(bounds: tuple[Ints, Ints], ties: Ties) -> Ints:
    """Convert both bounds to ranks. `official` returns every exact match, so a query can count more than once."""
    better, level = bounds
    if ties == "optimistic":
        return better
    if ties == "pessimistic":
        return level
    return np.concatenate([np.arange(first, last + 1) for first, last in zip(better, level, strict=True)])


def row_ranks(similarity: Floats, target: Ints | None = None, ties: Ties = "pessimistic") -> Ints:
    """Compute the 0-based rank of column `target[i]` in each row i (default: the diagonal).

    Args:
        similarity: (Q, V), finite.
        target: (Q,) column of each row.
        ties: `optimistic` counts strictly better entries, `pessimistic` also equal ones, `official` is the published
            counter that returns every exact match (more ranks than rows on tied data).

    Returns:
        (Q,) int64, or one entry per match for `official`.
    """
    chosen = np.arange(len(similarity)) if target is None else target
    _check(similarity, chosen, len(similarity))
    return _settle(_row_bounds(similarity, chosen), ties)


def column_ranks(similarity: Floats, target: Ints | None = None, ties: Ties = "pessimistic") -> Ints:
    """Compute the 0-based rank of row `target[j]` in each column j without transposing; arguments as `row_ranks`."""
    chosen = np.arange(similarity.shape[1]) if target is None else target
    _check(similarity, chosen, similarity.shape[1])
    return _settle(_column_bounds(similarity, chosen), ties)


def best_caption(similarity: Floats, owner: Ints, videos: int) -> Floats:
    """Reduce to the best caption per video: (V, V), rows are the owners of the captions.

    Args:
        similarity: (Q, V).
        owner: (Q,) video of each caption; every video needs at least one.
        videos: V.
    """
    counts = np.bincount(owner, minlength=videos)
    if len(counts) != videos or (counts == 0).any():
        raise ValueError("every video needs at least one caption")
    sorted_rows = similarity if (np.diff(owner) >= 0).all() else similarity[np.argsort(owner, kind="stable")]
    result: Floats = np.maximum.reduceat(sorted_rows, np.cumsum(counts) - counts, axis=0)
    return result


def dual_softmax(similarity: Floats, axis: int = 0) -> Floats:
    """Multiply a similarity by its softmax along `axis`, in its dtype (Video-Text-Retrieval).

    The similarity must already be scaled by about 100; there is no other temperature. float32 underflows to ties beyond
    a gap of about 87, so the tasks pass float64.
    """
    product = np.empty_like(similarity)
    top, total = similarity.max(axis=axis, keepdims=True), 0.0
    # A few rows at a time stay in the cache; whole passes over a large matrix cost as much as the exponentials.
    for part in _parts(len(similarity)):
        own = product[part]
        np.subtract(similarity[part], top if axis == 0 else top[part], out=own)
        np.exp(own, out=own)
        if axis == 0:
            total = total + own.sum(axis=0)
        else:
            own *= similarity[part] / own.sum(axis=1, keepdims=True)
    for part in _parts(len(similarity)) if axis == 0 else ():
        product[part] *= similarity[part] / total
    return product


def _parts(rows: int) -> list[slice]:
    return [slice(start, start + _FEW) for start in range(0, rows, _FEW)]


def bank_counts(blocks: Iterable[Floats], beta: float = BANK_BETA) -> tuple[Floats, NDArray[np.bool_]]:
    """Accumulate statistics of a query bank per video, for `query_bank`.

    Args:
        blocks: similarities (m, V) of the bank's texts, block by block.
        beta: factor of the similarities.

    Returns:
        (V,) log of the sum over the bank of exp(beta S), and (V,) whether a video is the best one of any bank text.
        ValueError for an empty bank.
    """
    sums: list[Floats] = []
    best: list[NDArray[np.bool_]] = []
    for block in blocks:
        top = block.max(axis=0)
        sums.append(beta * top + np.log(np.exp(beta * (block - top)).sum(axis=0)))
        best.append(np.bincount(block.argmax(axis=1), minlength=block.shape[1]) > 0)
    if not sums:
        raise ValueError("the query bank is empty")
    return np.logaddexp.reduce(sums), np.logical_or.reduce(best)


def query_bank(similarity: Floats, log_sum: Floats, active: NDArray[np.bool_], beta: float = BANK_BETA) -> Floats:
    """Apply query-bank normalization to similarities (Q, V), which damps hubs; an extension of this package.

    Dynamic inverted softmax (Bogolin et al., arXiv 2112.12777): a row whose best video is the best of any bank text
    becomes beta S - `log_sum`, which ranks as exp(beta S) over its sum in the bank; other rows are unchanged. Only rows
    can be ranked: entries of a column are not comparable.

    Args:
        log_sum, active: of `bank_counts`, with the same `beta`.
    """
    result = np.array(similarity)
    touched = active[similarity.argmax(axis=1)]
    result[touched] = beta * similarity[touched] - log_sum
    return result


def directions(
    similarity: Floats, owner: Ints | None = None, *, dual: Literal["none", "released", "clean"] = "none"
) -> tuple[Ints, Ints]:
    """Compute the ranks of text to video (one per text) and video to text (one per video).

    Args:
        similarity: (Q, V).
        owner: (Q,) video of each text; None says that text i belongs to video i (square).
        dual: `released` follows the published code: the text-to-video product over the text axis; for video to text the
            same on the transposed matrix for square data, and the text-to-video product again for many captions.
            `clean` always uses the product over the video axis for video to text.
    """
    square = owner is None
    owners = np.arange(len(similarity)) if owner is None else owner
    forward = similarity if dual == "none" else dual_softmax(similarity, axis=0)
    reuse = dual == "none" or (dual == "released" and not square)
    backward = forward if reuse else dual_softmax(similarity, axis=1)
    if not square:
        backward = best_caption(backward, owners, similarity.shape[1])
    return row_ranks(forward, owners), column_ranks(backward)


def rank_figures(ranks: Ints, *, median: Literal["mean", "lower"] = "mean") -> dict[str, float]:
    """Compute R@1, R@5, R@10 as fractions, MdR and MnR counted from 1.

    Args:
        ranks: (Q,) 0-based.
        median: for an even count, the mean of the two middle ranks or the lower one (as the published many-caption
            text-to-video counter).
    """
    if len(ranks) == 0:
        raise ValueError("no queries: the recall is undefined")
    figures = {f"r{k}": float((ranks < k).mean()) for k in RECALLS}
    middle = np.sort(ranks)[(len(ranks) - 1) // 2] if median == "lower" else np.median(ranks)
    return {**figures, "median_rank": float(middle) + 1, "mean_rank": float(ranks.mean()) + 1}


def tied_queries(similarity: Floats, owner: Ints | None = None) -> int:
    """Count the queries whose rank depends on the tie rule: rows with another column equal to the target's."""
    better, level = _row_bounds(similarity, np.arange(len(similarity)) if owner is None else owner)
    return int((better != level).sum())
