"""Annotations in ActivityNet's form beside features: what is meant, and what is skipped and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from internvideo.data.sample import MAX_CLASSES
from internvideo.datasets.activitynet import AMBIGUOUS
from internvideo.errors import ManifestError, shown
from internvideo.terminal import LOGGER

Second = Annotated[float, Field(gt=-1e7, lt=1e7)]


class Part(BaseModel):
    """A segment (s) and its class."""

    segment: tuple[Second, Second]
    label: str
    label_id: int | None = Field(None, ge=0, lt=MAX_CLASSES)


class Grid(BaseModel):
    """Frames a second, frames between features, frames of one."""

    fps: float | None = Field(None, ge=0.0, lt=1e6)
    stride: float | None = Field(None, ge=0.0, lt=1e6)
    window: float | None = Field(None, ge=0.0, lt=1e6)


class Entry(Grid):
    """A video of an index; the duration in seconds."""

    subset: str = ""
    duration: float = Field(gt=0.0, lt=1e7)
    annotations: list[Part] = []


class Index(BaseModel):
    """The file."""

    database: dict[str, Entry]
    protocol: Grid = Grid()
    classes: list[str] | None = None


def meant(entries: Mapping[str, Entry], classes: Collection[str], source: Path) -> None:
    """Leave out what published loaders pass over: segments without length, ambiguous ones unless that is a class."""
    odd: Counter[str] = Counter()
    for entry in entries.values():
        kept = []
        for part in entry.annotations:
            if part.label.casefold() == AMBIGUOUS and part.label not in classes:
                odd["ambiguous segments"] += 1
            elif part.segment[1] <= part.segment[0]:
                odd["segments that end where they start or before"] += 1
            else:
                kept.append(part)
        entry.annotations = kept
    for what, count in odd.items():
        _tell(source, f"{count:,} {what} skipped")


def classes_of(entries: Mapping[str, Entry]) -> list[str]:
    """Class names of foreign annotations: in the order of their ids, otherwise of the alphabet."""
    found = {part.label: part.label_id for entry in entries.values() for part in entry.annotations}
    numbers = [number for number in found.values() if number is not None]
    if found and len(numbers) == len(found):
        names = [f"class {number}" for number in range(max(numbers) + 1)]
        for name, number in found.items():
            names[number or 0] = name
        return names
    return sorted(found)


def check_ends(starts: Sequence[tuple[NDArray[np.float64], float]], source: Path) -> None:
    """Tell of actions that begin behind the end of their video.

    Args:
        starts: of each video the starts of its actions and its length, s.

    Raises:
        ManifestError: most of them do: the videos are other ones, or parts of those that were annotated.
    """
    late = sum(int((own >= length).sum()) for own, length in starts)
    count = sum(len(own) for own, _ in starts)
    if late * 2 > count:
        found = f"{late:,} of {count:,} actions begin behind the end of their video"
        raise ManifestError(source, found, "times in the videos", "were the videos cut? internvideo prepare --offset")
    if late:
        _tell(source, f"{late:,} of {count:,} actions begin behind the end of their video")


def _tell(source: Path, note: str) -> None:
    LOGGER.warning("%s: %s", shown(str(source)), shown(note))
