"""Find out which frames a video has by decoding all of it: for files whose header or time stamps may lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
import numpy as np

from internvideo.data import video_index
from internvideo.data.video_clock import clock_of, end_of, rate, zero
from internvideo.data.video_index import Index, decode
from internvideo.data.video_open import Deadline, check_readable, fail, packets, reason_of
from internvideo.data.video_picture import first_picture


def real_packets(container: Any, stream: Any, deadline: Deadline) -> Iterator[Any]:
    """The packets with data from here to the end (an empty one would tell the decoder that the stream ends)."""
    for packet in packets(container, stream):
        deadline.check()
        if packet.is_keyframe:
            check_readable(packet, deadline.path)
        if packet.size:
            yield packet


def pictures_in_order(container: Any, stream: Any, deadline: Deadline) -> Iterator[Any]:
    """All pictures from the start of the file, as the decoder gives them.

    Errors before the first picture are passed over, for a recording may begin between two key frames; later ones, and
    the last one when no picture came at all, are raised.
    """
    context, begun, trouble = stream.codec_context, False, None
    for packet in real_packets(container, stream, deadline):
        try:
            found = decode(context, packet)
        except av.error.FFmpegError as error:
            if begun:
                raise
            trouble, found = error, []
        begun = begun or bool(found)
        yield from found
    found = decode(context, None)
    yield from found
    if trouble is not None and not begun and not found:
        raise trouble


class _Gathered:
    """What decoding a stream from start to end brought to light."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._clock = clock_of(container, stream, origin=0.0)
        self.first: Any = None
        self.times: list[float] = []
        self.bad: list[bool] = []
        self.kept: list[Any] | None = []
        self.duration = 0
        self._bytes = 0

    def add(self, picture: Any) -> None:
        if self.first is None:
            self.first = picture
        # After a damaged picture all that follow build on it, up to the next key frame.
        damaged = picture.is_corrupt or (bool(self.bad) and self.bad[-1] and not picture.key_frame)
        self.times.append(self._clock.of(picture))
        self.bad.append(damaged)
        self.duration = picture.duration or self.duration
        self._bytes += sum(plane.buffer_size for plane in picture.planes)
        if self._bytes > video_index.KEEP_BYTES:
            self.kept = None
        if self.kept is not None:
            self.kept.append(picture)


def index_from_frames(container: Any, stream: Any, path: str, deadline: Deadline, max_seconds: float) -> Index:
    """Decode everything and note what came out; the first damage after a good picture ends the video."""
    got = _Gathered(container, stream)
    stopped = ""
    try:
        for picture in pictures_in_order(container, stream, deadline):
            got.add(picture)
            if got.times[-1] - got.times[0] > max_seconds:
                raise fail(path, f"is longer than {max_seconds:g} s", do="raise max_seconds or cut the file")
    except av.error.FFmpegError as error:
        stopped = reason_of(error)
    if got.first is None or all(got.bad):
        raise fail(path, f"no {'sound ' * bool(got.bad)}frame can be decoded{': ' + stopped if stopped else ''}")
    times = np.array(got.times, np.float64)
    return Index(
        times=times,
        end=end_of(times, got.duration * float(stream.time_base), 1 / rate(stream)),
        zero=zero(container, stream, got.times[0]),
        first=first_picture(got.first),
        exact=False,
        bad=np.array(got.bad, np.bool_),
        kept=got.kept,
        stopped=stopped,
    )
