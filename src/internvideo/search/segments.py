"""Store vectors in append-only memory-mapped files and multiply them with queries exactly, by BLAS on several threads.

A segment is a file of rows of `dim` little-endian numbers and nothing else: how many of its rows are valid is told by
the database (`records`), which is committed after the file is synced. Bytes behind the last valid row are the rest of
an interrupted run and are cut off by the next one.

Shapes: n rows, D dimension, Q queries.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from internvideo.errors import RunError

Floats = NDArray[np.floating[Any]]
StorageType = Literal["float32", "float16"]
STORAGE_TYPES: tuple[StorageType, ...] = ("float32", "float16")
SEGMENT_BYTES = 2**30
"""A segment that has reached this size is not appended to any more."""
BLOCK_BYTES = 2**24
"""Bytes of float16 rows that are converted and multiplied at a time."""

ROW_BITS = 40
"""Bits of the id of a window that tell its row in its segment."""
BLOCK_SCORES = 256
"""Scores of which `largest` first takes the largest one."""


def segment_path(folder: Path, index: int) -> Path:
    """Return the file of a segment."""
    return folder / f"segment-{index:05d}.bin"


def append(path: Path, num_rows: int, vectors: Floats, storage: StorageType) -> None:
    """Append vectors (n, D) behind the first `num_rows` rows of a segment and sync the file.

    Raises:
        RunError: the disk is full or the file cannot be written, or has fewer rows than it should.
    """
    content = np.ascontiguousarray(vectors, dtype=np.dtype(storage).newbyteorder("<"))
    begin = num_rows * content.shape[1] * content.itemsize
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with os.fdopen(handle, "r+b") as stream:
            if os.fstat(handle).st_size < begin:
                raise RunError(path, f"{os.fstat(handle).st_size:,} bytes", f"at least {begin:,}", "index again")
            stream.truncate(begin)
            stream.seek(begin)
            stream.write(content.data)
            stream.flush()
            os.fsync(handle)
    except OSError as error:
        raise RunError(path, f"cannot be written: {error.strerror or error}", "", "free space, then resume") from error


def open_segment(path: Path, num_rows: int, dim: int, storage: StorageType) -> Floats:
    """Map the valid rows of a segment (n, D). Raises RunError if the file is missing or too short."""
    if num_rows == 0:
        return np.empty((0, dim), np.dtype(storage))
    try:
        # Copy on write, which nobody does: torch warns of arrays that cannot be written.
        return np.memmap(path, np.dtype(storage).newbyteorder("<"), "c", shape=(num_rows, dim))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "shorter than the database says"
        raise RunError(path, f"cannot be read: {reason}", "the whole folder", "copy it again or index again") from error


class VectorStorage(Protocol):
    """Where the segments of a collection lie."""

    def append(self, segment: int, num_rows: int, vectors: Floats) -> None:
        """Store vectors (n, D) behind the first `num_rows` rows of a segment; drop others there. Raises RunError."""

    def open(self, segment: int, num_rows: int) -> Floats:
        """Return the first rows (n, D) of a segment; they are read when they are taken. Raises RunError."""

    def keep(self, known: Collection[int]) -> None:
        """Delete all other segments. Raises RunError."""

    def close(self) -> None:
        """Close what is open."""


class SegmentFiles:
    """Segments as files of a folder (`VectorStorage`)."""

    def __init__(self, folder: Path, dim: int, storage: StorageType) -> None:
        self.folder, self.dim, self.storage = folder, dim, storage

    def append(self, segment: int, num_rows: int, vectors: Floats) -> None:
        """Append to the file of a segment."""
        append(segment_path(self.folder, segment), num_rows, vectors, self.storage)

    def open(self, segment: int, num_rows: int) -> Floats:
        """Map the file of a segment."""
        return open_segment(segment_path(self.folder, segment), num_rows, self.dim, self.storage)

    def keep(self, known: Collection[int]) -> None:
        """Delete other files; a reader that has mapped them keeps them until it lets go."""
        for path in set(self.folder.glob("segment-*.bin")) - {segment_path(self.folder, index) for index in known}:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is open."""


class ProductMemory(threading.local):
    """Memory for products that each thread uses again, because new memory costs time for each batch of queries."""

    def __init__(self) -> None:
        self._held = np.empty(0, np.float32)

    def take(self, rows: int, columns: int) -> NDArray[np.float32]:
        """Return an array of this shape, valid until the thread takes the next."""
        if self._held.size < rows * columns:
            self._held = np.empty(rows * columns, np.float32)
        return self._held[: rows * columns].reshape(rows, columns)


def dot_products(
    segments: Sequence[Floats], queries: Floats, memory: ProductMemory | None = None
) -> NDArray[np.float32]:
    """Compute the dot products of all rows of all segments with the queries, exactly.

    Args:
        segments: each (n, D) float32 or float16. queries: (Q, D). memory: for the products, by default new memory.

    Returns:
        (Q, N) float32, rows of all segments concatenated.
    """
    right = np.ascontiguousarray(queries, np.float32)
    products = (memory or ProductMemory()).take(len(right), sum(len(segment) for segment in segments))
    first = 0
    for segment in segments:
        if isinstance(segment, np.ndarray) and segment.dtype == np.float32:  # one product on all threads
            _multiply(segment, right, products[:, first : first + len(segment)])
        else:
            for start, block in scan([segment], right):
                products[:, first + start : first + start + block.shape[1]] = block
        first += len(segment)
    return products


def scan(segments: Sequence[Floats], queries: Floats) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Compute the products of `dot_products` block by block, so that those of many queries need little memory.

    Yields:
        index of the block's first row, and products (Q, n of the block), which the next block overwrites.
    """
    right = np.ascontiguousarray(queries, np.float32)
    first = 0
    for segment in segments:
        rows = max(1, BLOCK_BYTES // max(1, segment.shape[1] * segment.dtype.itemsize))
        count = min(rows, len(segment))
        # Pages of new memory would cost more than the sums.
        block, out = torch.empty(count, segment.shape[1]), np.empty((len(right), count), np.float32)
        for start in range(0, len(segment), rows):
            part = np.asarray(segment[start : start + rows])
            if part.dtype != np.float32:  # BLAS knows no float16: torch converts blocks on all threads
                part = block[: len(part)].copy_(torch.from_numpy(part)).numpy()
            _multiply(part, right, out[:, : len(part)])
            yield first + start, out[:, : len(part)]
        first += len(segment)


def nearest(
    segments: Sequence[Floats], queries: Floats, count: int, skipped: NDArray[np.bool_]
) -> list[NDArray[np.int64]]:
    """Find the rows with the `count` largest products with each query, in one pass over all rows, exactly.

    Args:
        segments, queries: as of `dot_products`. skipped: (N,) rows that do not count.

    Returns:
        for each query its rows, best first; the first of equal ones first.
    """
    rows = [np.empty(0, np.int64)] * len(queries)
    scores = [np.empty(0, np.float32)] * len(queries)
    for first, products in scan(segments, queries):
        left_out = skipped[first : first + products.shape[1]]
        products[:, left_out] = -np.inf
        allowed = min(count, len(left_out) - int(left_out.sum()))
        for query, own in enumerate(products):
            new = largest(own, allowed)
            both = np.concatenate([scores[query], own[new]])
            best = np.argsort(-both, kind="stable")[:count]
            rows[query], scores[query] = np.concatenate([rows[query], first + new])[best], both[best]
    return rows


def _multiply(rows: Floats, queries: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    if len(queries) == 1:
        np.dot(np.asarray(rows), queries[0], out=out[0])
    else:  # the library of torch takes 0.8 of the time of NumPy's for many queries, and 1.1 for one
        torch.mm(torch.from_numpy(queries), torch.from_numpy(np.asarray(rows)).T, out=torch.from_numpy(out))


def largest(scores: Floats, count: int) -> NDArray[np.int64]:
    """Return the indices of the `count` largest of (N,) scores in descending order; the first of equal ones first."""
    count = min(count, len(scores))
    if count == 0:
        return np.empty(0, np.int64)
    whole = len(scores) // BLOCK_SCORES * BLOCK_SCORES
    # The count-th largest of the maxima of blocks is reached by `count` scores or more, and by few others: one pass
    # over a million scores, which are not copied.
    several = scores[:whole].reshape(-1, BLOCK_SCORES).max(axis=1) if whole >= count * BLOCK_SCORES else scores
    bound = np.partition(several, len(several) - count)[len(several) - count]
    candidates = np.flatnonzero(scores >= bound)
    # Equal scores at the border are all candidates, and the sort is stable, so that the answer is determined.
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]
