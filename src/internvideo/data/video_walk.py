"""Frames of a long video one after another, on a single way through the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from internvideo.data.video import BUDGET, Video
from internvideo.data.video_open import Deadline, fail, reason_of
from internvideo.errors import VideoError

HELD = 16
"""Pictures, at most, between the first one that is built on damage and the damage showing."""


def walk(
    video: Video, indices: Sequence[int] | NDArray[np.integer[Any]], *, budget: float = BUDGET
) -> Iterator[NDArray[np.uint8]]:
    """Read any number of frames; no picture is decoded twice, and one frame is in memory at a time.

    Args:
        video: open; not to be asked for other frames on the way.
        indices: rising, without repeats, each in [0, info.frames).
        budget: seconds of work that each frame may take.

    Yields:
        (H, W, 3) uint8 RGB, upright, as `Video.frames` gives them.

    Raises:
        VideoError: also on the way; every frame before the damage has been given then.
    """
    wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
    if (np.diff(wanted) <= 0).any():
        raise ValueError("indices must rise")
    deadline, given = Deadline(video.path, budget), 0
    try:
        for picture in _in_turn(video.pictures(wanted, deadline)):
            yield video.upright(picture)
            given += 1
            deadline.renew()
    except (av.error.FFmpegError, VideoError) as error:
        for index in wanted[given : given + HELD + 1]:  # the first that is built on the damage raises
            yield video.frames([index])[0]
        if isinstance(error, VideoError):
            raise
        raise fail(video.path, f"cannot be read: {reason_of(error)}") from error


def _in_turn(pictures: Iterator[tuple[int, Any]]) -> Iterator[Any]:
    """Each picture once, by rising numbers, and not before so many later ones came that damage would have shown."""
    held: dict[int, Any] = {}
    latest = -1
    for number, picture in pictures:
        if number > latest or number in held:
            held[number], latest = picture, max(latest, number)
        if len(held) > HELD:
            yield held.pop(min(held))
    for number in sorted(held):
        yield held[number]
