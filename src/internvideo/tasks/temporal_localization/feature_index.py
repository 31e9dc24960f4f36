"""Validate the index of a feature folder, in ActivityNet's format; report skipped segments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from internvideo.data.sample import MAX_CLASSES
from internvideo.datasets.activitynet import AMBIGUOUS
from internvideo.errors import ManifestError, shown
from internvideo.terminal import LOGGER

Floats = NDArray[np.floating[Any]]
Seconds = Annotated[float, Field(gt=-1e7, lt=1e7)]


class SegmentEntry(BaseModel):
    """A segment in seconds and its class."""

    segment: tuple[Seconds, Seconds]
    label: str
    label_id: int | None = Field(None, ge=0, lt=MAX_CLASSES)


class GridEntry(BaseModel):
    """Temporal grid of features: frames per second, frames between features, frames per feature."""

    fps: float | None = Field(None, ge=0.0, lt=1e6)
    stride: float | None = Field(None, ge=0.0, lt=1e6)
    window: float | None = Field(None, ge=0.0, lt=1e6)


class VideoEntry(GridEntry):
    """A video of an index; duration in seconds."""

    subset: str = ""
    duration: float = Field(gt=0.0, lt=1e7)
    annotations: list[SegmentEntry] = []


class IndexFile(BaseModel):
    """The content of an index file."""

    database: dict[str, VideoEntry]
    protocol: GridEntry = GridEntry()
    classes: list[str] | None = None


@dataclass(frozen=True)
class FeatureGrid:
    """Temporal positions of features in a video.

    Attributes:
        fps: frames per second. stride: frames from one window to the next. window: frames of a window.
        duration: of the video, seconds.
    """

    fps: float
    stride: float
    window: float
    duration: float

    def steps(self, seconds: Floats) -> Floats:
        """Convert seconds to feature steps (float)."""
        result: Floats = (seconds * self.fps - 0.5 * self.window) / self.stride
        return result

    def to_seconds(self, steps: Floats) -> Floats:
        """Convert feature steps to seconds, clipped to the duration of the video."""
        result: Floats = np.clip((steps * self.stride + 0.5 * self.window) / self.fps, 0.0, self.duration)
        return result


def drop_invalid_segments(entries: Mapping[str, VideoEntry], classes: Collection[str], source: Path) -> None:
    """Remove segments without duration, and ambiguous ones unless that is a class, as published loaders do."""
    skipped: Counter[str] = Counter()
    for entry in entries.values():
        valid = []
        for segment in entry.annotations:
            if segment.label.casefold() == AMBIGUOUS and segment.label not in classes:
                skipped["ambiguous segments"] += 1
            elif segment.segment[1] <= segment.segment[0]:
                skipped["segments that end where they start or before"] += 1
            else:
                valid.append(segment)
        entry.annotations = valid
    for reason, count in skipped.items():
        _warn(source, f"{count:,} {reason} skipped")


def class_names(entries: Mapping[str, VideoEntry]) -> list[str]:
    """Return the class names of an index without a list of classes, ordered by label id if it has ids, else by name."""
    ids = {segment.label: segment.label_id for entry in entries.values() for segment in entry.annotations}
    name_of = {number: name for name, number in ids.items() if number is not None}
    if not ids or None in ids.values():
        return sorted(ids)
    return [name_of.get(number, f"class {number}") for number in range(max(name_of) + 1)]


def check_action_starts(starts: Sequence[tuple[Floats, float]], source: Path) -> None:
    """Report actions that start after the end of their video.

    Args:
        starts: starts of the actions and duration, in seconds, of each video. source: path of the index.

    Raises:
        ManifestError: more than half of the actions do; then the videos are probably not those that were annotated.
    """
    num_late = sum(int((video_starts >= length).sum()) for video_starts, length in starts)
    num_actions = sum(len(video_starts) for video_starts, _ in starts)
    found = f"{num_late:,} of {num_actions:,} actions start after the end of their video"
    if num_late * 2 > num_actions:
        raise ManifestError(source, found, "times in the videos", "were the videos cut? internvideo prepare --offset")
    if num_late:
        _warn(source, found)


def _warn(source: Path, note: str) -> None:
    LOGGER.warning("%s: %s", shown(str(source)), shown(note))
