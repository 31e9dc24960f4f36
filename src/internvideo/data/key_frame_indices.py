"""Which frames of a video a key frame means, and those of the clip around it (AlphAction)."""

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
"""A key frame may lie so much (s) outside its video: times are rounded, and so are lengths."""
_CLIP_OF_KINETICS = re.compile(r"_(\d{6})_(\d{6})$")


class KeyFrame(Protocol):
    """A moment of a row's video."""

    @property
    def row(self) -> Sample:
        """The row of the manifest."""

    @property
    def time(self) -> float:
        """Seconds on the annotations' clock."""

    @property
    def seconds(self) -> float:
        """Seconds in the file."""


def centered_positions(times: Floats, frame: KeyFrame, *, frames: int, stride: int) -> Floats:
    """Places (T,) of the clip's frames among the video's, fractions lie between two of them.

    Of frames * stride raw frames centered on the key frame every stride-th is taken. A film (AVA) gives as many frames
    on the one side as on the other, so that at an end the last frame stands still; in a Kinetics clip a missing
    side is made of what is there, stretched in time.

    Args:
        times: (n,) seconds in the video. frame: tells time and source.
        frames, stride: T and raw frames between two of them.

    Raises:
        VideoError: the key frame lies behind the end of the video.
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
    chosen = (start + stride * np.arange(frames)).clip(0, len(raw) - 1)
    result: Floats = raw[chosen]
    return result


def file_start_time(row: Sample, time: float) -> float:
    """The second of the annotations' clock at which a row's file begins, 0 where that is the clock of the file.

    `prepare` keeps the time of a film or an upload in the attribute "timestamp", while boxes count from the start of
    the file; a clip of Kinetics also tells it by its name.

    Args:
        row: with a key frame. time: of that key frame by the annotations, s.
    """
    told, clip = _timestamp(row), _clip_of_kinetics(row)
    if told is not None and row.boxes and told > row.boxes[0].time + 1e-3:
        return told - row.boxes[0].time
    absolute = told is not None or (clip is not None and time > clip[1] + SLACK)
    return clip[0] if clip is not None and absolute else 0.0


def annotated_time(row: Sample, time: float) -> float:
    """The time of a row's box as the annotations tell it, s."""
    told = _timestamp(row)
    return time if told is None or told <= row.boxes[0].time + 1e-3 else told + (time - row.boxes[0].time)


def _timestamp(row: Sample) -> float | None:
    try:
        return float(row.attributes["timestamp"])
    except (KeyError, ValueError):
        return None


def _clip_of_kinetics(row: Sample) -> tuple[float, float] | None:
    """Where a clip of Kinetics begins in its upload, and how long it should be, s; None for another video."""
    found = _CLIP_OF_KINETICS.search(Path(row.path).stem)
    if row.attributes.get("source") != "kinetics" or found is None or int(found[2]) <= int(found[1]):
        return None
    return float(found[1]), float(int(found[2]) - int(found[1]))


def frame_index_at(times: Floats, frame: KeyFrame) -> int:
    """The number of the frame that is shown at a key frame, of a video with frames at these times (n,), s.

    In a clip of Kinetics it is told by the share of the clip before it: its length in seconds is only nominal.

    Raises:
        VideoError: the key frame lies outside the video. Of a film that was cut, times may be those of the whole film.
    """
    n, seconds, clip = len(times), frame.seconds, _clip_of_kinetics(frame.row)
    if clip is None:
        end = float(times[-1]) + float(times[-1] - times[0]) / max(n - 1, 1)
        place = int(np.searchsorted(times, seconds - 1e-6))
    else:
        end = clip[1]
        place = round(seconds / end * n)
    if not -SLACK <= seconds <= end + SLACK:
        found = f"no frame at {seconds:g} s, key frame {frame.time:g} of '{frame.row.id}'"
        do = "is it a part of a film? internvideo prepare --offset tells where it begins"
        raise VideoError(frame.row.path, found, f"0 s to {end:.3f} s", do)
    return min(max(place, 0), n - 1)


def _evenly_spaced(low: int, high: int, n: int, size: int) -> Floats:
    """`size` places between the frames low..high - 1 of n, evenly over those that exist."""
    low, high = min(max(low, 0), n - 1), min(max(high, 1), n)
    high = max(high, low + 1)
    place = (np.arange(size) + 0.5) * (high - low) / size - 0.5
    result: Floats = low + place.clip(0, high - low - 1)
    return result


def positions_before(times: Floats, frame: KeyFrame, *, frames: int, stride: int) -> Floats:
    """The same of a clip that ends with the key frame: every `stride`-th frame, the first one where there is none."""
    center = frame_index_at(times, frame)
    result: Floats = (center - stride * np.arange(frames - 1, -1, -1, dtype=np.float64)).clip(min=0)
    return result
