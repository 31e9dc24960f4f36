"""Queries about long videos: a manifest with a row a query, beside a folder of features (arXiv 2211.09529, NLQ).

A row's first caption is the query, its one segment the answer (none in a test set), its path the video. What a file of
predictions names is told by the attributes "clip_uid", "annotation_uid" and "query_idx", which `prepare` writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import Field

from internvideo.data.batch import QueryBatch, WrappedLoader
from internvideo.data.loader import LoaderSettings
from internvideo.data.manifest import read_manifest
from internvideo.data.sample import Sample
from internvideo.data.settings import Settings
from internvideo.data.vocabulary import Vocabulary
from internvideo.errors import ManifestError, RecipeError
from internvideo.tasks.temporal_localization.data import (
    FeatureSet,
    FeatureSettings,
    FeatureVideo,
    SequenceLoader,
    read_feature_set,
)


class QuerySettings(Settings):
    """Where the videos of queries are, and which words are known."""

    features: Path | None = Field(None, description="of the queries' videos: the folder of `internvideo extract`")
    max_vocab: int = Field(4000, ge=4, description="words of the training queries that are known, the commonest")


@dataclass(frozen=True)
class Query:
    """A query: its id, its text, and the names that a file of predictions has for its clip, annotator and number."""

    id: str
    text: str
    clip: str
    annotation: str
    number: int


@dataclass(frozen=True)
class QuerySet:
    """Queries with the features of their videos.

    Attributes:
        queries: as told.
        features: of every query its video, under the query's id, the answer its one action.
        videos: name of every query's video. source: the manifest.
        missing: ids of the queries whose video has no features.
    """

    queries: tuple[Query, ...]
    features: FeatureSet
    videos: tuple[str, ...]
    source: Path
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the queries, their answers and how the features were made."""
        told = [self.features.fingerprint, [query.text for query in self.queries]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def read_query_set(
    path: Path, settings: QuerySettings, features: FeatureSettings, *, split: str | None = None
) -> QuerySet:
    """Read the queries of a manifest that have features.

    Args:
        path: the manifest. settings: where the features are. features: how they are read.
        split: only its rows.

    Raises:
        RecipeError: no folder of features is given.
        ManifestError: one of both cannot be read, a row that is no query, not one video with features.
    """
    if settings.features is None:
        do = "add data.queries.features=FOLDER, in testing --features FOLDER"
        raise RecipeError("data.queries.features", "is missing", "a folder of `internvideo extract`", do)
    manifest = read_manifest(path).with_notes_logged()
    rows = (manifest if split is None else manifest.subset(split=split)).rows
    index = read_feature_set(settings.features, features)
    known = {video.id: video for video in index.videos}
    queries, videos, names, missing = [], [], [], []
    for row in rows:
        query, span = _query(row, path)
        video = known.get(Path(row.path).stem)
        if video is None:
            missing.append(row.id)
            continue
        queries.append(query)
        names.append(video.id)
        videos.append(_answered(video, row, span))
    if not queries:
        found = f"the videos of {len(missing)} queries have no features in {settings.features}"
        raise ManifestError(path, found, "features named as the video files", "run `internvideo extract` on the videos")
    made = replace(index, videos=tuple(videos), classes=("answer",), missing=())
    return QuerySet(tuple(queries), made, tuple(names), path, tuple(missing))


def _query(row: Sample, path: Path) -> tuple[Query, tuple[float, float] | None]:
    where = f"{path}: {row.id}"
    if not row.captions:
        raise ManifestError(where, "no text", "a query as the first caption")
    if len(row.segments) > 1:
        raise ManifestError(where, f"{len(row.segments)} segments", "one: the answer")
    told = row.attributes
    number = told.get("query_idx", "0")
    if not number.isascii() or not number.isdigit():
        raise ManifestError(where, f"query_idx '{number}'", "a whole number")
    clip = told.get("clip_uid", Path(row.path).stem)
    query = Query(row.id, row.captions[0], clip, told.get("annotation_uid", row.id), int(number))
    return query, next(((part.start, part.end) for part in row.segments), None)


def _answered(video: FeatureVideo, row: Sample, span: tuple[float, float] | None) -> FeatureVideo:
    spans = np.asarray([] if span is None else [span], dtype=np.float64).reshape(-1, 2)
    return replace(video, id=row.id, subset=row.split or "", spans=spans, labels=np.zeros(len(spans), dtype=np.int64))


def answered(queries: QuerySet) -> QuerySet:
    """The queries with an answer. Raises ManifestError where none has."""
    chosen = [number for number, video in enumerate(queries.features.videos) if len(video.spans)]
    if not chosen:
        raise ManifestError(queries.source, f"none of {len(queries)} queries has an answer", "a segment in every row")
    return QuerySet(
        tuple(queries.queries[number] for number in chosen),
        replace(queries.features, videos=tuple(queries.features.videos[number] for number in chosen)),
        tuple(queries.videos[number] for number in chosen),
        queries.source,
        queries.missing,
    )


class QueryLoader(WrappedLoader[SequenceLoader]):
    """Batches of training sequences with a query each; cut as `SequenceLoader` does, padded to the longest of a batch.

    Args:
        queries: with answers. words: that are known. most_words: of a query, the first ones.
        settings, length, loader: as of `SequenceLoader`.
    """

    def __init__(
        self,
        queries: QuerySet,
        words: Vocabulary,
        most_words: int,
        settings: FeatureSettings,
        length: int,
        loader: LoaderSettings,
    ) -> None:
        sequences = SequenceLoader(queries.features, settings, length, loader)
        super().__init__(sequences)
        self._texts = {query.id: query.text for query in queries.queries}
        self._words, self._most = words, most_words

    def epoch(self, k: int, start: int = 0) -> Iterator[QueryBatch]:
        """Batches `start`, `start + 1`, ... of epoch `k`. Raises RunError for features that cannot be read."""
        for batch in self.loader.epoch(k, start):
            texts: Sequence[str] = [self._texts[name] for name in batch.ids]
            longest = int(batch.mask.sum(dim=1).max())
            parts = {**vars(batch), "features": batch.features[..., :longest], "mask": batch.mask[:, :longest]}
            yield QueryBatch(**parts, words=self._words.batch(texts, self._most))
