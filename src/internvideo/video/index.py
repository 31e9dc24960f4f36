"""Find out, before any frame is wanted, which frames an open video has and when each is shown.

Two ways. A well-behaved file (see `_TRUSTED`) is indexed from its packets alone, nothing is decoded. Every other file
is decoded once from start to end, because its header or its time stamps may lie; its frames are then counted in the
order in which they come out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from internvideo.video.bits import is_key, soundness
from internvideo.video.clock import end_of, rate, uneven, zero
from internvideo.video.conversion import FIELDS, FirstPicture, first_picture
from internvideo.video.opening import Deadline, check_readable, fail, packets

KEEP_BYTES = 64 * 2**20
"""Decoded pictures that decoding everything may keep, so that a short clip is not decoded twice."""

_ROUNDING = 1e-6
"""Seconds by which a computed time may be off."""

# (container, codec) whose packets carry exact presentation times, one shown picture a packet.
_TRUSTED = {
    "mov": {"h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mjpeg", "prores", "png", "ffv1", "h263"},
    "matroska": {"h264", "hevc", "av1", "vp9", "vp8", "mjpeg", "ffv1", "prores"},
}


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        path: as given.
        width, height: pixels, after rotation.
        fps: average frames a second.
        frames: exact number of frames that can be read.
        duration: s, from time 0 to the end of the last frame.
        rotation: 0, 90, 180 or 270 degrees clockwise; `Video.frames` has applied it.
        pixel_format: as stored, FFmpeg's name.
        codec: FFmpeg's name.
        variable_rate: True when the frames are not evenly spaced.
        times: (frames,) float64 s, when each frame is shown, in rising order; counted, as ffmpeg, players and people
            who note spans do, from where the file begins: the first frame is at 0, or later where sound begins before
            it (`video.clock`); it also stands for the time before it.
        mirrored: True when the file also asks for a left-right flip (applied before the rotation).
        stopped: why nothing behind the last frame can be read ("" when the file is not cut off).
        start: s, the file's own stamp of time 0.
        interlaced: pictures (of what had to be decoded to open the file: the first one, or all) are marked as two woven
            fields. `Video.frames` undoes it picture by picture, whatever this says, unless asked not to.
        hdr: "pq" or "hlg" (ITU-R BT.2100) where the dynamic range is high, else "".
    """

    path: str
    width: int
    height: int
    fps: float
    frames: int
    duration: float
    rotation: int
    pixel_format: str
    codec: str
    variable_rate: bool
    times: NDArray[np.float64] = field(compare=False, repr=False)
    mirrored: bool = False
    stopped: str = ""
    start: float = 0.0
    interlaced: bool = False
    hdr: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """What of its pictures changes in `Video.frames` by options, in words: "interlaced", "pq", "hlg"."""
        return ("interlaced",) * self.interlaced + ((self.hdr,) if self.hdr else ())

    def within(self, start: float, end: float) -> NDArray[np.int64]:
        """Indices of the frames that begin at start <= time < end, s."""
        times = self.times + _ROUNDING
        return np.flatnonzero((times >= start) & (times < end)).astype(np.int64)


@dataclass
class Index:
    """Which frames a stream has.

    Attributes:
        times: (F,) float64 s, presentation times as the file has them, in rising order.
        end: s, when the last frame ends. zero: s, the stamp that is time 0 (`video.clock.zero`).
        first: what the first picture decoded told.
        exact: True when the packet tables below are filled, so that seeking is safe.
        pts, dts: (P,) int64 time stamps in decoding order, in units of the stream's time base.
        key: (P,) bool, key frames.
        order: (F,) int64, presentation order -> decoding order.
        bad: (F,) bool, frames that cannot be trusted (known only after decoding, all False when exact).
        kept: the decoded pictures when they were few enough to keep.
        stopped: why nothing sound follows the last frame ("" at the end of a whole file).
        holes: (H, 2) float64 s, from and to, where damage left not even a bad frame (of decoding everything).
        whole: frames before the first damage behind a sound frame (all, while none is known). fault: what it is.
    """

    times: NDArray[np.float64]
    end: float
    zero: float
    first: FirstPicture
    exact: bool
    pts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    dts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    key: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    order: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    bad: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    kept: list[Any] | None = None
    stopped: str = ""
    holes: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    whole: int = 2**62
    fault: str = ""

    def cut(self) -> Index:
        """The index of the frames before the first known damage."""
        count = min(self.whole, len(self.times)) if not self.exact else len(self.times)
        if count == len(self.times):
            return self
        return replace(
            self,
            times=self.times[:count],
            end=float(self.times[count]),
            bad=self.bad[:count],
            holes=self.holes[:0],
            kept=None if self.kept is None else self.kept[:count],
            stopped=self.fault,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the tables."""
        return sum(table.nbytes for table in (self.times, self.pts, self.dts, self.key, self.order, self.bad))

    @cached_property
    def _rising(self) -> NDArray[np.int64]:
        return self.pts[self.order]

    def place(self, stamp: int | None) -> int:
        """Decoding index of the picture with a presentation time stamp, -1 where there is none."""
        if stamp is None or not len(self.pts):
            return -1
        at = min(int(np.searchsorted(self._rising, stamp)), len(self.pts) - 1)
        return int(self.order[at]) if self._rising[at] == stamp else -1

    @cached_property
    def open_gop(self) -> bool:
        """Whether pictures after a key frame are shown before it, so that they lean on the group before."""
        group = np.cumsum(self.key) - 1
        leading = (self.pts < self.pts[np.flatnonzero(self.key)][group]) & (group > 0)
        return bool(leading.any())


def index_from_packets(container: Any, stream: Any, path: str, deadline: Deadline, max_seconds: float) -> Index | None:
    """Index a freshly opened stream from its packets, one of them decoded; None where they cannot be trusted.

    The container stands anywhere afterwards: seek before reading.
    """
    context = stream.codec_context
    codec = context.codec.canonical_name
    if codec not in _TRUSTED.get(container.format.name.split(",")[0], set()):
        return None
    sound = soundness(context)
    pts: list[int] = []
    dts: list[int] = []
    key: list[bool] = []
    discard: list[bool] = []
    opening = None
    duration = 0
    limit = max_seconds / float(stream.time_base)
    try:
        for packet in packets(container, stream):
            stamp = packet.pts
            if packet.size == 0:
                if stamp is None:
                    continue  # the library's own mark of the end
                return None
            if packet.is_keyframe:
                check_readable(packet, path)
            if stamp is None or packet.is_corrupt or not sound(packet):
                return None
            if len(pts) % 256 == 0:
                deadline.check()
            if pts and stamp - pts[0] > limit:
                raise fail(path, f"is longer than {max_seconds:g} s", do="raise max_seconds or cut the file")
            opening = packet if opening is None else opening
            pts.append(stamp)
            dts.append(stamp if packet.dts is None else packet.dts)
            key.append(is_key(packet, codec))
            discard.append(packet.is_discard)
            duration = packet.duration or duration
    except av.error.FFmpegError:
        return None
    index = _tables(np.array(pts, np.int64), np.array(dts, np.int64), np.array(key), np.array(discard), stream)
    if index is None:
        return None
    index.end = end_of(index.times, duration * float(stream.time_base), 1 / rate(stream))
    index.zero = zero(container, stream, float(index.times[0]))
    make_strict(context, index)
    if picture := _opening_picture(context, opening):
        index.first = first_picture(picture)
    return index if picture else None


def _tables(
    pts: NDArray[np.int64], dts: NDArray[np.int64], key: NDArray[np.bool_], discard: NDArray[np.bool_], stream: Any
) -> Index | None:
    """The index of well-formed packet tables, None for others; `end`, `zero` and `first` are still to be filled in."""
    # Hidden packets (edit lists) are left to the decoder, and so are time stamps that do not tell packets apart.
    if not len(pts) or not key[0] or discard.any() or not np.diff(np.sort(pts)).all():
        return None
    order = np.argsort(pts, kind="stable").astype(np.int64)
    times = (pts[order] * float(stream.time_base)).astype(np.float64)
    bad = np.zeros(len(order), np.bool_)
    return Index(times, 0.0, 0.0, FirstPicture(), exact=True, pts=pts, dts=dts, key=key, order=order, bad=bad)


def make_strict(context: Any, index: Index) -> None:
    """Let a decoder that is not yet open take a fault in the stream for an error instead of patching it up.

    In an open GOP a start in the middle counts as a fault: there only the decoder's own marks of damage are left.
    """
    if index.exact and not index.open_gop:
        context.options = {**context.options, "err_detect": "explode"}


def _opening_picture(context: Any, packet: Any) -> Any:
    """Decode the first packet alone; the decoder forgets it again and is ready for any key frame."""
    try:
        pictures = decode(context, packet) + decode(context, None)
    except av.error.FFmpegError:
        return None
    context.flush_buffers()
    return pictures[0] if pictures else None


def decode(context: Any, packet: Any) -> list[Any]:
    """Pictures that come out when `packet` goes in; None drains the decoder."""
    return list(context.decode(packet))


def describe(path: str, index: Index, stream: Any) -> VideoInfo:
    """What is told of an indexed stream."""
    first, times = index.first, index.times
    width, height = (first.height, first.width) if first.rotation in (90, 270) else (first.width, first.height)
    shown = index.end - float(times[0])
    return VideoInfo(
        path=path,
        width=width,
        height=height,
        fps=len(times) / shown if shown > 0 else 0.0,
        frames=len(times),
        duration=index.end - index.zero,
        rotation=first.rotation,
        pixel_format=first.pixel_format,
        codec=stream.codec_context.codec.canonical_name,
        variable_rate=uneven(times, float(stream.time_base)),
        times=times - index.zero,
        mirrored=first.mirrored,
        stopped=index.stopped,
        start=index.zero,
        interlaced=first.interlaced and stream.codec_context.codec.canonical_name not in FIELDS,
        hdr=first.hdr,
    )
