"""Read the proposals of a detector, and load them with the features of their videos.

The file has ActivityNet's format, as `internvideo evaluate temporal_localization` writes it (ActionFormer).
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
from internvideo.errors import ManifestError
from internvideo.tasks.temporal_localization.data import (
    FeatureSet,
    FeatureSettings,
    FeatureVideo,
    SequenceLoader,
    sequence,
)
from internvideo.tasks.temporal_localization.feature_index import FeatureGrid

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

NAMELESS = "action"
"""Class of proposals without a label."""

MIN_STEPS = 0.1
"""Minimum duration of a jittered proposal, in steps."""


class ProposalSettings(Settings):
    """Settings of the proposals."""

    files: tuple[Path, ...] = Field((), description="training: detections.json files of one detector or several")
    top_k: int = Field(100, ge=1, description="training: proposals per video, those of the highest score")
    jitter: float = Field(
        0.0, ge=0.0, lt=0.5, description="training: both ends are shifted by up to this fraction of the duration"
    )


@dataclass(frozen=True)
class Proposals:
    """Proposals for one video by falling score: spans (P, 2) in s, scores (P,), class indices (P,)."""

    spans: Floats
    scores: Floats
    labels: Ints

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class ProposalSet:
    """Proposals for several videos.

    Attributes:
        videos: id -> proposals. classes: class names; ("action",) for proposals without labels.
        source: the file. made: "external_data" of the file, which describes the detector.
    """

    videos: Mapping[str, Proposals]
    classes: tuple[str, ...]
    source: Path
    made: Mapping[str, Any]

    def of(self, video: FeatureVideo) -> Proposals:
        """Return the proposals for a video, clipped to its duration; those outside it are left out."""
        proposals = self.videos.get(video.id)
        if proposals is None:
            return Proposals(np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64))
        spans = np.clip(proposals.spans, 0.0, video.duration)
        inside = spans[:, 1] > spans[:, 0]
        return Proposals(spans[inside], proposals.scores[inside], proposals.labels[inside])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of segments, scores and classes, 16 hex digits."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name in sorted(self.videos):
            proposals = self.videos[name]
            columns = [column.tolist() for column in (proposals.spans, proposals.scores, proposals.labels)]
            digest.update(json.dumps([name, *columns]).encode())
        return digest.hexdigest()[:16]

    @property
    def about(self) -> dict[str, Any]:
        """Describe the source of the proposals, as JSON values."""
        detector = {f"detector_{key}": self.made[key] for key in ("model", "weights_sha256") if key in self.made}
        return {"proposals": str(self.source), "proposals_sha256": self.fingerprint, **detector}


class _Row(BaseModel):
    segment: tuple[FiniteFloat, FiniteFloat]
    score: FiniteFloat
    label: str = NAMELESS


class _File(BaseModel):
    results: dict[str, list[_Row]]
    external_data: dict[str, Any] = {}


def read_all_proposals(paths: Sequence[Path], classes: tuple[str, ...]) -> ProposalSet:
    """Read the proposals of several files, each for other videos. Raises ManifestError as `read_proposals`."""
    first, *others = (read_proposals(path, classes) for path in paths)
    videos = dict(first.videos)
    for other in others:
        duplicate = next((name for name in other.videos if name in videos), None)
        if duplicate is not None or other.classes != first.classes:
            found = f"'{duplicate}' again" if duplicate is not None else "other classes"
            raise ManifestError(other.source, f"{found}, after {first.source}", "other videos, under the same classes")
        videos.update(other.videos)
    return replace(first, videos=videos)


def read_proposals(path: Path, classes: tuple[str, ...]) -> ProposalSet:
    """Read {"results": {video: [{"segment": [s, s], "score", "label"}]}, "external_data"}.

    Args:
        path: the file. classes: class names of the videos' actions. Either all labels are among these, or all
            proposals have no label or the label "action".

    Raises:
        ManifestError: an unreadable file, with the video and field; a reversed segment, a negative score, an unknown
            class; no proposal.
    """
    try:
        content = _File.model_validate(untrusted.read_json(path, finite=False))
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"])
        raise ManifestError(path, f"'{location}': {first['msg']}, found {str(first['input'])[:60]}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or ("no JSON" if isinstance(error, json.JSONDecodeError) else error)
        hint = "make it with `internvideo evaluate temporal_localization`"
        raise ManifestError(path, f"cannot be read: {reason}", '{"results": {video: [segments]}}', hint) from error
    labels = {row.label for rows in content.results.values() for row in rows}
    if not labels:
        raise ManifestError(path, "no proposal", "segments of at least one video")
    names = (NAMELESS,) if NAMELESS not in classes and labels == {NAMELESS} else classes
    class_index = {name: index for index, name in enumerate(names)}
    videos = {name: _of_video(f"{path}: {name}", found, class_index) for name, found in content.results.items()}
    return ProposalSet(videos, names, path, content.external_data)


def _of_video(where: str, rows: list[_Row], class_index: Mapping[str, int]) -> Proposals:
    for row in rows:
        if row.segment[1] < row.segment[0]:
            raise ManifestError(where, f"segment {list(row.segment)}", "start, then end, in seconds")
        if row.score < 0:
            raise ManifestError(where, f"score {row.score:g}", "0 or more")
        if row.label not in class_index:
            raise ManifestError(where, f"class '{row.label}'", f"the {len(class_index)} classes of the features")
    ordered = sorted(rows, key=lambda row: -row.score)  # stable: equal scores stay in file order
    return Proposals(
        np.asarray([row.segment for row in ordered], dtype=np.float64).reshape(-1, 2),
        np.asarray([row.score for row in ordered], dtype=np.float64),
        np.asarray([class_index[row.label] for row in ordered], dtype=np.int64),
    )


def with_proposals(features: FeatureSet, proposals: ProposalSet) -> FeatureSet:
    """Return the videos that have proposals. Raises ManifestError: none has."""
    kept = tuple(video for video in features.videos if len(proposals.of(video)))
    if not kept:
        first_video, first_proposal = features.videos[0].id, next(iter(proposals.videos))
        found = f"proposals for '{first_proposal}' ..., but none for the {len(features)} videos '{first_video}' ..."
        raise ManifestError(proposals.source, found, "proposals for the same videos", "use the same split")
    return replace(features, videos=kept)


@dataclass(frozen=True)
class WholeSequence:
    """Features padded to cover the whole video: the first and last one are repeated before and after the windows.

    Positions are steps from the start of `values`: the center of feature g is at g + 0.5. If windows do not overlap,
    position 0 is second 0.

    Attributes:
        values: (C, T). grid: of the features without padding. added: steps of padding at the start.
    """

    values: Tensor
    grid: FeatureGrid
    added: int

    def positions(self, seconds: Floats) -> Floats:
        """Convert seconds to positions."""
        result: Floats = self.grid.steps(seconds) + 0.5 + self.added
        return result

    def seconds(self, positions: Floats) -> Floats:
        """Convert positions to seconds, clipped to the video."""
        return self.grid.to_seconds(positions - 0.5 - self.added)


def whole_sequence(video: FeatureVideo, settings: FeatureSettings) -> WholeSequence:
    """Read the features of a video and pad them to cover it. Raises RunError: features cannot be read."""
    windows = sequence(video, settings)
    added = math.ceil(max(windows.grid.window / windows.grid.stride - 1.0, 0.0) / 2)
    values = torch.nn.functional.pad(windows.values[None], (added, added), mode="replicate")[0]
    return WholeSequence(values, windows.grid, added)


def jittered(spans: Tensor, share: float, rng: np.random.RandomState) -> Tensor:
    """Shift both ends of spans (P, 2) by up to `share` of their length, to spans above 0 of at least MIN_STEPS."""
    if share == 0.0:
        return spans
    shifted = spans + torch.from_numpy(rng.uniform(-share, share, spans.shape)).float() * (spans[:, 1:] - spans[:, :1])
    start = shifted[:, 0].clamp(min=0.0)
    return torch.stack([start, torch.maximum(shifted[:, 1], start + MIN_STEPS)], dim=1)


class ProposalLoader(SequenceLoader):
    """Load batches of whole sequences with their proposals, padded to the longest sequence.

    Args:
        features: videos with actions and proposals (`with_proposals`). proposals: proposals for these.
        settings: how features are read. choice: settings of the proposals. loader: as in `SequenceLoader`.
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
        """Return features (C, T), and the positions of the actions (G, 2) and of the proposals (P, 2)."""
        video = self.features.videos[index]
        sequence = whole_sequence(video, self.settings)
        spans = self.proposals.of(video).spans[: self.choice.top_k]
        truths, proposals = (torch.from_numpy(sequence.positions(part)).float() for part in (video.spans, spans))
        return sequence.values, truths, proposals

    def _batch(self, k: int, indices: list[int]) -> ProposalBatch:
        values, truths, spans = zip(*(self._whole(index) for index in indices), strict=True)
        proposals = []
        for index, own in zip(indices, spans, strict=True):
            seed = np.random.SeedSequence([self.loader.seed, k, index, 2]).generate_state(4)
            proposals.append(jittered(own, self.choice.jitter, np.random.RandomState(seed)))
        return ProposalBatch(
            *self._padded(indices, values, max(part.shape[1] for part in values)),
            tuple(self.features.videos[index].id for index in indices),
            truths,
            tuple(torch.zeros(len(part), dtype=torch.long) for part in truths),
            proposals=tuple(proposals),
        )
