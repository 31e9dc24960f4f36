"""Index the frames of an open video: how many there are and when each is shown.

Files of `RELIABLE_FORMATS` are indexed from their packets without decoding. Every other file is decoded once from start
to end, because its header or its time stamps may be wrong; its frames are counted in the decoder's output order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from internvideo.video.bits import is_key, packet_validator
from internvideo.video.clock import end_of, frame_rate, is_variable_rate, time_zero
from internvideo.video.conversion import FIELDS, FirstFrame, first_frame
from internvideo.video.opening import Deadline, check_not_encrypted, fail, packets

FRAME_CACHE_BYTES = 64 * 2**20
"""Maximum size of the decoded frames that a full scan caches, so that a short clip is not decoded twice."""

PACKET_CACHE_BYTES = 4 * 2**20
"""Maximum size of the packets that stay in memory after indexing, so that a short file is not read twice."""

_ROUNDING = 1e-6
"""Tolerance of computed times, seconds."""

# (container, codec) whose packets carry exact presentation times, one displayed frame per packet.
RELIABLE_FORMATS = {
    "mov": {"h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mjpeg", "prores", "png", "ffv1", "h263"},
    "matroska": {"h264", "hevc", "av1", "vp9", "vp8", "mjpeg", "ffv1", "prores"},
}


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file.

    Attributes:
        path: as given.
        width, height: pixels, after rotation.
        fps: average frames per second.
        frames: exact number of readable frames.
        duration: s, from time 0 to the end of the last frame.
        rotation: 0, 90, 180 or 270 degrees clockwise; applied by `Video.frames`.
        pixel_format: as stored, FFmpeg's name.
        codec: FFmpeg's name.
        variable_rate: True when the frames are not evenly spaced.
        times: (frames,) float64 s, presentation times in increasing order. As in ffmpeg and players, time 0 is the
            start of the file: the first frame is at 0, or later where audio starts before it (`video.clock`); the first
            frame also covers the time before it.
        mirrored: True when the display matrix includes a left-right flip (applied before the rotation).
        truncation_reason: why nothing after the last frame can be read ("" when the file is not truncated).
        start: s, the file's time stamp of time 0.
        interlaced: the frames decoded to open the file (the first one, or all) are marked as interlaced.
            `Video.frames` deinterlaces per frame, by each frame's own mark, unless disabled.
        hdr: "pq" or "hlg" (ITU-R BT.2100) for high dynamic range, else "".
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
    truncation_reason: str = ""
    start: float = 0.0
    interlaced: bool = False
    hdr: str = ""

    @property
    def properties(self) -> tuple[str, ...]:
        """Properties whose handling in `Video.frames` depends on options: "interlaced", "pq", "hlg"."""
        return ("interlaced",) * self.interlaced + ((self.hdr,) if self.hdr else ())

    def within(self, start: float, end: float) -> NDArray[np.int64]:
        """Return the indices of the frames with start <= time < end, in seconds."""
        times = self.times + _ROUNDING
        return np.flatnonzero((times >= start) & (times < end)).astype(np.int64)


@dataclass
class Index:
    """Frame index of a stream.

    Attributes:
        times: (F,) float64 s, presentation times of the file, in increasing order.
        end: s, end of the last frame. zero: s, time stamp of time 0 (`video.clock.time_zero`).
        first: properties of the first decoded frame.
        seekable: True when the packet tables below are filled, so that seeking is safe.
        pts, dts: (P,) int64 time stamps in decoding order, in units of the stream's time base.
        key: (P,) bool, key frames.
        order: (F,) int64, presentation order -> decoding order.
        corrupt: (F,) bool, frames that are damaged or may depend on damaged ones (known only after decoding; all False
            for a new seekable index).
        frame_cache: the decoded frames, when small enough (`FRAME_CACHE_BYTES`).
        truncation_reason: why no intact frame follows the last one ("" for a complete file).
        holes: (H, 2) float64 s, start and end of damage without any output frame (full scan only).
        num_before_damage: number of frames before the first damage after an intact frame (huge while none is known).
        damage_reason: description of that damage.
    """

    times: NDArray[np.float64]
    end: float
    zero: float
    first: FirstFrame
    seekable: bool
    pts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    dts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    key: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    order: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    corrupt: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    frame_cache: list[Any] | None = None
    truncation_reason: str = ""
    holes: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    num_before_damage: int = 2**62
    damage_reason: str = ""

    def truncated_at_damage(self) -> Index:
        """Return the index of the frames before the first known damage."""
        count = min(self.num_before_damage, len(self.times)) if not self.seekable else len(self.times)
        if count == len(self.times):
            return self
        return replace(
            self, times=self.times[:count], end=float(self.times[count]), corrupt=self.corrupt[:count],
            holes=self.holes[:0], frame_cache=None if self.frame_cache is None else self.frame_cache[:count],
            truncation_reason=self.damage_reason,
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Size of the tables in bytes."""
        return sum(table.nbytes for table in (self.times, self.pts, self.dts, self.key, self.order, self.corrupt))

    @cached_property
    def _sorted_pts(self) -> NDArray[np.int64]:
        return self.pts[self.order]

    def decode_index(self, stamp: int | None) -> int:
        """Return the decoding index of the frame with a presentation time stamp, or -1."""
        if stamp is None or not len(self.pts):
            return -1
        at = min(int(self._sorted_pts.searchsorted(stamp)), len(self.pts) - 1)
        return int(self.order[at]) if self._sorted_pts[at] == stamp else -1

    @cached_property
    def open_gop(self) -> bool:
        """Whether frames after a key frame are displayed before it, so that they reference the previous GOP."""
        group = np.cumsum(self.key) - 1
        leading = (self.pts < self.pts[np.flatnonzero(self.key)][group]) & (group > 0)
        return bool(leading.any())


def index_from_packets(
    container: Any, stream: Any, path: str, deadline: Deadline, max_seconds: float
) -> tuple[Index, list[Any]] | None:
    """Index a newly opened stream from its packets, decoding only the first one; None where they are unreliable.

    The container's read position is undefined afterwards: seek before reading.

    Returns: the index, and the packets in decoding order if they are small enough to be kept (`PACKET_CACHE_BYTES`).
    """
    context = stream.codec_context
    codec = context.codec.canonical_name
    if codec not in RELIABLE_FORMATS.get(container.format.name.split(",")[0], set()):
        return None
    is_valid = packet_validator(context)
    pts: list[int] = []
    dts: list[int] = []
    key: list[bool] = []
    discard: list[bool] = []
    first_packet = None
    kept: list[Any] | None = []
    kept_bytes = duration = 0
    limit = max_seconds / float(stream.time_base)
    try:
        for packet in packets(container, stream):
            stamp = packet.pts
            if packet.size == 0:
                if stamp is None:
                    continue  # PyAV's flush packet at the end
                return None
            if packet.is_keyframe:
                check_not_encrypted(packet, path)
            if stamp is None or packet.is_corrupt or not is_valid(packet):
                return None
            if len(pts) % 256 == 0:
                deadline.check()
            if pts and stamp - pts[0] > limit:
                raise fail(path, f"is longer than {max_seconds:g} s", hint="raise max_seconds or cut the file")
            first_packet = packet if first_packet is None else first_packet
            pts.append(stamp)
            dts.append(stamp if packet.dts is None else packet.dts)
            key.append(is_key(packet, codec))
            discard.append(packet.is_discard)
            duration = packet.duration or duration
            if kept is not None:
                kept_bytes += packet.size
                kept.append(packet)
                if kept_bytes > PACKET_CACHE_BYTES:
                    kept = None
    except av.error.FFmpegError:
        return None
    index = _tables(np.array(pts, np.int64), np.array(dts, np.int64), np.array(key), np.array(discard), stream)
    if index is None:
        return None
    index.end = end_of(index.times, duration * float(stream.time_base), 1 / frame_rate(stream))
    index.zero = time_zero(container, stream, float(index.times[0]))
    make_strict(context, index)
    if frame := _decode_first_packet(context, first_packet):
        index.first = first_frame(frame)
    return (index, kept or []) if frame else None


def _tables(
    pts: NDArray[np.int64], dts: NDArray[np.int64], key: NDArray[np.bool_], discard: NDArray[np.bool_], stream: Any
) -> Index | None:
    """Build the index from packet tables, without `end`, `zero` and `first`; None where the tables are not usable."""
    # Files with discarded packets (edit lists) or duplicate time stamps are left to the full scan.
    if not len(pts) or not key[0] or discard.any() or not np.diff(np.sort(pts)).all():
        return None
    order = np.argsort(pts, kind="stable").astype(np.int64)
    times = (pts[order] * float(stream.time_base)).astype(np.float64)
    corrupt = np.zeros(len(order), np.bool_)
    return Index(times, 0.0, 0.0, FirstFrame(), seekable=True, pts=pts, dts=dts, key=key, order=order, corrupt=corrupt)


def make_strict(context: Any, index: Index) -> None:
    """Make a decoder that is not yet open raise on a corrupt bitstream instead of concealing the damage.

    Not in an open GOP, where starting at a key frame raises as well; only the decoder's corrupt flags remain there.
    """
    if index.seekable and not index.open_gop:
        context.options = {**context.options, "err_detect": "explode"}


def _decode_first_packet(context: Any, packet: Any) -> Any:
    """Decode the first packet alone, then flush the decoder so that it can start at any key frame."""
    try:
        frames = decode(context, packet) + decode(context, None)
    except av.error.FFmpegError:
        return None
    context.flush_buffers()
    return frames[0] if frames else None


def decode(context: Any, packet: Any) -> list[Any]:
    """Send `packet` to the decoder and return the frames it outputs; None drains the decoder."""
    return list(context.decode(packet))


def describe(path: str, index: Index, stream: Any) -> VideoInfo:
    """Return the properties of an indexed stream."""
    first, times = index.first, index.times
    width, height = (first.height, first.width) if first.rotation in (90, 270) else (first.width, first.height)
    seconds = index.end - float(times[0])
    return VideoInfo(
        path=path,
        width=width,
        height=height,
        fps=len(times) / seconds if seconds > 0 else 0.0,
        frames=len(times),
        duration=index.end - index.zero,
        rotation=first.rotation,
        pixel_format=first.pixel_format,
        codec=stream.codec_context.codec.canonical_name,
        variable_rate=is_variable_rate(times, float(stream.time_base)),
        times=times - index.zero,
        mirrored=first.mirrored,
        truncation_reason=index.truncation_reason,
        start=index.zero,
        interlaced=first.interlaced and stream.codec_context.codec.canonical_name not in FIELDS,
        hdr=first.hdr,
    )
