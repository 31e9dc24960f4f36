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
from internvideo.tasks.grounding.model import Grounder, likely_spans
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.temporal_localization.data import FeatureSettings, sequence
from internvideo.tasks.temporal_localization.predict import check_width, feature_facts

NAME = "grounding"
OVERLAPS, FIRST = (0.3, 0.5), (1, 5)
"""tIoU and numbers of spans of the recall."""
BEST = 3
"""Spans whose tIoU is averaged."""
GUESSES, CANDIDATES = 5, 500
"""Spans of the prior, and how many training answers they are chosen from."""

Floats = NDArray[np.floating[Any]]


def prior_of(queries: QuerySet) -> dict[str, Any]:
    """Compute priors from the training answers: {"prior": spans, "usual_length": s}, ready for JSON.

    Spans are fractions of a video (start, end in 0..1), chosen greedily: each is the training answer that overlaps the
    most not yet covered answers with tIoU > 0.3. The length is the median.
    """
    shares, lengths = [], []
    for video in queries.features.videos:
        for start, end in video.spans:
            shares.append((start / video.duration, min(end / video.duration, 1.0)))
            lengths.append(end - start)
    spans = np.asarray(shares)
    candidates = spans[:: -(-len(spans) // CANDIDATES)]
    near = tiou(candidates, spans, union="hull") > OVERLAPS[0]
    chosen: list[list[float]] = []
    for _ in range(GUESSES):
        best = int(near.sum(axis=1).argmax())
        chosen.append([round(float(value), 6) for value in candidates[best]])
        near = near & ~near[best]
    return {"prior": chosen, "usual_length": float(np.median(lengths))}


def predict(
    model: Grounder,
    queries: QuerySet,
    words: Vocabulary,
    settings: FeatureSettings,
    device: torch.device,
    *,
    spans: int,
    nms_threshold: float,
    prior: Mapping[str, Any],
    model_name: str = "",
) -> Predictions:
    """Predict the spans of every query; features are read once for consecutive queries of a video.

    Args:
        model: on `device`; put into evaluation mode. queries: with features. words: vocabulary of the model.
        settings: reading of features. spans, nms_threshold: see `likely_spans`.
        prior: `prior_of` of the training queries. model_name: for the protocol.

    Raises:
        RunError: features that cannot be read, or of another width.
    """
    model.eval()
    found: list[tuple[Floats, Floats]] = []
    for _, numbers in groupby(range(len(queries)), key=lambda number: queries.videos[number]):
        found += _find(model, queries, list(numbers), words, settings, device, spans, nms_threshold)
    features = queries.features
    protocol = {
        **feature_facts(model, features, model_name),
        "split_sha256": queries.fingerprint,
        "source": str(queries.source),
        "tiou": "above, of the hull (Ego4D)",
        "spans": spans,
        "most_overlap": nms_threshold,
        "prior": prior["prior"],
        "usual_length": prior["usual_length"],
    }
    return make_table(queries, found, protocol)


def _find(
    model: Grounder,
    queries: QuerySet,
    numbers: Sequence[int],
    words: Vocabulary,
    settings: FeatureSettings,
    device: torch.device,
    spans: int,
    nms_threshold: float,
) -> list[tuple[Floats, Floats]]:
    """Return spans (N, 2) in seconds and scores (N,) of every query about one video."""
    video = queries.features.videos[numbers[0]]
    made = sequence(video, settings)
    check_width(video, made.values, model.config.input_width)
    asked = words.batch([queries.queries[number].text for number in numbers], model.config.words).to(device)
    with torch.no_grad():
        mask = torch.ones(1, made.values.shape[1], dtype=torch.bool, device=device)
        seen = model.look(made.values[None].to(device), mask)
        result = model.ask(seen.expand(len(numbers), -1, -1), mask.expand(len(numbers), -1), asked)
    rows = []
    for start, end in zip(result.start.float(), result.end.float(), strict=True):
        steps, scores = likely_spans(start, end, spans, nms_threshold)
        rows.append((made.grid.to_seconds(steps), scores))
    return rows


def make_table(queries: QuerySet, found: Sequence[tuple[Floats, Floats]], protocol: Mapping[str, Any]) -> Predictions:
    """Build the table of queries, answers and spans; a query without an answer has NaN."""
    videos = queries.features.videos
    nothing = np.full((1, 2), np.nan)
    sizes = [len(scores) for _, scores in found]
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.asarray([query.id for query in queries.queries]),
        "text": np.asarray([query.text for query in queries.queries]),
        "clip": np.asarray([query.clip for query in queries.queries]),
        "annotation": np.asarray([query.annotation for query in queries.queries]),
        "number": np.asarray([query.number for query in queries.queries], dtype=np.int64),
        "video": np.asarray(queries.videos),
        "duration": np.asarray([video.duration for video in videos]),
        "truth": np.concatenate([video.spans if len(video.spans) else nothing for video in videos]),
        "query": np.repeat(np.arange(len(sizes), dtype=np.int64), sizes),
        "span": np.concatenate([spans for spans, _ in found]),
        "score": np.concatenate([scores for _, scores in found]),
    }
    lost = [{"id": name, "path": "", "reason": "no features of its video"} for name in queries.missing]
    coverage = {"asked": len(queries) + len(lost), "read": len(queries), "unreadable": lost}
    return Predictions(NAME, arrays, dict(protocol), coverage)


def spans_of(table: Predictions) -> list[Floats]:
    """Return the spans (N, 2) in seconds of every query, best first."""
    borders = np.cumsum(np.bincount(table["query"], minlength=len(table["ids"])))
    return np.split(table["span"], borders[:-1])


def baselines(table: Predictions) -> dict[str, list[Floats]]:
    """Return baseline spans (N, 2) of every query, which use neither model, video nor query.

    "whole": the whole video. "centre": a span of the usual length in its middle. "prior": the five parts of a video
    that most training answers overlap.
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
    """Compute R@1 and R@5 at tIoU 0.3 and 0.5, mean tIoU of the first and of the best three spans, and the baselines'.

    Queries without an answer do not count. `mean_iou` is what the published evaluator prints as the mean of the best
    three: its sort sees one row. `_over_prior` is the difference from the prior; all intervals draw videos.

    Raises:
        RunError: no query has an answer, or a query has no span.
    """
    known = np.flatnonzero(np.isfinite(table["truth"]).all(axis=1))
    if not len(known):
        raise RunError("table", "no query has an answer", "", "evaluate on a split with answers")
    truths = table["truth"][known]
    named = {"": spans_of(table), **{f"_{name}": spans for name, spans in baselines(table).items()}}
    columns: dict[str, Floats] = {}
    for ending, spans in named.items():
        own = [spans[query] for query in known]
        if any(not len(rows) for rows in own):
            raise RunError("table", "a query has no span", "one or more", "evaluate again")
        hits, overlaps = grounded_hits(truths, own, OVERLAPS, FIRST)
        for column, k in enumerate(FIRST):
            if k == 1 or max(map(len, own)) > 1:
                columns |= {f"R{k}@{level:g}{ending}": hits[:, i, column] * 1.0 for i, level in enumerate(OVERLAPS)}
        columns[f"mean_iou{ending}"] = np.asarray([rows[0] for rows in overlaps])
        if not ending:
            columns[f"mean_iou_best{BEST}"] = np.asarray([np.sort(rows)[-BEST:].mean() for rows in overlaps])
    for level in OVERLAPS:
        name = f"R1@{level:g}"
        columns[f"{name}_over_prior"] = columns[name] - columns[f"{name}_prior"]
    values = np.stack(list(columns.values()), axis=1)
    bounds = bootstrap.interval(bootstrap.mean(values), len(known), groups=table["video"][known])
    metrics = MetricValues()
    for column, name in enumerate(columns):
        metrics.add(name, values[:, column].mean(), bounds[:, column])
    return metrics.result(table, queries=len(known), videos=len(set(table["video"][known].tolist())))


def submission(table: Predictions) -> dict[str, Any]:
    """Return the predictions in Ego4D's format."""
    results = [
        {"clip_uid": clip, "annotation_uid": annotation, "query_idx": number, "predicted_times": spans.tolist()}
        for clip, annotation, number, spans in zip(
            table["clip"].tolist(), table["annotation"].tolist(), table["number"].tolist(), spans_of(table), strict=True
        )
    ]
    return {"version": "1.0", "challenge": "ego4d_nlq_challenge", "results": results}
