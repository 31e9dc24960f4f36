"""Place windows of several lengths in a video, which one decoding pass reads, with thumbnails for its filmstrip."""

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
from internvideo.video.writer import JpegEncoder

THUMBNAIL_SIDE = 160
"""Pixels of the longer side of a thumbnail."""


class ScaledDetail(NamedTuple):
    """Seconds of a whole window of the scale, and for the filmstrip time -> JPEG."""

    scale: float
    thumbnails: dict[float, bytes]


@dataclass(frozen=True)
class ScaledWindows:
    """Windows of each of some lengths (`engine.Windows`), by the last frame that they need; with a `ScaledDetail`.

    Attributes:
        preprocessing: of the model.
        scales: seconds of the windows of each scale, ascending.
        stride_ratio: distance between the starts of windows as a fraction of their length.
    """

    preprocessing: Preprocessing
    scales: Sequence[float]
    stride_ratio: float

    def place(self, video: Video, piece: VideoFile, readers: int) -> tuple[Extent, Iterator[Window]]:
        """Place the windows; one thread decodes."""
        info = video.info
        begin = max(piece.start or 0.0, 0.0)
        stop = info.duration if piece.end is None else min(piece.end, info.duration)
        placed = scale_spans(begin, stop, self.scales, self.stride_ratio)

        def read() -> Iterator[Window]:
            done = covered = 0.0
            encode = JpegEncoder(*self._thumbnail_size(info))
            for span, clip in clips_of_spans(video, self.preprocessing, placed, by_last_frame=True):
                start, end, scale = span
                new = 0.0
                if scale == self.scales[0] or end - start < scale:
                    new, covered = max(0.0, end - max(covered, start)), max(covered, end)
                done = max(done, (end - begin) / max(stop - begin, 1e-9))
                thumbnails = _thumbnails(span, clip, encode) if self._has_thumbnails(start - begin, scale) else {}
                yield Window(clip, start, end, new, min(done, 1.0), ScaledDetail(scale, thumbnails))

        return Extent(info.fps, info.frames, max(stop - begin, 0.0)), read()

    def _has_thumbnails(self, offset: float, scale: float) -> bool:
        """Return whether a filmstrip shows the window: those of the shortest scale that do not overlap."""
        number = round(offset / (scale * self.stride_ratio))
        return scale == self.scales[0] and number % max(round(1 / self.stride_ratio), 1) == 0

    def _thumbnail_size(self, info: VideoInfo) -> tuple[int, int]:
        """Return width and height; the whole frame where clips are squeezed into a square."""
        side = min(THUMBNAIL_SIDE, self.preprocessing.size)
        if self.preprocessing.keep_aspect:
            return side, side
        longer = max(info.width, info.height)
        return max(16, round(side * info.width / longer)), max(16, round(side * info.height / longer))


def _thumbnails(span: tuple[float, float, float], clip: Tensor, encode: JpegEncoder) -> dict[float, bytes]:
    """Return the thumbnails of a window: its frames after a quarter and three quarters of it."""
    made = {}
    for part in (0.25, 0.75):
        pixels = clip[:, int(clip.shape[1] * part)].permute(1, 2, 0).clamp(0, 255).byte().numpy()
        made[round(span[0] + part * (span[1] - span[0]), 3)] = encode(np.ascontiguousarray(pixels))
    return made


def scale_spans(
    begin: float, stop: float, scales: Sequence[float], stride_ratio: float
) -> list[tuple[float, float, float]]:
    """Return (start, end, scale) of the windows of each scale, each span once.

    A video shorter than a window is one window of that scale; a span of several scales counts for the shortest.
    """
    made: dict[tuple[float, float], float] = {}
    for scale in scales:
        for span in spans(begin, stop, scale, scale * stride_ratio):
            made.setdefault(span, scale)
    return [(*span, scale) for span, scale in made.items()]
