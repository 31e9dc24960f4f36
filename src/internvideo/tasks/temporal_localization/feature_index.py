"""Validate annotations in ActivityNet's format beside features; report what is skipped."""

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
Second = Annotated[float, Field(gt=-1e7, lt=1e7)]


class Part(BaseModel):
    """A segment (s) and its class."""

    segment: tuple[Second, Second]
    label: str
    label_id: int | None = Field(None, ge=0, lt=MAX_CLASSES)


class Grid(BaseModel):
    """Sampling of features: frames per second, frames between features, frames per feature."""

    fps: float | None = Field(None, ge=0.0, lt=1e6)
    stride: float | None = Field(None, ge=0.0, lt=1e6)
    window: float | None = Field(None, ge=0.0, lt=1e6)


class Entry(Grid):
    """A video of an index; duration in seconds."""

    subset: str = ""
    duration: float = Field(gt=0.0, lt=1e7)
    annotations: list[Part] = []


class Index(BaseModel):
    """The content of an index file."""

    database: dict[str, Entry]
    protocol: Grid = Grid()
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
        """Convert feature steps to seconds, clipped to the video."""
        result: Floats = np.clip((steps * self.stride + 0.5 * self.window) / self.fps, 0.0, self.duration)
        return result


def drop_invalid_segments(entries: Mapping[str, Entry], classes: Collection[str], source: Path) -> None:
    """Remove what published loaders skip: segments without duration, and ambiguous ones unless that is a class."""
    skipped: Counter[str] = Counter()
    for entry in entries.values():
        valid = []
        for part in entry.annotations:
            if part.label.casefold() == AMBIGUOUS and part.label not in classes:
                skipped["ambiguous segments"] += 1
            elif part.segment[1] <= part.segment[0]:
                skipped["segments that end where they start or before"] += 1
            else:
                valid.append(part)
        entry.annotations = valid
    for what, count in skipped.items():
        _warn(source, f"{count:,} {what} skipped")


def classes_of(entries: Mapping[str, Entry]) -> list[str]:
    """Return the class names of other annotations, ordered by label id if there are ids, else sorted."""
    ids = {part.label: part.label_id for entry in entries.values() for part in entry.annotations}
    name_of = {number: name for name, number in ids.items() if number is not None}
    if not ids or None in ids.values():
        return sorted(ids)
    return [name_of.get(number, f"class {number}") for number in range(max(name_of) + 1)]


def check_ends(starts: Sequence[tuple[Floats, float]], source: Path) -> None:
    """Report actions that start after the end of their video; `starts` has starts and duration (s) of each video.

    Raises:
        ManifestError: most of them do, so the videos are not those that were annotated, or parts of them.
    """
    late = sum(int((own >= length).sum()) for own, length in starts)
    count = sum(len(own) for own, _ in starts)
    found = f"{late:,} of {count:,} actions start after the end of their video"
    if late * 2 > count:
        raise ManifestError(source, found, "times in the videos", "were the videos cut? internvideo prepare --offset")
    if late:
        _warn(source, found)


def _warn(source: Path, note: str) -> None:
    LOGGER.warning("%s: %s", shown(str(source)), shown(note))
