"""Read the clips of windows of several lengths from videos in one decoding pass each, in a thread or in workers."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import VideoError
from internvideo.features.video_files import VideoFile
from internvideo.features.windows import iter_clips, open_long, past_end, spans
from internvideo.video.damage import DamageError
from internvideo.video.reader import Video, VideoInfo
from internvideo.video.writer import jpeg

PICTURE_SIDE = 160
"""Pixels of the longer side of a picture of a filmstrip."""


class Piece(NamedTuple):
    """A window of a video, or (clip None) the end of the video.

    Attributes:
        video: its index. start, end: seconds. scale: seconds of a whole window of its kind.
        fraction_done: of the video, 0..1. clip: (3, T, S, S). pictures: time -> JPEG, for the filmstrip.
        info: at the end, None if the video could not be opened. reason: at the end, why it came early.
    """

    video: int
    start: float = 0.0
    end: float = 0.0
    scale: float = 0.0
    fraction_done: float = 1.0
    clip: Tensor | None = None
    pictures: dict[float, bytes] | None = None
    info: VideoInfo | None = None
    reason: str = ""


class WindowReader(IterableDataset[Piece]):
    """Iterate over the windows of videos; each worker reads every n-th video.

    Args:
        videos: all of them. indices: of those to read. preprocessing: of the model.
        scales: seconds of the windows of each scale. overlap: windows start this fraction of their length apart.
    """

    def __init__(
        self,
        videos: Sequence[VideoFile],
        indices: Sequence[int],
        preprocessing: Preprocessing,
        scales: Sequence[float],
        overlap: float,
    ) -> None:
        self.videos, self.indices, self.preprocessing = videos, indices, preprocessing
        self.scales, self.overlap = scales, overlap

    def __iter__(self) -> Iterator[Piece]:
        worker = get_worker_info()
        for index in self.indices if worker is None else self.indices[worker.id :: worker.num_workers]:
            try:
                yield from self._read(index)
            except VideoError as error:
                yield Piece(index, reason=str(error).removeprefix(f"{self.videos[index].path}: "))

    def _read(self, index: int) -> Generator[Piece]:
        video = self.videos[index]
        with open_long(video.path, self.preprocessing.short_side, fps=video.fps) as opened:
            info, done, reason = opened.info, 0.0, ""
            begin = max(video.start or 0.0, 0.0)
            stop = info.duration if video.end is None else min(video.end, info.duration)
            try:
                for span, clip in self._clips(opened, begin, stop):
                    start, end, scale = span
                    pictures = self._pictures(span, clip, info) if self._has_pictures(start - begin, scale) else None
                    done = max(done, (end - begin) / max(stop - begin, 1e-9))
                    yield Piece(index, start, end, scale, min(done, 1.0), clip, pictures)
                reason = opened.damage_report or past_end(info, video.end)
            except VideoError as error:  # the windows before the damage are kept
                reason = str(error).removeprefix(f"{video.path}: ")
        yield Piece(index, info=info, reason=reason)

    def _clips(self, video: Video, begin: float, stop: float) -> Iterator[tuple[tuple[float, float, float], Tensor]]:
        """Yield (start, end, scale) and the clip of all windows, by the last frame that they need."""
        found = []
        for span in scale_spans(begin, stop, self.scales, self.overlap):
            try:
                found.append((span, self.preprocessing.frame_indices(video, *span[:2])[0]))
            except DamageError:  # no intact frame: left out
                continue
        if not found:
            raise VideoError(video.path, "no intact frame in any window")
        found.sort(key=lambda item: (int(item[1].max()), item[0]))
        clips = iter_clips(video, self.preprocessing, [indices for _, indices in found])
        for (span, indices), clip in zip(found, clips, strict=True):
            if video.damage != "skip" or not video.is_missing(indices).all():
                yield span, clip

    def _has_pictures(self, offset: float, scale: float) -> bool:
        """Return whether a filmstrip has pictures of the window: those of the shortest scale that do not overlap."""
        return scale == self.scales[0] and round(offset / (scale * self.overlap)) % max(round(1 / self.overlap), 1) == 0

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


def scale_spans(begin: float, stop: float, scales: Sequence[float], overlap: float) -> list[tuple[float, float, float]]:
    """Return (start, end, scale) of the windows of each scale, each span once.

    A video shorter than a window is one window of that scale; where it is one of a shorter scale too, it is that one's.
    """
    made: dict[tuple[float, float], float] = {}
    for scale in scales:
        for span in spans(begin, stop, scale, scale * overlap):
            made.setdefault(span, scale)
    return [(*span, scale) for span, scale in made.items()]
