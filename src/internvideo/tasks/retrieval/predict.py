"""Text-video retrieval in both directions, with raw similarities and with dual softmax (Video-Text-Retrieval)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from internvideo.data.dataset import TextEncoder
from internvideo.data.manifest import Manifest
from internvideo.errors import RecipeError
from internvideo.metrics import bootstrap
from internvideo.metrics.classification import l2_normalize, merge_rows
from internvideo.tasks.members import describe_ensemble as describe_ensemble
from internvideo.tasks.members import join_tables, member_arrays, normalized_member_arrays
from internvideo.tasks.protocol import ClipInputs, VideoTextModel
from internvideo.tasks.retrieval.metrics import (
    RECALLS,
    bidirectional_ranks,
    querybank_normalize,
    querybank_statistics,
    rank_metrics,
    row_ranks,
    tied_queries,
)
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.views import run_clips, run_texts, video_function

NAME = "retrieval"
PER_MODEL = ("text", "video", "scale", "bank")
"""Arrays stored per model of an ensemble: NAME for the first, NAME:1, NAME:2 for the others."""
BANK_CHUNK_SIZE = 4096

CaptionUse = Literal["first", "all", "joined"]
Features = NDArray[np.float32]
Vectors = NDArray[np.floating[Any]]


def predict(
    inputs: ClipInputs[VideoTextModel], tokenizer: TextEncoder, *, captions: CaptionUse = "first"
) -> Predictions:
    """Encode every video and its captions.

    Args:
        inputs: clips of rows with captions. tokenizer: of the model's text tower.
        captions: queries of each video: its first caption, all of them, or all joined to one paragraph.

    Returns:
        ids (N,), captions (Q,), owner (Q,) index into ids of each caption, text (Q, E), video (N, E) mean of the
        L2-normalized views, scale (); of the videos read.

    Raises:
        ManifestError: a row without caption.
        RunError: see `run_clips`.
    """
    inputs.manifest.require("captions")
    views = run_clips(video_function(inputs.model), inputs, NAME)
    texts, video_of_text = _select_captions([row.captions for row in views.rows], captions)
    text = run_texts(inputs, tokenizer, texts)
    video = merge_rows(l2_normalize(views.values["video"]), views.sample, len(views.rows))
    arrays = {
        "ids": np.asarray([row.id for row in views.rows]),
        "captions": np.asarray(texts),
        "owner": video_of_text,
        "text": text,
        "video": video.astype(np.float32),
        "scale": np.asarray(inputs.model.scale.item()),
    }
    protocol = {**inputs.describe(), "captions": captions, "merge": "mean of unit vectors"}
    return Predictions(NAME, arrays, protocol, views.coverage)


def _select_captions(captions: list[tuple[str, ...]], selection: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return the selected texts (Q,) of all videos, and the index of the video of each (Q,)."""
    texts = [{"first": row[:1], "all": row, "joined": (" ".join(row),)}[selection] for row in captions]
    video_of_text = np.repeat(np.arange(len(texts), dtype=np.int64), [len(row) for row in texts])
    return [text for row in texts for text in row], video_of_text


def ensemble(tables: Sequence[Predictions]) -> Predictions:
    """Join the tables of several models on one split; `score` averages their similarities (Video-Text-Retrieval).

    Raises:
        RunError: the tables are not of the same videos and captions.
    """
    return join_tables(tables, ("ids", "captions", "owner"), PER_MODEL, "videos or captions")


def add_query_bank(table: Predictions, texts: Features, bank_protocol: Mapping[str, object]) -> Predictions:
    """Add the text features (M, E) of a query bank to a table, and `bank_protocol` to its protocol."""
    protocol = {**table.protocol, "query_bank": dict(bank_protocol)}
    return replace(table, arrays={**table.arrays, "bank": texts}, protocol=protocol)


def add_attributes(
    table: Predictions, manifest: Manifest, agreement: Sequence[str], within: Sequence[str]
) -> Predictions:
    """Add attributes of the videos to a table, so that `score` computes how often the top-ranked video shares them.

    Raises:
        RecipeError: a video without one of the attributes.
    """
    rows = {row.id: row for row in manifest.rows}
    arrays = dict(table.arrays)
    for name in (*agreement, *within):
        missing_row = next((row.id for row in manifest.rows if name not in row.attributes), None)
        if missing_row is not None:
            found = f"row '{missing_row}' has no attribute '{name}'"
            raise RecipeError("agreement", found, ", ".join(rows[missing_row].attributes))
        arrays[f"attribute:{name}"] = np.asarray([rows[str(video_id)].attributes[name] for video_id in table["ids"]])
    protocol = {**table.protocol, "agreement": list(agreement), "within": list(within)}
    return replace(table, arrays=arrays, protocol=protocol)


def _add_agreement(metrics: MetricValues, table: Predictions, matrix: NDArray[np.float64]) -> None:
    """Add t2v_NAME: how often the top-ranked video has the target video's value of the attribute NAME.

    Only candidates that share the attributes `within` with the target are ranked. t2v_NAME_chance is the value of a
    random candidate; it can be high if some combinations of attributes do not occur.
    """
    video_of_text = table["owner"]

    def equal_attribute(name: str) -> NDArray[np.bool_]:
        values = table[f"attribute:{name}"]
        return np.asarray(values[video_of_text][:, None] == values[None])

    candidates = np.ones(matrix.shape, dtype=bool)
    for name in table.protocol.get("within", ()):
        candidates &= equal_attribute(name)
    top_video = np.where(candidates, matrix, -np.inf).argmax(axis=1)
    for name in table.protocol.get("agreement", ()):
        is_equal = equal_attribute(name)
        hits = is_equal[np.arange(len(video_of_text)), top_video]
        metrics.add_mean(f"t2v_{name}", hits, video_of_text)
        metrics.add(f"t2v_{name}_chance", ((is_equal & candidates).sum(axis=1) / candidates.sum(axis=1)).mean())


def similarity(table: Predictions) -> NDArray[np.float64]:
    """Return scale x cosine (Q, N) of texts and videos, averaged over the models of an ensemble.

    In float64, so that the dual softmax does not underflow into ties.
    """
    return _mean_similarity(table, normalized_member_arrays(table, "text"))


def _mean_similarity(table: Predictions, texts: Sequence[Vectors]) -> NDArray[np.float64]:
    similarities = [
        float(scale) * text @ video.T
        for scale, text, video in zip(
            member_arrays(table, "scale"), texts, normalized_member_arrays(table, "video"), strict=True
        )
    ]
    mean: NDArray[np.float64] = np.add.reduce(similarities) / len(similarities)
    return mean


def _iterate_bank(table: Predictions) -> Iterator[NDArray[np.float64]]:
    """Yield similarities (m, N) of the query bank's texts and the videos, in chunks of BANK_CHUNK_SIZE texts."""
    texts = normalized_member_arrays(table, "bank")
    for start in range(0, len(texts[0]), BANK_CHUNK_SIZE):
        yield _mean_similarity(table, [text[start : start + BANK_CHUNK_SIZE] for text in texts])


def score(table: Predictions) -> Result:
    """Compute DIRECTION_METRIC and DIRECTION_METRIC_dual_softmax: r1, r5, r10, median_rank, mean_rank for t2v and v2t.

    With attributes (`add_attributes`) also t2v_NAME and t2v_NAME_chance; with a query bank also t2v_METRIC_query_bank.
    Ties count as misses (pessimistic ranks), so a constant model retrieves nothing; the protocol has the numbers of
    tied queries and of captions that several videos share.
    """
    metrics = MetricValues()
    matrix, video_of_text = similarity(table), table["owner"]
    num_videos = matrix.shape[1]
    video_index = (
        None if len(video_of_text) == num_videos and (video_of_text == np.arange(num_videos)).all() else video_of_text
    )
    modes: dict[str, Literal["off", "official"]] = {"": "off", "_dual_softmax": "official"}
    for suffix, mode in modes.items():
        forward, backward = bidirectional_ranks(matrix, video_index, dual_softmax_mode=mode)
        for name, ranks, groups in (("t2v", forward, video_of_text), ("v2t", backward, None)):
            _add_direction(metrics, name, suffix, ranks, groups)
    _add_agreement(metrics, table, matrix)
    bank = "none: no texts of other videos were given (--querybank)"
    if "bank" in table.arrays:
        normalized = querybank_normalize(matrix, *querybank_statistics(_iterate_bank(table)))
        _add_direction(metrics, "t2v", "_query_bank", row_ranks(normalized, video_index), video_of_text)
        bank = "not in the paper; text to video only, since the bank has texts and no videos"
    num_videos_by_text = Counter(
        text for text, _ in set(zip(table["captions"].tolist(), video_of_text.tolist(), strict=True))
    )
    return metrics.result(
        table,
        dual_softmax="in addition to the raw figures; it needs all queries at once",
        query_bank_normalisation=bank,
        chance_r1=1 / num_videos,
        ties={"rule": "pessimistic", "queries": tied_queries(matrix, video_of_text)},
        texts=len(video_of_text),
        captions_of_several_videos=sum(count > 1 for count in num_videos_by_text.values()),
    )


def _add_direction(
    metrics: MetricValues, direction: str, suffix: str, ranks: NDArray[np.int64], groups: NDArray[np.int64] | None
) -> None:
    hits = np.stack([ranks < k for k in RECALLS] + [ranks + 1], axis=1)
    means = bootstrap.interval(bootstrap.mean(hits), len(ranks), groups=groups)
    median = bootstrap.interval(bootstrap.median(ranks + 1), len(ranks), groups=groups)
    bounds = {f"r{k}": means[:, column] for column, k in enumerate(RECALLS)}
    bounds |= {"mean_rank": means[:, -1], "median_rank": median}
    for name, value in rank_metrics(ranks).items():
        metrics.add(f"{direction}_{name}{suffix}", value, bounds[name])
