"""Load language queries about long videos: a manifest with one row per query, and a folder of features (Ego4D's NLQ).

A row has the query as its first caption, the answer as its only segment (none in a test set), and the path of the
video. The attributes "clip_uid", "annotation_uid" and "query_idx", which `internvideo prepare` writes, identify the
query in a submission (arXiv 2211.09529).
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
    SequenceLoader,
    read_feature_set,
)


class QuerySettings(Settings):
    """Settings of the queries: features of their videos, and the vocabulary."""

    features: Path | None = Field(None, description="features of the videos: a folder of `internvideo extract`")
    max_vocab: int = Field(4000, ge=4, description="size of the vocabulary: the most frequent training words")


@dataclass(frozen=True)
class Query:
    """A query: id of its row, text, and ids of clip and annotation and index (`number`) in a submission."""

    id: str
    text: str
    clip: str
    annotation: str
    number: int


@dataclass(frozen=True)
class QuerySet:
    """Queries with the features of their videos.

    Attributes:
        queries: the queries.
        features: one entry per query, with the id of the query, the features of its video, and its answer as action.
        videos: id of the video of each query. source: the manifest.
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
        """Hash of queries, answers and features, 16 hex digits."""
        content = [self.features.fingerprint, [query.text for query in self.queries]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def read_query_set(
    path: Path, settings: QuerySettings, features: FeatureSettings, *, split: str | None = None
) -> QuerySet:
    """Read the queries of a manifest whose videos have features.

    Args:
        path: the manifest. settings: folder of the features. features: settings of reading the features.
        split: read only the rows of this split.

    Raises:
        RecipeError: no folder of features is given.
        ManifestError: manifest or index cannot be read, a row is not a query, or no video has features.
    """
    if settings.features is None:
        hint = "add data.queries.features=FOLDER, in testing --features FOLDER"
        raise RecipeError("data.queries.features", "is missing", "a folder of `internvideo extract`", hint)
    manifest = read_manifest(path).with_notes_logged()
    rows = (manifest if split is None else manifest.subset(split=split)).rows
    index = read_feature_set(settings.features, features)
    video_of_id = {video.id: video for video in index.videos}
    queries, videos, video_ids, missing = [], [], [], []
    for row in rows:
        query, span = _parse_query(row, path)
        video = video_of_id.get(Path(row.path).stem)
        if video is None:
            missing.append(row.id)
            continue
        queries.append(query)
        video_ids.append(video.id)
        spans = np.asarray([] if span is None else [span], dtype=np.float64).reshape(-1, 2)
        labels = np.zeros(len(spans), dtype=np.int64)
        videos.append(replace(video, id=row.id, subset=row.split or "", spans=spans, labels=labels))
    if not queries:
        found = f"the videos of {len(missing)} queries have no features in {settings.features}"
        raise ManifestError(path, found, "features named as the video files", "run `internvideo extract` on the videos")
    query_features = replace(index, videos=tuple(videos), classes=("answer",), missing=())
    return QuerySet(tuple(queries), query_features, tuple(video_ids), path, tuple(missing))


def _parse_query(row: Sample, path: Path) -> tuple[Query, tuple[float, float] | None]:
    where = f"{path}: {row.id}"
    if not row.captions:
        raise ManifestError(where, "no text", "a query as the first caption")
    if len(row.segments) > 1:
        raise ManifestError(where, f"{len(row.segments)} segments", "one: the answer")
    attributes = row.attributes
    number = attributes.get("query_idx", "0")
    if not number.isascii() or not number.isdigit():
        raise ManifestError(where, f"query_idx '{number}'", "an integer from 0")
    clip = attributes.get("clip_uid", Path(row.path).stem)
    query = Query(row.id, row.captions[0], clip, attributes.get("annotation_uid", row.id), int(number))
    return query, next(((segment.start, segment.end) for segment in row.segments), None)


def select_answered(queries: QuerySet) -> QuerySet:
    """Return the queries that have an answer. Raises ManifestError if none has."""
    indices = [index for index, video in enumerate(queries.features.videos) if len(video.spans)]
    if not indices:
        raise ManifestError(queries.source, f"none of {len(queries)} queries has an answer", "a segment in every row")
    return QuerySet(
        tuple(queries.queries[index] for index in indices),
        replace(queries.features, videos=tuple(queries.features.videos[index] for index in indices)),
        tuple(queries.videos[index] for index in indices),
        queries.source,
        queries.missing,
    )


class QueryLoader(WrappedLoader[SequenceLoader]):
    """Load batches of training sequences with one query each, padded to the longest sequence of the batch.

    Args:
        queries: queries with answers. words: the vocabulary. max_words: longer queries are truncated.
        settings, length, loader: see `SequenceLoader`.
    """

    def __init__(
        self,
        queries: QuerySet,
        words: Vocabulary,
        max_words: int,
        settings: FeatureSettings,
        length: int,
        loader: LoaderSettings,
    ) -> None:
        sequences = SequenceLoader(queries.features, settings, length, loader)
        super().__init__(sequences)
        self._texts = {query.id: query.text for query in queries.queries}
        self._words, self._max_words = words, max_words

    def epoch(self, k: int, start: int = 0) -> Iterator[QueryBatch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`. Raises RunError if features cannot be read."""
        for batch in self.loader.epoch(k, start):
            texts: Sequence[str] = [self._texts[name] for name in batch.ids]
            num_steps = int(batch.mask.sum(dim=1).max())
            fields = {**vars(batch), "features": batch.features[..., :num_steps], "mask": batch.mask[:, :num_steps]}
            yield QueryBatch(**fields, words=self._words.batch(texts, self._max_words))
