"""Optional torchcodec backend for requests that it serves no slower, with the same frames and errors as PyAV.

The file is always opened and indexed by `video.reader`; torchcodec receives that index instead of scanning the file.
For each kind of frame (codec, pixel format, colors, rotation ...) the first request of a process is decoded by both
backends, and torchcodec serves later ones only if every pixel is equal. PyAV does everything else.
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
# So: never a clear gain on a CPU; on a par for few frames out of many of VP9 and AV1, and of these only AV1's decoder
# detects damage. Those of H.264 and HEVC conceal damage, and torchcodec does not report which frames are affected.
FASTER = frozenset({"av1"})
SPARSE = 8
"""Minimum ratio of the range of the requested frames to their number."""

# Signatures that a file must start with, so that FFmpeg detects only these formats: torchcodec has no option for the
# allowed formats and protocols.
_STARTS = ((0, b"\x1a\x45\xdf\xa3"), (4, b"ftyp"))

_WITHOUT_FIELDS = frozenset({"av1", "vp8", "vp9", "png", "h263"}) | FIELDS
_PROGRESSIVE = 1
"""FFmpeg's field order of a progressive stream; 0 means unknown."""

_verified: dict[tuple[object, ...], bool] = {}
"""Kind of frame -> whether both decoders gave the same pixels."""


def resolve_backend(backend: str | None, path: object) -> str:
    """Resolve the backend: the argument, else the environment, else "auto".

    Raises VideoError: there is none of that name, or torchcodec is asked for and cannot be loaded.
    """
    name = backend or os.environ.get(ENVIRONMENT) or "auto"
    if name not in BACKENDS:
        where = "backend" if backend else ENVIRONMENT
        raise VideoError(where, f"'{name}'", ", ".join(BACKENDS))
    if name == "torchcodec" and isinstance(torchcodec_class(), str):
        found = f"torchcodec cannot be loaded: {torchcodec_class()}"
        raise VideoError(path, found, hint="install it and FFmpeg, or take 'pyav'")
    return name


def is_supported(backend: str, index: Index, stream: Any, conversion: Conversion) -> bool:
    """Return whether torchcodec can decode a video with these options: it neither deinterlaces nor maps tones."""
    codec, first = stream.codec_context.codec.canonical_name, index.first
    progressive = codec in _WITHOUT_FIELDS or stream.codec_context.field_order == _PROGRESSIVE
    if (conversion.deinterlace and not progressive) or (conversion.tone_map and first.hdr):
        return False
    return index.seekable and (backend == "torchcodec" or (backend == "auto" and codec in FASTER))


@cache
def torchcodec_class() -> Any:
    """Return torchcodec's VideoDecoder class, or the reason why it cannot be imported (str)."""
    try:
        return import_module("torchcodec.decoders").VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]


class TorchcodecDecoder:
    """Decode an indexed file with torchcodec, at full size; torchcodec applies the rotation.

    Args:
        path: a local file.
        index: index from packets.
        stream: the indexed stream.
        threads: decoder threads.
        always: serve every request, not only the kinds for which it is faster.
    """

    def __init__(self, path: str, index: Index, stream: Any, *, threads: int, always: bool) -> None:
        first, self._codec = index.first, stream.codec_context.codec.canonical_name
        self._path, self._index, self._threads, self._always = os.path.abspath(path), index, threads, always
        self._stream, self._base = stream.index, stream.time_base
        # The last two determine the routine of its color conversion.
        size = (first.width % 32, first.height % 2)
        self._kind = (self._codec, first.pixel_format, *first.colors, first.rotation, first.mirrored, *size)
        self._decoder: Any = None
        self._disabled = index.open_gop or not _has_known_header(self._path)

    def can_decode(self, wanted: NDArray[np.int64]) -> bool:
        """Return whether torchcodec should decode these frames."""
        if self._disabled or not len(wanted) or not _verified.get(self._kind, True):
            return False
        sparse = int(np.ptp(wanted)) + 1 >= SPARSE * len(wanted)
        return (self._always or (self._codec in FASTER and sparse)) and not isinstance(torchcodec_class(), str)

    @property
    def is_verified(self) -> bool:
        """Whether it gave the same pixels as PyAV for this kind of frame."""
        return _verified.get(self._kind, False)

    def compare(self, from_torchcodec: NDArray[np.uint8], from_pyav: NDArray[np.uint8]) -> None:
        """Record whether both decoders gave the same pixels."""
        _verified[self._kind] = bool(np.array_equal(from_torchcodec, from_pyav))

    def frames(self, wanted: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        """Decode frames to (len(wanted), H, W, 3) uint8 RGB; return None, and disable the decoder, when it fails."""
        try:
            if self._decoder is None:
                self._decoder = torchcodec_class()(
                    self._path,
                    stream_index=self._stream,
                    dimension_order="NHWC",
                    num_ffmpeg_threads=self._threads,
                    custom_frame_mappings=self._table(),
                )
            batch = self._decoder.get_frames_at(wanted.tolist())
            if np.allclose(batch.pts_seconds.numpy(), self._index.times[wanted], rtol=0, atol=1e-6):
                frames: NDArray[np.uint8] = batch.data.numpy()
                return frames
        except (RuntimeError, ValueError, IndexError, OSError):
            pass
        self.close()
        return None

    def close(self) -> None:
        """Close the file and disable the decoder."""
        self._decoder, self._disabled = None, True

    def _table(self) -> str:
        """Return the index in torchcodec's JSON format of custom frame mappings."""
        index = self._index
        stamps = index.pts[index.order]
        last = max(1, round((index.end - float(index.times[-1])) / float(self._base)))
        lengths = np.append(np.diff(stamps), last)
        rows = zip(stamps.tolist(), lengths.tolist(), index.key[index.order].tolist(), strict=True)
        return json.dumps({"frames": [{"pts": a, "duration": b, "key_frame": int(c)} for a, b, c in rows]})


def _has_known_header(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError:
        return False
    return any(head[at : at + len(mark)] == mark for at, mark in _STARTS)
