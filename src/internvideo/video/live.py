"""Video while it comes in: a pipe, a camera, an address, or a file from its start; frame by frame, no seeking.

Opened only where somebody asks for it by name: data sets and folders never lead here. A camera or address that breaks
off is opened again, and its clock goes on meanwhile.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from internvideo.errors import VideoError, shown
from internvideo.video.clock import Clock, clock_of, rate, zero
from internvideo.video.conversion import Converter, chosen_conversion, orientation, scaled, upright
from internvideo.video.index import decode
from internvideo.video.opening import FORMAT_WHITELIST, MAX_PIXELS, fail, open_file, packets, reason_of

CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
"""Platform -> FFmpeg's name of its cameras, and how one is called."""


RECONNECT = 60.0
"""Seconds without a picture after which a source that broke off is given up."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds before the first try to open a source again, doubled from try to try, and the most of them."""

_ENDING = frozenset(("file", "http", "https", "ftp"))
"""Kinds of address whose end is the end of the video, not of a connection."""


class LiveFrame(NamedTuple):
    """A decoded picture, its time (s, never falling: `video.clock`), and `time.perf_counter()` when it was there."""

    time: float
    arrived: float
    picture: Any


class LiveVideo:
    """A source that is read once, from now on. Use it as a context manager.

    Args:
        source: "-" (standard input) or an open binary file; a named pipe; "camera", "camera:N" (on Windows
            "camera:NAME") or a device file; a regular file; with `protocols` an address (rtsp://, http://).
        protocols: accept addresses.
        short_side: `rgb` scales pictures down to it.
        timeout: s without data from an address after which it counts as gone.
        reconnect: s without a picture for which a camera or address that broke off is opened again; 0 for never. What
            has a length of its own (a file behind an address) is not: it would begin anew.

    Attributes:
        kind: "pipe", "camera", "address" or "file".
        step: s between pictures as the header has it. last_step: s for which the last picture is shown.
        damaged: pictures and packets that were left out so far because they could not be decoded.
        reconnects: how often the source broke off and went on.

    Raises:
        VideoError: it cannot be opened, or is no video.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        *,
        protocols: bool = False,
        short_side: int | None = None,
        timeout: float = 10.0,
        reconnect: float = RECONNECT,
    ) -> None:
        self.name = str(source) if isinstance(source, str | os.PathLike) else getattr(source, "name", "pipe")
        self.name = "standard input" if self.name == "-" else re.sub("//[^/@]*@", "//", str(self.name))
        self.damaged, self.reconnects, self.kind, conversion = 0, 0, "", chosen_conversion()
        self._source, self._protocols, self._reconnect = source, protocols, reconnect
        self._abandoned, self._tries = threading.Event(), 0
        self._short_side, self._timeout = short_side, timeout
        self._file: BinaryIO | None = None
        self._turn: tuple[int, bool] | None = None
        try:
            self._container, self._stream = self._open(source, protocols)
        except BaseException:
            self._close_file()
            raise
        self._converter = Converter(self._stream.codec_context.codec.canonical_name, conversion)
        self.step = self.last_step = 1 / rate(self._stream)

    def __enter__(self) -> LiveVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the source back."""
        self._container.close()
        self._close_file()

    def abandon(self) -> None:
        """Wait no longer for a source that broke off; callable from another thread."""
        self._abandoned.set()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()

    # ------------------------------------------------------------------------------------------------------ opening

    def _open(self, source: str | os.PathLike[str] | BinaryIO, protocols: bool) -> tuple[Any, Any]:
        if not isinstance(source, str | os.PathLike):
            return self._pipe(source)
        name = os.fspath(source)
        if name == "-":
            # Unbuffered: a read gives what there is instead of waiting for a full block.
            self._file = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
            return self._pipe(self._file)
        if name.partition(":")[0] == "camera":
            return self._camera(*_camera(name))
        if "://" in name:
            if not protocols:
                raise fail(name, "is an address; only local sources are opened", do="allow it with protocols")
            return self._address(name)
        try:
            mode = os.stat(name).st_mode
            if stat.S_ISFIFO(mode):
                self._file = os.fdopen(os.open(name, os.O_RDONLY), "rb", buffering=0)
                return self._pipe(self._file)
        except (OSError, ValueError) as error:
            raise fail(name, f"cannot be opened: {reason_of(error)}") from error
        if stat.S_ISCHR(mode):
            return self._camera(CAMERAS.get(sys.platform, CAMERAS["linux"])[0], name)
        self.kind = "file"
        return open_file(name, protocols=False, threads=1, seconds=120.0)

    def _pipe(self, file: BinaryIO) -> tuple[Any, Any]:
        self.kind = "pipe"
        return self._opened(file, {"format_whitelist": FORMAT_WHITELIST, "analyzeduration": "1000000"})

    def _camera(self, form: str, name: str) -> tuple[Any, Any]:
        self.kind = "camera"
        return self._opened(name, {}, form)

    def _address(self, name: str) -> tuple[Any, Any]:
        self.kind = "address"
        return self._opened(name, {"analyzeduration": "1000000"})

    def _opened(self, what: Any, options: dict[str, str], form: str | None = None) -> tuple[Any, Any]:
        timeout = None if self.kind == "pipe" else self._timeout
        try:
            container = av.open(
                what, format=form, options={"max_pixels": str(MAX_PIXELS), **options}, metadata_errors="replace",
                timeout=timeout,
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
        """Frames in the order of their times; what cannot be decoded is left out and counted.

        Raises:
            VideoError: the source broke off, or not one frame came.
        """
        clock: Clock | None = None
        last = 0.0
        for picture in self._pictures():
            arrived = time.perf_counter()
            if picture.duration:
                self.last_step = float(picture.duration * self._stream.time_base)
            if clock is None:
                clock = self._clock(picture.pts)
            elif self._tries:
                clock.restart(self._stream, arrived - last)
                self._goes_on(arrived - last)
            last = arrived
            yield LiveFrame(clock.of(picture), arrived, picture)
        if clock is None:
            raise fail(self.name, "no frame came")

    def _pictures(self) -> Iterator[Any]:
        """Sound pictures, also of later openings of a source that broke off."""
        last: float | None = None
        while True:
            error = None
            try:
                for packet in self._packets():
                    for picture in self._decoded(packet):
                        if picture.is_corrupt:
                            self.damaged += 1
                            continue
                        last = time.perf_counter()
                        yield picture
            except VideoError as broken:
                error = broken
            if last is None or not self._comes_back(error is not None):
                if error is not None:
                    raise error
                return
            if not self._open_again("it ended" if error is None else error.found, last):
                return

    def _comes_back(self, broken: bool) -> bool:
        """Whether the source, which broke off or ended, is one that goes on elsewhere meanwhile."""
        if not self._reconnect or self.kind not in ("camera", "address") or self._container.duration:
            return False
        return broken or self.kind == "camera" or self.name.partition(":")[0].lower() not in _ENDING

    def _open_again(self, reason: str, last: float) -> bool:
        """Open the source anew, as soon as that can be done; False when it was abandoned. Raises VideoError."""
        if not self._tries:
            _log().warning("%s: %s; it is opened again for %g s", shown(self.name), shown(reason), self._reconnect)
        while not self._abandoned.is_set():
            wait = min(FIRST_WAIT * 2**self._tries, LONGEST_WAIT)
            if time.perf_counter() + wait - last > self._reconnect:
                found = f"broke off, and {self._tries} tries to open it again failed ({reason})"
                raise fail(self.name, found, do=f"wait longer than {self._reconnect:g} s with reconnect")
            self._abandoned.wait(wait)
            self._tries += 1
            self._container.close()
            try:
                self._container, self._stream = self._open(self._source, self._protocols)
            except VideoError as error:
                reason = error.found
                continue
            self._turn = None
            return True
        return False

    def _goes_on(self, pause: float) -> None:
        self.reconnects, self._tries = self.reconnects + 1, 0
        _log().warning("%s: goes on after %.1f s", shown(self.name), pause)

    def _clock(self, first: int | None) -> Clock:
        """The clock for a stream whose first picture has this stamp."""
        container, stream = self._container, self._stream
        origin = None if first is None else zero(container, stream, float(first * stream.time_base))
        return clock_of(container, stream, origin=origin, spliced=self.kind in ("camera", "address"))

    def _packets(self) -> Iterator[Any]:
        """Packets with data, then None, which drains the decoder."""
        while True:
            try:
                for packet in packets(self._container, self._stream):
                    if packet.size:
                        yield packet
                break
            except av.error.BlockingIOError:  # some cameras: nothing there yet
                time.sleep(0.002)
            except (av.error.FFmpegError, OSError) as error:
                raise fail(self.name, f"broke off: {reason_of(error)}") from error
        yield None

    def _decoded(self, packet: Any) -> list[Any]:
        try:
            return decode(self._stream.codec_context, packet)
        except av.error.FFmpegError:
            self.damaged += 1
            return []

    def rgb(self, picture: Any) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of a picture, upright."""
        if self._turn is None:
            self._turn = orientation(picture)
        width, height = scaled(picture.width, picture.height, self._short_side)
        out = np.empty((1, height, width, 3), np.uint8)
        try:
            self._converter.write(picture, out[0])
        except ValueError as error:
            raise fail(self.name, str(error)) from error
        frame: NDArray[np.uint8] = upright(out, *self._turn)[0]
        return frame


def _log() -> logging.Logger:
    return logging.getLogger("internvideo")


def _camera(name: str) -> tuple[str, str]:
    """FFmpeg's (format, name) of "camera" or "camera:N"."""
    which = name.partition(":")[2] or "0"
    if sys.platform not in CAMERAS:
        raise fail(name, f"no cameras are known on {sys.platform}", do="name a pipe or a file")
    form, pattern = CAMERAS[sys.platform]
    return form, pattern.format(which)
