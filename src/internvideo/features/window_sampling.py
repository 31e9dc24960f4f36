"""Sliding windows counted in frames: where they lie in a video and which frames a model sees (ActionFormer).

Feature number g of a video at `fps` frames a second stands for the frames g * stride to g * stride + window, so its
middle is at (g * stride + window / 2) / fps seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from internvideo.data.preprocessing import SLACK
from internvideo.data.sampling import Indices
from internvideo.errors import RecipeError, VideoError
from internvideo.video.reader import VideoInfo

MOST_FPS = 1000.0


@dataclass(frozen=True)
class WindowRule:
    """Windows in frames.

    Attributes:
        window, stride: frames, of a window and from one to the next.
        fps: frames a second; None for those of the file.

    Raises:
        RecipeError: a number out of range.
    """

    window: int = 16
    stride: int = 4
    fps: float | None = None

    def __post_init__(self) -> None:
        for name in ("window", "stride"):
            if getattr(self, name) < 1:
                raise RecipeError(name, f"{getattr(self, name)} frames", "1 or more")
        if self.fps is not None and not 0 < self.fps <= MOST_FPS:
            raise RecipeError("fps", f"{self.fps:g}", f"above 0, at most {MOST_FPS:g}")


@dataclass(frozen=True)
class FrameGrid:
    """The windows of one video.

    Attributes:
        fps: frames a second of the grid. numbers: the file's frame at each step of the grid.
        duration: s.
    """

    rule: WindowRule
    fps: float
    numbers: Indices
    duration: float

    @property
    def starts(self) -> range:
        """Step at which each window begins: all windows that lie in the video wholly, one at least."""
        return range(0, max(len(self.numbers) - self.rule.window, 0) + 1, self.rule.stride)

    def chosen(self, frames: int) -> list[Indices]:
        """Frame numbers (T,) of every window for a model that sees `frames`: the middles of T equal pieces.

        With T = window these are all its frames. A window behind the end of a short video sees its last frame again.
        """
        inside = ((np.arange(frames) + 0.5) * self.rule.window / frames).astype(np.int64)
        last = len(self.numbers) - 1
        return [self.numbers[np.minimum(start + inside, last)] for start in self.starts]


def frame_grid(info: VideoInfo, rule: WindowRule, start: float | None = None, end: float | None = None) -> FrameGrid:
    """The grid of a video, or of its piece from `start` to `end` s, counted from the video's start.

    At the file's own rate it is made of the frames as they come; at another rate, or where the file's varies, of the
    frames that are shown at every 1 / fps seconds.

    Raises:
        VideoError: a piece without a frame.
    """
    begin = 0.0 if start is None else max(start, 0.0)
    stop = info.duration if end is None else min(end, info.duration)
    if stop - begin <= SLACK:
        raise VideoError(info.path, f"no frame from {begin:g} s to {stop:g} s", f"0.000 s to {info.duration:.3f} s")
    fps = info.fps if rule.fps is None else rule.fps
    if rule.fps is None and not info.variable_rate and begin >= info.times[0] - SLACK:
        low, high = np.searchsorted(info.times, [begin - SLACK, stop - SLACK])
        numbers = np.arange(low, max(high, low + 1), dtype=np.int64).clip(max=info.frames - 1)
    else:
        steps = max(int(np.ceil((stop - begin) * fps - 1e-3)), 1)
        shown = np.searchsorted(info.times, begin + np.arange(steps) / fps + SLACK, side="right") - 1
        numbers = shown.clip(0, info.frames - 1).astype(np.int64)
    return FrameGrid(rule, fps, numbers, stop - begin)
