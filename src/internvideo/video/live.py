"""Read live video: a pipe, a camera, a URL, or a file from its start; frame by frame, without seeking.

Live sources are opened only when named explicitly, never from data sets or folders. A camera or URL that disconnects is
opened again; its clock continues meanwhile.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from internvideo.errors import VideoError, shown
from internvideo.terminal import LOGGER
from internvideo.video.clock import Clock, clock_of, frame_rate, time_zero
from internvideo.video.conversion import Converter, orientation, resolve_conversion, scaled_size, upright
from internvideo.video.index import decode
from internvideo.video.opening import FORMAT_WHITELIST, MAX_PIXELS, TAGS, fail, open_file, packets, reason_of

CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
"""Platform -> FFmpeg's input format for cameras, and the pattern of a camera's name."""

RECONNECT = 60.0
"""Seconds without a frame after which reconnecting stops."""

TIMEOUT = 10.0
"""Seconds without data from a camera or URL after which it counts as disconnected."""

MIN_WAIT, MAX_WAIT = 0.5, 8.0
"""Seconds before the first attempt to reconnect, doubled on each attempt up to the maximum."""

_ENDING = frozenset(("file", "http", "https", "ftp"))
"""URL schemes whose end of stream is the end of the video, not a lost connection."""


class LiveFrame(NamedTuple):
    """A decoded frame, its time (s, non-decreasing: `video.clock`), and `time.perf_counter()` at its arrival."""

    time: float
    arrived: float
    frame: Any


class LiveVideo:
    """Iterate once over the frames of a live source. Use it as a context manager.

    Args:
        source: "-" (standard input) or an open binary file; a named pipe; "camera", "camera:N" (on Windows
            "camera:NAME") or a device file; a regular file; with `allow_urls` a URL (rtsp://, http://).
        allow_urls: accept URLs.
        short_side: `rgb` scales frames down to it.
        reconnect: s without a frame during which a disconnected camera or URL is reopened; 0 for never. Sources with a
            duration (a file behind a URL) are not reopened: they would start from the beginning.

    Attributes:
        kind: "pipe", "camera", "address" or "file".
        step: s between frames according to the header. last_step: s for which the last frame is displayed.
        damaged: number of frames and packets skipped so far because they could not be decoded.
        reconnects: number of successful reconnects.

    Raises VideoError: it cannot be opened, or is not a video.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        *,
        allow_urls: bool = False,
        short_side: int | None = None,
        reconnect: float = RECONNECT,
    ) -> None:
        self.name = str(source) if isinstance(source, str | os.PathLike) else getattr(source, "name", "pipe")
        self.name = "standard input" if self.name == "-" else re.sub("//[^/@]*@", "//", str(self.name))
        self.damaged, self.reconnects, self.kind, conversion = 0, 0, "", resolve_conversion()
        self._source, self._allow_urls, self._reconnect = source, allow_urls, reconnect
        self._abandoned, self._tries = threading.Event(), 0
        self._short_side = short_side
        self._file: BinaryIO | None = None
        self._orientation: tuple[int, bool] | None = None
        try:
            self._container, self._stream = self._open(source, allow_urls)
        except BaseException:
            self._close_file()
            raise
        self._converter = Converter(self._stream.codec_context.codec.canonical_name, conversion)
        self.step = self.last_step = 1 / frame_rate(self._stream)

    def __enter__(self) -> LiveVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the source."""
        self._container.close()
        self._close_file()

    def abandon(self) -> None:
        """Stop waiting for a reconnect; may be called from another thread."""
        self._abandoned.set()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()

    # ------------------------------------------------------------------------------------------------------ opening

    def _open(self, source: str | os.PathLike[str] | BinaryIO, allow_urls: bool) -> tuple[Any, Any]:
        if not isinstance(source, str | os.PathLike):
            return self._pipe(source)
        name = os.fspath(source)
        if name == "-":
            # Unbuffered: a read returns the available bytes instead of waiting for a full block.
            self._file = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
            return self._pipe(self._file)
        if name.partition(":")[0] == "camera":
            return self._opened("camera", *_camera(name))
        if "://" in name:
            if not allow_urls:
                raise fail(name, "is an address; only local sources are opened", hint="allow it with allow_urls")
            return self._opened("address", name, analyzeduration="1000000")
        try:
            mode = os.stat(name).st_mode
            if stat.S_ISFIFO(mode):
                self._file = os.fdopen(os.open(name, os.O_RDONLY), "rb", buffering=0)
                return self._pipe(self._file)
        except (OSError, ValueError) as error:
            raise fail(name, f"cannot be opened: {reason_of(error)}") from error
        if stat.S_ISCHR(mode):
            return self._opened("camera", name, CAMERAS.get(sys.platform, CAMERAS["linux"])[0])
        self.kind = "file"
        return open_file(name, allow_urls=False, threads=1, seconds=120.0)

    def _pipe(self, file: BinaryIO) -> tuple[Any, Any]:
        return self._opened("pipe", file, format_whitelist=FORMAT_WHITELIST, analyzeduration="1000000")

    def _opened(self, kind: str, what: Any, form: str | None = None, **options: str) -> tuple[Any, Any]:
        self.kind, timeout = kind, None if kind == "pipe" else TIMEOUT
        try:
            container = av.open(
                what, format=form, options={"max_pixels": str(MAX_PIXELS), **options}, timeout=timeout, **TAGS,
            )  # fmt: skip
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise fail(self.name, f"not a readable {self.kind}: {reason_of(error)}") from error
        if not container.streams.video or container.streams.video[0].codec_context is None:
            container.close()
            raise fail(self.name, "has no video stream that can be decoded here")
        stream = container.streams.video[0]
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        return container, stream

    # ------------------------------------------------------------------------------------------------------ reading

    def __iter__(self) -> Iterator[LiveFrame]:
        """Yield frames in order of time; frames that cannot be decoded are skipped and counted in `damaged`.

        Raises VideoError: the source disconnected, or gave no frame.
        """
        clock: Clock | None = None
        last = 0.0
        for frame in self._decoded_frames():
            arrived = time.perf_counter()
            if frame.duration:
                self.last_step = float(frame.duration * self._stream.time_base)
            if clock is None:
                clock = self._clock(frame.pts)
            elif self._tries:
                clock.restart(self._stream, arrived - last)
                self._log_reconnected(arrived - last)
            last = arrived
            yield LiveFrame(clock.time_of(frame), arrived, frame)
        if clock is None:
            raise fail(self.name, "no frame came")

    def _decoded_frames(self) -> Iterator[Any]:
        """Yield the intact decoded frames, also those after reconnects."""
        last: float | None = None
        while True:
            error = None
            try:
                for packet in self._packets():
                    for frame in self._decoded(packet):
                        if frame.is_corrupt:
                            self.damaged += 1
                            continue
                        last = time.perf_counter()
                        yield frame
            except VideoError as broken:
                error = broken
            if last is None or not self._can_reconnect(error is not None):
                if error is not None:
                    raise error
                return
            if not self._reconnect_until_timeout("it ended" if error is None else error.found, last):
                return

    def _can_reconnect(self, broken: bool) -> bool:
        """Return whether the source, which disconnected or ended, can be reopened."""
        if not self._reconnect or self.kind not in ("camera", "address") or self._container.duration:
            return False
        return broken or self.kind == "camera" or self.name.partition(":")[0].lower() not in _ENDING

    def _reconnect_until_timeout(self, reason: str, last: float) -> bool:
        """Reopen the source, retrying until the timeout; return False when abandoned. Raises VideoError."""
        if not self._tries:
            LOGGER.warning("%s: %s; reconnecting for %g s", shown(self.name), shown(reason), self._reconnect)
        while not self._abandoned.is_set():
            wait = min(MIN_WAIT * 2**self._tries, MAX_WAIT)
            if time.perf_counter() + wait - last > self._reconnect:
                found = f"disconnected, and {self._tries} attempts to reconnect failed ({reason})"
                raise fail(self.name, found, hint=f"wait longer than {self._reconnect:g} s with reconnect")
            self._abandoned.wait(wait)
            self._tries += 1
            self._container.close()
            try:
                self._container, self._stream = self._open(self._source, self._allow_urls)
            except VideoError as error:
                reason = error.found
                continue
            self._orientation = None
            return True
        return False

    def _log_reconnected(self, pause: float) -> None:
        self.reconnects, self._tries = self.reconnects + 1, 0
        LOGGER.warning("%s: reconnected after %.1f s", shown(self.name), pause)

    def _clock(self, first: int | None) -> Clock:
        """Return the clock for a stream whose first frame has this stamp."""
        container, stream = self._container, self._stream
        origin = None if first is None else time_zero(container, stream, float(first * stream.time_base))
        return clock_of(container, stream, origin=origin, spliced=self.kind in ("camera", "address"))

    def _packets(self) -> Iterator[Any]:
        """Yield the non-empty packets, then None, which drains the decoder."""
        while True:
            try:
                for packet in packets(self._container, self._stream):
                    if packet.size:
                        yield packet
                break
            except av.error.BlockingIOError:  # some cameras: nothing there yet
                time.sleep(0.002)
            except (av.error.FFmpegError, OSError) as error:
                raise fail(self.name, f"disconnected: {reason_of(error)}") from error
        yield None

    def _decoded(self, packet: Any) -> list[Any]:
        try:
            return decode(self._stream.codec_context, packet)
        except av.error.FFmpegError:
            self.damaged += 1
            return []

    def rgb(self, frame: Any) -> NDArray[np.uint8]:
        """Convert a decoded frame to upright (H, W, 3) uint8 RGB. Raises VideoError."""
        if self._orientation is None:
            self._orientation = orientation(frame)
        width, height = scaled_size(frame.width, frame.height, self._short_side)
        out = np.empty((1, height, width, 3), np.uint8)
        try:
            self._converter.write(frame, out[0])
        except ValueError as error:
            raise fail(self.name, str(error)) from error
        rgb: NDArray[np.uint8] = upright(out, *self._orientation)[0]
        return rgb


def _camera(name: str) -> tuple[str, str]:
    """Return FFmpeg's (name, format) of "camera" or "camera:N"."""
    which = name.partition(":")[2] or "0"
    if sys.platform not in CAMERAS:
        raise fail(name, f"no cameras are known on {sys.platform}", hint="name a pipe or a file")
    form, pattern = CAMERAS[sys.platform]
    return pattern.format(which), form
