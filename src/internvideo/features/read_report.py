"""Report how many of the requested videos were read, which of them failed or were truncated, and the throughput."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from internvideo.errors import VideoError


class ReadFailure(NamedTuple):
    """A video that could not be read, or not to its end; `id` is that of its row in a manifest or ""."""

    path: str
    reason: str
    id: str = ""


@dataclass
class ReadReport:
    """Counts and failures of a run over many videos.

    Attributes:
        requested: number of videos of the run. resumed: number of these that an earlier run finished.
        other_workers: number of these that other processes have finished or are reading.
        read: number of videos from which this run computed at least one vector.
        vectors, dim: number of vectors (`embed`: all of the table; `extract`: those of this run) and their dimension.
        truncated, unreadable: videos that were read only up to a damaged frame, and videos of which nothing was read.
        video_seconds, seconds: seconds of video that this run decoded, and wall time that it took.
        devices: number of models that ran at the same time (on a Ray cluster one per GPU).
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
        """Seconds of video per second of wall time."""
        return self.video_seconds / self.seconds if self.seconds else 0.0

    @property
    def throughput(self) -> str:
        """The speed as text, "" when nothing was decoded."""
        if not (self.seconds and self.video_seconds):
            return ""
        text = f"{self.video_seconds:.1f} s of video in {self.seconds:.1f} s, {self.speed:.1f}x real time"
        return text if self.devices == 1 else f"{text}, {self.speed / self.devices:.1f} video hours per device hour"

    def raise_unreadable(self) -> None:
        """Raise VideoError with the reason of the first failure, for a run in which no video could be read."""
        path, reason, _ = self.unreadable[0]
        others = f"; none of {self.requested} videos could be read" if self.requested > 1 else ""
        raise VideoError(path, reason + others)
