"""Predict the spans of a video that answer a language query, and score their recall (arXiv 2211.09529)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from internvideo.data.vocabulary import Vocabulary
from internvideo.errors import RunError
from internvideo.metrics import bootstrap
from internvideo.metrics.temporal_detection import grounded_hits, tiou
from internvideo.tasks.grounding.data import QuerySet
from internvideo.tasks.grounding.model import Grounder, most_probable_spans
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.temporal_localization.data import FeatureSettings, read_sequence
from internvideo.tasks.temporal_localization.predict import check_width, feature_protocol

NAME = "grounding"
TIOU_THRESHOLDS, RECALL_RANKS = (0.3, 0.5), (1, 5)
"""tIoU thresholds and numbers of spans k of the recall R@k."""
NUM_BEST_SPANS = 3
"""Number of spans in the metric mean_iou_best3."""
NUM_PRIOR_SPANS, CANDIDATES = 5, 500
"""Number of spans of the prior, and largest number of training answers that they are selected from."""

Floats = NDArray[np.floating[Any]]


def compute_prior(queries: QuerySet) -> dict[str, Any]:
    """Compute a prior from the training answers: {"prior": spans, "usual_length": seconds} as JSON values.

    The spans are fractions of a video (start, end in 0..1), selected greedily: each is the training answer that covers
    the most answers, with tIoU > 0.3, that no span before it covers. The length is the median.
    """
    fractions, lengths = [], []
    for video in queries.features.videos:
        for start, end in video.spans:
            fractions.append((start / video.duration, min(end / video.duration, 1.0)))
            lengths.append(end - start)
    spans = np.asarray(fractions)
    candidates = spans[:: -(-len(spans) // CANDIDATES)]
    overlaps = tiou(candidates, spans, union="hull") > TIOU_THRESHOLDS[0]
    prior_spans: list[list[float]] = []
    for _ in range(NUM_PRIOR_SPANS):
        best = int(overlaps.sum(axis=1).argmax())
        prior_spans.append([round(float(value), 6) for value in candidates[best]])
        overlaps = overlaps & ~overlaps[best]
    return {"prior": prior_spans, "usual_length": float(np.median(lengths))}


def predict(
    model: Grounder,
    queries: QuerySet,
    words: Vocabulary,
    settings: FeatureSettings,
    device: torch.device,
    *,
    max_spans: int,
    nms_threshold: float,
    prior: Mapping[str, Any],
    model_name: str = "",
) -> Predictions:
    """Predict the spans of every query; features are read once for consecutive queries of a video.

    Args:
        model: on `device`; put into evaluation mode. queries: with features. words: vocabulary of the model.
        settings: of reading the features. max_spans, nms_threshold: see `most_probable_spans`.
        prior: from `compute_prior`, of the training queries. model_name: for the protocol.

    Raises:
        RunError: the features of a video cannot be read, or have another width.
    """
    model.eval()
    spans_and_scores: list[tuple[Floats, Floats]] = []
    for _, query_indices in groupby(range(len(queries)), key=lambda index: queries.videos[index]):
        spans_and_scores += _ground_video(
            model, queries, list(query_indices), words, settings, device, max_spans, nms_threshold
        )
    features = queries.features
    protocol = {
        **feature_protocol(model, features, model_name),
        "split_sha256": queries.fingerprint,
        "source": str(queries.source),
        "tiou": "above, of the hull (Ego4D)",
        "spans": max_spans,
        "most_overlap": nms_threshold,
        "prior": prior["prior"],
        "usual_length": prior["usual_length"],
    }
    return make_table(queries, spans_and_scores, protocol)


def _ground_video(
    model: Grounder,
    queries: QuerySet,
    query_indices: Sequence[int],
    words: Vocabulary,
    settings: FeatureSettings,
    device: torch.device,
    max_spans: int,
    nms_threshold: float,
) -> list[tuple[Floats, Floats]]:
    """Predict spans (N, 2) in seconds and scores (N,) of queries about one video, for each query."""
    video = queries.features.videos[query_indices[0]]
    features = read_sequence(video, settings)
    check_width(video, features.values, model.config.input_width)
    word_ids = words.batch([queries.queries[number].text for number in query_indices], model.config.max_words).to(
        device
    )
    with torch.no_grad():
        mask = torch.ones(1, features.values.shape[1], dtype=torch.bool, device=device)
        encoded = model.encode_video(features.values[None].to(device), mask)
        result = model.ground(encoded.expand(len(query_indices), -1, -1), mask.expand(len(query_indices), -1), word_ids)
    rows = []
    for start, end in zip(result.start.float(), result.end.float(), strict=True):
        steps, scores = most_probable_spans(start, end, max_spans, nms_threshold)
        rows.append((features.grid.to_seconds(steps), scores))
    return rows


def make_table(
    queries: QuerySet, spans_and_scores: Sequence[tuple[Floats, Floats]], protocol: Mapping[str, Any]
) -> Predictions:
    """Build the table of queries, answers and spans; a query without an answer has NaN."""
    videos = queries.features.videos
    no_answer = np.full((1, 2), np.nan)
    num_spans = [len(scores) for _, scores in spans_and_scores]
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.asarray([query.id for query in queries.queries]),
        "text": np.asarray([query.text for query in queries.queries]),
        "clip": np.asarray([query.clip for query in queries.queries]),
        "annotation": np.asarray([query.annotation for query in queries.queries]),
        "number": np.asarray([query.number for query in queries.queries], dtype=np.int64),
        "video": np.asarray(queries.videos),
        "duration": np.asarray([video.duration for video in videos]),
        "truth": np.concatenate([video.spans if len(video.spans) else no_answer for video in videos]),
        "query": np.repeat(np.arange(len(num_spans), dtype=np.int64), num_spans),
        "span": np.concatenate([spans for spans, _ in spans_and_scores]),
        "score": np.concatenate([scores for _, scores in spans_and_scores]),
    }
    unreadable = [{"id": name, "path": "", "reason": "no features of its video"} for name in queries.missing]
    coverage = {"asked": len(queries) + len(unreadable), "read": len(queries), "unreadable": unreadable}
    return Predictions(NAME, arrays, dict(protocol), coverage)


def spans_of(table: Predictions) -> list[Floats]:
    """Return the spans (N, 2) in seconds of every query, best first."""
    borders = np.cumsum(np.bincount(table["query"], minlength=len(table["ids"])))
    return np.split(table["span"], borders[:-1])


def baselines(table: Predictions) -> dict[str, list[Floats]]:
    """Return name of a baseline -> spans (N, 2) in seconds of every query. They depend on the duration only.

    "whole": the whole video. "centre": a span of the usual length in the middle. "prior": spans of `compute_prior`.
    """
    durations = table["duration"].tolist()
    half = 0.5 * float(table.protocol["usual_length"])
    prior = np.asarray(table.protocol["prior"], dtype=np.float64)
    return {
        "whole": [np.asarray([[0.0, length]]) for length in durations],
        "centre": [np.clip([[0.5 * length - half, 0.5 * length + half]], 0.0, length) for length in durations],
        "prior": [prior * length for length in durations],
    }


def score(table: Predictions) -> Result:
    """Compute R@1 and R@5 at tIoU 0.3 and 0.5 and mean tIoU, of the model and of the baselines (_BASELINE).

    mean_iou: of the first span; the published evaluator prints this as the mean of the best three, because of an error.
    mean_iou_best3: of the three spans with the largest tIoU. _over_prior: difference from the prior. Queries without an
    answer are left out; intervals resample videos.

    Raises:
        RunError: no query has an answer, or a query has no span.
    """
    has_answer = np.flatnonzero(np.isfinite(table["truth"]).all(axis=1))
    if not len(has_answer):
        raise RunError("table", "no query has an answer", "", "evaluate on a split with answers")
    truths = table["truth"][has_answer]
    spans_by_name = {"": spans_of(table), **{f"_{name}": spans for name, spans in baselines(table).items()}}
    columns: dict[str, Floats] = {}
    for suffix, spans in spans_by_name.items():
        answered_spans = [spans[query] for query in has_answer]
        if any(not len(rows) for rows in answered_spans):
            raise RunError("table", "a query has no span", "one or more", "evaluate again")
        hits, overlaps = grounded_hits(truths, answered_spans, TIOU_THRESHOLDS, RECALL_RANKS)
        for column, k in enumerate(RECALL_RANKS):
            if k == 1 or max(map(len, answered_spans)) > 1:
                columns |= {
                    f"R{k}@{threshold:g}{suffix}": hits[:, i, column] * 1.0
                    for i, threshold in enumerate(TIOU_THRESHOLDS)
                }
        columns[f"mean_iou{suffix}"] = np.asarray([rows[0] for rows in overlaps])
        if not suffix:
            columns[f"mean_iou_best{NUM_BEST_SPANS}"] = np.asarray(
                [np.sort(rows)[-NUM_BEST_SPANS:].mean() for rows in overlaps]
            )
    for threshold in TIOU_THRESHOLDS:
        name = f"R1@{threshold:g}"
        columns[f"{name}_over_prior"] = columns[name] - columns[f"{name}_prior"]
    values = np.stack(list(columns.values()), axis=1)
    bounds = bootstrap.interval(bootstrap.mean(values), len(has_answer), groups=table["video"][has_answer])
    metrics = MetricValues()
    for column, name in enumerate(columns):
        metrics.add(name, values[:, column].mean(), bounds[:, column])
    return metrics.result(table, queries=len(has_answer), videos=len(set(table["video"][has_answer].tolist())))


def submission(table: Predictions) -> dict[str, Any]:
    """Return the predictions in Ego4D's format."""
    results = [
        {"clip_uid": clip, "annotation_uid": annotation, "query_idx": number, "predicted_times": spans.tolist()}
        for clip, annotation, number, spans in zip(
            table["clip"].tolist(), table["annotation"].tolist(), table["number"].tolist(), spans_of(table), strict=True
        )
    ]
    return {"version": "1.0", "challenge": "ego4d_nlq_challenge", "results": results}
