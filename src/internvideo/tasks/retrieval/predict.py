"""Text-video retrieval in both directions, with raw similarities and with dual softmax (Video-Text-Retrieval)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from internvideo.data.dataset import TextEncoder
from internvideo.data.manifest import Manifest
from internvideo.errors import RecipeError
from internvideo.metrics import bootstrap
from internvideo.metrics.classification import l2_normalize, merge_rows
from internvideo.tasks.members import described as described
from internvideo.tasks.members import joined, of_each, units_of_each
from internvideo.tasks.protocol import ClipInputs, VideoTextModel
from internvideo.tasks.retrieval.metrics import (
    RECALLS,
    bank_counts,
    directions,
    query_bank,
    rank_figures,
    row_ranks,
    tied_queries,
)
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.views import run_clips, run_texts, video_function

NAME = "retrieval"
PER_MODEL = ("text", "video", "scale", "bank")
"""Arrays stored per model of an ensemble: NAME for the first, NAME:1, NAME:2 for the others."""
BANK_BLOCK = 4096

Captions = Literal["first", "all", "joined"]
Features = NDArray[np.float32]
Vectors = NDArray[np.floating[Any]]


def predict(inputs: ClipInputs[VideoTextModel], tokenizer: TextEncoder, *, captions: Captions = "first") -> Predictions:
    """Encode every video and its captions.

    Args:
        inputs: clips of rows with captions. tokenizer: of the model's text tower.
        captions: the first of each video, all of them as separate queries, or all joined to one paragraph.

    Returns:
        ids (N,), captions (Q,), owner (Q,), text (Q, E), video (N, E) mean of the views' unit vectors, scale (), of the
        videos read; the captions of an unreadable video are left out with it.

    Raises:
        ManifestError: a row without caption.
        RunError: see `run_clips`.
    """
    inputs.manifest.require("captions")
    views = run_clips(video_function(inputs.model), inputs, NAME)
    texts, owner = _queries([row.captions for row in views.rows], captions)
    text = run_texts(inputs, tokenizer, texts)
    video = merge_rows(l2_normalize(views.values["video"]), views.sample, len(views.rows))
    arrays = {
        "ids": np.asarray([row.id for row in views.rows]),
        "captions": np.asarray(texts),
        "owner": owner,
        "text": text,
        "video": video.astype(np.float32),
        "scale": np.asarray(inputs.model.scale.item()),
    }
    protocol = {**inputs.describe(), "captions": captions, "merge": "mean of unit vectors"}
    return Predictions(NAME, arrays, protocol, views.coverage)


def _queries(captions: list[tuple[str, ...]], which: str) -> tuple[list[str], NDArray[np.int64]]:
    texts = [{"first": own[:1], "all": own, "joined": (" ".join(own),)}[which] for own in captions]
    owner = np.repeat(np.arange(len(texts), dtype=np.int64), [len(own) for own in texts])
    return [text for own in texts for text in own], owner


def ensemble(tables: Sequence[Predictions]) -> Predictions:
    """Join the tables of several models on one split; similarities are averaged (Video-Text-Retrieval).

    Raises:
        RunError: tables of other videos or other captions.
    """
    return joined(tables, ("ids", "captions", "owner"), PER_MODEL, "videos or captions")


def with_bank(table: Predictions, texts: Features, about: Mapping[str, object]) -> Predictions:
    """Add a query bank's text vectors (M, E) to the table, described by `about` in the protocol."""
    protocol = {**table.protocol, "query_bank": dict(about)}
    return replace(table, arrays={**table.arrays, "bank": texts}, protocol=protocol)


def with_attributes(
    table: Predictions, manifest: Manifest, agreement: Sequence[str], within: Sequence[str]
) -> Predictions:
    """Add attributes of the videos, for `score` to measure how often the top-ranked video agrees in them.

    Raises:
        RecipeError: a video without one of the attributes.
    """
    rows = {row.id: row for row in manifest.rows}
    arrays = dict(table.arrays)
    for name in (*agreement, *within):
        absent = next((row.id for row in manifest.rows if name not in row.attributes), None)
        if absent is not None:
            found = f"row '{absent}' has no attribute '{name}'"
            raise RecipeError("agreement", found, ", ".join(rows[absent].attributes))
        arrays[f"attribute:{name}"] = np.asarray([rows[str(one)].attributes[name] for one in table["ids"]])
    protocol = {**table.protocol, "agreement": list(agreement), "within": list(within)}
    return replace(table, arrays=arrays, protocol=protocol)


def _add_agreement(metrics: MetricValues, table: Predictions, matrix: NDArray[np.float64]) -> None:
    """Add t2v_NAME: agreement in an attribute of the top-ranked video among those sharing `within` with the target.

    t2v_NAME_chance is the agreement of a random one of these videos; with held-out combinations it can be high.
    """
    owner = table["owner"]

    def same(name: str) -> NDArray[np.bool_]:
        values = table[f"attribute:{name}"]
        return np.asarray(values[owner][:, None] == values[None])

    among = np.ones(matrix.shape, dtype=bool)
    for name in table.protocol.get("within", ()):
        among &= same(name)
    found = np.where(among, matrix, -np.inf).argmax(axis=1)
    for name in table.protocol.get("agreement", ()):
        agrees = same(name)
        hits = agrees[np.arange(len(owner)), found]
        metrics.add_mean(f"t2v_{name}", hits, owner)
        metrics.add(f"t2v_{name}_chance", ((agrees & among).sum(axis=1) / among.sum(axis=1)).mean())


def similarity(table: Predictions) -> NDArray[np.float64]:
    """Return scale x cosine (Q, N) of texts and videos, averaged over the models of an ensemble.

    In float64, so that the dual softmax does not underflow into ties.
    """
    return _mean_similarity(table, units_of_each(table, "text"))


def _mean_similarity(table: Predictions, texts: Sequence[Vectors]) -> NDArray[np.float64]:
    found = [
        float(scale) * text @ video.T
        for scale, text, video in zip(of_each(table, "scale"), texts, units_of_each(table, "video"), strict=True)
    ]
    mean: NDArray[np.float64] = np.add.reduce(found) / len(found)
    return mean


def _bank(table: Predictions) -> Iterator[NDArray[np.float64]]:
    """Yield similarities (m, N) of the bank's texts and the videos, a few thousand texts at a time."""
    texts = units_of_each(table, "bank")
    for start in range(0, len(texts[0]), BANK_BLOCK):
        yield _mean_similarity(table, [text[start : start + BANK_BLOCK] for text in texts])


def score(table: Predictions) -> Result:
    """Compute DIRECTION_METRIC and DIRECTION_METRIC_dual_softmax: r1, r5, r10, median_rank, mean_rank for t2v and v2t.

    With attributes (`with_attributes`) also t2v_NAME and t2v_NAME_chance.
    With a query bank also t2v_METRIC_query_bank. Tied queries get the worst rank among equals, so a constant model
    retrieves nothing; the protocol counts ties and captions shared by several videos.
    """
    metrics = MetricValues()
    matrix, owner = similarity(table), table["owner"]
    videos = matrix.shape[1]
    owners = None if len(owner) == videos and (owner == np.arange(videos)).all() else owner
    for suffix, dual in (("", "none"), ("_dual_softmax", "released")):
        forward, backward = directions(matrix, owners, dual=cast("Literal['none', 'released']", dual))
        for name, ranks, groups in (("t2v", forward, owner), ("v2t", backward, None)):
            _add(metrics, name, suffix, ranks, groups)
    _add_agreement(metrics, table, matrix)
    bank = "none: no texts of other videos were given (--querybank)"
    if "bank" in table.arrays:
        damped = query_bank(matrix, *bank_counts(_bank(table)))
        _add(metrics, "t2v", "_query_bank", row_ranks(damped, owners), owner)
        bank = "an extra, not in the paper; text to video alone, since the bank has texts and no videos"
    owned = Counter(text for text, _ in set(zip(table["captions"].tolist(), owner.tolist(), strict=True)))
    return metrics.result(
        table,
        dual_softmax="shown beside the raw figures; it needs all queries at once",
        query_bank_normalisation=bank,
        chance_r1=1 / videos,
        ties={"rule": "pessimistic", "queries": tied_queries(matrix, owner)},
        texts=len(owner),
        captions_of_several_videos=sum(count > 1 for count in owned.values()),
    )


def _add(
    metrics: MetricValues, direction: str, suffix: str, ranks: NDArray[np.int64], groups: NDArray[np.int64] | None
) -> None:
    hits = np.stack([ranks < k for k in RECALLS] + [ranks + 1], axis=1)
    means = bootstrap.interval(bootstrap.mean(hits), len(ranks), groups=groups)
    middle = bootstrap.interval(bootstrap.median(ranks + 1), len(ranks), groups=groups)
    bounds = {f"r{k}": means[:, column] for column, k in enumerate(RECALLS)}
    bounds |= {"mean_rank": means[:, -1], "median_rank": middle}
    for name, value in rank_figures(ranks).items():
        metrics.add(f"{direction}_{name}{suffix}", value, bounds[name])
