"""Open a video file safely and find out, before any frame is wanted, which frames it has and when each is shown.

Two ways. A well-behaved file (see `_TRUSTED`) is indexed from its packets alone, nothing is decoded. Every other file
is decoded once from start to end, because its header or its time stamps may lie; its frames are then counted in the
order in which they come out.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from internvideo.errors import VideoError

MAX_PIXELS = 8192 * 8192
"""Largest picture, in pixels, that is decoded; a header that declares more is refused before memory is taken."""

KEEP_BYTES = 64 * 2**20
"""Decoded pictures that the slow way may keep, so that a short clip is not decoded twice."""

# Demuxers that read one file and nothing else. Left out on purpose: playlists and scripts (hls, dash, concat, sdp,
# image2 ...), devices and lavfi, which open other files, addresses or hardware.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2 matroska,webm avi mpegts mpeg mpegvideo flv live_flv kux asf ogg gif apng "
    "h261 h263 h264 hevc vvc evc av1 obu ivf m4v vc1 vc1test cavsvideo dirac dv mxf nut rm wtv yuv4mpegpipe "
    "mjpeg mjpeg_2000 webp jpegxl_anim "
    "png_pipe jpeg_pipe bmp_pipe webp_pipe tiff_pipe gif_pipe psd_pipe jpegxl_pipe ppm_pipe pgm_pipe pgmyuv_pipe "
    "nsv vob roq smk bink flic film_cpk 4xm amv swf rpl mtv thp txd vmd wc3movie xmv yop nuv mm smush avs "
    # audio and subtitles: opened only to say that there is no video in them
    "mp3 aac wav flac w64 aiff au caf ac3 eac3 amr ape tta wv srt webvtt ass"
)
FORMAT_WHITELIST = ",".join(_FORMATS.split())

# (container, codec) whose packets carry exact presentation times, one shown picture a packet.
_TRUSTED = {
    "mov": {"h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mjpeg", "prores", "png", "ffv1", "h263"},
    "matroska": {"h264", "hevc", "av1", "vp9", "vp8", "mjpeg", "ffv1", "prores"},
}


def fail(path: object, reason: str, at: float | None = None, do: str = "") -> VideoError:
    """A VideoError that names the file, the reason and the time in the file."""
    return VideoError(path, reason if at is None else f"{reason} at {at:.3f} s", do=do)


def reason_of(error: BaseException) -> str:
    """What a library exception says, in a few words."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text[:1].lower() + text[1:]


class Deadline:
    """Wall-clock budget of one call: `check` raises once it is spent."""

    def __init__(self, path: object, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self.renew()

    def renew(self) -> None:
        """Give the whole budget anew."""
        self._end = time.monotonic() + self.seconds

    def check(self, at: float | None = None) -> None:
        """Raise VideoError, naming the time in the file where there is one, once the budget is spent."""
        if time.monotonic() > self._end:
            raise fail(self.path, f"reading took longer than {self.seconds:g} s", at, do="raise the time budget")


@dataclass
class Index:
    """Which frames a stream has.

    Attributes:
        times: (F,) float64 s, presentation times in rising order.
        end: s, when the last frame ends.
        first: the first picture decoded (it knows size, pixel format and rotation).
        exact: True when the packet tables below are filled, so that seeking is safe.
        pts, dts: (P,) int64 time stamps in decoding order, in units of the stream's time base.
        key: (P,) bool, key frames.
        order: (F,) int64, presentation order -> decoding order.
        bad: (F,) bool, frames that cannot be trusted (known only after decoding, all False when exact).
        kept: the decoded pictures when they were few enough to keep.
        stopped: why the scan ended before the end of the file ("" if it did not).
    """

    times: NDArray[np.float64]
    end: float
    first: Any
    exact: bool
    pts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    dts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    key: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    order: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    bad: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    kept: list[Any] | None = None
    stopped: str = ""


def open_file(path: str, *, protocols: bool, threads: int, seconds: float) -> tuple[Any, Any]:
    """Open a container and pick its first real video stream; everything else in the file is skipped unread.

    Returns: (container, stream); the caller closes the container.
    """
    container_options = {"format_whitelist": FORMAT_WHITELIST, "max_pixels": str(MAX_PIXELS)}
    name = path
    if not protocols:
        _check_regular(path)
        # An absolute name behind "file:" cannot be taken for a protocol, whatever the file is called.
        name = "file:" + os.path.abspath(path)
        container_options["protocol_whitelist"] = "file"
    try:
        container = av.open(name, metadata_errors="replace", options=container_options, timeout=seconds)
    except av.error.ExitError as error:
        raise fail(path, f"opening took longer than {seconds:g} s", do="raise the time budget") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise fail(path, f"not a readable video: {reason_of(error)}") from error
    try:
        stream = _pick_stream(path, container)
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all
        context = stream.codec_context
        if context.width * context.height > MAX_PIXELS:
            raise fail(path, f"declares {context.width} x {context.height} pixels, more than {MAX_PIXELS} are not read")
        context.thread_count = threads
        context.options = {"max_pixels": str(MAX_PIXELS)}
    except BaseException:
        container.close()
        raise
    return container, stream


def _check_regular(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode) and os.stat(path).st_size == 0:
            raise fail(path, "is an empty file")
    except (OSError, ValueError) as error:
        raise fail(path, f"cannot be opened: {reason_of(error)}", do="only files on this machine are read") from error
    if stat.S_ISDIR(mode):
        raise fail(path, "is a folder, not a video")
    if not stat.S_ISREG(mode):
        raise fail(path, "is not a regular file")


def _pick_stream(path: str, container: Any) -> Any:
    pictures = 0
    for stream in container.streams.video:
        if stream.disposition & av.stream.Disposition.attached_pic:
            pictures += 1
        elif stream.codec_context is None:
            raise fail(path, "its video codec has no decoder here")
        else:
            return stream
    raise fail(path, "has no video stream" + (", only a cover picture" if pictures else ""))


def index_from_packets(container: Any, stream: Any, path: str, deadline: Deadline, max_seconds: float) -> Index | None:
    """Index a freshly opened stream from its packets, one of them decoded; None where they cannot be trusted.

    The container stands anywhere afterwards: seek before reading.
    """
    context = stream.codec_context
    if context.codec.canonical_name not in _TRUSTED.get(container.format.name.split(",")[0], set()):
        return None
    sound = _soundness(context)
    pts: list[int] = []
    dts: list[int] = []
    key: list[bool] = []
    discard: list[bool] = []
    opening = None
    duration = 0
    limit = max_seconds / float(stream.time_base)
    try:
        for packet in container.demux(stream):
            stamp = packet.pts
            if packet.size == 0:
                if stamp is None:
                    continue  # the library's own mark of the end
                return None
            if stamp is None or packet.is_corrupt or not sound(packet):
                return None
            if len(pts) % 256 == 0:
                deadline.check()
            if pts and stamp - pts[0] > limit:
                raise fail(path, f"is longer than {max_seconds:g} s", do="raise max_seconds or cut the file")
            opening = packet if opening is None else opening
            pts.append(stamp)
            dts.append(stamp if packet.dts is None else packet.dts)
            key.append(packet.is_keyframe)
            discard.append(packet.is_discard)
            duration = packet.duration or duration
    except av.error.FFmpegError:
        return None
    index = _tables(np.array(pts, np.int64), np.array(dts, np.int64), np.array(key), np.array(discard), stream)
    if index is None:
        return None
    index.end = _end(index.times, duration * float(stream.time_base), stream)
    index.first = _opening_picture(context, opening, index)
    return None if index.first is None else index


def _tables(
    pts: NDArray[np.int64], dts: NDArray[np.int64], key: NDArray[np.bool_], discard: NDArray[np.bool_], stream: Any
) -> Index | None:
    """The index of well-formed packet tables, None for others; `end` and `first` are still to be filled in."""
    # Hidden packets (edit lists) are left to the decoder, and so are time stamps that do not tell packets apart.
    if not len(pts) or not key[0] or discard.any() or not np.diff(np.sort(pts)).all():
        return None
    order = np.argsort(pts, kind="stable").astype(np.int64)
    times = (pts[order] * float(stream.time_base)).astype(np.float64)
    bad = np.zeros(len(order), np.bool_)
    return Index(times, 0.0, None, exact=True, pts=pts, dts=dts, key=key, order=order, bad=bad)


def _opening_picture(context: Any, packet: Any, index: Index) -> Any:
    """Decode the first packet alone; the decoder forgets it again and is ready for any key frame."""
    group = np.cumsum(index.key) - 1
    leading = (index.pts < index.pts[np.flatnonzero(index.key)][group]) & (group > 0)
    if not leading.any():
        # A fault in the stream shall be an error, not a picture patched up from its neighbours. In an open GOP, though,
        # a start in the middle counts as a fault, so there only the decoder's own marks of damage are left.
        context.options = {**context.options, "err_detect": "explode"}
    try:
        pictures = decode(context, packet) + decode(context, None)
    except av.error.FFmpegError:
        return None
    context.flush_buffers()
    return pictures[0] if pictures else None


def _soundness(context: Any) -> Any:
    """A quick test of a packet without decoding: does it hold together, and does it show a picture?"""
    codec, extra = context.codec.canonical_name, context.extradata or b""
    width = 0
    if codec == "h264" and len(extra) > 4 and extra[0] == 1:
        width = (extra[4] & 3) + 1
    elif codec in ("hevc",) and len(extra) > 21 and extra[0] == 1:
        width = (extra[21] & 3) + 1
    if width:
        return lambda packet: _units_fit(memoryview(packet), width)
    if codec == "vp8":
        return lambda packet: bool(memoryview(packet)[0] & 0x10)
    if codec == "vp9":
        return lambda packet: _vp9_shows(memoryview(packet))
    return lambda packet: True


def _units_fit(data: memoryview, width: int) -> bool:
    """Whether the length-prefixed units of an H.264 or HEVC sample fill it exactly."""
    position, size = 0, len(data)
    while position < size:
        unit = int.from_bytes(data[position : position + width], "big")
        position += width + unit
        if unit == 0:
            return False
    return position == size


def _vp9_shows(data: memoryview) -> bool:
    """Whether a VP9 packet shows a picture: a superframe does, else a bit of the frame header tells."""
    if data[-1] & 0xE0 == 0xC0:
        return True
    first = data[0]
    profile = (first >> 5 & 1) | (first >> 4 & 1) << 1
    shift = 3 if profile < 3 else 2  # position of show_existing_frame
    if first >> shift & 1:
        return True
    return bool(first >> (shift - 2) & 1)


def decode(context: Any, packet: Any) -> list[Any]:
    """Pictures that come out when `packet` goes in; None drains the decoder."""
    return list(context.decode(packet))


def real_packets(container: Any, stream: Any, deadline: Deadline) -> Iterator[Any]:
    """The packets with data from here to the end (an empty one would tell the decoder that the stream ends)."""
    for packet in container.demux(stream):
        deadline.check()
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

    def __init__(self) -> None:
        self.first: Any = None
        self.stamps: list[int | None] = []
        self.bad: list[bool] = []
        self.kept: list[Any] | None = []
        self.duration = 0
        self._bytes = 0

    def add(self, picture: Any) -> None:
        if self.first is None:
            self.first = picture
        # After a damaged picture all that follow build on it, up to the next key frame.
        damaged = picture.is_corrupt or (bool(self.bad) and self.bad[-1] and not picture.key_frame)
        self.stamps.append(picture.pts)
        self.bad.append(damaged)
        self.duration = picture.duration or self.duration
        self._bytes += sum(plane.buffer_size for plane in picture.planes)
        if self._bytes > KEEP_BYTES:
            self.kept = None
        if self.kept is not None:
            self.kept.append(picture)

    def seconds(self, base: float) -> float:
        """Time between the first and the latest picture, 0 where the file has no time stamps."""
        start, latest = self.stamps[0], self.stamps[-1]
        return 0.0 if start is None or latest is None else (latest - start) * base


def index_from_frames(container: Any, stream: Any, path: str, deadline: Deadline, max_seconds: float) -> Index:
    """Decode everything and note what came out; the first damage after a good picture ends the video."""
    got = _Gathered()
    stopped = ""
    base = float(stream.time_base)
    try:
        for picture in pictures_in_order(container, stream, deadline):
            got.add(picture)
            if got.seconds(base) > max_seconds:
                raise fail(path, f"is longer than {max_seconds:g} s", do="raise max_seconds or cut the file")
    except av.error.FFmpegError as error:
        stopped = reason_of(error)
    if got.first is None:
        raise fail(path, f"no frame can be decoded{': ' + stopped if stopped else ''}")
    times = _times(got.stamps, stream)
    return Index(
        times=times,
        end=_end(times, 0.0 if got.stamps[-1] is None else got.duration * base, stream),
        first=got.first,
        exact=False,
        bad=np.array(got.bad, np.bool_),
        kept=got.kept,
        stopped=stopped,
    )


def _rate(stream: Any) -> float:
    """Frames a second as the header has it, 25 where it has nothing."""
    rate = stream.average_rate or stream.guessed_rate or 25
    return float(rate) if 0 < float(rate) <= 240 else 25.0


def _times(stamps: list[int | None], stream: Any) -> NDArray[np.float64]:
    """Presentation times; frames without a time stamp follow the one before at the header's rate."""
    step, base = 1.0 / _rate(stream), float(stream.time_base)
    times: list[float] = []
    for stamp in stamps:
        if stamp is not None:
            times.append(stamp * base)
        else:
            times.append(times[-1] + step if times else 0.0)
    return np.maximum.accumulate(np.array(times, np.float64))


def _end(times: NDArray[np.float64], duration: float, stream: Any) -> float:
    """When the last frame ends: its own duration, else the usual distance of two frames."""
    if duration < 0.002:  # 0 or 1 ms stand for "unknown"
        duration = float(np.median(np.diff(times))) if len(times) > 1 else 1.0 / _rate(stream)
    return float(times[-1]) + duration
