"""Compute the frame index of a key frame, and the positions of the frames of a clip around it (AlphAction)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from internvideo.data.sample import Sample
from internvideo.errors import VideoError

Floats = NDArray[np.float64]
SLACK = 0.5
"""Tolerance (s) for key frames outside their video, because times and durations are rounded."""
_CLIP_OF_KINETICS = re.compile(r"_(\d{6})_(\d{6})$")


class KeyFrame(Protocol):
    """A key frame of a row's video."""

    @property
    def row(self) -> Sample:
        """The row of the manifest."""

    @property
    def time(self) -> float:
        """Time (s) in the annotations."""

    @property
    def seconds(self) -> float:
        """Time (s) in the file."""


def centered_positions(times: Floats, frame: KeyFrame, *, frames: int, stride: int) -> Floats:
    """Return the positions (T,) of a clip's frames in the video; fractions mean interpolation between two frames.

    Every stride-th of frames * stride raw frames centered on the key frame is used. Near an end of a movie (AVA) both
    sides are shortened equally, and the first and last of the remaining frames are repeated; in a Kinetics clip the
    existing frames of a side are stretched in time.

    Args:
        times: (n,) seconds in the video. frame: the key frame.
        frames: T. stride: raw frames from one frame of the clip to the next.

    Raises VideoError: the key frame is outside the video.
    """
    n, half = len(times), frames * stride // 2
    center = frame_index_at(times, frame)
    if frame.row.attributes.get("source") == "kinetics":
        raw = np.concatenate(
            [_evenly_spaced(center - half, center, n, half), _evenly_spaced(center, center + half, n, half)]
        )
    else:
        side = max(min(half, center, n - center), 1)
        raw = np.arange(center - side, center + side, dtype=np.float64).clip(0, n - 1)
    start = (len(raw) - frames * stride) // 2 + 1
    indices = (start + stride * np.arange(frames)).clip(0, len(raw) - 1)
    result: Floats = raw[indices]
    return result


def file_start_time(row: Sample, time: float) -> float:
    """Return the time (s) in the annotations at which a row's file starts; 0 if annotations refer to the file.

    `prepare` stores the time in the movie or upload as the attribute "timestamp", while times of boxes refer to the
    file; a Kinetics clip also has it in its name.

    Args:
        row: row with a key frame. time: time (s) of that key frame in the annotations.
    """
    timestamp, clip = _timestamp(row), _clip_of_kinetics(row)
    if timestamp is not None and row.boxes and timestamp > row.boxes[0].time + 1e-3:
        return timestamp - row.boxes[0].time
    absolute = timestamp is not None or (clip is not None and time > clip[1] + SLACK)
    return clip[0] if clip is not None and absolute else 0.0


def annotated_time(row: Sample, time: float) -> float:
    """Return the time (s) in the annotations of a row's box at `time` of the file."""
    timestamp = _timestamp(row)
    if timestamp is None or timestamp <= row.boxes[0].time + 1e-3:
        return time
    return timestamp + (time - row.boxes[0].time)


def _timestamp(row: Sample) -> float | None:
    try:
        return float(row.attributes["timestamp"])
    except (KeyError, ValueError):
        return None


def _clip_of_kinetics(row: Sample) -> tuple[float, float] | None:
    """Return start and nominal duration (s) of a Kinetics clip in its upload; None for another video."""
    match = _CLIP_OF_KINETICS.search(Path(row.path).stem)
    if row.attributes.get("source") != "kinetics" or match is None or int(match[2]) <= int(match[1]):
        return None
    return float(match[1]), float(int(match[2]) - int(match[1]))


def frame_index_at(times: Floats, frame: KeyFrame) -> int:
    """Return the index of the first frame at or after a key frame, in a video with frames at `times` (n,), s.

    In a Kinetics clip it is computed from the fraction of the clip, because its duration in seconds is only nominal.
    Raises VideoError: the key frame is outside the video.
    """
    n, seconds, clip = len(times), frame.seconds, _clip_of_kinetics(frame.row)
    if clip is None:
        end = float(times[-1]) + float(times[-1] - times[0]) / max(n - 1, 1)
        index = int(np.searchsorted(times, seconds - 1e-6))
    else:
        end = clip[1]
        index = round(seconds / end * n)
    if not -SLACK <= seconds <= end + SLACK:
        found = f"no frame at {seconds:g} s, key frame {frame.time:g} of '{frame.row.id}'"
        hint = "for a part of a movie set where it starts with internvideo prepare --offset"
        raise VideoError(frame.row.path, found, f"0 s to {end:.3f} s", hint)
    return min(max(index, 0), n - 1)


def _evenly_spaced(low: int, high: int, n: int, size: int) -> Floats:
    """Return `size` uniform positions over those of the frames low..high - 1 that exist in a video of n."""
    low, high = min(max(low, 0), n - 1), min(max(high, 1), n)
    high = max(high, low + 1)
    position = (np.arange(size) + 0.5) * (high - low) / size - 0.5
    result: Floats = low + position.clip(0, high - low - 1)
    return result


def positions_before(times: Floats, frame: KeyFrame, *, frames: int, stride: int) -> Floats:
    """Return the positions (T,) of a clip that ends at the key frame; before the start the first frame is repeated."""
    center = frame_index_at(times, frame)
    result: Floats = (center - stride * np.arange(frames - 1, -1, -1, dtype=np.float64)).clip(min=0)
    return result
