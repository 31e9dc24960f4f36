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
    read_sequence,
)
from internvideo.tasks.temporal_localization.feature_index import FeatureGrid

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

UNLABELED_CLASS = "action"
"""Class of proposals without a label."""

MIN_STEPS = 0.1
"""Smallest duration of a jittered proposal, in feature steps."""


class ProposalSettings(Settings):
    """Settings of the proposals."""

    files: tuple[Path, ...] = Field((), description="training: one or several detections.json files of detectors")
    top_k: int = Field(100, ge=1, description="training: number of proposals with the highest scores per video")
    jitter: float = Field(
        0.0, ge=0.0, lt=0.5, description="training: shift both ends by up to this fraction of the duration"
    )


@dataclass(frozen=True)
class Proposals:
    """Proposals for a video by decreasing score: spans (P, 2) in seconds, scores (P,), class indices (P,)."""

    spans: Floats
    scores: Floats
    labels: Ints

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class ProposalSet:
    """Proposals for several videos.

    Attributes:
        videos: video id -> proposals. classes: class names; ("action",) for proposals without labels.
        source: the file, of several the first. detector_info: its "external_data", which describes the detector.
    """

    videos: Mapping[str, Proposals]
    classes: tuple[str, ...]
    source: Path
    detector_info: Mapping[str, Any]

    def for_video(self, video: FeatureVideo) -> Proposals:
        """Return the proposals for a video, clipped to its duration and without those outside of it."""
        proposals = self.videos.get(video.id)
        if proposals is None:
            return Proposals(np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64))
        spans = np.clip(proposals.spans, 0.0, video.duration)
        is_inside = spans[:, 1] > spans[:, 0]
        return Proposals(spans[is_inside], proposals.scores[is_inside], proposals.labels[is_inside])

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
    def provenance(self) -> dict[str, Any]:
        """Return the protocol entries that describe file and detector, as JSON values."""
        detector = {
            f"detector_{key}": self.detector_info[key]
            for key in ("model", "weights_sha256")
            if key in self.detector_info
        }
        return {"proposals": str(self.source), "proposals_sha256": self.fingerprint, **detector}


class _ProposalEntry(BaseModel):
    segment: tuple[FiniteFloat, FiniteFloat]
    score: FiniteFloat
    label: str = UNLABELED_CLASS


class _ProposalFile(BaseModel):
    results: dict[str, list[_ProposalEntry]]
    external_data: dict[str, Any] = {}


def read_all_proposals(paths: Sequence[Path], classes: tuple[str, ...]) -> ProposalSet:
    """Read and join files of proposals, each for different videos under the same classes.

    Raises ManifestError: as `read_proposals`; a video in two files, or other classes.
    """
    first, *other_sets = (read_proposals(path, classes) for path in paths)
    videos = dict(first.videos)
    for proposal_set in other_sets:
        duplicate = next((name for name in proposal_set.videos if name in videos), None)
        if duplicate is not None or proposal_set.classes != first.classes:
            found = f"'{duplicate}' again" if duplicate is not None else "other classes"
            raise ManifestError(
                proposal_set.source, f"{found}, after {first.source}", "other videos, under the same classes"
            )
        videos.update(proposal_set.videos)
    return replace(first, videos=videos)


def read_proposals(path: Path, classes: tuple[str, ...]) -> ProposalSet:
    """Read {"results": {video: [{"segment": [s, s], "score", "label"}]}, "external_data"}.

    Args:
        path: the file. classes: class names of the videos' actions. Proposals must all have one of these as label, or
            all have the label "action" or none.

    Raises:
        ManifestError: an invalid file, naming video and field; a reversed segment, a negative score, an unknown class;
            no proposal.
    """
    try:
        content = _ProposalFile.model_validate(untrusted.read_json(path, finite=False))
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
    names = (UNLABELED_CLASS,) if UNLABELED_CLASS not in classes and labels == {UNLABELED_CLASS} else classes
    class_index = {name: index for index, name in enumerate(names)}
    videos = {name: _parse_video(f"{path}: {name}", entries, class_index) for name, entries in content.results.items()}
    return ProposalSet(videos, names, path, content.external_data)


def _parse_video(where: str, rows: list[_ProposalEntry], class_index: Mapping[str, int]) -> Proposals:
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


def select_with_proposals(features: FeatureSet, proposals: ProposalSet) -> FeatureSet:
    """Return the videos that have proposals. Raises ManifestError if none has."""
    videos_with_proposals = tuple(video for video in features.videos if len(proposals.for_video(video)))
    if not videos_with_proposals:
        first_video, first_proposal = features.videos[0].id, next(iter(proposals.videos))
        found = f"proposals for '{first_proposal}' ..., but none for the {len(features)} videos '{first_video}' ..."
        raise ManifestError(proposals.source, found, "proposals for the same videos", "use the same split")
    return replace(features, videos=videos_with_proposals)


@dataclass(frozen=True)
class PaddedSequence:
    """Features of a video, padded with copies of the first and last one so that they cover the whole video.

    A position counts steps from the start of `values`; the center of its feature g is at position g + 0.5. If windows
    neither overlap nor leave gaps, position 0 is second 0.

    Attributes:
        values: (C, T). grid: of the features without padding. pad_left: number of steps of padding at the start, and
            at the end.
    """

    values: Tensor
    grid: FeatureGrid
    pad_left: int

    def positions(self, seconds: Floats) -> Floats:
        """Convert seconds to positions."""
        result: Floats = self.grid.steps(seconds) + 0.5 + self.pad_left
        return result

    def seconds(self, positions: Floats) -> Floats:
        """Convert positions to seconds, clipped to the duration of the video."""
        return self.grid.to_seconds(positions - 0.5 - self.pad_left)


def read_padded_sequence(video: FeatureVideo, settings: FeatureSettings) -> PaddedSequence:
    """Read the features of a video and pad them to cover it. Raises RunError if they cannot be read."""
    features = read_sequence(video, settings)
    pad_left = math.ceil(max(features.grid.window / features.grid.stride - 1.0, 0.0) / 2)
    values = torch.nn.functional.pad(features.values[None], (pad_left, pad_left), mode="replicate")[0]
    return PaddedSequence(values, features.grid, pad_left)


def jitter_spans(spans: Tensor, max_shift_fraction: float, rng: np.random.RandomState) -> Tensor:
    """Shift both ends of spans (P, 2), in steps, by up to a fraction of their duration, at random.

    The start is clamped to 0, and the duration is at least MIN_STEPS. With fraction 0 the spans are returned unchanged.
    """
    if max_shift_fraction == 0.0:
        return spans
    shifted = spans + torch.from_numpy(rng.uniform(-max_shift_fraction, max_shift_fraction, spans.shape)).float() * (
        spans[:, 1:] - spans[:, :1]
    )
    start = shifted[:, 0].clamp(min=0.0)
    return torch.stack([start, torch.maximum(shifted[:, 1], start + MIN_STEPS)], dim=1)


class ProposalLoader(SequenceLoader):
    """Load batches of uncropped sequences with their proposals, padded to the longest sequence of the batch.

    Args:
        features: videos with actions and proposals (`select_with_proposals`). proposals: of these videos.
        feature_settings: of reading the features. proposal_settings: number and jitter of the proposals.
        loader_settings: see `SequenceLoader`.
    """

    def __init__(
        self,
        features: FeatureSet,
        proposals: ProposalSet,
        feature_settings: FeatureSettings,
        proposal_settings: ProposalSettings,
        loader_settings: LoaderSettings,
    ) -> None:
        super().__init__(features, feature_settings, feature_settings.resized or 0, loader_settings)
        self.proposals, self.proposal_settings = proposals, proposal_settings

    def _read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (C, T), and the positions of the actions (G, 2) and of the proposals (P, 2)."""
        video = self.features.videos[index]
        features = read_padded_sequence(video, self.settings)
        spans = self.proposals.for_video(video).spans[: self.proposal_settings.top_k]
        truths, proposals = (torch.from_numpy(features.positions(seconds)).float() for seconds in (video.spans, spans))
        return features.values, truths, proposals

    def _batch(self, k: int, indices: list[int]) -> ProposalBatch:
        values, truths, proposals_by_video = zip(*(self._cached_sample(index) for index in indices), strict=True)
        jittered = []
        for index, proposals_of_video in zip(indices, proposals_by_video, strict=True):
            seed = np.random.SeedSequence([self.loader_settings.seed, k, index, 2]).generate_state(4)
            jittered.append(
                jitter_spans(proposals_of_video, self.proposal_settings.jitter, np.random.RandomState(seed))
            )
        return ProposalBatch(
            *self._pad(indices, values, max(features.shape[1] for features in values)),
            tuple(self.features.videos[index].id for index in indices),
            truths,
            tuple(torch.zeros(len(actions), dtype=torch.long) for actions in truths),
            proposals=tuple(jittered),
        )
