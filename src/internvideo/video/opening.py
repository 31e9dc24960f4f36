"""Open a video file safely: only the named file, only known formats, with limits on size and time."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from typing import Any

import av

from internvideo.errors import VideoError

PROTOCOLS = {"file": "file", "http": "http,httpproxy,tcp", "https": "http,https,httpproxy,tcp,tls"}
"""Allowed URL scheme -> the protocols that FFmpeg may use for it, also after a redirection."""

MAX_PIXELS = 8192 * 8192
"""Maximum frame size in pixels; a header that declares more is refused before memory is allocated."""

# Demuxers that read one file and nothing else. Left out on purpose: playlists and scripts (hls, dash, concat, sdp,
# image2 ...), devices and lavfi, which open other files, addresses or hardware.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2 matroska,webm avi mpegts mpeg mpegvideo flv live_flv kux asf ogg gif apng "
    "h261 h263 h264 hevc vvc evc av1 obu ivf m4v vc1 vc1test cavsvideo dirac dv mxf nut rm wtv yuv4mpegpipe "
    "mjpeg mjpeg_2000 webp webp_anim jpegxl_anim "
    "png_pipe jpeg_pipe bmp_pipe webp_pipe tiff_pipe gif_pipe psd_pipe jpegxl_pipe ppm_pipe pgm_pipe pgmyuv_pipe "
    "nsv vob roq smk bink flic film_cpk 4xm amv swf rpl mtv thp txd vmd wc3movie xmv yop nuv mm smush avs "
    # audio and subtitles: opened only to say that there is no video in them
    "mp3 aac wav flac w64 aiff au caf ac3 eac3 amr ape tta wv srt webvtt ass"
)
FORMAT_WHITELIST = ",".join(_FORMATS.split())

# Tags that are not UTF-8 must not make a file unreadable: PyAV 18 has to be told, 19 keeps their bytes by itself.
TAGS: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
"""Further arguments of `av.open` for a file that others wrote."""


def fail(path: object, reason: str, at: float | None = None, hint: str = "") -> VideoError:
    """Return a VideoError with the file, the reason and the time in the file."""
    return VideoError(path, reason if at is None else f"{reason} at {at:.3f} s", hint=hint)


def reason_of(error: BaseException) -> str:
    """Return the short message of a library exception."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text[:1].lower() + text[1:]


class Deadline:
    """Wall-clock budget of one call: `check` raises once it is exceeded."""

    def __init__(self, path: object, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self.renew()

    def renew(self) -> None:
        """Restart the budget."""
        self._end = time.monotonic() + self.seconds

    def check(self, at: float | None = None) -> None:
        """Raise VideoError, with the time in the file if given, once the budget is exceeded."""
        if time.monotonic() > self._end:
            raise fail(self.path, f"reading took longer than {self.seconds:g} s", at, hint="raise the time budget")


def open_file(path: str, *, allow_urls: bool, threads: int, seconds: float) -> tuple[Any, Any]:
    """Open a container and select its first real video stream; all other streams are discarded.

    Returns: (container, stream); the caller closes the container.
    """
    kind, name = _address(path, allow_urls)
    container_options = {"format_whitelist": FORMAT_WHITELIST, "protocol_whitelist": PROTOCOLS[kind]}
    container_options["max_pixels"] = str(MAX_PIXELS)
    try:
        container = av.open(name, options=container_options, timeout=seconds, **TAGS)
    except av.error.ExitError as error:
        raise fail(path, f"opening took longer than {seconds:g} s", hint="raise the time budget") from error
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


def _address(path: str, allow_urls: bool) -> tuple[str, str]:
    """Return (key of PROTOCOLS, name for FFmpeg) of a path or URL. Raises VideoError where it may not be opened."""
    kind, mark, _ = path.partition("://")
    if mark and not os.path.exists(path):
        if not allow_urls:
            found = "is an address; only files of this machine are opened"
            raise fail(path, found, hint="allow it with allow_urls=True")
        if kind.lower() not in PROTOCOLS:
            raise fail(path, f"addresses of the kind '{kind}' are not opened", hint="take " + ", ".join(PROTOCOLS))
        if kind.lower() != "file":
            return kind.lower(), path
    if allow_urls and path[:5].lower() == "file:" and not os.path.exists(path):
        path = path[5:]
    _check_regular(path)
    # An absolute path after "file:" cannot be parsed as a protocol, whatever the file's name.
    return "file", "file:" + os.path.abspath(path)


def _check_regular(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode) and os.stat(path).st_size == 0:
            raise fail(path, "is an empty file")
    except (OSError, ValueError) as error:
        raise fail(path, f"cannot be opened: {reason_of(error)}", hint="only files on this machine are read") from error
    if stat.S_ISDIR(mode):
        raise fail(path, "is a folder, not a video")
    if not stat.S_ISREG(mode):
        raise fail(path, "is not a regular file")


def _pick_stream(path: str, container: Any) -> Any:
    num_covers = 0
    for stream in container.streams.video:
        if stream.disposition & av.stream.Disposition.attached_pic:
            num_covers += 1
        elif stream.codec_context is None:
            raise fail(path, "its video codec has no decoder here")
        else:
            return stream
    raise fail(path, "has no video stream" + (", only a cover picture" if num_covers else ""))


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of a stream from the current position; streams that appear later are skipped."""
    while True:
        try:
            yield from container.demux(stream)
        except IndexError:  # the library knows only the streams that were there when the container was opened
            continue
        return


def as_video_error(path: object, error: Exception) -> VideoError:
    """Wrap an exception of the library as a VideoError; return a VideoError unchanged."""
    return error if isinstance(error, VideoError) else fail(path, f"cannot be read: {reason_of(error)}")


def check_not_encrypted(packet: Any, path: object) -> None:
    """Raise VideoError for an encrypted packet: many decoders would output a green or gray frame."""
    if packet.has_sidedata("encryption_info"):
        raise fail(path, "is encrypted", hint="decrypt it first")
