"""Find the moments of a collection that fit a query best, with their p-values; near-duplicates; odd windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RecipeError
from internvideo.search.approximate import CANDIDATES, Candidates
from internvideo.search.calibration import NullDistribution, mean_and_spread
from internvideo.search.moments import MomentSettings, find_moments
from internvideo.search.records import Annotation
from internvideo.search.segments import largest
from internvideo.search.store import Snapshot, Store
from internvideo.search.where import Mask

MAX_TOP = 1000
PER_VIDEO = 5
"""Moments of one video, at most."""
MAX_COMPARED = 50_000
"""Windows that are compared with each other for near-duplicates and odd ones."""


@dataclass(frozen=True)
class Moment:
    """A part of a video that fits a query.

    Attributes:
        video: id of the video. path: of its file. start, end: seconds of the file. duration: of the file, seconds.
        score: cosine of the query and the best window. p_value: how often a query that nothing fits scores as high
            (`calibration`), None without a null distribution. labels: what classifiers say of it, the commonest first.
        actions: of the annotations of its video, those that overlap it, in the order of time.
        likelihood: mean log probability of the query's words in the caption decoder, where it ordered the moments.
    """

    video: int
    path: str
    start: float
    end: float
    duration: float
    score: float
    p_value: float | None
    labels: tuple[str, ...] = ()
    actions: tuple[Annotation, ...] = ()
    likelihood: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "labels": list(self.labels), "actions": [asdict(action) for action in self.actions]}


@dataclass(frozen=True)
class Answer:
    """The answer to a query.

    Attributes:
        moments: that fit, best first; with a threshold only those with a p-value of at most that level.
        nearest: the best ones where nothing fits, else ().
        threshold: the level, None for none. windows: how many were compared.
    """

    moments: tuple[Moment, ...]
    nearest: tuple[Moment, ...]
    threshold: float | None
    windows: int

    @property
    def nothing_fits(self) -> bool:
        """Whether there are windows but none of them fits."""
        return not self.moments

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "nothing_fits": self.nothing_fits,
            "threshold": self.threshold,
            "windows": self.windows,
            "moments": [moment.to_json() for moment in self.moments],
            "nearest": [moment.to_json() for moment in self.nearest],
        }


def find(
    store: Store,
    snapshot: Snapshot,
    vector: NDArray[np.float32],
    *,
    top: int = 10,
    mask: Mask | None = None,
    candidates: Candidates | None = None,
    null: NullDistribution | None = None,
    threshold: float | None = None,
    settings: MomentSettings | None = None,
    scores: NDArray[np.float32] | None = None,
) -> Answer:
    """Find moments.

    Args:
        vector: (D,) of the query, L2-normalized. top: number of moments. mask: (N,) rows that count.
        candidates: names the windows to compare; without it, and with a mask that it does not know, all are compared.
        null: of queries of this kind. threshold: the largest p-value that fits.
        scores: (N,) of all rows, where they are known: one product for several queries is quicker.

    Raises:
        RecipeError: `top` out of range, or a threshold that the null distribution does not have.
    """
    if not 1 <= top <= MAX_TOP:
        raise RecipeError("top", str(top), f"1 to {MAX_TOP}")
    if threshold is not None:
        if null is None:
            hint = "index at least two videos; for texts with a model that has a text tower"
            raise RecipeError("threshold", "no null distribution for such a query", "a text or a clip", hint)
        null.check_level(threshold)
    count = max(50 * top, CANDIDATES)
    if candidates is None or (mask is not None and not candidates.filters):
        compared = _compare_all(snapshot.scores(vector[None])[0] if scores is None else scores, mask, count)
    else:
        compared = _compare_some(snapshot, vector, candidates, mask, count)
    videos = list(dict.fromkeys(snapshot.video_index[compared.best].tolist()))[: 3 * top]
    found: list[tuple[float, Moment]] = []
    best: list[float] = []  # a heap of the `top` highest scores
    for index in videos:
        own = compared.scores(snapshot.rows(index)).astype(np.float64)
        if len(best) == top and own.max() < best[0]:
            continue  # no moment scores higher than the best window of its video
        for peak, moment in _moments(snapshot, index, own, settings):
            found.append((peak, moment))
            heappush(best, moment.score)
        while len(best) > top:
            heappop(best)
    found.sort(key=lambda item: (-item[1].score, -item[0]))
    moments = [moment for _, moment in found[:top]]
    if null is not None:
        p_values = (null.p_value((moment.score - compared.mean) / compared.spread) for moment in moments)
        moments = [replace(moment, p_value=p) for moment, p in zip(moments, p_values, strict=True)]
    fitting = moments if threshold is None else [m for m in moments if (m.p_value or 0.0) <= threshold]
    labels = _Labels(store, snapshot)
    told = tuple(labels.added_to(moment) for moment in fitting or moments)
    return Answer(told if fitting else (), () if fitting else told, threshold, compared.windows)


@dataclass(frozen=True)
class _Compared:
    """A query's scores.

    Attributes:
        best: rows of the best windows, best first. mean, spread: of the scores of all windows.
        windows: number of windows that count. scores: of a slice of rows, -inf for those that do not count.
    """

    best: NDArray[np.int64]
    mean: float
    spread: float
    windows: int
    scores: Callable[[slice], NDArray[np.float32]]


def _compare_all(scores: NDArray[np.float32], mask: Mask | None, count: int) -> _Compared:
    mean, spread = mean_and_spread(scores)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    best = largest(scores, count)
    best = best[np.isfinite(scores[best])]
    return _Compared(best, mean, spread, int(np.isfinite(scores).sum()), lambda rows: scores[rows])


def _compare_some(
    snapshot: Snapshot, vector: NDArray[np.float32], candidates: Candidates, mask: Mask | None, count: int
) -> _Compared:
    rows = np.sort(candidates.rows(snapshot, vector, count, mask))  # the first of equal ones first
    best = rows[np.argsort(-(snapshot.vectors(rows) @ vector), kind="stable")]
    mean, spread = mean_and_spread(snapshot.sample_vectors @ vector)

    def scores(rows: slice) -> NDArray[np.float32]:
        products = snapshot.vectors(rows) @ vector
        return products if mask is None else np.where(mask[rows], products, np.float32(-np.inf))

    windows = snapshot.num_windows if mask is None else int((mask & (snapshot.video_index >= 0)).sum())
    return _Compared(best, mean, spread, windows, scores)


def _moments(
    snapshot: Snapshot, index: int, own: NDArray[np.float64], settings: MomentSettings | None
) -> list[tuple[float, Moment]]:
    """Return (peak, moment) of a video; windows outside the mask count as its worst and give no moment."""
    rows, video = snapshot.rows(index), snapshot.videos[index]
    inside = np.isfinite(own)
    if inside.all():
        spans = find_moments(snapshot.windows[rows], own, settings, limit=PER_VIDEO)
    else:
        worst = own[inside].min()
        spans = find_moments(snapshot.windows[rows], np.where(inside, own, worst), settings, limit=4 * PER_VIDEO)
        centers = snapshot.windows[rows, :2].mean(axis=1)[inside]
        spans = [span for span in spans if ((centers >= span.start) & (centers <= span.end)).any()][:PER_VIDEO]
    return [(s.peak, Moment(video.id, video.path, s.start, s.end, video.duration, s.score, None)) for s in spans]


class _Labels:
    """What classifiers and annotations say of moments."""

    def __init__(self, store: Store, snapshot: Snapshot) -> None:
        self.store, self.snapshot = store, snapshot
        self.classifiers = store.kept("classifiers", store.records.classifiers)
        self.annotated = store.kept("annotated", lambda: {video for video, _ in store.records.annotations("action")})

    def added_to(self, moment: Moment) -> Moment:
        """Return the moment with the labels of the windows whose center lies in it, and the actions that overlap it."""
        if not self.classifiers and moment.video not in self.annotated:
            return moment
        known = self.store.records.annotations("action", moment.video)
        actions = tuple(one for _, one in known if one.start < moment.end and one.end > moment.start)
        return replace(moment, labels=self._labels(moment), actions=actions)

    def _labels(self, moment: Moment) -> tuple[str, ...]:
        if not self.classifiers:
            return ()
        rows = self.snapshot.rows(self.snapshot.index_of[moment.video])
        centers = self.snapshot.windows[rows, :2].mean(axis=1)
        inside = (centers >= moment.start) & (centers <= moment.end)
        counts: Counter[str] = Counter()
        for name, (_, classes) in self.classifiers.items():
            if (known := self.store.records.video_labels(moment.video, name)) is not None:
                counts.update(classes[int(label)] for label in known[0][inside])
        return tuple(label for label, _ in counts.most_common())


@dataclass(frozen=True)
class NeighborPair:
    """A window and the one of another video that is most like it.

    Attributes:
        one, other: (path, start, end). score: cosine.
    """

    one: tuple[str, float, float]
    other: tuple[str, float, float]
    score: float


def _whole_windows(snapshot: Snapshot, mask: Mask | None) -> NDArray[np.int64]:
    """Return the rows of the shortest scale. Raises RecipeError for more than can be compared with each other."""
    rows = np.flatnonzero(snapshot.video_index >= 0)
    if mask is not None:
        rows = rows[mask[rows]]
    shortest: dict[int, float] = {}
    for video, scale in zip(snapshot.video_index[rows].tolist(), snapshot.windows[rows, 2].tolist(), strict=True):
        shortest[video] = min(scale, shortest.get(video, scale))
    keep = [snapshot.windows[row, 2] == shortest[int(snapshot.video_index[row])] for row in rows]
    rows = rows[np.array(keep, bool)] if len(rows) else rows
    if len(rows) > MAX_COMPARED:
        raise RecipeError("windows", f"{len(rows):,} to compare with each other", f"{MAX_COMPARED:,}", "add --where")
    return rows


def near_duplicates(snapshot: Snapshot, *, least: float = 0.95, mask: Mask | None = None) -> list[NeighborPair]:
    """Find the pairs of videos with windows whose cosine is at least `least`: the best windows of each pair."""
    rows = _whole_windows(snapshot, mask)
    vectors, owner = snapshot.vectors(rows), snapshot.video_index[rows]
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for start in range(0, len(rows), 1024):
        cosines = vectors[start : start + 1024] @ vectors.T
        left, right = np.nonzero((cosines >= least) & (owner[start : start + 1024, None] < owner[None]))
        for i, j in zip(left.tolist(), right.tolist(), strict=True):
            pair = int(owner[start + i]), int(owner[j])
            if (score := float(cosines[i, j])) > best.get(pair, (-2.0,))[0]:
                best[pair] = (score, start + i, j)
    made = [NeighborPair(_place(snapshot, rows[i]), _place(snapshot, rows[j]), score) for score, i, j in best.values()]
    return sorted(made, key=lambda pair: -pair.score)


def odd_windows(snapshot: Snapshot, *, top: int = 10, mask: Mask | None = None) -> list[NeighborPair]:
    """Find the windows that are least like any window of another video: each with the one that is most like it."""
    rows = _whole_windows(snapshot, mask)
    vectors, owner = snapshot.vectors(rows), snapshot.video_index[rows]
    nearest, most = np.zeros(len(rows), np.int64), np.full(len(rows), np.inf)
    for start in range(0, len(rows), 1024):
        cosines = vectors[start : start + 1024] @ vectors.T
        cosines[owner[start : start + 1024, None] == owner[None]] = -np.inf
        nearest[start : start + 1024] = cosines.argmax(axis=1)
        most[start : start + 1024] = cosines.max(axis=1)
    alone = np.isfinite(most)
    order = [int(place) for place in np.argsort(most, kind="stable") if alone[place]]
    made: dict[int, NeighborPair] = {}  # the oddest window of each video
    for place in order:
        pair = NeighborPair(_place(snapshot, rows[place]), _place(snapshot, rows[nearest[place]]), float(most[place]))
        made.setdefault(int(owner[place]), pair)
    return list(made.values())[:top]


def _place(snapshot: Snapshot, row: np.int64) -> tuple[str, float, float]:
    start, end = snapshot.windows[row, :2].tolist()
    return snapshot.videos[int(snapshot.video_index[row])].path, start, end
