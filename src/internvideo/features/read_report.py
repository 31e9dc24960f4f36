"""What became of the videos that somebody asked for: how many, which of them made trouble, and how fast it went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from internvideo.errors import VideoError


class Trouble(NamedTuple):
    """A video that was not read, or not to its end; `id` of its row where it has one."""

    path: str
    reason: str
    id: str = ""


@dataclass
class Coverage:
    """What became of the videos asked for.

    Attributes:
        asked, earlier, elsewhere: videos; those done before; those that other processes did or are doing.
        read: videos of this run that gave a vector.
        vectors, width: how many (of a table all of them, of a folder those of this run), and numbers in each.
        partly, unreadable: videos read up to some damage, and those not read at all.
        video_seconds, seconds: of video looked at in this run, and of work.
    """

    asked: int
    width: int = 0
    earlier: int = 0
    elsewhere: int = 0
    read: int = 0
    vectors: int = 0
    partly: list[Trouble] = field(default_factory=list)
    unreadable: list[Trouble] = field(default_factory=list)
    video_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        """Seconds of video a second."""
        return self.video_seconds / self.seconds if self.seconds else 0.0

    @property
    def pace(self) -> str:
        """The same in words, "" when nothing was looked at."""
        if not (self.seconds and self.video_seconds):
            return ""
        return f"{self.video_seconds:.1f} s of video in {self.seconds:.1f} s, {self.speed:.1f}x real time"

    def refuse(self) -> None:
        """Raise VideoError with the first reason: not one video could be read."""
        path, reason, _ = self.unreadable[0]
        raise VideoError(path, f"{reason}; not one of {self.asked} videos could be read" if self.asked > 1 else reason)
