"""Find out which frames a video has by decoding all of it: for files whose header or time stamps may lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from internvideo.video import index as video_index
from internvideo.video.clock import clock_of, end_of, rate, zero
from internvideo.video.conversion import first_picture
from internvideo.video.damage import CHECKS_OF, MARKING, holes_of, untrusted
from internvideo.video.index import Index, decode
from internvideo.video.opening import Deadline, check_readable, fail, packets, reason_of

LACKING = "a packet is damaged"
"""What a container tells of a packet behind which its count of pieces is broken (transport streams)."""


def real_packets(container: Any, stream: Any, deadline: Deadline) -> Iterator[Any]:
    """The packets with data from here to the end (an empty one would tell the decoder that the stream ends)."""
    for packet in packets(container, stream):
        deadline.check()
        if packet.is_keyframe:
            check_readable(packet, deadline.path)
        if packet.size:
            yield packet


def pictures_in_order(container: Any, stream: Any, deadline: Deadline, faults: Faults | None = None) -> Iterator[Any]:
    """All pictures from the start of the file, as the decoder gives them; `opaque` of each is its packet's number.

    Decoding goes on after a fault. It is noted in `faults`; those of pictures are marked by `is_corrupt` alone.
    """
    context, found = stream.codec_context, Faults() if faults is None else faults
    if checks := CHECKS_OF.get(context.codec.canonical_name):
        context.options = {**context.options, "err_detect": checks}
    context.copy_opaque = True
    number, before = 0, None
    try:
        for number, packet in enumerate(real_packets(container, stream, deadline), 1):
            packet.opaque = number
            if packet.is_corrupt:
                found.add(number, LACKING)
            if before is not None and packet.dts is not None and packet.dts < before and packet.is_keyframe:
                found.forgive(number - 2)
            before = packet.dts
            try:
                pictures = decode(context, packet)
            except av.error.FFmpegError as error:
                found.add(number, reason_of(error))
                continue
            found.out += len(pictures)
            yield from pictures
    except av.error.FFmpegError as error:  # the file, not a packet: nothing more comes
        found.add(number + 1, reason_of(error))
    try:
        yield from decode(context, None)
    except av.error.FFmpegError as error:
        found.add(number + 1, reason_of(error))


class Faults:
    """Packets that could not be decoded: their numbers, why, and how many pictures had come out by then."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.reasons: list[str] = []
        self.before: list[int] = []
        self.out = 0

    def add(self, number: int, reason: str) -> None:
        """Note one."""
        self.numbers.append(number)
        self.reasons.append(reason)
        self.before.append(self.out)

    def forgive(self, number: int) -> None:
        """Take back that packets from `number` on lack something: another recording begins behind them."""
        while self.numbers and self.numbers[-1] >= number and self.reasons[-1] == LACKING:
            for column in (self.numbers, self.reasons, self.before):
                column.pop()


class _Gathered:
    """What decoding a stream from start to end brought to light."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._clock = clock_of(container, stream, origin=0.0)
        self.first: Any = None
        self.times: list[float] = []
        self.numbers: list[int] = []
        self.keys: list[bool] = []
        self.corrupt: list[int] = []
        self.kept: list[Any] | None = []
        self.duration = self._bytes = 0
        self.from_middle = self.interlaced = False

    def add(self, picture: Any) -> None:
        if self.first is None:
            self.first = picture
            predicted = (PictureType.P, PictureType.B, PictureType.S)
            self.from_middle = not picture.key_frame and picture.pict_type in predicted
        number = picture.opaque if isinstance(picture.opaque, int) else self.numbers[-1] if self.numbers else 0
        self.times.append(self._clock.of(picture))
        self.numbers.append(number)
        self.keys.append(bool(picture.key_frame))
        if picture.is_corrupt:
            self.corrupt.append(number)
        self.interlaced |= picture.interlaced_frame
        self.duration = picture.duration or self.duration
        self._bytes += sum(plane.buffer_size for plane in picture.planes)
        if self._bytes > video_index.KEEP_BYTES:
            self.kept = None
        if self.kept is not None:
            self.kept.append(picture)


def index_from_frames(container: Any, stream: Any, path: str, deadline: Deadline, max_seconds: float) -> Index:
    """Decode everything and note what came out, and which of it is not to be trusted."""
    got, faults = _Gathered(container, stream), Faults()
    for picture in pictures_in_order(container, stream, deadline, faults):
        got.add(picture)
        if got.times[-1] - got.times[0] > max_seconds:
            raise fail(path, f"is longer than {max_seconds:g} s", do="raise max_seconds or cut the file")
    from_start = got.from_middle and stream.codec_context.codec.canonical_name not in MARKING
    bad = untrusted(got.numbers, got.keys, faults.numbers + got.corrupt, from_start=from_start)
    why = faults.reasons[0] if faults.reasons else ""
    if bad.all():
        raise fail(path, f"no {'sound ' * bool(len(bad))}frame can be decoded{': ' + why if why else ''}")
    times = np.array(got.times, np.float64)
    end = end_of(times, got.duration * float(stream.time_base), 1 / rate(stream))
    good = np.flatnonzero(~bad)
    last = max(np.asarray(got.numbers)[good])
    return Index(
        times=times,
        end=end,
        zero=zero(container, stream, got.times[0]),
        first=first_picture(got.first)._replace(interlaced=got.interlaced),
        exact=False,
        bad=bad,
        kept=got.kept,
        stopped=next((why for number, why in zip(faults.numbers, faults.reasons, strict=True) if number > last), ""),
        holes=holes_of(times, got.numbers, got.keys, faults.numbers),
        whole=_whole(bad, faults),
        fault=next((why for before, why in zip(faults.before, faults.reasons, strict=True) if before), "is damaged"),
    )


def _whole(bad: NDArray[np.bool_], faults: Faults) -> int:
    """Frames before the first damage that comes after a sound frame."""
    sound = int(np.argmin(bad))
    damaged = [sound + int(np.argmax(bad[sound:]))] if bad[sound:].any() else []
    return min([len(bad), *damaged, *(out for out in faults.before if out > sound)])
