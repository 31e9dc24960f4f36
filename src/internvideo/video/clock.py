"""One clock for files and live sources: the time stamps of a stream to seconds that never fall.

The rules are those of the ffmpeg program, so that a picture has the time that it and players show:

- Time 0 is where the file begins: its first picture, or its sound where that begins earlier (by more than `LEAD`: what
  encoders put before the first sample is no beginning).
- Stamps that fall back are a new count (recordings joined, a recorder restarted): the clock goes on where it was.
- In a transport or program stream, which joins and splices are made for, a leap forward is a new count as well; in
  other containers a gap is a gap.
- A picture without a stamp, or with that of the picture before, follows it after that one's duration.
"""

from __future__ import annotations

import math
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

LEAD = 0.2
"""Sound must begin earlier than the first picture by more than this (s) for time 0 to be there."""

STEP_BACK = 1.0
"""Stamps that fall back by more than this (s) are a new count; by less, a picture that comes late."""

SPLICE_BACK, SPLICE_AHEAD = 0.1, 10.0
"""The same for streams that may be spliced, and how far (s) their stamps may leap forward in one count."""

_KNOWN = 0.002
"""Durations below this (s) stand for "unknown"."""


class Clock:
    """Stamps, in the order in which pictures come out, to seconds.

    Args:
        step: s between pictures that have no duration of their own. base: s of one tick of the stamps.
        back, ahead: s by which stamps may fall or rise from one picture to the next in one count.
        origin: s, the stamp that is time 0; None for that of the first picture.
        in_decoding_order: the container has stamps of decoding only (AVI). Pictures come out by them one after another;
            what the library makes of them for presentation is not in order where there are B-frames.
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
        self._shift, self._length = 0.0, step
        self._stamp: int | None = None
        self._last: float | None = None
        self._in_decoding_order, self._delay = in_decoding_order, 0
        self._pause: float | None = None

    def restart(self, stream: Any, pause: float) -> None:
        """Go on with another opening of the source, whose first picture is shown `pause` s after the last one."""
        self._base, self._step, self._stamp = float(stream.time_base or 1), 1 / rate(stream), None
        self._pause = max(pause, self._length)

    def of(self, picture: Any) -> float:
        """The time (s) of the next picture that came out of the decoder."""
        stamp = picture.pts
        if self._in_decoding_order and picture.dts is not None:
            if self._last is None and stamp is not None:
                self._delay = stamp - picture.dts
            stamp = picture.dts + self._delay
        return self.read(stamp, picture.duration)

    def read(self, stamp: int | None, duration: int | None = None) -> float:
        """The time (s) of the next picture, from its stamp and duration in ticks."""
        if self._last is None:
            now = 0.0 if stamp is None else stamp * self._base
            self._shift = -(now if self._origin is None else self._origin)
            now += self._shift
        elif self._pause is not None:
            now, self._pause = self._last + self._pause, None
            self._shift = now - (0 if stamp is None else stamp) * self._base
        elif stamp is None or stamp == self._stamp:
            now = self._last + self._length
        else:
            now = stamp * self._base + self._shift
            if not self._last - self._back <= now <= self._last + self._ahead:
                self._shift += self._last + self._length - now
                now = self._last + self._length
            now = max(now, self._last)
        length = (duration or 0) * self._base
        self._length = length if _KNOWN <= length <= SPLICE_AHEAD else self._step
        self._stamp = self._stamp if stamp is None else stamp
        self._last = now
        return now


def clock_of(container: Any, stream: Any, *, origin: float | None = None, spliced: bool = False) -> Clock:
    """The clock for an open stream; `spliced` for sources that may start their count anew at any time."""
    step, base = 1 / rate(stream), float(stream.time_base or 1)
    if spliced or _may_be_spliced(container):
        return Clock(step, base, back=SPLICE_BACK, ahead=SPLICE_AHEAD, origin=origin)
    return Clock(step, base, origin=origin, in_decoding_order=container.format.name == "avi")


def rate(stream: Any) -> float:
    """Frames a second as the stream's own header has it, else the container's, 25 where neither knows."""
    found = float(stream.guessed_rate or stream.average_rate or 25)
    return found if 0 < found <= 240 else 25.0


def zero(container: Any, stream: Any, first: float) -> float:
    """The stamp (s) that is time 0, given that of the first picture."""
    begins = [float(other.start_time * other.time_base) for other in container.streams.audio if _begins(other)]
    earliest = min(begins, default=first)
    begins_with_it = earliest >= first - LEAD or (_may_be_spliced(container) and earliest < first - SPLICE_AHEAD)
    return first if begins_with_it else earliest


def _may_be_spliced(container: Any) -> bool:
    return bool(container.format.flags & av.format.Flags.ts_discont.value)


def _begins(stream: Any) -> bool:
    return stream.start_time is not None and bool(stream.time_base)


def end_of(times: NDArray[np.float64], duration: float, step: float) -> float:
    """When the last picture ends: its own duration (s), else the usual distance of two, else `step`."""
    if duration < _KNOWN:
        duration = float(np.median(np.diff(times))) if len(times) > 1 else step
    return float(times[-1]) + duration


def uneven(times: NDArray[np.float64], tick: float) -> bool:
    """Whether pictures lie elsewhere than at a steady rate, by more than the rounding of stamps (`tick`, s) explains:
    one distance differs, or small differences add up to half a picture."""
    if len(times) < 3:
        return False
    steps = np.diff(times)
    usual = float(np.median(steps))
    drift = np.abs(times - np.linspace(times[0], times[-1], len(times))).max()
    return bool(np.ptp(steps) > max(2.5 * tick, 0.1 * usual) or drift > max(2.5 * tick, 0.5 * usual))
