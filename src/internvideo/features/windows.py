"""Windows over videos of any length, in memory that does not grow with it.

It is known before anything is decoded which frames the windows need; these alone are kept, already cut to the model's
square, and only until the last window that needs them has been given.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from internvideo.data.key_frame_indices import SLACK as LATE
from internvideo.data.preprocessing import SLACK, Preprocessing, Span
from internvideo.data.sampling import Indices
from internvideo.errors import RecipeError, VideoError
from internvideo.video.damage import DamageError
from internvideo.video.pool import borrow
from internvideo.video.reader import BUDGET, Video, VideoInfo
from internvideo.video.sequential import iter_frames

MAX_SECONDS = 24 * 3600.0
"""Longest video, s; its table of frames is held in memory. Longer ones can be streamed."""

SECONDS_PER_BYTE = 1e-6
"""Patience with files whose frames can only be found by decoding all of them."""


class Window(NamedTuple):
    """A piece of a video, start <= time < end in seconds from the video's start, and its clip (3, T, S, S)."""

    start: float
    end: float
    clip: Tensor


def spans(start: float, end: float, window: float | None, stride: float | None = None) -> list[tuple[float, float]]:
    """The windows of a video: one every `stride` seconds until all of it has been seen.

    Args:
        start, end: s, of the video.
        window: s; None is the whole video. stride: s; `window` when not given.

    Returns:
        (start, end) of each; the last is shorter where the video ends in it.

    Raises:
        RecipeError: a window or stride that is not above 0.
    """
    check_window(window, stride)
    if window is None:
        return [(start, end)]
    step = window if stride is None else stride
    found: list[tuple[float, float]] = []
    begin = start
    while not found or (begin < end - SLACK and found[-1][1] < end - SLACK):
        found.append((begin, min(begin + window, end)))
        begin = start + len(found) * step
    return found


def check_window(window: float | None, stride: float | None) -> None:
    """Raise RecipeError for lengths that make no windows."""
    if window is None and stride is not None:
        raise RecipeError("stride", f"{stride:g} s without a window", "", "give the window too")
    for name, seconds in (("window", window), ("stride", stride)):
        if seconds is not None and not 0 < seconds < float("inf"):
            raise RecipeError(name, f"{seconds:g} s", "more than 0 seconds")


def behind(info: VideoInfo, end: float | None) -> str:
    """What to tell of a piece that ends behind its video, "" where it does not."""
    if end is None or end <= info.duration + LATE:
        return ""
    return f"the piece ends at {end:g} s, the video at {info.duration:.3f} s"


def open_long(
    path: str | Path, short_side: int | None = None, *, fps: float | None = None
) -> AbstractContextManager[Video]:
    """A video that may be hours long, with time to look through it (see `video.pool.borrow`). Raises VideoError."""
    try:
        size = os.stat(path).st_size
    except (OSError, ValueError):
        size = 0  # what is wrong with it is told when it is opened
    return borrow(
        path, short_side=short_side, max_seconds=MAX_SECONDS, budget=BUDGET + SECONDS_PER_BYTE * size, fps=fps
    )


def windows(
    source: str | Path | Span,
    preprocessing: Preprocessing,
    *,
    window: float | None = None,
    stride: float | None = None,
) -> Iterator[Window]:
    """Clips of a video one after another; each equals `preprocessing.clip(video, start, end)`.

    The file is decoded once, and only where a window needs it.

    Args:
        source: a file or a piece of one.
        preprocessing: of the model.
        window, stride: s, see `spans`.

    Yields:
        (start, end, clip), by rising start.

    Raises:
        VideoError: also on the way; the windows before the damage have been given then.
        RecipeError: a window or stride that is not above 0.
    """
    path, start, end = (source.path, source.start, source.end) if isinstance(source, Span) else (source, None, None)
    check_window(window, stride)
    fps = source.fps if isinstance(source, Span) else None
    with open_long(path, preprocessing.short_side, fps=fps) as video:
        yield from windows_of(video, preprocessing, start, end, window=window, stride=stride)


def windows_of(
    video: Video,
    preprocessing: Preprocessing,
    start: float | None = None,
    end: float | None = None,
    *,
    window: float | None = None,
    stride: float | None = None,
) -> Iterator[Window]:
    """`windows` of an open video, or of its piece from `start` to `end` s; ask nothing else of it on the way."""
    last = video.info.duration
    begin = 0.0 if start is None else max(start, 0.0)
    # A piece that begins behind the end of the video is left as it is: choosing its frames tells what is wrong.
    stop = last if end is None else min(end, last) if begin < last else end
    pieces, chosen = [], []
    for piece in spans(begin, stop, window, stride):
        try:
            chosen.append(preprocessing.chosen(video, *piece)[0])
            pieces.append(piece)
        except DamageError:  # not one sound frame: left out
            continue
    if not pieces:
        raise VideoError(video.path, "no sound frame in any window")
    for piece, frames, clip in zip(pieces, chosen, clips_of(video, preprocessing, chosen), strict=True):
        if video.damage != "skip" or not video.is_missing(frames).all():
            yield Window(*piece, clip)


def clips_of(video: Video, preprocessing: Preprocessing, chosen: Sequence[Indices]) -> Iterator[Tensor]:
    """Clips (3, T, S, S) of an open video from the frame numbers (T,) of each, on one way through the file.

    Only frames that a later clip needs are kept, already cut to the model's square. In the place of damaged frames
    stand the sound ones before them, unless the video stops there. Ask nothing else of the video on the way.

    Raises:
        VideoError: also on the way; the clips before the damage have been given then.
    """
    turn = 0
    while turn < len(chosen):
        left = [video.replace_damaged(indices, skipped=True) for indices in chosen[turn:]]
        try:
            for clip in clips_on_one_way(video, preprocessing, left):
                yield clip
                turn += 1
        except DamageError:  # it has come to light on the way
            if video.damage == "stop" or video.is_missing(np.arange(video.info.frames)).all():
                raise


def clips_on_one_way(video: Video, preprocessing: Preprocessing, chosen: Sequence[Indices]) -> Iterator[Tensor]:
    """`clips_of` of sound frames. Raises DamageError where one proves to be damaged."""
    needed = np.unique(np.concatenate(chosen))
    # What any window from here on needs: frames before it can go.
    earliest = np.minimum.accumulate([indices.min() for indices in chosen][::-1])[::-1]
    kept: dict[int, Tensor] = {}
    turn = 0
    for index, frame in zip(needed.tolist(), iter_frames(video, needed), strict=True):
        kept[index] = preprocessing.square(frame[None])
        while turn < len(chosen) and chosen[turn].max() <= index:
            yield torch.cat([kept[number] for number in chosen[turn].tolist()], dim=1)
            turn += 1
            if turn < len(chosen):
                for number in [number for number in kept if number < earliest[turn]]:
                    del kept[number]
