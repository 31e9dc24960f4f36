"""Learning and judging a probe without looking at what it is judged on.

`learn` is one procedure: strength of regularisation, temperature and threshold are all chosen on videos held out of the
training part, inside it. `cross_validate` runs the whole procedure once a fold and judges it on the fold it never saw.

Shapes: n videos, C classes, K folds. Features are (n, D), or (n, N, D) for an attentive head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from internvideo.metrics.calibration import fit_temperature
from internvideo.metrics.classification import cross_entropy, softmax, unit
from internvideo.probing.cached_features import Kind
from internvideo.probing.fit_split import folds
from internvideo.probing.probe import Head
from internvideo.probing.probe_fit import MIDDLE, STRENGTHS, fit_heads, statistics
from internvideo.tasks.open_set.metrics import auroc, rejection_threshold

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Told = Callable[[str], None]

INNER: dict[Kind, int] = {"video": 5, "tokens": 3}
"""Folds inside a training part."""
FEWEST_HELD = 10
"""With fewer held-out videos than this nothing is chosen from them."""
MOST_LEFT_OUT: dict[Kind, int] = {"video": 12, "tokens": 4}
"""Classes that are left out in turn to see whether they are found unknown."""


@dataclass(frozen=True)
class Data:
    """Videos to learn from or to be judged on; `groups` are their sources."""

    features: Tensor
    labels: Ints
    groups: Ints

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def kind(self) -> Kind:
        """What the features are."""
        return "video" if self.features.ndim == 2 else "tokens"

    def part(self, chosen: NDArray[np.bool_]) -> Data:
        """The chosen videos."""
        return Data(self.features[np.flatnonzero(chosen)], self.labels[chosen], self.groups[chosen])


@dataclass(frozen=True)
class Rules:
    """What the procedure is told: the number of classes, the share of known videos to accept, the seed."""

    classes: int
    known: float
    seed: int


@dataclass(frozen=True)
class Learned:
    """A head with what was chosen on held-out videos of its training part; `held` of them decided."""

    head: Head
    strength: float
    temperature: float
    threshold: float
    held: int


def threshold_for(familiarity: Floats, known: float) -> float:
    """The familiarity that a share of `known` of these videos reaches."""
    return -rejection_threshold(-familiarity, known)


def learn(data: Data, rules: Rules) -> Learned:
    """Choose, then train on everything given.

    The strength is the one with the smallest held-out log loss at its own best temperature; temperature and threshold
    are those of its held-out logits. A held-out video whose class has no training video in its fold says nothing.
    """
    strengths = STRENGTHS[data.kind]
    held = np.zeros((len(strengths), len(data), rules.classes))
    familiar = np.zeros((len(strengths), len(data)))
    usable = np.zeros(len(data), dtype=bool)
    place = folds(data.labels, data.groups, INNER[data.kind], rules.seed)
    for fold in np.unique(place):
        inside, outside = data.part(place != fold), data.part(place == fold)
        if len(np.unique(inside.labels)) < 2:
            continue
        for number, head in enumerate(fit_heads(inside.features, inside.labels, rules.classes, strengths, rules.seed)):
            held[number, place == fold], familiar[number, place == fold] = head.scores(outside.features)
        usable[place == fold] = np.isin(outside.labels, inside.labels)
    if usable.sum() < FEWEST_HELD:
        strength = MIDDLE[data.kind]
        (head,) = fit_heads(data.features, data.labels, rules.classes, (strength,), rules.seed)
        return Learned(head, strength, 1.0, -1.0, 0)
    labels = data.labels[usable]
    temperatures = [fit_temperature(logits[usable], labels) for logits in held]
    losses = [cross_entropy(logits[usable] / t, labels) for logits, t in zip(held, temperatures, strict=True)]
    best = int(np.argmin(losses))
    (head,) = fit_heads(data.features, data.labels, rules.classes, (strengths[best],), rules.seed)
    threshold = threshold_for(familiar[best][usable], rules.known)
    return Learned(head, strengths[best], temperatures[best], threshold, int(usable.sum()))


@dataclass(frozen=True)
class Judged:
    """What was said of videos that played no part in the learning.

    Attributes:
        logits: (n, C). familiarity: (n,), see `probe.Head`.
        temperature, threshold: (n,) of the probe that was asked. fold: (n,) which probe that was.
        nearest: (n,) the class whose mean is nearest. majority: (n,) the most frequent class of the training part.
    """

    logits: Floats
    familiarity: Floats
    temperature: Floats
    threshold: Floats
    fold: Ints
    nearest: Ints
    majority: Ints

    @property
    def probabilities(self) -> Floats:
        """(n, C) calibrated."""
        return softmax(self.logits / self.temperature[:, None])

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """(n,) what was not called unknown."""
        return np.asarray(self.familiarity >= self.threshold)


def nearest_means(train: Data, test: Data, classes: int) -> Ints:
    """(n,) the class whose mean training feature has the largest cosine; features are standardised first."""
    plain = [
        part.features.float().reshape(len(part), -1, part.features.shape[-1]).mean(dim=1) for part in (train, test)
    ]
    mean, scale = statistics(plain[0])
    known, asked = (((features - mean) / scale).double().numpy() for features in plain)
    present = np.unique(train.labels)
    means = np.stack([known[train.labels == label].mean(axis=0) for label in present])
    found: Ints = present[(unit(asked) @ unit(means).T).argmax(axis=1)]
    return found


def judge(learned: Learned, train: Data, test: Data, rules: Rules, fold: int = 0) -> Judged:
    """Ask a probe, and the two baselines, about other videos."""
    n = len(test)
    return Judged(
        *learned.head.scores(test.features),
        np.full(n, learned.temperature),
        np.full(n, learned.threshold),
        np.full(n, fold, dtype=np.int64),
        nearest_means(train, test, rules.classes),
        np.full(n, np.bincount(train.labels).argmax(), dtype=np.int64),
    )


def cross_validate(data: Data, rules: Rules, most: int, told: Told) -> Judged:
    """Every video is judged once, by a probe whose whole learning never saw its source."""
    place = folds(data.labels, data.groups, most, rules.seed)
    parts: list[tuple[NDArray[np.bool_], Judged]] = []
    for fold in np.unique(place):
        train, test = data.part(place != fold), data.part(place == fold)
        found = judge(learn(train, rules), train, test, rules, int(fold))
        parts.append((place == fold, found))
        right = float((found.logits.argmax(axis=1) == test.labels).mean())
        told(f"fold {fold + 1} of {place.max() + 1}: {100 * right:.1f} % of {len(test)} videos")
    order = np.argsort(np.concatenate([np.flatnonzero(chosen) for chosen, _ in parts]))
    columns = {name: np.concatenate([getattr(part, name) for _, part in parts])[order] for name in vars(parts[0][1])}
    return Judged(**columns)


@dataclass(frozen=True)
class UnknownCheck:
    """Classes left out of the learning in turn.

    Attributes:
        auroc: chance that a video of a class never seen is stranger than one of a known class; mean over classes.
        rejected: share of the unseen classes' videos called unknown. accepted: share of known ones that are not.
        each: class index -> (auroc, rejected).
    """

    auroc: float
    rejected: float
    accepted: float
    each: dict[int, tuple[float, float]]


def leave_one_class_out(data: Data, learned: Learned, fold: Ints, rules: Rules) -> UnknownCheck | None:
    """How well classes are found unknown that a probe was never shown; None with fewer than 3 classes.

    For each class in turn a probe learns all other classes from all folds but one, at the strength chosen already. The
    threshold accepts the wanted share of that fold's known videos; all videos of the class left
    out, but for sources that were trained on, are asked.
    """
    labels = np.unique(data.labels)
    if len(labels) < 3:
        return None
    numbers = np.unique(fold)
    chosen = labels[np.linspace(0, len(labels) - 1, min(MOST_LEFT_OUT[data.kind], len(labels))).round().astype(int)]
    areas, each, accepted = [], {}, []
    for turn, label in enumerate(chosen):
        out = fold == numbers[turn % len(numbers)]
        train = data.part(~out & (data.labels != label))
        known = data.part(out & (data.labels != label) & np.isin(data.labels, train.labels))
        unseen = data.part((data.labels == label) & ~np.isin(data.groups, train.groups))
        if not len(known) or not len(unseen) or len(np.unique(train.labels)) < 2:
            continue
        (head,) = fit_heads(train.features, train.labels, rules.classes, (learned.strength,), rules.seed)
        familiar, strange = (head.scores(part.features)[1] for part in (known, unseen))
        threshold = threshold_for(familiar, rules.known)
        areas.append(auroc(-familiar, -strange))
        each[int(label)] = (areas[-1], float((strange < threshold).mean()))
        accepted.append(float((familiar >= threshold).mean()))
    if not areas:
        return None
    rejected = float(np.mean([share for _, share in each.values()]))
    return UnknownCheck(float(np.mean(areas)), rejected, float(np.mean(accepted)), each)
