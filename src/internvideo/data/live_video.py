"""Video while it comes in: a pipe, a camera, an address, or a file from its start; frame by frame, no seeking.

Opened only where somebody asks for it by name: data sets and folders never lead here.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from internvideo.data.video_index import decode
from internvideo.data.video_open import FORMAT_WHITELIST, MAX_PIXELS, fail, open_file, reason_of
from internvideo.data.video_picture import Converter, orientation, scaled, upright

CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
"""Platform -> FFmpeg's name of its cameras, and how one is called."""

STEP_BACK = 1.0
"""Time stamps that fall back by more than this (s) are a new count: the clock goes on where it was."""


class LiveFrame(NamedTuple):
    """A decoded picture, its time since the first (s, never falling), and `time.perf_counter()` when it was there."""

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

    Attributes:
        kind: "pipe", "camera", "address" or "file".
        step: s between pictures as the header has it. last_step: s for which the last picture is shown.
        damaged: pictures and packets that were left out so far because they could not be decoded.

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
    ) -> None:
        self.name = str(source) if isinstance(source, str | os.PathLike) else getattr(source, "name", "pipe")
        self.name = "standard input" if self.name == "-" else str(self.name)
        self.damaged, self.kind = 0, ""
        self._short_side, self._timeout = short_side, timeout
        self._file: BinaryIO | None = None
        self._converter = Converter()
        self._turn: tuple[int, bool] | None = None
        try:
            self._container, self._stream = self._open(source, protocols)
        except BaseException:
            self._close_file()
            raise
        rate = self._stream.average_rate or self._stream.guessed_rate or 25
        self.step = self.last_step = 1 / float(rate) if 0 < float(rate) <= 240 else 0.04

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
        clock = _Clock(self.step, float(self._stream.time_base or 1))
        given = 0
        for packet in self._packets():
            for picture in self._decoded(packet):
                arrived = time.perf_counter()
                if picture.is_corrupt:
                    self.damaged += 1
                    continue
                given += 1
                if picture.duration:
                    self.last_step = float(picture.duration * self._stream.time_base)
                yield LiveFrame(clock.read(picture.pts), arrived, picture)
        if not given:
            raise fail(self.name, "no frame came")

    def _packets(self) -> Iterator[Any]:
        """Packets with data, then None, which drains the decoder."""
        while True:
            try:
                for packet in self._container.demux(self._stream):
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
        self._converter.write(picture, out[0])
        frame: NDArray[np.uint8] = upright(out, *self._turn)[0]
        return frame


def _camera(name: str) -> tuple[str, str]:
    """FFmpeg's (format, name) of "camera" or "camera:N"."""
    which = name.partition(":")[2] or "0"
    if sys.platform not in CAMERAS:
        raise fail(name, f"no cameras are known on {sys.platform}", do="name a pipe or a file")
    form, pattern = CAMERAS[sys.platform]
    return form, pattern.format(which)


class _Clock:
    """Time stamps to seconds that start at 0 and never fall."""

    def __init__(self, step: float, base: float) -> None:
        self.step, self.base = step, base
        self._shift = 0.0
        self._last: float | None = None

    def read(self, stamp: int | None) -> float:
        """The time of the next picture, s."""
        if self._last is None:
            self._shift, now = (0.0 if stamp is None else -stamp * self.base), 0.0
        elif stamp is None:
            now = self._last + self.step
        else:
            now = stamp * self.base + self._shift
            if now < self._last - STEP_BACK:
                self._shift += self._last + self.step - now
                now = self._last + self.step
            now = max(now, self._last)
        self._last = now
        return now
