"""Place windows of several lengths in a video, which one decoding pass reads, with pictures for its filmstrip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from internvideo.data.preprocessing import Preprocessing
from internvideo.features.engine import Extent, Window
from internvideo.features.video_files import VideoFile
from internvideo.features.windows import clips_of_spans, spans
from internvideo.video.reader import Video, VideoInfo
from internvideo.video.writer import jpeg

PICTURE_SIDE = 160
"""Pixels of the longer side of a picture of a filmstrip."""


class Detail(NamedTuple):
    """Seconds of a whole window of the scale, and for the filmstrip time -> JPEG."""

    scale: float
    pictures: dict[float, bytes]


@dataclass(frozen=True)
class ScaledWindows:
    """Windows of each of some lengths (`engine.Windows`), by the last frame that they need; `detail` is a `Detail`.

    Attributes:
        preprocessing: of the model.
        scales: seconds of the windows of each scale.
        stride: distance between the starts of windows as a fraction of their length.
    """

    preprocessing: Preprocessing
    scales: Sequence[float]
    stride: float

    def place(self, video: Video, piece: VideoFile, readers: int) -> tuple[Extent, Iterator[Window]]:
        """Place the windows; one thread decodes."""
        info = video.info
        begin = max(piece.start or 0.0, 0.0)
        stop = info.duration if piece.end is None else min(piece.end, info.duration)
        placed = scale_spans(begin, stop, self.scales, self.stride)

        def read() -> Iterator[Window]:
            done = covered = 0.0
            for span, clip in clips_of_spans(video, self.preprocessing, placed, by_last_frame=True):
                start, end, scale = span
                new = 0.0
                if scale == self.scales[0] or end - start < scale:
                    new, covered = max(0.0, end - max(covered, start)), max(covered, end)
                done = max(done, (end - begin) / max(stop - begin, 1e-9))
                pictures = self._pictures(span, clip, info) if self._has_pictures(start - begin, scale) else {}
                yield Window(clip, start, end, new, min(done, 1.0), Detail(scale, pictures))

        return Extent(info.fps, info.frames, max(stop - begin, 0.0)), read()

    def _has_pictures(self, offset: float, scale: float) -> bool:
        """Return whether a filmstrip has pictures of the window: those of the shortest scale that do not overlap."""
        return scale == self.scales[0] and round(offset / (scale * self.stride)) % max(round(1 / self.stride), 1) == 0

    def _pictures(self, span: tuple[float, float, float], clip: Tensor, info: VideoInfo) -> dict[float, bytes]:
        """Return the pictures of a window: its frames after a quarter and three quarters of it."""
        side = min(PICTURE_SIDE, clip.shape[-1])
        width, height = side, side
        if not self.preprocessing.keep_aspect:  # the whole frame, squeezed into a square
            longer = max(info.width, info.height)
            width, height = (max(16, round(side * length / longer)) for length in (info.width, info.height))
        made = {}
        for part in (0.25, 0.75):
            pixels = clip[:, int(clip.shape[1] * part)].permute(1, 2, 0).clamp(0, 255).byte().numpy()
            time = span[0] + part * (span[1] - span[0])
            made[round(time, 3)] = jpeg(np.ascontiguousarray(pixels), width, height)
        return made


def scale_spans(begin: float, stop: float, scales: Sequence[float], stride: float) -> list[tuple[float, float, float]]:
    """Return (start, end, scale) of the windows of each scale, each span once.

    A video shorter than a window is one window of that scale; where it is one of a shorter scale too, it is that one's.
    """
    made: dict[tuple[float, float], float] = {}
    for scale in scales:
        for span in spans(begin, stop, scale, scale * stride):
            made.setdefault(span, scale)
    return [(*span, scale) for span, scale in made.items()]
