"""Report how many of the requested videos were read, which of them failed or were truncated, and the throughput."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from internvideo.errors import VideoError


class ReadFailure(NamedTuple):
    """A video that could not be read, or not to its end; `id` of its row where it has one."""

    path: str
    reason: str
    id: str = ""


@dataclass
class ReadReport:
    """Counts and failures of a run over many videos.

    Attributes:
        requested: number of videos. resumed: of these, done by an earlier run. other_workers: done, or being done, by
            other processes.
        read: videos of this run that gave at least one vector.
        vectors, dim: number of vectors (of a table all of them, of a folder those of this run) and their dimension.
        truncated, unreadable: videos read up to some damage, and those not read at all.
        video_seconds, seconds: duration of the video decoded in this run, and time that it took.
        devices: models that ran at the same time (on a cluster one per GPU).
    """

    requested: int
    dim: int = 0
    resumed: int = 0
    other_workers: int = 0
    read: int = 0
    vectors: int = 0
    truncated: list[ReadFailure] = field(default_factory=list)
    unreadable: list[ReadFailure] = field(default_factory=list)
    video_seconds: float = 0.0
    seconds: float = 0.0
    devices: int = 1

    @property
    def speed(self) -> float:
        """Seconds of video per second of work."""
        return self.video_seconds / self.seconds if self.seconds else 0.0

    @property
    def throughput(self) -> str:
        """The speed as text, "" when nothing was decoded."""
        if not (self.seconds and self.video_seconds):
            return ""
        text = f"{self.video_seconds:.1f} s of video in {self.seconds:.1f} s, {self.speed:.1f}x real time"
        return text if self.devices == 1 else f"{text}, {self.speed / self.devices:.1f} video hours per device hour"

    def raise_unreadable(self) -> None:
        """Raise VideoError with the first reason: no video could be read."""
        path, reason, _ = self.unreadable[0]
        count = self.requested
        raise VideoError(path, f"{reason}; not one of {count} videos could be read" if count > 1 else reason)
