"""Frames of a long video one after another, on a single way through the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.video.damage import DamageError
from internvideo.video.opening import Deadline, cannot_be_read
from internvideo.video.reader import BUDGET, Video

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
    while given < len(wanted):
        numbers, times = np.unique(video.stand_ins(wanted[given:]), return_counts=True)
        sound = numbers[: int(np.argmax(np.append(video.lacks(numbers), True)))]
        try:
            for picture, count in zip(_in_turn(video.pictures(sound, deadline), sound), times, strict=False):
                frame = video.upright(picture)
                for _ in range(int(count)):
                    yield frame
                given += int(count)
                deadline.renew()
            video.check(numbers)
        except DamageError:
            if video.damage != "repeat":
                yield from _before(video, wanted[given:])
                raise
        except Exception as error:  # as in Video.frames: whatever a library raises is this file's fault
            yield from _before(video, wanted[given:])
            raise cannot_be_read(video.path, error) from error


def _before(video: Video, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """The frames before the first damaged one, which are held while its damage could still show."""
    for index in wanted[: HELD + 1].tolist():
        if video.lacks(np.array([index])).any():
            return
        yield video.frames([index])[0]


def _in_turn(pictures: Iterator[tuple[int, Any]], wanted: NDArray[np.int64]) -> Iterator[Any]:
    """The pictures of `wanted` in its order, and none before so many others came that damage would have shown."""
    held: dict[int, Any] = {}
    turn = iter(wanted.tolist())
    following = next(turn, None)
    for number, picture in pictures:
        if following is not None and number >= following:  # else given before, and decoded anew after damage
            held[number] = picture
        while len(held) > HELD and following in held:
            yield held.pop(following)
            following = next(turn, None)
    while following in held:
        yield held.pop(following)
        following = next(turn, None)
