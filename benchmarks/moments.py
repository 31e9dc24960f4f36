"""Moments beside single windows and prior spans: R@1 and mAP at tIoU 0.5 and 0.7 of queries about one video each.

    python benchmarks/moments.py COLLECTION QUERIES.jsonl [--split test] [--tune]

COLLECTION is of `internvideo index` on the videos of QUERIES (the sample world's queries.jsonl), with a model that has
a text tower; the same vectors serve all. *window*: the windows by their scores, those that overlap a better one
dropped as among moments. *moment*: those of `find_moments`. *prior*: the part of a video that overlaps most answers of
the other split, whatever the query. mAP is the mean over queries of the average precision of their list.
Intervals of 95 % draw videos with replacement; those of differences are paired.
`--tune` prints a grid of settings, for the training split.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from internvideo.data.manifest import read_manifest
from internvideo.metrics.temporal_detection import average_precision, detections, tiou
from internvideo.search.collection import Collection
from internvideo.search.moments import MomentSettings, ScoredSpan, find_moments

Floats = NDArray[np.floating]
Answer = Callable[[Floats, Floats], list[ScoredSpan]]
LEVELS = (0.5, 0.7)


def window(windows: Floats, scores: Floats) -> list[ScoredSpan]:
    order = np.argsort(-scores, kind="stable")
    overlaps = tiou(windows[order, :2], windows[order, :2], union="true") > MomentSettings().max_overlap
    kept: list[int] = []
    for place in range(len(order)):
        if not overlaps[place, kept].any():
            kept.append(place)
    return [
        ScoredSpan(float(windows[row, 0]), float(windows[row, 1]), *[float(scores[row])] * 2) for row in order[kept]
    ]


def moment(settings: MomentSettings) -> Answer:
    return lambda windows, scores: find_moments(windows, scores, settings)


def mean_ap(lists: list[list[ScoredSpan]], truths: Floats) -> list[tuple[float, float]]:
    """(tIoU, mAP): each query is a class of its own, whose detections are its list, best first."""
    rows = [(n, n, s.start, s.end, -rank) for n, found in enumerate(lists) for rank, s in enumerate(found)]
    truth = detections([(n, n, *span, 0.0) for n, span in enumerate(truths.tolist())])
    values, _ = average_precision(truth, detections(rows), LEVELS)
    return list(zip(LEVELS, values.mean(axis=1).tolist(), strict=True))


def intervals(hits: NDArray[np.integer] | NDArray[np.bool_], groups: NDArray[np.int64]) -> str:
    """Percent, and the 95 % interval over videos."""
    draw, counts = np.random.default_rng(0), np.bincount(groups)
    right = np.bincount(groups, weights=hits)
    picks = draw.integers(0, len(counts), (2000, len(counts)))
    low, high = np.percentile(right[picks].sum(axis=1) / counts[picks].sum(axis=1), (2.5, 97.5))
    return f"{100 * hits.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    manifest = read_manifest(given.queries)
    with Collection.open(given.collection) as collection:
        snapshot = collection.store.snapshot()
        places = {video.path: index for index, video in enumerate(snapshot.videos)}
        rows = [row for row in manifest.rows if str(manifest.video_path(row).resolve()) in places]
        videos = [places[str(manifest.video_path(row).resolve())] for row in rows]
        vectors = collection.model.encode_text([row.captions[0] for row in rows]).numpy()
        scores = snapshot.scores(vectors)
    spans = np.array([(row.segments[0].start, row.segments[0].end) for row in rows])
    lengths = np.array([snapshot.videos[index].duration for index in videos])
    tested = np.array([row.split == given.split for row in rows])
    shares = spans[~tested] / lengths[~tested, None]
    prior = shares[(tiou(shares, shares, union="true") > LEVELS[0]).sum(axis=1).argmax()]
    answers: dict[str, Answer] = {"window": window, "moment": moment(MomentSettings())}
    if given.tune:
        for height in (0.3, 0.5, 0.7, 0.8):
            for least in (0.5, 1.0, 1.25):
                settings = MomentSettings(relative_height=height, min_windows=least)
                answers[f"height {height}, least {least}"] = moment(settings)
    chosen = np.flatnonzero(tested)
    groups = np.unique(np.array(videos)[chosen], return_inverse=True)[1]
    print(f"{len(chosen)} queries about {groups.max() + 1} videos, split {given.split}")
    hits: dict[tuple[str, float], NDArray[np.integer]] = {}
    for name in [*answers, "prior"]:
        lists = []
        for number in chosen:
            inside = snapshot.rows(videos[number])
            told = answers[name](snapshot.windows[inside], scores[number, inside]) if name in answers else None
            lists.append(
                [ScoredSpan(prior[0] * lengths[number], prior[1] * lengths[number], 1, 1)] if told is None else told
            )
        first = np.array([(found[0].start, found[0].end) for found in lists])
        overlap = np.diag(tiou(first, spans[chosen], union="true"))
        hits |= {(name, level): (overlap >= level).astype(np.int64) for level in LEVELS}
        told_levels = ", ".join(f"R@1 at {level}: {intervals(overlap >= level, groups)}" for level in LEVELS)
        precisions = ", ".join(f"mAP at {level}: {100 * value:.1f}" for level, value in mean_ap(lists, spans[chosen]))
        print(f"{name:24s} {told_levels}, mean tIoU {overlap.mean():.3f}, {precisions}")
    for name in ("window", "prior"):
        gains = [f"{level}: {intervals(hits['moment', level] - hits[name, level], groups)}" for level in LEVELS]
        print(f"moment over {name}, R@1 at {', at '.join(gains)}")


if __name__ == "__main__":
    main()
