"""Collections of videos that can be searched: `Collection.open`, `add`, `search`.

from internvideo.search.collection import Collection

collection = Collection.create("collection", internvideo.load("runs/demo/multimodal_pretrained"))
collection.add(["videos/"])
for moment in collection.search("a red circle falls", top=3).moments:
    print(moment.path, moment.start, moment.end, moment.p_value)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import InternVideoError, RunError, WeightsError
from internvideo.features.parallel_windows import one_thread_if_small
from internvideo.inference.loading import load
from internvideo.inference.video_model import VideoModel
from internvideo.search import approximate
from internvideo.search.annotations import read_annotations
from internvideo.search.approximate import ApproximateIndex, Candidates, DatabaseCandidates, IndexFacts
from internvideo.search.calibration import NullDistribution, calibrate, stored_null
from internvideo.search.engines.postgres import PostgresVectors
from internvideo.search.finding import Answer, NeighborPair, find, near_duplicates, odd_windows
from internvideo.search.indexing import IndexReport, IndexSettings, index_videos
from internvideo.search.labels import label, label_new
from internvideo.search.query import TEMPLATES, Example, Query, query_vector, text_vectors
from internvideo.search.records import VideoRecord
from internvideo.search.reranking import check_rerank
from internvideo.search.reranking import rerank as reranked
from internvideo.search.segments import StorageType
from internvideo.search.store import SCALES, Store
from internvideo.search.where import Mask, matching_rows
from internvideo.storage import folder_lock
from internvideo.terminal import LOGGER

SCORES_BYTES = 2**28
"""Bytes of the scores of queries that are compared with all windows at once."""
CACHED_TEXTS = 4096
"""Texts whose vectors are kept; the oldest go first."""
TEXT_TOKENS = 32
"""Tokens of a query, by which the size of a model is estimated."""
ORDER_SEEN = 0.05
"""A model is called sensitive to the order of time if a window played backwards is at least this fraction as far from
itself as windows of other videos are."""


class Annotated(NamedTuple):
    """What `annotate` stored: annotations of so many videos; `lacking` videos of the file are not in the collection."""

    annotations: int
    videos: int
    lacking: int

    def __str__(self) -> str:
        others = f" ({self.lacking} other videos of it are not in the collection)" if self.lacking else ""
        return f"{self.annotations} of {self.videos} videos{others}"


class Collection:
    """A folder of indexed videos and the model that indexed them. Several threads may search it at once.

    Args:
        folder: with a collection. model: that made it; opened when it is needed, from where it was then, if not given.
        device: of a model that is opened here.

    Raises:
        RunError: no collection, a damaged one, or one of another model.
    """

    def __init__(
        self, folder: str | os.PathLike[str], model: VideoModel | None = None, *, device: str = "auto"
    ) -> None:
        self.store = Store(Path(folder))
        self._model, self._device, self._lock = model, device, threading.RLock()
        if model is not None:
            self.store.check_model(model)
        self._index: ApproximateIndex | None = None
        self._texts: dict[Query, NDArray[np.float32]] = {}

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], model: VideoModel | None = None, *, device: str = "auto"
    ) -> Collection:
        """Open a collection; arguments and errors as those of the class."""
        return cls(folder, model, device=device)

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        model: VideoModel,
        *,
        scales: Sequence[float] = SCALES,
        storage: StorageType = "float32",
        database: str | None = None,
    ) -> Collection:
        """Make a collection for a model, or open it if it is there.

        Args:
            scales: seconds of the windows of each scale. storage: of the vectors; float16 takes half the space.
            database: postgresql://USER@HOST/DATABASE, which keeps and compares the vectors (pgvector); by default
                files in the folder do.

        Raises:
            RunError: the folder holds a collection of another model, scales, storage or database; no such database.
            RecipeError: a wrong setting. ExtraError: psycopg is not installed.
        """
        path = Path(folder)
        with folder_lock(path):
            store = Store.create(path, model, scales=scales, storage=storage, database=database)
            source = model.metadata.get("source", "")
            if store.records.fact("encoder") is None and os.path.exists(source):  # whatever folder it is opened from
                store.records.set_fact("encoder", {"source": os.path.abspath(source)})
            store.close()
        return cls(path, model)

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self.store.close()

    @property
    def model(self) -> VideoModel:
        """The model, opened if it is not yet. Raises RunError if it is not found or not that of the collection."""
        with self._lock:
            if self._model is None:
                source = self.store.records.fact("encoder") or {"source": self.store.provenance.get("source", "")}
                try:
                    model = load(
                        source["source"],
                        weights=source.get("weights"),
                        device=self._device,
                        precision=self.store.provenance["precision"],
                    )
                except WeightsError as error:
                    found = f"its model cannot be opened: {error}"
                    raise RunError(self.store.folder, found, "", "give it: --encoder MODEL") from error
                self.store.check_model(model)
                self._model = model
            return self._model

    @property
    def database(self) -> str | None:
        """Address of the database that keeps the vectors, None for files."""
        known: dict[str, str] = self.store.records.fact("database") or {}
        return known.get("address")

    @property
    def roots(self) -> tuple[str, ...]:
        """Folders that the videos lie in."""
        return tuple(self.store.records.fact("roots", []))

    @property
    def videos(self) -> tuple[VideoRecord, ...]:
        """The indexed videos."""
        return self.store.snapshot().videos

    @property
    def unreadable(self) -> dict[str, str]:
        """Path -> reason of the files that the last run could not read."""
        return self.store.records.unreadable()

    def facts(self) -> dict[str, Any]:
        """Describe the collection as JSON values: model, sizes, calibration, order of time."""
        return {**self.store.kept("facts", self._facts)}

    def _facts(self) -> dict[str, Any]:
        snapshot, records = self.store.snapshot(), self.store.records
        order = records.fact("time_order")
        seen = None
        if order is not None:
            seen = order["reversed"] >= ORDER_SEEN * max(order["others"], 1e-12)
        return {
            "model": self.store.provenance["model"],
            "weights_sha256": self.store.provenance["weights_sha256"],
            "videos": len(snapshot.videos),
            "windows": sum(len(video.windows) for video in snapshot.videos),
            "seconds": sum(video.duration for video in snapshot.videos),
            "dim": self.store.dim,
            "storage": self.store.storage,
            "scales": list(self.store.scales),
            "database": self.database,
            "index": str(approximate.stored_facts(self.store) or "exact"),
            "null_queries": {kind: null.count for kind, null in stored_null(self.store).items()},
            "labels": sorted({label for _, names in records.classifiers().values() for label in names}),
            "actions": sorted({one.label for _, one in records.annotations("action")}),
            "unreadable": len(records.unreadable()),
            "progress": records.fact("progress"),
            "time_order": order,
            "sees_order_of_time": seen,
        }

    # ------------------------------------------------------------------------------------------------------ indexing

    def add(
        self,
        inputs: Sequence[str | os.PathLike[str]],
        settings: IndexSettings | None = None,
        *,
        null_texts: Sequence[str] | None = None,
    ) -> IndexReport:
        """Index files, folders and manifests, then calibrate; arguments, errors as `index_videos`, `calibrate`."""
        report = index_videos(self.store, self.model, [Path(given) for given in inputs], settings)
        records = self.store.records
        with folder_lock(self.store.folder):
            changed = records.fact("unsettled", False)  # by this run, or by one that was killed before it came here
            if changed or null_texts is not None or not stored_null(self.store):
                calibrate(self.store, self.model, null_texts)
            label_new(self.store, self.model)
            facts = approximate.stored_facts(self.store)
            if facts is not None and approximate.is_stale(self.store, facts):
                approximate.build(self.store, self.model)
            if changed:
                self._annotate_new()
                records.set_fact("unsettled", False)
        return report

    def build_index(self) -> IndexFacts:
        """Build an approximate index, in its database if it has one, and measure its recall.

        Searches use it; those with a filter only that of a database. Later `add`s build it again where it is stale.

        Raises:
            ExtraError: faiss is not installed. RunError: the disk is full, or the database cannot be used.
        """
        with folder_lock(self.store.folder):
            return approximate.build(self.store, self.model)

    def remove_index(self) -> None:
        """Remove the approximate index: every window is compared with every query again."""
        with folder_lock(self.store.folder):
            approximate.remove(self.store)

    @property
    def candidates(self) -> Candidates | None:
        """What names the windows that a search compares: an index or a database; None: all of them are compared.

        Raises ExtraError, RunError if it cannot be opened.
        """
        with self._lock:
            facts = approximate.stored_facts(self.store)
            if isinstance(self.store.vectors, PostgresVectors):
                return DatabaseCandidates(self.store.vectors, facts)
            if facts is None:
                self._index = None
            elif self._index is None or self._index.facts != facts:
                self._index = ApproximateIndex(self.store.folder, facts)
            return self._index

    def annotate(self, file: str | os.PathLike[str]) -> Annotated:
        """Store the annotations of a file, in place of those that it gave before (`annotations.read_annotations`).

        Later `add`s read it again for new videos, while it is there.

        Raises:
            ManifestError: a file that cannot be read. RecipeError: no video of it is in the collection.
        """
        path = os.path.abspath(file)
        records = self.store.records
        with folder_lock(self.store.folder):
            rows, lacking = read_annotations(Path(path), self.videos)
            with records.transaction():
                records.set_annotations(path, rows)
                records.set_fact("annotations", sorted({*records.fact("annotations", []), path}))
        return Annotated(len(rows), len({video for video, *_ in rows}), lacking)

    def _annotate_new(self) -> None:
        for path in self.store.records.fact("annotations", []):
            try:
                self.annotate(path)
            except InternVideoError as error:  # the file is gone, or tells of no video that is left
                LOGGER.warning("annotations as they were: %s", error)

    def label(self, classifier: str | os.PathLike[str]) -> int:
        """Label all windows with a classifier of `internvideo fit`; return the number of newly labeled videos.

        Later `add`s label new videos too.

        Raises:
            WeightsError: not a classifier of this model, or an attentive one (it needs tokens, which are not stored).
        """
        with folder_lock(self.store.folder):
            return label(self.store, self.model, Path(classifier))

    # --------------------------------------------------------------------------------------------------------- search

    def search(
        self,
        query: str | Query,
        *,
        like: Sequence[Example] = (),
        top: int = 10,
        where: str | None = None,
        threshold: float | None = None,
        templates: Sequence[str] = TEMPLATES,
        rerank: int = 0,
    ) -> Answer:
        """Find the moments that fit a query best.

        Args:
            query: a text ("" with `like` alone), or a `Query`. like: pictures and clips. templates: see `Query`.
            top: number of moments. where: which windows count (`where`).
            threshold: give only moments that a query which nothing fits would reach with at most this probability.
            rerank: so many of the best moments are decoded and ordered by the caption decoder (`reranking`).

        Raises:
            RecipeError: a query, filter or threshold that cannot be used. VideoError: an example that cannot be read.
        """
        asked = query if isinstance(query, Query) else Query(query, tuple(like), tuple(templates))
        if rerank:
            check_rerank(rerank, asked.text, self.model)
        (answer,) = self.search_many([asked], top=max(top, rerank), where=where, threshold=threshold)
        if not rerank:
            return answer
        with self._lock:
            parts = [reranked(self.model, asked.text, part, rerank)[:top] for part in (answer.moments, answer.nearest)]
        return replace(answer, moments=parts[0], nearest=parts[1])

    def search_many(
        self, queries: Sequence[str | Query], *, top: int = 10, where: str | None = None, threshold: float | None = None
    ) -> list[Answer]:
        """Answer several queries at once, which takes less time than one after the other; arguments as `search`.

        Raises:
            RecipeError, VideoError: as `search`, for the first query that cannot be answered.
        """
        asked = [query if isinstance(query, Query) else Query(query) for query in queries]
        snapshot, mask, vectors = self.store.snapshot(), self.mask(where), self._encode(asked)
        nulls, candidates = self.null, self.candidates
        if candidates is not None and mask is not None and not candidates.filters:
            candidates = None
        limits: dict[str, Any] = {"top": top, "mask": mask, "candidates": candidates, "threshold": threshold}
        answers = []
        step = max(1, SCORES_BYTES // (4 * max(1, len(snapshot.video_index))))
        for start in range(0, len(asked), step):
            block = slice(start, start + step)
            scores = [None] * step if candidates is not None else snapshot.scores(vectors[block], self.store.memory)
            for query, vector, own in zip(asked[block], vectors[block], scores, strict=False):
                answers.append(find(self.store, snapshot, vector, scores=own, null=nulls.get(query.kind), **limits))
        return answers

    def mask(self, where: str | None) -> Mask | None:
        """Return (N,) which rows of the newest state a filter selects, None for no filter. Raises RecipeError."""
        return matching_rows(where, self.store, self.store.snapshot()) if where and where.strip() else None

    @property
    def null(self) -> dict[str, NullDistribution]:
        """The null distributions, by kind of query."""
        return stored_null(self.store)

    def encode(self, query: Query) -> NDArray[np.float32]:
        """Encode a query (D,), L2-normalized; texts are cached."""
        vector: NDArray[np.float32] = self._encode([query])[0]
        return vector

    def _encode(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        """Encode queries (Q, D), L2-normalized: all texts that are not cached at once."""
        model, made = self.model, dict[Query, NDArray[np.float32]]()
        with self._lock:
            for query in queries:
                if query.examples:
                    made[query] = query_vector(model, query, self.store.scales[0])
                elif query in self._texts:
                    made[query] = self._texts[query]
            new = [query for query in dict.fromkeys(queries) if query not in made]
            if new:
                with one_thread_if_small(model, TEXT_TOKENS):
                    read = dict(zip(new, text_vectors(model, new), strict=True))
                made |= read
                self._texts |= read
            while len(self._texts) > CACHED_TEXTS:
                del self._texts[next(iter(self._texts))]
        vectors = [made[query] for query in queries]
        return np.stack(vectors) if vectors else np.empty((0, self.store.dim), np.float32)

    def near_duplicates(self, *, least: float = 0.95, where: str | None = None) -> list[NeighborPair]:
        """Find pairs of videos with windows that look alike (`finding.near_duplicates`)."""
        return near_duplicates(self.store.snapshot(), least=least, mask=self.mask(where))

    def odd_windows(self, *, top: int = 10, where: str | None = None) -> list[NeighborPair]:
        """Find windows unlike those of all other videos (`finding.odd_windows`)."""
        return odd_windows(self.store.snapshot(), top=top, mask=self.mask(where))
