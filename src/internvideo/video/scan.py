"""Index the frames of a video by decoding all of it, for files whose header or time stamps may be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from internvideo.video import index as video_index
from internvideo.video.clock import clock_of, end_of, frame_rate, time_zero
from internvideo.video.conversion import first_frame
from internvideo.video.damage import CHECKS_OF, MARKING, corrupt_frames, holes_of
from internvideo.video.index import Index, decode
from internvideo.video.opening import Deadline, check_not_encrypted, fail, packets, reason_of

PACKET_LOSS = "a packet is damaged"
"""Reason for packets that the container marks as corrupt after a continuity error (transport streams)."""


def real_packets(container: Any, stream: Any, deadline: Deadline) -> Iterator[Any]:
    """Yield the non-empty packets from the current position (an empty one would flush the decoder)."""
    for packet in packets(container, stream):
        deadline.check()
        if packet.is_keyframe:
            check_not_encrypted(packet, deadline.path)
        if packet.size:
            yield packet


def decode_in_order(
    container: Any, stream: Any, deadline: Deadline, errors_out: DecodeErrors | None = None
) -> Iterator[Any]:
    """Yield all frames from the start of the file in the decoder's output order; `frame.opaque` is its packet's number.

    Decoding continues after an error. Errors of packets are added to `errors_out`; corrupt frames only have
    `is_corrupt` set.
    """
    context, errors = stream.codec_context, DecodeErrors() if errors_out is None else errors_out
    if checks := CHECKS_OF.get(context.codec.canonical_name):
        context.options = {**context.options, "err_detect": checks}
    context.copy_opaque = True
    number, before = 0, None
    try:
        for number, packet in enumerate(real_packets(container, stream, deadline), 1):
            packet.opaque = number
            if packet.is_corrupt:
                errors.add(number, PACKET_LOSS)
            if before is not None and packet.dts is not None and packet.dts < before and packet.is_keyframe:
                errors.remove_packet_losses(number - 2)
            before = packet.dts
            try:
                frames = decode(context, packet)
            except av.error.FFmpegError as error:
                errors.add(number, reason_of(error))
                continue
            errors.num_decoded += len(frames)
            yield from frames
    except av.error.FFmpegError as error:  # an error of the file, not of a packet: the stream ends here
        errors.add(number + 1, reason_of(error))
    try:
        yield from decode(context, None)
    except av.error.FFmpegError as error:
        errors.add(number + 1, reason_of(error))


class DecodeError(NamedTuple):
    """A packet that could not be decoded: its number, the reason, and how many frames had been decoded before."""

    packet: int
    reason: str
    num_decoded: int


class DecodeErrors:
    """Packets that could not be decoded, and the number of frames decoded so far."""

    def __init__(self) -> None:
        self.packets: list[DecodeError] = []
        self.num_decoded = 0

    def add(self, number: int, reason: str) -> None:
        """Add one."""
        self.packets.append(DecodeError(number, reason, self.num_decoded))

    def remove_packet_losses(self, number: int) -> None:
        """Remove the packet losses from packet `number` on: another recording starts after them."""
        while self.packets and self.packets[-1].packet >= number and self.packets[-1].reason == PACKET_LOSS:
            self.packets.pop()


class _Scan:
    """Collect the properties of all frames while a stream is decoded from start to end."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._clock = clock_of(container, stream, origin=0.0)
        self.first: Any = None
        self.times: list[float] = []
        self.packet_numbers: list[int] = []
        self.keys: list[bool] = []
        self.corrupt: list[int] = []
        self.frame_cache: list[Any] | None = []
        self.duration = self._bytes = 0
        self.starts_without_key = self.interlaced = False

    def add(self, frame: Any) -> None:
        if self.first is None:
            self.first = frame
            predicted = (PictureType.P, PictureType.B, PictureType.S)
            self.starts_without_key = not frame.key_frame and frame.pict_type in predicted
        previous = self.packet_numbers[-1] if self.packet_numbers else 0
        number = frame.opaque if isinstance(frame.opaque, int) else previous
        self.times.append(self._clock.time_of(frame))
        self.packet_numbers.append(number)
        self.keys.append(bool(frame.key_frame))
        if frame.is_corrupt:
            self.corrupt.append(number)
        self.interlaced |= frame.interlaced_frame
        self.duration = frame.duration or self.duration
        self._bytes += sum(plane.buffer_size for plane in frame.planes)
        if self._bytes > video_index.FRAME_CACHE_BYTES:
            self.frame_cache = None
        if self.frame_cache is not None:
            self.frame_cache.append(frame)


def index_from_frames(container: Any, stream: Any, path: str, deadline: Deadline, max_seconds: float) -> Index:
    """Build the index by decoding everything, with the frames that are or may be damaged. Raises VideoError."""
    scan, errors = _Scan(container, stream), DecodeErrors()
    for frame in decode_in_order(container, stream, deadline, errors):
        scan.add(frame)
        if scan.times[-1] - scan.times[0] > max_seconds:
            raise fail(path, f"is longer than {max_seconds:g} s", hint="raise max_seconds or cut the file")
    from_start = scan.starts_without_key and stream.codec_context.codec.canonical_name not in MARKING
    bad_packets = [error.packet for error in errors.packets]
    corrupt = corrupt_frames(scan.packet_numbers, scan.keys, bad_packets + scan.corrupt, from_start=from_start)
    if corrupt.all():
        reason = errors.packets[0].reason if errors.packets else ""
        raise fail(path, f"no {'sound ' * bool(len(corrupt))}frame can be decoded{': ' + reason if reason else ''}")
    times = np.array(scan.times, np.float64)
    end = end_of(times, scan.duration * float(stream.time_base), 1 / frame_rate(stream))
    intact = np.flatnonzero(~corrupt)
    last = max(np.asarray(scan.packet_numbers)[intact])
    return Index(
        times=times,
        end=end,
        zero=time_zero(container, stream, scan.times[0]),
        first=first_frame(scan.first)._replace(interlaced=scan.interlaced),
        seekable=False,
        corrupt=corrupt,
        frame_cache=scan.frame_cache,
        truncation_reason=next((error.reason for error in errors.packets if error.packet > last), ""),
        holes=holes_of(times, scan.packet_numbers, scan.keys, bad_packets),
        num_before_damage=_num_before_damage(corrupt, errors),
        damage_reason=next((error.reason for error in errors.packets if error.num_decoded), "is damaged"),
    )


def _num_before_damage(corrupt: NDArray[np.bool_], errors: DecodeErrors) -> int:
    """Return the number of frames before the first damage that follows an intact frame."""
    first_intact = int(np.argmin(corrupt))
    damaged = [first_intact + int(np.argmax(corrupt[first_intact:]))] if corrupt[first_intact:].any() else []
    errors_after = [error.num_decoded for error in errors.packets if error.num_decoded > first_intact]
    return min([len(corrupt), *damaged, *errors_after])
