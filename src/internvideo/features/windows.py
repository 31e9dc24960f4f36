"""Iterate over the clips of sliding windows of a video, in memory that does not grow with the length of the video.

The frames of the windows are selected before decoding. Only these are resized and cropped, and each is released when
the last window that uses it has been yielded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from internvideo.data.key_frame_indices import SLACK as END_TOLERANCE
from internvideo.data.preprocessing import SLACK, Preprocessing, Span
from internvideo.data.sampling import Indices
from internvideo.errors import RecipeError, VideoError
from internvideo.video.damage import DamageError
from internvideo.video.pool import borrow
from internvideo.video.reader import BUDGET, Video, VideoInfo
from internvideo.video.sequential import iter_frames

MAX_SECONDS = 24 * 3600.0
"""Maximum duration of a video, whose frame index is held in memory; `internvideo stream` reads longer ones."""

SECONDS_PER_BYTE = 1e-6
"""Added to the time limit per byte of a file: some files can only be indexed by decoding all frames."""

SpanT = TypeVar("SpanT", bound=tuple[float, ...])


class ClipWindow(NamedTuple):
    """A window of a video, start <= time < end in seconds from the video's start, and its clip (3, T, S, S)."""

    start: float
    end: float
    clip: Tensor


def spans(
    start: float, end: float, window_seconds: float | None, stride_seconds: float | None = None
) -> list[tuple[float, float]]:
    """Return the windows of a video: one per stride until they cover all of it.

    Args:
        start, end: of the video, in seconds.
        window_seconds: None for one window over the whole video. stride_seconds: `window_seconds` by default.

    Returns:
        (start, end) of each window in seconds; the last one is shorter if the video ends in it.

    Raises:
        RecipeError: a window or stride that is not above 0.
    """
    check_window(window_seconds, stride_seconds)
    if window_seconds is None:
        return [(start, end)]
    stride = window_seconds if stride_seconds is None else stride_seconds
    windows_: list[tuple[float, float]] = []
    begin = start
    while not windows_ or (begin < end - SLACK and windows_[-1][1] < end - SLACK):
        windows_.append((begin, min(begin + window_seconds, end)))
        begin = start + len(windows_) * stride
    return windows_


def check_window(window_seconds: float | None, stride_seconds: float | None) -> None:
    """Raise RecipeError for a window or stride that is not above 0, or a stride without a window."""
    if window_seconds is None and stride_seconds is not None:
        raise RecipeError("stride_seconds", f"{stride_seconds:g} without a window", "", "give window_seconds too")
    for name, seconds in (("window_seconds", window_seconds), ("stride_seconds", stride_seconds)):
        if seconds is not None and not 0 < seconds < float("inf"):
            raise RecipeError(name, f"{seconds:g}", "more than 0 seconds")


def past_end_message(info: VideoInfo, end: float | None) -> str:
    """Return a message for a span that ends after its video, "" for any other."""
    if end is None or end <= info.duration + END_TOLERANCE:
        return ""
    return f"the span ends at {end:g} s, the video at {info.duration:.3f} s"


def open_long_video(
    path: str | Path, short_side: int | None = None, *, fps: float | None = None
) -> AbstractContextManager[Video]:
    """Open a video that may be hours long, with a time limit by file size (see `video.pool.borrow`). VideoError."""
    try:
        size = os.stat(path).st_size
    except (OSError, ValueError):
        size = 0  # reported when the file is opened
    budget = BUDGET + SECONDS_PER_BYTE * size
    return borrow(path, short_side=short_side, max_seconds=MAX_SECONDS, budget=budget, fps=fps)


def windows(
    source: str | Path | Span,
    preprocessing: Preprocessing,
    *,
    window_seconds: float | None = None,
    stride_seconds: float | None = None,
) -> Iterator[ClipWindow]:
    """Yield the clips of the windows of a video in order; each equals `preprocessing.clip(video, start, end)`.

    The file is decoded in one pass, which skips what no window needs.

    Args:
        source: a file or a span of one.
        preprocessing: of the model.
        window_seconds, stride_seconds: see `spans`.

    Yields:
        (start, end, clip), by increasing start.

    Raises:
        VideoError: also during the iteration; the windows before the damage have been yielded by then.
        RecipeError: a window or stride that is not above 0.
    """
    check_window(window_seconds, stride_seconds)
    size = {"window_seconds": window_seconds, "stride_seconds": stride_seconds}
    if isinstance(source, Span):
        start, end, path, fps = source.start, source.end, source.path, source.fps
    else:
        start, end, path, fps = None, None, source, None
    with open_long_video(path, preprocessing.short_side, fps=fps) as video:
        yield from windows_of(video, preprocessing, start, end, **size)


def windows_of(
    video: Video,
    preprocessing: Preprocessing,
    start: float | None = None,
    end: float | None = None,
    *,
    window_seconds: float | None = None,
    stride_seconds: float | None = None,
) -> Iterator[ClipWindow]:
    """Yield the `windows` of an open video, or of its span from `start` to `end` s; do not use the video meanwhile."""
    duration = video.info.duration
    begin = 0.0 if start is None else max(start, 0.0)
    # A span that begins after the end of the video is left as it is: choosing its frames raises the error.
    stop = duration if end is None else min(end, duration) if begin < duration else end
    for span, clip in clips_of_spans(video, preprocessing, spans(begin, stop, window_seconds, stride_seconds)):
        yield ClipWindow(*span, clip)


def clips_of_spans(
    video: Video, preprocessing: Preprocessing, spans: Sequence[SpanT], *, by_last_frame: bool = False
) -> Iterator[tuple[SpanT, Tensor]]:
    """Yield (span, clip) of spans of an open video, in one decoding pass.

    Args:
        video: do not use it during the iteration. preprocessing: of the model.
        spans: tuples (start, end, ...), seconds. Spans without an intact frame are left out.
        by_last_frame: yield in the order of the last frame of each span, so that no clip waits for frames of another.

    Raises:
        VideoError: no span has an intact frame. Also during the iteration, as `iter_clips`.
    """
    readable = []
    for span in spans:
        try:
            readable.append((span, preprocessing.frame_indices(video, span[0], span[1])[0]))
        except DamageError:  # no intact frame
            continue
    if not readable:
        raise VideoError(video.path, "no intact frame in any window")
    if by_last_frame:
        readable.sort(key=lambda item: (int(item[1].max()), item[0]))
    clips = iter_clips(video, preprocessing, [indices for _, indices in readable])
    for (span, indices), clip in zip(readable, clips, strict=True):
        if video.damage != "skip" or not video.is_missing(indices).all():
            yield span, clip


def iter_clips(video: Video, preprocessing: Preprocessing, frame_indices: Sequence[Indices]) -> Iterator[Tensor]:
    """Yield the clips (3, T, S, S) of an open video from the frame indices (T,) of each, in one decoding pass.

    Damaged frames are replaced by the intact ones before them, unless the damage policy of the video is "stop". Do not
    use the video meanwhile.

    Raises:
        VideoError: also during the iteration; the clips before the damage have been yielded by then.
    """
    position = 0
    while position < len(frame_indices):
        remaining = [video.replace_damaged(indices, skipped=True) for indices in frame_indices[position:]]
        try:
            for clip in decode_clips(video, preprocessing, remaining):
                yield clip
                position += 1
        except DamageError:  # found while decoding
            if video.damage == "stop" or video.is_missing(np.arange(video.info.frames)).all():
                raise


def decode_clips(video: Video, preprocessing: Preprocessing, frame_indices: Sequence[Indices]) -> Iterator[Tensor]:
    """Yield the clips of frames without known damage, as `iter_clips`. Raises DamageError for a damaged frame."""
    needed = np.unique(np.concatenate(frame_indices))
    # The first frame that this or any later clip needs: frames before it can be dropped.
    earliest = np.minimum.accumulate([indices.min() for indices in frame_indices][::-1])[::-1]
    frame_cache: dict[int, Tensor] = {}
    position = 0
    for index, frame in zip(needed.tolist(), iter_frames(video, needed), strict=True):
        frame_cache[index] = preprocessing.transform_frames(frame[None])
        while position < len(frame_indices) and frame_indices[position].max() <= index:
            yield torch.cat([frame_cache[i] for i in frame_indices[position].tolist()], dim=1)
            position += 1
            if position < len(frame_indices):
                for i in [i for i in frame_cache if i < earliest[position]]:
                    del frame_cache[i]
