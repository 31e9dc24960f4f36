"""Segments that a detector proposed: read from its file, and brought beside the features of their videos.

The file is of ActivityNet's form, as `internvideo evaluate temporal_localization` writes it (ActionFormer).
Shapes: C channels, T steps, G actions, P proposals.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat, ValidationError
from torch import Tensor

from internvideo import untrusted
from internvideo.data.batch import ProposalBatch
from internvideo.data.loader import LoaderSettings
from internvideo.data.settings import Settings
from internvideo.errors import ManifestError, RunError
from internvideo.tasks.temporal_localization.data import (
    FeatureSet,
    FeatureSettings,
    FeatureVideo,
    SequenceLoader,
    sequence,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NAMELESS = "action"
"""Class of segments that have none."""

SHORTEST = 0.1
"""Steps of the shortest proposal: jitter does not make shorter ones."""


class ProposalSettings(Settings):
    """Which proposals count."""

    files: tuple[Path, ...] = Field(
        (), description="segments of the training videos, as the detections.json of one detector or of several"
    )
    top_k: int = Field(100, ge=1, description="best ones of a video that count, in training")
    jitter: float = Field(
        0.0, ge=0.0, lt=0.5, description="training: both ends move by up to this share of the length, each epoch anew"
    )


@dataclass(frozen=True)
class Proposals:
    """Segments of one video, best first: (P, 2) s, (P,) scores, (P,) class indices."""

    spans: Floats
    scores: Floats
    labels: Ints

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class ProposalSet:
    """Proposals of videos.

    Attributes:
        videos: id -> proposals. classes: of the proposals; ("action",) where they have none.
        source: the file. made: what the file tells about the detector.
    """

    videos: Mapping[str, Proposals]
    classes: tuple[str, ...]
    source: Path
    made: Mapping[str, Any]

    def of(self, video: FeatureVideo) -> Proposals:
        """The proposals of a video, cut to it; those that lie outside it are left out."""
        found = self.videos.get(video.id)
        if found is None:
            return Proposals(np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64))
        spans = np.clip(found.spans, 0.0, video.duration)
        inside = spans[:, 1] > spans[:, 0]
        return Proposals(spans[inside], found.scores[inside], found.labels[inside])

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any segment, score or class."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name in sorted(self.videos):
            found = self.videos[name]
            columns = [column.tolist() for column in (found.spans, found.scores, found.labels)]
            digest.update(json.dumps([name, *columns]).encode())
        return digest.hexdigest()[:16]

    @property
    def about(self) -> dict[str, Any]:
        """Where the proposals come from, ready for JSON."""
        told = {"proposals": str(self.source), "proposals_sha256": self.fingerprint}
        facts = {f"detector_{key}": self.made[key] for key in ("model", "weights_sha256") if key in self.made}
        return {**told, **facts}


class _Row(BaseModel):
    segment: tuple[FiniteFloat, FiniteFloat]
    score: FiniteFloat
    label: str = NAMELESS


class _File(BaseModel):
    results: dict[str, list[_Row]]
    external_data: dict[str, Any] = {}


def read_all_proposals(paths: Sequence[Path], classes: tuple[str, ...]) -> ProposalSet:
    """The proposals of several files, each of its own videos. Raises ManifestError as `read_proposals`."""
    first, *others = (read_proposals(path, classes) for path in paths)
    videos = dict(first.videos)
    for other in others:
        twice = next((name for name in other.videos if name in videos), None)
        if twice is not None or other.classes != first.classes:
            found = f"'{twice}' again" if twice is not None else "other classes"
            raise ManifestError(other.source, f"{found}, after {first.source}", "other videos, under the same classes")
        videos.update(other.videos)
    return replace(first, videos=videos)


def read_proposals(path: Path, classes: tuple[str, ...]) -> ProposalSet:
    """Read {"results": {video: [{"segment": [s, s], "score", "label"}]}, "external_data"}.

    Args:
        path: the file. classes: of the videos' actions. Proposals must be of these, or all of them nameless: without
            label or with the label "action".

    Raises:
        ManifestError: a file that cannot be read, with the video and field; a reversed segment, a score that is
            negative, an unknown class; not one proposal.
    """
    try:
        content = _File.model_validate(untrusted.read_json(path, finite=False))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ManifestError(path, f"'{place}': {first['msg']}, found {str(first['input'])[:60]}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or ("no JSON" if isinstance(error, json.JSONDecodeError) else error)
        do = "make it with `internvideo evaluate temporal_localization`"
        raise ManifestError(path, f"cannot be read: {reason}", '{"results": {video: [segments]}}', do) from error
    rows = [row for found in content.results.values() for row in found]
    if not rows:
        raise ManifestError(path, "not one proposal", "segments of at least one video")
    nameless = NAMELESS not in classes and all(row.label == NAMELESS for row in rows)
    names = (NAMELESS,) if nameless else classes
    place_of = {name: index for index, name in enumerate(names)}
    videos = {name: _of_video(f"{path}: {name}", found, place_of) for name, found in content.results.items()}
    return ProposalSet(videos, names, path, content.external_data)


def _of_video(where: str, rows: list[_Row], place: Mapping[str, int]) -> Proposals:
    for row in rows:
        if row.segment[1] < row.segment[0]:
            raise ManifestError(where, f"segment {list(row.segment)}", "start, then end, in seconds")
        if row.score < 0:
            raise ManifestError(where, f"score {row.score:g}", "0 or more")
        if row.label not in place:
            raise ManifestError(where, f"class '{row.label}'", f"the {len(place)} classes of the features")
    ordered = sorted(rows, key=lambda row: -row.score)  # stable: equal scores stay in file order
    spans = np.asarray([row.segment for row in ordered], dtype=np.float64).reshape(-1, 2)
    scores = np.asarray([row.score for row in ordered], dtype=np.float64)
    return Proposals(spans, scores, np.asarray([place[row.label] for row in ordered], dtype=np.int64))


def with_proposals(features: FeatureSet, proposals: ProposalSet) -> FeatureSet:
    """The videos that have proposals. Raises ManifestError when none has: they are of other videos."""
    chosen = tuple(video for video in features.videos if len(proposals.of(video)))
    if not chosen:
        ours, theirs = features.videos[0].id, next(iter(proposals.videos))
        found = f"segments of '{theirs}' ..., none of the {len(features)} videos '{ours}' ..."
        raise ManifestError(proposals.source, found, "proposals of the same videos", "use the same split")
    return replace(features, videos=chosen)


@dataclass(frozen=True)
class WholeSequence:
    """Features that reach over the whole video: the first and last stand for what is beyond the first and last window.

    A place counts steps from the beginning of `values`: the middle of feature g is at g + 0.5. Where windows do not
    overlap, place 0 is second 0.

    Attributes:
        values: (C, T). fps, stride, window, duration: as in `FeatureVideo`. added: steps in front.
    """

    values: Tensor
    fps: float
    stride: float
    window: float
    duration: float
    added: int

    def places(self, seconds: Floats) -> Floats:
        """Seconds -> places."""
        result: Floats = (seconds * self.fps - 0.5 * self.window) / self.stride + 0.5 + self.added
        return result

    def seconds(self, places: Floats) -> Floats:
        """Places -> seconds, cut to the video."""
        found = ((places - 0.5 - self.added) * self.stride + 0.5 * self.window) / self.fps
        result: Floats = np.clip(found, 0.0, self.duration)
        return result


def whole_sequence(video: FeatureVideo, settings: FeatureSettings) -> WholeSequence:
    """The features of a video. Raises RunError for features that cannot be read."""
    made = sequence(video, settings)
    added = math.ceil(max(made.window / made.stride - 1.0, 0.0) / 2)
    values = torch.nn.functional.pad(made.values[None], (added, added), mode="replicate")[0]
    return WholeSequence(values, video.fps, made.stride, made.window, video.duration, added)


def jittered(spans: Tensor, share: float, rng: np.random.RandomState) -> Tensor:
    """Spans (P, 2) whose ends moved by up to `share` of their length; at least 0, and never shorter than SHORTEST."""
    if share == 0.0:
        return spans
    moved = spans + torch.from_numpy(rng.uniform(-share, share, spans.shape)).float() * (spans[:, 1:] - spans[:, :1])
    start = moved[:, 0].clamp(min=0.0)
    return torch.stack([start, torch.maximum(moved[:, 1], start + SHORTEST)], dim=1)


class ProposalLoader(SequenceLoader):
    """Batches of whole sequences with their proposals, padded to the longest one.

    Args:
        features: videos with their actions; all have proposals (`with_proposals`). proposals: of these.
        settings: how features are read. choice: which proposals count. loader: as in the base.
    """

    def __init__(
        self,
        features: FeatureSet,
        proposals: ProposalSet,
        settings: FeatureSettings,
        choice: ProposalSettings,
        loader: LoaderSettings,
    ) -> None:
        super().__init__(features, settings, settings.resized or 0, loader)
        self.proposals, self.choice = proposals, choice

    def _read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features (C, T), and the places of the actions (G, 2) and of the proposals (P, 2)."""
        video = self.features.videos[index]
        made = whole_sequence(video, self.settings)
        spans = self.proposals.of(video).spans[: self.choice.top_k]
        truths, found = (torch.from_numpy(made.places(part)).float() for part in (video.spans, spans))
        return made.values, truths, found

    def _batch(self, k: int, chosen: list[int]) -> ProposalBatch:
        parts = [self._whole(index) for index in chosen]
        longest = max(values.shape[1] for values, _, _ in parts)
        values = torch.zeros(len(parts), parts[0][0].shape[0], longest)
        mask = torch.zeros(len(parts), longest, dtype=torch.bool)
        proposals = []
        for row, (part, _, found) in enumerate(parts):
            if part.shape[0] != values.shape[1]:
                name = self.features.videos[chosen[row]].file
                raise RunError(name, f"{part.shape[0]} channels", f"{values.shape[1]}, as the others")
            values[row, :, : part.shape[1]], mask[row, : part.shape[1]] = part, True
            words = np.random.SeedSequence([self.loader.seed, k, chosen[row], 2]).generate_state(4)
            proposals.append(jittered(found, self.choice.jitter, np.random.RandomState(words)))
        return ProposalBatch(
            values,
            mask,
            tuple(self.features.videos[index].id for index in chosen),
            tuple(truths for _, truths, _ in parts),
            tuple(torch.zeros(len(truths), dtype=torch.long) for _, truths, _ in parts),
            proposals=tuple(proposals),
        )
