"""Write a part of a video as WebM (VP9), for browsers that cannot play its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from internvideo.errors import VideoError
from internvideo.features.windows import open_long_video
from internvideo.video.sequential import iter_frames
from internvideo.video.writer import write_video

MAX_PREVIEW_SECONDS = 60.0
PREVIEW_SIDE = 360
PREVIEW_FPS = 15.0


def write_preview(path: str | Path, target: Path, start: float, end: float) -> None:
    """Write the frames from `start` to `end` seconds, at most a minute, small, as TARGET (.webm). Raises VideoError."""
    with open_long_video(path, PREVIEW_SIDE) as video:
        stop = min(end, start + MAX_PREVIEW_SECONDS, video.info.duration)
        if not start < stop:
            raise VideoError(path, f"no frame from {start:g} s to {end:g} s", f"0 to {video.info.duration:.3f} s")
        times = video.info.times
        fps = min(video.info.fps, PREVIEW_FPS)
        steps = start + np.arange(max(1, int((stop - start) * fps))) / fps
        indices = np.clip(np.searchsorted(times, steps + 1e-3, side="right") - 1, 0, video.info.frames - 1)
        unique, counts = np.unique(video.replace_damaged(indices, skipped=True), return_counts=True)
        frames = (
            frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]
            for frame, count in zip(iter_frames(video, unique), counts.tolist(), strict=True)
            for _ in range(count)
        )
        options = {"deadline": "realtime", "cpu-used": "8", "b": "0"}
        write_video(target, frames, fps, codec="libvpx-vp9", crf=36, gop=30, options=options)
