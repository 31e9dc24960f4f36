"""The vectors and records of a collection on disk: consistent snapshots to read, one transaction per video to write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RecipeError, RunError
from internvideo.features.embedding import EmbeddingSettings, feature_provenance
from internvideo.inference.video_model import VideoModel
from internvideo.search import segments
from internvideo.search.engines.postgres import PostgresVectors, create_table
from internvideo.search.records import FILE, Records, VideoRecord, Windows
from internvideo.search.segments import ROW_BITS, Floats, ProductMemory, SegmentFiles, StorageType, VectorStorage

Kept = TypeVar("Kept")
SCALES = (2.0, 8.0, 30.0)
"""Seconds of the windows of each scale."""
STRIDE_RATIO = 0.5
"""Consecutive windows of a scale start this fraction of its length apart."""
SAMPLE = 16_384
"""Windows whose scores stand for those of all in a query's mean and standard deviation."""
UNCHECKED = ("source", "internvideo", "window", "stride")
"""What the provenance of vectors tells beyond what makes them comparable; windows are the collection's own."""


@dataclass(frozen=True)
class Snapshot:
    """One state of a collection; later commits do not change it.

    Attributes:
        videos: in the order of their rows. segments: mapped vectors (n, D) each, L2-normalized.
        video_index: (N,) index into `videos` of each row of all segments, -1 for a removed one.
        windows: (N, 4), see `records.Windows`; 0 for removed rows.
        first_rows: first row of each video. segment_ids: of `segments`.
    """

    videos: tuple[VideoRecord, ...]
    segments: tuple[Floats, ...]
    video_index: NDArray[np.int32]
    windows: Windows
    first_rows: tuple[int, ...]
    segment_ids: tuple[int, ...]

    @cached_property
    def num_windows(self) -> int:
        """Number of windows, removed ones aside."""
        return int((self.video_index >= 0).sum())

    @cached_property
    def index_of(self) -> dict[int, int]:
        """Index in `videos` by the id of a video."""
        return {video.id: index for index, video in enumerate(self.videos)}

    def rows(self, video: int) -> slice:
        """Return the rows of a video, by its index in `videos`."""
        first = self.first_rows[video]
        return slice(first, first + len(self.videos[video].windows))

    def vectors(self, rows: NDArray[np.integer[Any]] | slice) -> NDArray[np.float32]:
        """Return the vectors (n, D) of rows as float32."""
        wanted = np.arange(*rows.indices(len(self.video_index))) if isinstance(rows, slice) else np.asarray(rows)
        bounds = np.cumsum([0, *(len(part) for part in self.segments)])
        made = np.empty((len(wanted), self.segments[0].shape[1] if self.segments else 0), np.float32)
        for part, low, high in zip(self.segments, bounds, bounds[1:], strict=False):
            inside = (wanted >= low) & (wanted < high)
            made[inside] = part[wanted[inside] - low]
        return made

    def sample(self, count: int, *, seed: int) -> NDArray[np.int64]:
        """Return random rows of windows that were not removed, ascending."""
        rows = np.flatnonzero(self.video_index >= 0)
        if len(rows) <= count:
            return rows
        return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))

    @cached_property
    def sample_vectors(self) -> NDArray[np.float32]:
        """Vectors (n, D) of a random sample of the windows."""
        return self.vectors(self.sample(SAMPLE, seed=1))

    def ids_of(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return ids of rows that other states know too: segment and row in it."""
        firsts = np.cumsum([0, *(len(part) for part in self.segments)])
        place = np.searchsorted(firsts, rows, side="right") - 1
        ids: NDArray[np.int64] = (np.array(self.segment_ids, np.int64)[place] << ROW_BITS) + rows - firsts[place]
        return ids

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of windows by their ids; those of segments that are gone, and of later rows, are dropped."""
        made, first = [ids[:0]], 0
        for segment, part in zip(self.segment_ids, self.segments, strict=True):
            rows = ids[ids >> ROW_BITS == segment] - (segment << ROW_BITS)
            made.append(first + rows[rows < len(part)])
            first += len(part)
        return np.concatenate(made)

    def scores(self, queries: Floats, memory: ProductMemory | None = None) -> NDArray[np.float32]:
        """Compute the dot products (Q, N) of all rows with queries (Q, D), in `memory`; -inf for removed rows."""
        made = segments.dot_products(self.segments, queries, memory)
        if len(self.video_index) and self.video_index.min() < 0:
            made[:, self.video_index < 0] = -np.inf
        return made


class Store:
    """A collection's folder. Safe to use from several threads; one process writes at a time (`storage.folder_lock`).

    Args:
        folder: with a collection.

    Attributes:
        memory: for the scores of the queries that are answered.

    Raises:
        RunError: no collection, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = Records(folder)
        self.dim = int(self.records.fact("dim"))
        self.storage: StorageType = self.records.fact("storage")
        self.scales: tuple[float, ...] = tuple(self.records.fact("scales"))
        self.provenance: dict[str, Any] = self.records.fact("provenance")
        self.vectors = self._storage()
        self._lock = self.records.lock  # one for both: a transaction may ask for a snapshot
        self.memory = ProductMemory()
        self._kept: dict[str, Any] = {}
        self._revision: tuple[int, int] | None = None

    def _storage(self) -> VectorStorage:
        address = self.records.fact("database")
        if address is None:
            return SegmentFiles(self.folder, self.dim, self.storage)
        return PostgresVectors(address["address"], address["table"], self.dim, self.storage)

    @classmethod
    def create(
        cls,
        folder: Path,
        model: VideoModel,
        *,
        scales: Sequence[float] = SCALES,
        storage: StorageType = "float32",
        database: str | None = None,
    ) -> Store:
        """Make a collection for the vectors of a model, or open the one that is there.

        Args:
            database: address of the PostgreSQL database with pgvector that keeps the vectors; by default files do.

        Raises:
            RunError: a collection of another model, scales, storage type or database. RecipeError: a wrong setting.
        """
        if storage not in segments.STORAGE_TYPES:
            raise RecipeError("storage", repr(storage), ", ".join(segments.STORAGE_TYPES))
        lengths = [float(scale) for scale in scales]
        if not lengths or lengths != sorted(set(lengths)) or not 0 < lengths[0] <= lengths[-1] < 1e6:
            raise RecipeError("scales", str(list(scales)), "increasing numbers of seconds above 0")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / FILE).is_file():
            facts = {"dim": model.embed_dim, "storage": storage, "scales": lengths, "provenance": provenance_of(model)}
            if database is not None:
                facts["database"] = {"address": database, "table": create_table(database, model.embed_dim, storage)}
            Records.create(folder, facts)
        store = cls(folder)
        store.check_model(model)
        known = (store.records.fact("database") or {}).get("address")
        for name, found, wanted in (
            ("scales", list(store.scales), lengths),
            ("storage", store.storage, storage),
            ("database", known, database),
        ):
            if found != wanted:
                store.close()
                raise RunError(folder, f"has {name} {found}, not {wanted}", "", "choose another folder")
        return store

    def close(self) -> None:
        """Close the database."""
        self.vectors.close()
        self.records.close()

    def check_model(self, model: VideoModel) -> None:
        """Raise RunError for a model whose vectors are not comparable with those of the collection."""
        now = provenance_of(model)
        for name in {**self.provenance, **now}:
            was, is_now = self.provenance.get(name), now.get(name)
            if was != is_now and name not in UNCHECKED:
                shown = [str(value)[:16] if name.endswith("sha256") else value for value in (was, is_now)]
                found = f"was made with {name} {shown[0]}, this model has {shown[1]}"
                source = self.provenance.get("source") or self.provenance["model"]
                raise RunError(self.folder, found, f"the model {source}", "or make another collection")

    def kept(self, name: str, read: Callable[[], Kept]) -> Kept:
        """Return what `read` reads from the database under this name; it is read again only after a change."""
        with self._lock:
            revision = self.records.revision()
            if revision != self._revision:
                self._kept, self._revision = {}, revision
            if name not in self._kept:
                self._kept[name] = read()
            made: Kept = self._kept[name]
            return made

    def snapshot(self) -> Snapshot:
        """Return the newest committed state."""
        try:
            return self.kept("snapshot", self._read)
        except RunError:  # a segment was compacted between the database and its file
            return self.kept("snapshot", self._read)

    def _read(self) -> Snapshot:
        with self.records.snapshot():
            videos, sizes = tuple(self.records.videos()), self.records.segments()
        total = sum(sizes.values())
        video_index, windows = np.full(total, -1, np.int32), np.zeros((total, 4))
        bases = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True))
        first_rows = tuple(bases[video.segment] + video.first_row for video in videos)
        for index, (video, first) in enumerate(zip(videos, first_rows, strict=True)):
            rows = slice(first, first + len(video.windows))
            video_index[rows], windows[rows] = index, video.windows
        maps = tuple(self.vectors.open(index, rows) for index, rows in sizes.items())
        return Snapshot(videos, maps, video_index, windows, first_rows, tuple(sizes))

    # ------------------------------------------------------------------------------------------------------ writing

    def add(
        self, video: VideoRecord, vectors: Floats, filmstrip: Mapping[float, bytes], replaces: Iterable[int] = ()
    ) -> int:
        """Commit a video with its vectors (n, D), in place of earlier states of it; return its id.

        `video.id`, `segment` and `first_row` are not read. Raises RunError; the collection is then as it was.
        """
        segment, first = self._place(len(vectors))
        self.vectors.append(segment, first, vectors)
        with self.records.transaction():
            self.records.set_segment(segment, first + len(vectors))
            self.records.remove_videos(replaces)
            made = self.records.add_video(replace(video, segment=segment, first_row=first))
            self.records.add_filmstrip(made, filmstrip)
        return made

    def _place(self, count: int) -> tuple[int, int]:
        """Return the segment that the next vectors go to, and its number of valid rows."""
        sizes = self.records.segments()
        segment, rows = max(sizes.items(), default=(0, 0))
        full = segments.SEGMENT_BYTES // (self.dim * np.dtype(self.storage).itemsize)
        return (segment, rows) if not rows or rows + count <= full else (segment + 1, 0)

    def remove(self, ids: Sequence[int]) -> None:
        """Forget videos; their vectors are dropped by `compact`."""
        if ids:
            with self.records.transaction():
                self.records.remove_videos(ids)

    def compact(self, removed_share: float = 0.5) -> int:
        """Write the vectors of segments anew of which more than this share belongs to no video; return their number.

        Old segments are deleted after the commit.
        """
        compacted = 0
        for segment, rows in self.records.segments().items():
            videos = [video for video in self.records.videos() if video.segment == segment]
            live = sum(len(video.windows) for video in videos)
            if rows - live <= removed_share * rows:
                continue
            mapped = self.vectors.open(segment, rows)
            target = max(self.records.segments()) + 1
            first, moves = 0, list[tuple[int, int]]()
            for video in videos:
                part = mapped[video.first_row : video.first_row + len(video.windows)]
                self.vectors.append(target, first, part)
                moves.append((video.id, first))
                first += len(part)
            with self.records.transaction():
                for id_, place in moves:
                    self.records.move_video(id_, target, place)
                self.records.set_segment(target, first)
                self.records.set_segment(segment, 0)
            compacted += 1
        if not self.records.segments():  # their numbers are given again, which an index does not know
            self.records.set_fact("approximate", None)
        self.vectors.keep(self.records.segments())  # the compacted ones go, and those of a run that was killed
        return compacted


def provenance_of(model: VideoModel) -> dict[str, Any]:
    """Return what makes vectors of this model comparable, as JSON values."""
    made = feature_provenance(model, EmbeddingSettings())
    return {name: value for name, value in made.items() if name not in ("window", "stride", "internvideo")}
