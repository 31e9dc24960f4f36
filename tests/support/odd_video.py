"""Make video files of every kind that the reader must take, or must refuse. No test lives here."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from internvideo.video.opening import TAGS
from internvideo.video.writer import scheduling_restorer

Frames = NDArray[np.uint8]


def moving_frames(count: int, height: int = 48, width: int = 64, seed: int = 0) -> Frames:
    """(count, H, W, 3) pictures that all differ clearly: a coarse texture moves, a bar counts the frames."""
    rng = np.random.RandomState(seed)
    coarse = rng.randint(0, 256, (-(-height // 8), -(-width // 8), 3)).astype(np.uint8)
    texture = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
    frames = np.stack([np.roll(texture, (i, 3 * i), (0, 1)) for i in range(count)])
    for i, frame in enumerate(frames):
        frame[: max(1, height // 6)] = (i * 37) % 256
    return frames


def encode(
    path: Path,
    frames: Frames,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    fps: int = 15,
    stamps: Sequence[int] | None = None,
    gop: int = 12,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    format: str | None = None,
    rotation: tuple[float, bool] | None = None,
    title: str | None = None,
    audio: bool = False,
) -> Path:
    """Write frames with any codec. `stamps` are presentation times in units of 1 / fps; `rotation` is (degrees
    counter-clockwise, left-right flip)."""
    settings = {"threads": "1", **dict(options or {})}
    if codec.startswith("libx264"):  # without it a file is another one each time on CPUs with AVX-512
        settings["x264-params"] = ":".join(filter(None, ("cpu-independent=1", settings.get("x264-params", ""))))
    if codec == "libx265":
        settings["x265-params"] = ":".join(
            filter(None, ("log-level=none:pools=none:frame-threads=1", settings.get("x265-params", "")))
        )
    restore = scheduling_restorer()
    with av.open(str(path), "w", format=format, container_options=dict(container_options or {})) as container:
        if title:
            container.metadata["title"] = title
        stream: Any = container.add_stream(codec, rate=fps, options=settings)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = Fraction(1, fps)
        stream.codec_context.gop_size = gop
        if rotation:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        sound: Any = container.add_stream("aac", rate=8000, layout="mono") if audio else None
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
                format=pixel_format
            )
            picture.pts, picture.time_base = (i if stamps is None else stamps[i]), Fraction(1, fps)
            container.mux(stream.encode(picture))
            restore()
        container.mux(stream.encode(None))
        if sound is not None:
            add_sound(container, sound)
    return path


def add_sound(container: Any, stream: Any) -> None:
    for i in range(8):
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        wave.sample_rate, wave.pts, wave.time_base = 8000, i * 1024, Fraction(1, 8000)
        container.mux(stream.encode(wave))
    container.mux(stream.encode(None))


def audio_only(path: Path, *, cover: bool = False) -> Path:
    """A sound file, if asked with a cover picture (a video stream that is no video)."""
    with av.open(str(path), "w", format="mp4") as container:
        sound: Any = container.add_stream("aac", rate=8000, layout="mono")
        if cover:
            art: Any = container.add_stream("mjpeg", rate=1)
            art.width, art.height, art.pix_fmt = 32, 32, "yuvj420p"
            art.disposition = av.stream.Disposition.attached_pic
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(art.encode(picture.reformat(format="yuvj420p")))
            container.mux(art.encode(None))
        add_sound(container, sound)
    return path


def zero_frames(path: Path) -> Path:
    """An MP4 with a proper video track and nothing in it."""
    with av.open(str(path), "w", container_options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream: Any = container.add_stream("libx264", rate=15)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return path


def cut(source: Path, path: Path, fraction: float) -> Path:
    """The first part of a file."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def sample_places(path: Path) -> list[tuple[int, int]]:
    """(offset, size) in the file of every video packet, in decoding order."""
    with av.open(str(path)) as container:
        return [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]


def patched(source: Path, path: Path, patches: Mapping[int, bytes]) -> Path:
    """A copy with some bytes replaced, by offset."""
    data = bytearray(source.read_bytes())
    for offset, new in patches.items():
        data[offset : offset + len(new)] = new
    path.write_bytes(bytes(data))
    return path


def huge_png(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes whose header declares any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )
    return path


def decode_all(path: Path) -> tuple[Frames, NDArray[np.float64]]:
    """Every frame and its time by the plain way, as the yardstick: open, decode from start to end, convert."""
    with av.open(str(path), **TAGS) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        pictures = [(picture.to_ndarray(format="rgb24"), picture.time) for picture in container.decode(stream)]
    return np.stack([frame for frame, _ in pictures]), np.array([time for _, time in pictures], np.float64)
