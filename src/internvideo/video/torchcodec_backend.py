"""A second decoder, torchcodec, for the requests that it serves no slower: the frames and the refusals stay the same.

The file is always opened, probed and indexed by `data.video`; torchcodec is told the index instead of making its own.
For each kind of picture (codec, pixel format, colours, turn ...) the first request of a process is answered by both
decoders, and only where every pixel is equal does torchcodec answer the later ones. Whatever it cannot do, PyAV does.
"""

from __future__ import annotations

import json
import os
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import VideoError
from internvideo.video.conversion import FIELDS, Conversion
from internvideo.video.index import Index

BACKENDS = ("auto", "pyav", "torchcodec")
ENVIRONMENT = "INTERNVIDEO_DECODER"

# When "auto" takes it: CPU time of "open, probe, read" with torchcodec 0.13 (FFmpeg 5.1) over PyAV 18.1 (FFmpeg 8.1),
# one thread, medians of 5, at 320x240 / 640x360 / 1280x720, key frames 12 and 250 apart; below 1 torchcodec is faster:
#
#              8 spread frames     every 4th of 64     all 200
#     av1      0.94 ... 1.06       0.97 ... 1.24       1.3 ... 2.0
#     hevc     0.95 ... 1.22       0.99 ... 2.3        1.0 ... 1.6
#     vp9      1.03 ... 1.08       0.7  ... 1.2        1.2 ... 1.5
#     h264     1.28 ... 1.72       1.37 ... 1.84       1.3 ... 1.7
#
# So: never a clear gain on a CPU; on a par for few frames out of many of VP9 and AV1, and of these AV1 is the one whose
# decoder finds damage. That of H.264 or HEVC patches damage up, and torchcodec does not tell which pictures are such.
FASTER = frozenset({"av1"})
SPARSE = 8
"""For each frame asked, at least so many lie between the first and the last of them."""

# What a file must begin with: FFmpeg then takes it for nothing else, for torchcodec cannot be told which formats and
# protocols are allowed.
_STARTS = ((0, b"\x1a\x45\xdf\xa3"), (4, b"ftyp"))

_WITHOUT_FIELDS = frozenset({"av1", "vp8", "vp9", "png", "h263"}) | FIELDS
_PROGRESSIVE = 1
"""FFmpeg's field order of a stream without fields; 0 when it is unknown."""

_equal: dict[tuple[object, ...], bool] = {}
"""Kind of picture -> whether both decoders gave the same pixels."""


def chosen(backend: str | None, path: object) -> str:
    """The backend asked for: the argument, else the environment, else "auto".

    Raises:
        VideoError: there is none of that name, or torchcodec is asked for and cannot be loaded.
    """
    name = backend or os.environ.get(ENVIRONMENT) or "auto"
    if name not in BACKENDS:
        where = "backend" if backend else ENVIRONMENT
        raise VideoError(where, f"'{name}'", ", ".join(BACKENDS))
    if name == "torchcodec" and isinstance(loaded(), str):
        raise VideoError(path, f"torchcodec cannot be loaded: {loaded()}", do="install it and FFmpeg, or take 'pyav'")
    return name


def may_serve(backend: str, index: Index, stream: Any, conversion: Conversion) -> bool:
    """Whether torchcodec comes into question at all for a video: it neither deinterlaces nor maps tones."""
    codec, first = stream.codec_context.codec.canonical_name, index.first
    progressive = codec in _WITHOUT_FIELDS or stream.codec_context.field_order == _PROGRESSIVE
    if (conversion.deinterlace and not progressive) or (conversion.tone_map and first.hdr):
        return False
    return index.exact and (backend == "torchcodec" or (backend == "auto" and codec in FASTER))


@cache
def loaded() -> Any:
    """torchcodec's VideoDecoder class, or why it cannot be had (str)."""
    try:
        return import_module("torchcodec.decoders").VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]


class SecondDecoder:
    """torchcodec on an indexed file, full size, turned upright by itself.

    Args:
        path: a local file.
        index: from packets.
        stream: of the index.
        threads: of the decoder.
        always: every request, not only the kinds in which it is faster.
    """

    def __init__(self, path: str, index: Index, stream: Any, *, threads: int, always: bool) -> None:
        first, self._codec = index.first, stream.codec_context.codec.canonical_name
        self._path, self._index, self._threads, self._always = os.path.abspath(path), index, threads, always
        self._stream, self._base = stream.index, stream.time_base
        # The last two decide which of its routines the colour conversion takes.
        size = (first.width % 32, first.height % 2)
        self._kind = (self._codec, first.pixel_format, *first.colours, first.rotation, first.mirrored, *size)
        self._decoder: Any = None
        self._gone = index.open_gop or not _begins_well(self._path)

    def serves(self, wanted: NDArray[np.int64]) -> bool:
        """Whether it should be asked for these frames."""
        if self._gone or not len(wanted) or not _equal.get(self._kind, True):
            return False
        sparse = int(np.ptp(wanted)) + 1 >= SPARSE * len(wanted)
        return (self._always or (self._codec in FASTER and sparse)) and not isinstance(loaded(), str)

    @property
    def proven(self) -> bool:
        """Whether it is known to give the same pixels of this kind."""
        return _equal.get(self._kind, False)

    def judge(self, theirs: NDArray[np.uint8], ours: NDArray[np.uint8]) -> None:
        """Note whether both decoders gave the same."""
        _equal[self._kind] = bool(np.array_equal(theirs, ours))

    def frames(self, wanted: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        """(len(wanted), H, W, 3) uint8 RGB; None when it fails, now and from now on."""
        try:
            if self._decoder is None:
                self._decoder = loaded()(
                    self._path,
                    stream_index=self._stream,
                    dimension_order="NHWC",
                    num_ffmpeg_threads=self._threads,
                    custom_frame_mappings=self._table(),
                )
            batch = self._decoder.get_frames_at(wanted.tolist())
        except (RuntimeError, ValueError, IndexError, OSError):
            self.close()
            return None
        times = self._index.times[wanted]
        if not np.allclose(batch.pts_seconds.numpy(), times, rtol=0, atol=1e-6):
            self.close()
            return None
        frames: NDArray[np.uint8] = batch.data.numpy()
        return frames

    def close(self) -> None:
        """Give the file back; nothing is served any more."""
        self._decoder, self._gone = None, True

    def _table(self) -> str:
        """The index in the form that torchcodec reads instead of scanning the file."""
        index = self._index
        stamps = index.pts[index.order]
        last = max(1, round((index.end - float(index.times[-1])) / float(self._base)))
        lengths = np.append(np.diff(stamps), last)
        rows = zip(stamps.tolist(), lengths.tolist(), index.key[index.order].tolist(), strict=True)
        return json.dumps({"frames": [{"pts": a, "duration": b, "key_frame": int(c)} for a, b, c in rows]})


def _begins_well(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError:
        return False
    return any(head[at : at + len(mark)] == mark for at, mark in _STARTS)
