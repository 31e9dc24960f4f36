"""The evaluators against straightforward ones that go row by row, on the same random tables.

    OMP_NUM_THREADS=1 python benchmarks/evaluators.py [--small]

For each evaluator: CPU seconds of ours on the whole load, of ours and of the row-by-row program on a part of it, and
their ratio. Both must give the same figure on that part (asserted). --small runs a tenth of the loads.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from internvideo.metrics import frame_detection as frames
from internvideo.metrics import temporal_detection as temporal
from internvideo.tasks.retrieval import metrics as retrieval
from internvideo.tasks.temporal_localization.nms import SuppressionSettings, suppress


@dataclass(frozen=True)
class Case:
    """One evaluator: `ours` and `plain` of (random generator, size) give functions that return a figure."""

    name: str
    load: str
    whole: int
    part: int
    make: Callable[[np.random.Generator, int], tuple[Callable[[], float], Callable[[], float] | None]]


def seconds(work: Callable[[], float]) -> tuple[float, float]:
    """CPU seconds and the figure."""
    start = time.process_time()
    value = work()
    return time.process_time() - start, value


def area(hits: list[bool], truths: int) -> float:
    """Average precision by walking along the hits."""
    points, true = [], 0
    for rank, hit in enumerate(hits, 1):
        true += hit
        points.append((true / truths, true / rank))
    total, best, last = 0.0, 0.0, None
    for recall, precision in reversed(points):
        if last is not None and recall < last:
            total += (last - recall) * best
        best, last = max(best, precision), recall
    return total + (last or 0.0) * best


def segments(rng: np.random.Generator, videos: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """ActivityNet-style mAP: 100 predictions a video, 200 classes, 10 thresholds."""
    duration, label = rng.uniform(30, 200, videos), rng.integers(0, 200, videos)

    def draw(count: int, longest: float) -> temporal.Detections:
        video = np.repeat(np.arange(videos), count)
        start = rng.uniform(0, 0.8, len(video)) * duration[video]
        length = rng.uniform(0.05, longest, len(video)) * duration[video]
        other = rng.integers(0, 200, len(video))
        names = np.where(rng.random(len(video)) < 0.6, label[video], other) if count > 2 else label[video]
        return temporal.Detections(video, names, np.stack([start, start + length], 1), rng.random(len(video)))

    truth, found = draw(2, 0.2), draw(100, 0.3)
    levels = np.linspace(0.5, 0.95, 10).round(2)

    def plain() -> float:
        values = []
        for name in sorted(set(truth.label.tolist())):
            own = [
                (int(v), *s) for v, n, s in zip(truth.video, truth.label, truth.span.tolist(), strict=True) if n == name
            ]
            rows = [
                (score, int(v), *s)
                for v, n, s, score in zip(found.video, found.label, found.span.tolist(), found.score, strict=True)
                if n == name
            ]
            rows.sort(key=lambda row: -row[0])
            for level in levels:
                taken: set[int] = set()
                hits = []
                for _, video, start, end in rows:
                    best, place = level, -1
                    for index, (other, low, high) in enumerate(own):
                        if other != video or index in taken:
                            continue
                        inside = max(0.0, min(end, high) - max(start, low))
                        overlap = inside / (end - start + high - low - inside)
                        if overlap >= best:
                            best, place = overlap, index
                    if place >= 0:
                        taken.add(place)
                    hits.append(place >= 0)
                values.append(area(hits, len(own)))
        return float(np.mean(values))

    return lambda: float(temporal.average_precision(truth, found, levels.tolist())[0].mean()), plain


def boxes(rng: np.random.Generator, keys: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """AVA frame mAP: 2 people a key frame, 60 class scores each, 4 true labels a frame."""
    person = np.repeat(np.arange(keys), 2)
    corner = rng.uniform(0, 0.6, (len(person), 2))
    box = np.concatenate([corner, corner + rng.uniform(0.1, 0.4, corner.shape)], 1)
    names = np.stack([rng.permutation(60)[:2] for _ in person]).reshape(-1)
    truth = frames.Boxes(np.repeat(person, 2), names, np.repeat(box, 2, 0), np.zeros(2 * len(person)))
    moved = np.repeat(box + rng.normal(0, 0.02, box.shape), 60, 0)
    every = np.tile(np.arange(60), len(person))
    found = frames.Boxes(np.repeat(person, 60), every, moved, rng.random(len(every)))

    def plain() -> float:
        values = []
        for name in sorted(set(truth.label.tolist())):
            own: dict[int, list[list[float]]] = {}
            for frame, label, corners in zip(truth.frame, truth.label, truth.box.tolist(), strict=True):
                if label == name:
                    own.setdefault(int(frame), []).append(corners)
            rows = [
                (score, int(frame), corners)
                for frame, label, corners, score in zip(
                    found.frame, found.label, found.box.tolist(), found.score, strict=True
                )
                if label == name and corners[2] > corners[0] and corners[3] > corners[1]
            ]
            rows.sort(key=lambda row: -row[0])
            taken: set[tuple[int, int]] = set()
            hits = []
            for _, frame, (x1, y1, x2, y2) in rows:
                best, place = -1.0, -1
                for index, (a1, b1, a2, b2) in enumerate(own.get(frame, [])):
                    inside = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
                    overlap = inside / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inside)
                    if overlap > best:
                        best, place = overlap, index
                hit = best >= 0.5 and (frame, place) not in taken
                if hit:
                    taken.add((frame, place))
                hits.append(hit)
            values.append(area(hits, sum(len(rest) for rest in own.values())))
        return float(np.mean(values))

    return lambda: float(np.mean(list(frames.frame_average_precision(truth, found).values()))), plain


def ranks(rng: np.random.Generator, size: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """R@1 of a square matrix of similarities."""
    matrix = rng.normal(size=(size, size)).astype(np.float32)
    matrix[np.arange(size), np.arange(size)] += 3

    def plain() -> float:
        return sum(sorted(row, reverse=True).index(row[place]) == 0 for place, row in enumerate(matrix.tolist())) / size

    return lambda: float((retrieval.row_ranks(matrix) == 0).mean()), plain


def dual_ranks(rng: np.random.Generator, size: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """R@1 of a square matrix after dual soft-max, in double precision as the task computes it."""
    matrix = rng.normal(size=(size, size)) * 5
    matrix[np.arange(size), np.arange(size)] += 15

    def plain() -> float:
        top, hits = matrix.max(axis=0).tolist(), 0
        total = [0.0] * size
        for row in matrix.tolist():
            for place, value in enumerate(row):
                total[place] += math.exp(value - top[place])
        for place, row in enumerate(matrix.tolist()):
            weighted = [
                value * math.exp(value - best) / rest for value, best, rest in zip(row, top, total, strict=True)
            ]
            hits += max(weighted) == weighted[place]
        return hits / size

    return lambda: float((retrieval.row_ranks(retrieval.dual_softmax(matrix)) == 0).mean()), plain


def contacts(rng: np.random.Generator, images: int) -> tuple[Callable[[], float], None]:
    """Ego4D anticipation, 20 predictions an image; ours alone (its parts are those of the others)."""

    def objects(count: int) -> frames.StaObjects:
        corner = rng.uniform(0, 800, (count, 2))
        return frames.StaObjects(
            np.concatenate([corner, corner + rng.uniform(50, 300, corner.shape)], 1),
            rng.integers(0, 87, count),
            rng.integers(0, 74, count),
            rng.uniform(0, 2, count),
        )

    table = [(objects(2), objects(20), rng.random(20)) for _ in range(images)]

    def ours() -> float:
        values = frames.anticipation_average_precision(table, verb=True, seconds=True)
        return float(np.mean([value or 0.0 for value in values.values()]))

    return ours, None


def suppression(rng: np.random.Generator, size: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """Gaussian soft suppression of one list of segments, 100 kept."""
    start = rng.uniform(0, 200, size)
    spans, scores = np.stack([start, start + rng.uniform(1, 40, size)], 1), rng.random(size)
    settings = SuppressionSettings(max_segments=100, per_class=False)

    def plain() -> float:
        rest = [[score, *span] for score, span in zip(scores.tolist(), spans.tolist(), strict=True)]
        total = 0.0
        for _ in range(100):
            rest.sort(key=lambda row: -row[0])
            score, low, high = rest.pop(0)
            total += score
            for row in rest:
                inside = max(0.0, min(row[2], high) - max(row[1], low))
                overlap = inside / (high - low + 1e-6 + row[2] - row[1] + 1e-6 - inside)
                row[0] *= float(np.exp(-(overlap**2) / 0.5))
            rest = [row for row in rest if row[0] >= 0.001]
        return total

    return lambda: float(suppress(spans, scores, settings)[1].sum()), plain


CASES = (
    Case("ActivityNet mAP", "5,000 videos x 100 predictions, 200 classes, 10 tIoU", 5000, 250, segments),
    Case("AVA frame mAP", "25,000 key frames, 3.0 million rows", 25000, 1000, boxes),
    Case("retrieval R@1, one direction", "10,000 x 10,000", 10000, 1000, ranks),
    Case("the same after dual soft-max", "10,000 x 10,000, float64", 10000, 1000, dual_ranks),
    Case("Ego4D anticipation", "17,000 images x 20 predictions", 17000, 500, contacts),
    Case("soft-NMS, 100 kept", "10,000 segments", 10000, 2000, suppression),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tenth of every load")
    scale = 10 if parser.parse_args().small else 1
    print("| evaluator | load | ours, CPU s | part | ours on it | row by row | ratio |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        whole, _ = seconds(case.make(np.random.default_rng(0), case.whole // scale)[0])
        ours, plain = case.make(np.random.default_rng(1), case.part // scale)
        quick, first = seconds(ours)
        row = f"| {case.name} | {case.load} | {whole:.2f} | {case.part / case.whole:.0%} | {quick:.3f} |"
        if plain is None:
            print(f"{row} - | - |", flush=True)
            continue
        slow, second = seconds(plain)
        if abs(first - second) > 1e-6 * max(1.0, abs(second)):
            raise AssertionError(f"{case.name}: {first} and {second}")
        print(f"{row} {slow:.2f} | {slow / max(quick, 1e-9):.0f}x |", flush=True)


if __name__ == "__main__":
    main()
