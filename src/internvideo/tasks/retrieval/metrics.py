"""Compute text-video retrieval metrics: ranks, recall, median and mean rank, dual softmax (Video-Text-Retrieval).

NumPy only. Rows of a similarity matrix are texts (Q), columns are videos (V). Recalls are fractions in 0..1. Ranks
start at 0, except for `median_rank` and `mean_rank`, which start at 1. The matrix is read in row order, not transposed.
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
_PRODUCT_ROWS = 32
"""Rows of the dual-softmax product that are computed at a time."""
_COUNT_ROWS = 128
"""Rows that the column pass counts at a time, so that the counts fit in one byte and the sum is vectorized."""


def _validate_targets(similarity: Floats, target: Ints, num_queries: int) -> None:
    if similarity.ndim != 2 or target.shape != (num_queries,) or num_queries == 0:
        raise ValueError(f"similarity {similarity.shape} needs one target per query, found {target.shape}")
    if not np.isfinite(similarity).all():
        raise ValueError("similarities contain NaN or infinity, which cannot be ranked")


def _row_rank_bounds(similarity: Floats, target: Ints) -> tuple[Ints, Ints]:
    """Count per row the entries above the target, and the entries above or equal to it, without itself.

    These are the optimistic and the pessimistic rank of the target.
    """
    num_above = np.empty(len(similarity), dtype=np.int64)
    num_not_below = np.empty_like(num_above)
    flags = np.empty(similarity.shape[1], dtype=np.bool_)
    # A row at a time stays in the cache, and counting a contiguous row of flags is the fastest reduction.
    for i, (row, j) in enumerate(zip(similarity, target.tolist(), strict=True)):
        value = row[j]
        num_above[i] = np.count_nonzero(np.greater(row, value, out=flags))
        num_not_below[i] = np.count_nonzero(np.greater_equal(row, value, out=flags)) - 1
    return num_above, num_not_below


def _column_rank_bounds(similarity: Floats, target: Ints) -> tuple[Ints, Ints]:
    """Count per column as `_row_rank_bounds` does per row, reading the matrix in row order."""
    rows, columns = similarity.shape
    value = similarity[target, np.arange(columns)]
    num_above = np.zeros(columns, dtype=np.int64)
    num_not_below = np.full(columns, -1, dtype=np.int64)
    flags = np.empty((_COUNT_ROWS, columns), dtype=np.bool_)
    for start in range(0, rows, _COUNT_ROWS):
        block = similarity[start : start + _COUNT_ROWS]
        block_flags = flags[: len(block)]
        np.greater(block, value, out=block_flags)
        num_above += np.add.reduce(block_flags.view(np.uint8), axis=0, dtype=np.uint8)
        np.greater_equal(block, value, out=block_flags)
        num_not_below += np.add.reduce(block_flags.view(np.uint8), axis=0, dtype=np.uint8)
    return num_above, num_not_below


def _ranks_from_bounds(bounds: tuple[Ints, Ints], ties: Ties) -> Ints:
    """Convert optimistic and pessimistic ranks to ranks by the tie rule (see `row_ranks`)."""
    num_above, num_not_below = bounds
    if ties == "optimistic":
        return num_above
    if ties == "pessimistic":
        return num_not_below
    return np.concatenate([np.arange(first, last + 1) for first, last in zip(num_above, num_not_below, strict=True)])


def row_ranks(similarity: Floats, target: Ints | None = None, ties: Ties = "pessimistic") -> Ints:
    """Compute the 0-based rank of column `target[i]` in each row i (default: the diagonal).

    Args:
        similarity: (Q, V), finite.
        target: (Q,) column of each row.
        ties: `optimistic` counts the entries above the target, `pessimistic` also those equal to it; `official`, as the
            published code, returns a rank for every entry equal to the target, which are more than Q for tied data.

    Returns:
        (Q,) int64, or more for `official`.
    """
    target_index = np.arange(len(similarity)) if target is None else target
    _validate_targets(similarity, target_index, len(similarity))
    return _ranks_from_bounds(_row_rank_bounds(similarity, target_index), ties)


def column_ranks(similarity: Floats, target: Ints | None = None, ties: Ties = "pessimistic") -> Ints:
    """Compute the 0-based rank of row `target[j]` in each column j without transposing; arguments as `row_ranks`."""
    target_index = np.arange(similarity.shape[1]) if target is None else target
    _validate_targets(similarity, target_index, similarity.shape[1])
    return _ranks_from_bounds(_column_rank_bounds(similarity, target_index), ties)


def max_over_captions(similarity: Floats, video_index: Ints, num_videos: int) -> Floats:
    """Take the maximum over the captions of each video: (Q, V) -> (V, V).

    Args:
        similarity: (Q, V).
        video_index: (Q,) video of each caption; every video needs at least one.
        num_videos: V.
    """
    counts = np.bincount(video_index, minlength=num_videos)
    if len(counts) != num_videos or (counts == 0).any():
        raise ValueError("every video needs at least one caption")
    sorted_rows = (
        similarity if (np.diff(video_index) >= 0).all() else similarity[np.argsort(video_index, kind="stable")]
    )
    result: Floats = np.maximum.reduceat(sorted_rows, np.cumsum(counts) - counts, axis=0)
    return result


def dual_softmax(similarity: Floats, axis: int = 0) -> Floats:
    """Multiply similarities by their softmax along `axis`, in their dtype (Video-Text-Retrieval).

    Pass cosines scaled by about 100, as there is no further temperature. In float32, differences above about 87
    underflow to ties, so the tasks pass float64.
    """
    product = np.empty_like(similarity)
    top, total = similarity.max(axis=axis, keepdims=True), 0.0
    # A few rows at a time stay in the cache; passes over a large matrix would cost as much as the exponentials.
    for block_flags in _row_slices(len(similarity)):
        block_product = product[block_flags]
        np.subtract(similarity[block_flags], top if axis == 0 else top[block_flags], out=block_product)
        np.exp(block_product, out=block_product)
        if axis == 0:
            total = total + block_product.sum(axis=0)
        else:
            block_product *= similarity[block_flags] / block_product.sum(axis=1, keepdims=True)
    for block_flags in _row_slices(len(similarity)) if axis == 0 else ():
        product[block_flags] *= similarity[block_flags] / total
    return product


def _row_slices(rows: int) -> list[slice]:
    return [slice(start, start + _PRODUCT_ROWS) for start in range(0, rows, _PRODUCT_ROWS)]


def querybank_statistics(blocks: Iterable[Floats], beta: float = BANK_BETA) -> tuple[Floats, NDArray[np.bool_]]:
    """Compute statistics of a query bank per video, for `querybank_normalize`.

    Args:
        blocks: similarities (m, V) of the bank's texts, in blocks.
        beta: factor of the similarities.

    Returns:
        log_sum_exp (V,) of beta S over the bank, and is_activated (V,) bool, whether the video has rank 0 for any text
        of the bank.

    Raises:
        ValueError: the bank is empty.
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


def querybank_normalize(
    similarity: Floats, log_sum_exp: Floats, is_activated: NDArray[np.bool_], beta: float = BANK_BETA
) -> Floats:
    """Apply query-bank normalization to similarities (Q, V), which reduces hubness; not in the paper.

    Dynamic inverted softmax (Bogolin et al., arXiv 2112.12777): a row whose best video is activated becomes
    beta S - `log_sum_exp`, in the order of exp(beta S) divided by its sum over the bank; other rows are unchanged.
    Ranks can be computed within rows only, since the entries of a column are no longer comparable.

    Args:
        log_sum_exp, is_activated: from `querybank_statistics` with the same `beta`.
    """
    result = np.array(similarity)
    activated_rows = is_activated[similarity.argmax(axis=1)]
    result[activated_rows] = beta * similarity[activated_rows] - log_sum_exp
    return result


def bidirectional_ranks(
    similarity: Floats,
    video_index: Ints | None = None,
    *,
    dual_softmax_mode: Literal["off", "official", "per_direction"] = "off",
) -> tuple[Ints, Ints]:
    """Compute the ranks of text-to-video (one per text) and video-to-text retrieval (one per video).

    Args:
        similarity: (Q, V).
        video_index: (Q,) video of each text; None if text i belongs to video i (Q = V).
        dual_softmax_mode: text-to-video retrieval uses the dual softmax over the texts, unless "off".
            "off": no dual softmax in either direction.
            "per_direction": video-to-text retrieval uses the dual softmax over the videos.
            "official": as the published code, "per_direction" for one caption per video; for several captions
            video-to-text retrieval uses the dual softmax over the texts.
    """
    is_square = video_index is None
    video_index = np.arange(len(similarity)) if video_index is None else video_index
    forward = similarity if dual_softmax_mode == "off" else dual_softmax(similarity, axis=0)
    reuse_forward = dual_softmax_mode == "off" or (dual_softmax_mode == "official" and not is_square)
    backward = forward if reuse_forward else dual_softmax(similarity, axis=1)
    if not is_square:
        backward = max_over_captions(backward, video_index, similarity.shape[1])
    return row_ranks(forward, video_index), column_ranks(backward)


def rank_metrics(ranks: Ints, *, median: Literal["mean", "lower"] = "mean") -> dict[str, float]:
    """Compute R@1, R@5, R@10 as fractions, MdR and MnR counted from 1.

    Args:
        ranks: (Q,) 0-based.
        median: of an even number of ranks: the mean of the two middle ones, or the lower one (as the published code for
            text to video with several captions).
    """
    if len(ranks) == 0:
        raise ValueError("no queries: the recall is undefined")
    values = {f"r{k}": float((ranks < k).mean()) for k in RECALLS}
    middle = np.sort(ranks)[(len(ranks) - 1) // 2] if median == "lower" else np.median(ranks)
    return {**values, "median_rank": float(middle) + 1, "mean_rank": float(ranks.mean()) + 1}


def tied_queries(similarity: Floats, video_index: Ints | None = None) -> int:
    """Count the queries whose rank depends on the tie rule: rows with an entry equal to the target."""
    num_above, num_not_below = _row_rank_bounds(
        similarity, np.arange(len(similarity)) if video_index is None else video_index
    )
    return int((num_above != num_not_below).sum())
