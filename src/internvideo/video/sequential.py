"""Decode the frames of a long video sequentially, in one pass over the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.video.damage import DamageError
from internvideo.video.opening import Deadline, as_video_error
from internvideo.video.reader import BUDGET, Video

REORDER_BUFFER = 16
"""Maximum number of frames between the first frame that depends on damaged data and the decoder's error."""


def iter_frames(video: Video, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Iterator[NDArray[np.uint8]]:
    """Yield frames one at a time; each frame is decoded once.

    Args:
        video: open; must not be used for other reads during the iteration.
        indices: strictly increasing, each in [0, info.frames).

    Yields: (H, W, 3) uint8 RGB, upright, equal to those of `Video.frames`.

    Raises VideoError: also during the iteration, after every frame before the damage was yielded.
    """
    wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
    if (np.diff(wanted) <= 0).any():
        raise ValueError("indices must be strictly increasing")
    deadline, num_yielded = Deadline(video.path, BUDGET), 0
    while num_yielded < len(wanted):
        unique, counts = np.unique(video.replace_damaged(wanted[num_yielded:]), return_counts=True)
        intact = unique[: int(np.argmax(np.append(video.is_missing(unique), True)))]
        try:
            for frame, count in zip(_reorder(video.decoded_frames(intact, deadline), intact), counts, strict=False):
                rgb = video.to_rgb(frame)
                for _ in range(int(count)):
                    yield rgb
                num_yielded += int(count)
                deadline.renew()
            video.check_indices(unique)
        except DamageError:
            if video.damage != "repeat":
                yield from _frames_before_damage(video, wanted[num_yielded:])
                raise
        except Exception as error:  # as in Video.frames: whatever a library raises is an error of this file
            yield from _frames_before_damage(video, wanted[num_yielded:])
            raise as_video_error(video.path, error) from error


def _frames_before_damage(video: Video, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames before the first damaged one that are still in the reorder buffer."""
    for index in wanted[: REORDER_BUFFER + 1].tolist():
        if video.is_missing(np.array([index])).any():
            return
        yield video.frames([index])[0]


def _reorder(frames: Iterator[tuple[int, Any]], wanted: NDArray[np.int64]) -> Iterator[Any]:
    """Yield the frames of `wanted` in order, delayed by `REORDER_BUFFER` frames so that damage is known by then."""
    buffer: dict[int, Any] = {}
    pending = iter(wanted.tolist())
    expected = next(pending, None)
    for index, frame in frames:
        if expected is not None and index >= expected:  # else yielded before, and decoded again after damage
            buffer[index] = frame
        while len(buffer) > REORDER_BUFFER and expected in buffer:
            yield buffer.pop(expected)
            expected = next(pending, None)
    while expected in buffer:
        yield buffer.pop(expected)
        expected = next(pending, None)
