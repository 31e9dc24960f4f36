"""Convert the time stamps of files and live sources to non-decreasing seconds.

The rules are those of the ffmpeg program, so that a frame has the time that ffmpeg and players show:

- Time 0 is the start of the file: its first frame, or its audio where that starts earlier by more than `LEAD` (the
  padding of audio encoders is ignored).
- Stamps that jump backwards start a new count (joined recordings, a restarted recorder): the clock continues.
- In a transport or program stream, which may be spliced, a jump forwards starts a new count as well; in other
  containers it is a gap.
- A frame without a stamp, or with that of the previous frame, follows it by the previous frame's duration.
"""

from __future__ import annotations

import math
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

LEAD = 0.2
"""Audio must start earlier than the first frame by more than this (s) to define time 0."""

STEP_BACK = 1.0
"""Stamps that jump back by more than this (s) start a new count; by less, the frame is late."""

SPLICE_BACK, SPLICE_AHEAD = 0.1, 10.0
"""The same for streams that may be spliced, and how far (s) their stamps may jump forward in one count."""

_KNOWN = 0.002
"""Durations below this (s) mean "unknown"."""


class Clock:
    """Convert time stamps, in the decoder's output order, to seconds.

    Args:
        step: s between frames without a duration. base: s per tick of the stamps.
        back, ahead: s by which stamps may decrease or increase from one frame to the next in one count.
        origin: s, time stamp of time 0; None for that of the first frame.
        in_decoding_order: the container has decoding stamps only (AVI). Frames are output in their order; the
            presentation stamps that the library derives from them are not in order where there are B-frames.
    """

    def __init__(
        self,
        step: float,
        base: float,
        *,
        back: float = STEP_BACK,
        ahead: float = math.inf,
        origin: float | None = None,
        in_decoding_order: bool = False,
    ) -> None:
        self._step, self._base, self._back, self._ahead, self._origin = step, base, back, ahead, origin
        self._shift, self._frame_seconds = 0.0, step
        self._stamp: int | None = None
        self._last: float | None = None
        self._in_decoding_order, self._delay = in_decoding_order, 0
        self._pause: float | None = None

    def restart(self, stream: Any, pause: float) -> None:
        """Continue after a reconnect; the next frame is shown `pause` s after the last one."""
        self._base, self._step, self._stamp = float(stream.time_base or 1), 1 / frame_rate(stream), None
        self._pause = max(pause, self._frame_seconds)

    def time_of(self, frame: Any) -> float:
        """Return the time (s) of the next decoded frame."""
        stamp = frame.pts
        if self._in_decoding_order and frame.dts is not None:
            if self._last is None and stamp is not None:
                self._delay = stamp - frame.dts
            stamp = frame.dts + self._delay
        return self.to_seconds(stamp, frame.duration)

    def to_seconds(self, stamp: int | None, duration: int | None = None) -> float:
        """Return the time (s) of the next frame from its stamp and duration in ticks."""
        if self._last is None:
            now = 0.0 if stamp is None else stamp * self._base
            self._shift = -(now if self._origin is None else self._origin)
            now += self._shift
        elif self._pause is not None:
            now, self._pause = self._last + self._pause, None
            self._shift = now - (0 if stamp is None else stamp) * self._base
        elif stamp is None or stamp == self._stamp:
            now = self._last + self._frame_seconds
        else:
            now = stamp * self._base + self._shift
            if not self._last - self._back <= now <= self._last + self._ahead:
                self._shift += self._last + self._frame_seconds - now
                now = self._last + self._frame_seconds
            now = max(now, self._last)
        frame_seconds = (duration or 0) * self._base
        self._frame_seconds = frame_seconds if _KNOWN <= frame_seconds <= SPLICE_AHEAD else self._step
        self._stamp = self._stamp if stamp is None else stamp
        self._last = now
        return now


def clock_of(container: Any, stream: Any, *, origin: float | None = None, spliced: bool = False) -> Clock:
    """Return the clock for an open stream; `spliced` for sources whose stamps may restart at any time."""
    step, base = 1 / frame_rate(stream), float(stream.time_base or 1)
    if spliced or _may_be_spliced(container):
        return Clock(step, base, back=SPLICE_BACK, ahead=SPLICE_AHEAD, origin=origin)
    return Clock(step, base, origin=origin, in_decoding_order=container.format.name == "avi")


def frame_rate(stream: Any) -> float:
    """Return the frames per second of the stream's header, else of the container, else 25."""
    value = float(stream.guessed_rate or stream.average_rate or 25)
    return value if 0 < value <= 240 else 25.0


def time_zero(container: Any, stream: Any, first: float) -> float:
    """Return the time stamp (s) of time 0, given that of the first frame."""
    with_start = [audio for audio in container.streams.audio if audio.start_time is not None and audio.time_base]
    earliest = min((float(audio.start_time * audio.time_base) for audio in with_start), default=first)
    starts_with_video = earliest >= first - LEAD or (_may_be_spliced(container) and earliest < first - SPLICE_AHEAD)
    return first if starts_with_video else earliest


def _may_be_spliced(container: Any) -> bool:
    return bool(container.format.flags & av.format.Flags.ts_discont.value)


def end_of(times: NDArray[np.float64], duration: float, step: float) -> float:
    """Return the end of the last frame: by its duration (s), else the median distance of frames, else `step`."""
    if duration < _KNOWN:
        duration = float(np.median(np.diff(times))) if len(times) > 1 else step
    return float(times[-1]) + duration


def is_variable_rate(times: NDArray[np.float64], tick: float) -> bool:
    """Return whether the frames deviate from a constant rate by more than the rounding of stamps (`tick`, s): one
    distance differs, or small differences add up to half a frame."""
    if len(times) < 3:
        return False
    steps = np.diff(times)
    median = float(np.median(steps))
    drift = np.abs(times - np.linspace(times[0], times[-1], len(times))).max()
    return bool(np.ptp(steps) > max(2.5 * tick, 0.1 * median) or drift > max(2.5 * tick, 0.5 * median))
