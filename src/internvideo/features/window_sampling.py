"""Place sliding windows of a number of frames in a video and choose the frames of each (time axis of ActionFormer).

Feature g of a video at `fps` frames per second covers the frames g * stride to g * stride + window, so its center
is at (g * stride + window / 2) / fps seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from internvideo.data.preprocessing import SLACK
from internvideo.data.sampling import Indices
from internvideo.errors import RecipeError, VideoError
from internvideo.video.reader import VideoInfo

MAX_FPS = 1000.0


@dataclass(frozen=True)
class WindowRule:
    """Sliding windows in frames.

    Attributes:
        window_frames, stride_frames: length of a window, and distance between the starts of windows, at `fps`.
        fps: frames per second of the grid; None for the rate of the file.

    Raises:
        RecipeError: a number out of range.
    """

    window_frames: int = 16
    stride_frames: int = 4
    fps: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("window_frames", self.window_frames), ("stride_frames", self.stride_frames)):
            if value < 1:
                raise RecipeError(name, str(value), "1 or more")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise RecipeError("fps", f"{self.fps:g}", f"above 0, at most {MAX_FPS:g}")


@dataclass(frozen=True)
class FrameGrid:
    """The windows of one video.

    Attributes:
        fps: frames per second of the grid. indices: (n,) index of the file's frame at each position of the grid.
        duration: of the video or span, in seconds.
    """

    rule: WindowRule
    fps: float
    indices: Indices
    duration: float

    @property
    def starts(self) -> range:
        """Grid position of the start of each window: all windows that lie completely in the video, at least one."""
        return range(0, max(len(self.indices) - self.rule.window_frames, 0) + 1, self.rule.stride_frames)

    def frame_indices(self, num_frames: int) -> list[Indices]:
        """Return the indices (T,) of the frames of every window, T = `num_frames`: the centers of T equal segments.

        With T = window_frames these are all frames of the window. The last frame of a short video is repeated.
        """
        offsets = ((np.arange(num_frames) + 0.5) * self.rule.window_frames / num_frames).astype(np.int64)
        last = len(self.indices) - 1
        return [self.indices[np.minimum(start + offsets, last)] for start in self.starts]


def frame_grid(info: VideoInfo, rule: WindowRule, start: float | None = None, end: float | None = None) -> FrameGrid:
    """Compute the grid of a video, or of its span from `start` to `end` seconds.

    At the rate of the file, if that is constant, the grid has every frame once. Otherwise it has the frame that is
    shown at each multiple of 1 / fps seconds.

    Raises:
        VideoError: a span without a frame.
    """
    begin = 0.0 if start is None else max(start, 0.0)
    stop = info.duration if end is None else min(end, info.duration)
    if stop - begin <= SLACK:
        raise VideoError(info.path, f"no frame from {begin:g} s to {stop:g} s", f"0.000 s to {info.duration:.3f} s")
    fps = info.fps if rule.fps is None else rule.fps
    if rule.fps is None and not info.variable_rate and begin >= info.times[0] - SLACK:
        low, high = np.searchsorted(info.times, [begin - SLACK, stop - SLACK])
        indices = np.arange(low, max(high, low + 1), dtype=np.int64).clip(max=info.frames - 1)
    else:
        num_positions = max(int(np.ceil((stop - begin) * fps - 1e-3)), 1)
        indices = np.searchsorted(info.times, begin + np.arange(num_positions) / fps + SLACK, side="right") - 1
        indices = indices.clip(0, info.frames - 1).astype(np.int64)
    return FrameGrid(rule, fps, indices, stop - begin)
