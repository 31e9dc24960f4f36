"""Write a video file from RGB frames, reproducibly (same frames and settings, same bytes) and atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from internvideo.errors import VideoError

# Encoder -> (its option for private settings, the settings that make its bytes reproducible).
_X264 = ("x264-params", "cpu-independent=1")
_REPRODUCIBLE = {
    # Its macroblock tree is summed up in another order with each instruction set, and with AVX-512 in another one each
    # time, which changes the pictures; the plain routine costs nothing to speak of (0.4 % larger files).
    "libx264": _X264,
    "libx264rgb": _X264,
    # It keeps its own threads and banner; its frame threads would make the bytes depend on the machine.
    "libx265": ("x265-params", "log-level=none:pools=none:frame-threads=1"),
}


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[NDArray[np.uint8]],
    fps: float | Fraction,
    *,
    codec: str = "libx264",
    crf: int | None = 18,
    pixel_format: str = "yuv420p",
    gop: int = 12,
    options: Mapping[str, str] | None = None,
) -> int:
    """Encode frames into `path`; the container follows from the name (.mp4, .mkv, .webm, .avi ...).

    The write is atomic: to a temporary file, synced and renamed. The same frames and settings give the same bytes with
    any software encoder of `av`: one encoder thread, no date and no version in the file. With libx264, libx264rgb and
    libsvtav1 also on every kind of CPU; libx265 depends on the instruction set. Another version of an encoder may give
    other bytes. Tested in tests/video/test_video_writer.py.

    Args:
        frames: (H, W, 3) uint8 RGB, all of one size; consumed one at a time.
        fps: frames per second.
        crf: constant quality of x264, x265, VP9 and AV1 (0 is best); None for the codec's default.
        pixel_format: stored pixel format; "yuv420p" needs even sides.
        gop: maximum distance of two key frames, in frames.
        options: further encoder options, as strings.

    Returns: the number of frames written.

    Raises:
        VideoError: no frames, a codec or size that cannot be encoded, a full disk.
        ValueError: a frame that is not (H, W, 3) uint8 or of another size than the first.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise VideoError(target, "its folder does not exist", hint="make the folder first")
    handle, name = tempfile.mkstemp(prefix=f".{target.stem[:40]}.", suffix=target.suffix or ".mp4", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    settings = {"threads": "1", **({} if crf is None else {"crf": str(crf)}), **dict(options or {})}
    try:
        settings |= _repeatable(codec, settings)
        count = _encode(temporary, frames, Fraction(fps).limit_denominator(1001), codec, pixel_format, gop, settings)
        if count == 0:
            raise VideoError(target, "no frames to write")
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except (av.error.FFmpegError, OSError, _UnfitError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise VideoError(target, f"cannot be written with {codec}, {pixel_format}: {why}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


class JpegEncoder:
    """Encode images as JPEG files of one size; making the encoder takes longer than using it.

    Args:
        width, height: pixels that the images are scaled to.
    """

    def __init__(self, width: int, height: int) -> None:
        self._codec: Any = av.CodecContext.create("mjpeg", "w")
        self._codec.width, self._codec.height, self._codec.pix_fmt = width, height, "yuvj420p"
        self._codec.time_base, self._codec.thread_count = Fraction(1), 1
        self._codec.options = {"q:v": "4"}
        self._reformatter = VideoReformatter()
        self._count = 0

    def __call__(self, pixels: NDArray[np.uint8]) -> bytes:
        """Encode an image (H, W, 3) uint8 RGB."""
        codec, frame = self._codec, av.VideoFrame.from_ndarray(pixels, format="rgb24")
        # One thread: a forked worker would wait forever for those of its parent (PyAV 19).
        picture = self._reformatter.reformat(frame, codec.width, codec.height, "yuvj420p", threads=1)
        picture.pts = self._count
        self._count += 1
        return b"".join(bytes(packet) for packet in codec.encode(picture))


def _encode(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    fps: Fraction,
    codec: str,
    pixel_format: str,
    gop: int,
    settings: dict[str, str],
) -> int:
    count = 0
    size: tuple[int, ...] = ()
    stream: Any = None
    restore = scheduling_restorer()
    # bitexact leaves the writing library's version and the date out of the file.
    with open_output(path) as container:
        for frame in frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise ValueError(f"frame {count} is {frame.dtype} {frame.shape}, not (H, W, 3) uint8")
            if stream is None:
                size = frame.shape
                stream = _add_stream(container, codec, fps, settings)
                stream.height, stream.width = size[:2]
                stream.pix_fmt = pixel_format
                stream.codec_context.gop_size = gop
            if frame.shape != size:
                raise ValueError(f"frame {count} has shape {frame.shape}, the first one {size}")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = count, 1 / fps
            container.mux(stream.encode(picture))
            if count == 0:
                restore()
            count += 1
        if stream is not None:
            container.mux(stream.encode(None))
    return count


def _repeatable(codec: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the encoder options, before those of the caller, that make its output reproducible."""
    try:
        encoder = av.codec.Codec(codec, "w").name  # "h264" stands for libx264 here, for another encoder there
    except ValueError as error:
        raise _UnfitError(f"no such encoder here: {error}") from error
    key, ours = _REPRODUCIBLE.get(encoder, ("", ""))
    return {key: ":".join(filter(None, (ours, settings.get(key, ""))))} if key else {}


class _UnfitError(Exception):
    """File name, codec and settings are incompatible."""


def open_output(path: Path) -> Any:
    """Open a file to write; no version and no date is written. Raises _UnfitError for an unknown container."""
    try:
        return av.open(os.fspath(path), "w", container_options={"fflags": "+bitexact"})
    except ValueError as error:  # no container of this name
        raise _UnfitError(str(error)) from error


def _add_stream(container: Any, codec: str, fps: Fraction, settings: dict[str, str]) -> Any:
    try:
        stream = container.add_stream(codec, rate=fps, options=settings)
    except ValueError as error:  # not in this container
        raise _UnfitError(str(error)) from error
    stream.codec_context.time_base = 1 / fps
    stream.codec_context.thread_count = 1
    return stream


def scheduling_restorer() -> Callable[[], None]:
    """Return a function that gives this thread the scheduling that it has now.

    libsvtav1, opened by root, makes the thread real-time (FIFO, priority 99): it then keeps others from its core, and
    so do all processes that it starts.
    """
    if not hasattr(os, "sched_getscheduler"):  # macOS, Windows
        return lambda: None
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)

    def restore() -> None:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, priority)

    return restore


def _umask() -> int:
    """Return the process's umask (it can only be read by setting it)."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
