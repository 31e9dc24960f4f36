"""Odd but good video files of every kind, made from a clip of the sample world. No test lives here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from odd_video import Frames, add_sound, encode, huge_png, patched

from internvideo.sample_world.generate import WorldSettings, plan, render

FPS = 15
COUNT = 20
B_FRAMES = {"bf": "3", "b-adapt": "0"}
OPEN_GOP = {**B_FRAMES, "x264-params": "open-gop=1:scenecut=0:b-pyramid=normal"}
QUICK = {"cpu-used": "8", "deadline": "realtime"}
PQ = "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"


@cache
def world_clip(count: int = COUNT, side: int = 64) -> Frames:
    """(count, side, side, 3) frames of the sample world's first training clip."""
    settings = WorldSettings(frames=max(count, 8), size=side, fps=FPS, long_videos=0)
    return render(plan(settings, "train", 0).scene)[0][:count]


def world_frames(count: int = COUNT, height: int = 48, width: int = 64) -> Frames:
    """The same, cut to a size, with a bar at the lower edge that counts the frames."""
    frames = world_clip(count, max(32, -(-max(height, width) // 2) * 2))[:, :height, :width].copy()
    frames[:, -max(4, height // 8) :] = (np.arange(count) * 37 % 256)[:, None, None, None]
    return frames


@dataclass(frozen=True)
class Odd:
    """How a file is made, and what is in it.

    Attributes:
        name: of the file.
        make: writes it at a path.
        frames: its frames, before compression.
        start: time of the first one in the file, s. step: s between two; 0 for uneven times.
        exact: whether the pictures are lossless.
    """

    name: str
    make: Callable[[Path], object]
    frames: Frames
    start: float = 0.0
    step: float = 1 / FPS
    exact: bool = False


def made(name: str, *, size: tuple[int, int] = (48, 64), count: int = COUNT, **settings: Any) -> Odd:
    """A kind that `odd_video.encode` makes."""
    frames = world_frames(count, *size)
    expected = {key: settings.pop(key) for key in ("start", "step", "exact") if key in settings}
    if "fps" in settings:
        expected.setdefault("step", 1 / settings["fps"])
    return Odd(name, lambda path: encode(path, frames, **settings), frames, **expected)


def late(path: Path, shift: float) -> Path:
    """A file whose packets all come `shift` s later."""
    return remuxed(encode(path.with_name("source.mp4"), world_frames(), options=B_FRAMES), path, shift)


def remuxed(source: Path, path: Path, shift: float) -> Path:
    """A copy whose packets all come `shift` s later; negative: what lies before 0 is hidden by an edit list."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream: Any = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                ticks = round(shift / stream.time_base)
                packet.stream, packet.pts, packet.dts = copy, packet.pts + ticks, packet.dts + ticks
                new.mux(packet)
    return path


def two_streams(path: Path, *, cover: bool = False) -> Path:
    """A second video stream of another size behind the first one; with `cover`, a cover picture before it instead."""
    with av.open(str(path), "w") as container:
        sizes = [(48, 64), (32, 32)] if not cover else [(32, 32), (48, 64)]
        streams: list[Any] = []
        for place, (height, width) in enumerate(sizes):
            is_cover = cover and place == 0
            stream: Any = container.add_stream("mjpeg" if is_cover else "libx264", rate=FPS)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuvj420p" if is_cover else "yuv420p"
            if is_cover:
                stream.disposition = av.stream.Disposition.attached_pic
            streams.append(stream)
        sound: Any = container.add_stream("aac", rate=8000, layout="mono")
        for place, stream in enumerate(streams):
            frames = world_frames(COUNT, stream.height, stream.width)[: 1 if cover and place == 0 else COUNT]
            for i, frame in enumerate(frames):
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=stream.pix_fmt)
                picture.pts, picture.time_base = i, Fraction(1, FPS)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        add_sound(container, sound)
    return path


def wide_pixels(path: Path) -> Path:
    """Pixels twice as wide as high."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for frame in world_frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def latin_title(path: Path) -> Path:
    """Metadata that is not UTF-8."""
    encode(path, world_frames(), title="TITLEHERE")
    return patched(path, path, {path.read_bytes().index(b"TITLEHERE"): b"\xff\xfe\xe9\xe8"})


def long_tail(path: Path) -> None:
    """Noise behind the end."""
    path.write_bytes(encode(path, world_frames()).read_bytes() + np.random.RandomState(0).bytes(1024))


def still(path: Path) -> Path:
    """One picture."""
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream: Any = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(world_frames()[0], format="rgb24")))
        container.mux(stream.encode(None))
    return path


SOUND = ("with_sound.mp4", "with_sound.mkv")
GOOD = [
    made("plain.mp4", options=B_FRAMES),
    made("header_first.mp4", container_options={"movflags": "faststart"}),
    made("fragments.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}, start=2 / FPS),
    made("all_intra.mp4", gop=1),
    made("one_group.mp4", gop=250, options=B_FRAMES),
    made("open_gop.mkv", gop=6, options=OPEN_GOP),
    made("open_gop.mp4", gop=6, options=OPEN_GOP),
    *(made(name, audio=True) for name in SOUND),
    made("quicktime.mov"),
    made("broadcast.ts", start=2 / FPS),
    made("flash.flv", start=0.133),
    made("wrong_ending.txt", format="mp4"),
    made("wrong_ending.avi", format="matroska"),
    made("spaces, ünïcode 视频, 100 %03d %s.mp4"),
    made("two*[x]?.mp4"),
    made("ten_bit.mp4", pixel_format="yuv420p10le"),
    made("ten_bit_422.mp4", pixel_format="yuv422p10le"),
    made("hdr.mp4", codec="libx265", pixel_format="yuv420p10le", options={"x265-params": PQ}),
    made("grey.mp4", pixel_format="gray"),
    made("full_range.mp4", pixel_format="yuvj420p"),
    made("hevc.ts", codec="libx265", start=2 / FPS),
    made("av1.mp4", size=(64, 96), codec="libsvtav1", options={"preset": "12"}),
    made("av1.mkv", size=(64, 96), codec="libsvtav1", options={"preset": "12"}),
    made("vp9.webm", codec="libvpx-vp9", options=QUICK),
    made("vp9.mp4", codec="libvpx-vp9", options=QUICK),
    made("vp8.ogv", codec="libvpx"),
    made("ivf.ivf", codec="libvpx-vp9", options=QUICK),
    made("mpeg4.avi", codec="mpeg4", options={"bf": "2"}, start=1 / FPS),
    made("mjpeg.avi", codec="mjpeg", pixel_format="yuvj420p"),
    made("raw.avi", codec="rawvideo", pixel_format="bgr24", exact=True),
    made("interlaced.mpg", codec="mpeg2video", fps=25, options={"flags": "+ildct+ilme"}, start=0.54),
    made("sorenson.flv", codec="flv"),
    made("phone.3gp", size=(144, 176), codec="h263"),
    made("windows.wmv", codec="wmv2"),
    made("prores.mov", codec="prores_ks", pixel_format="yuv422p10le"),
    made("animation.mov", codec="qtrle", pixel_format="rgb24", exact=True),
    made("lossless.mkv", codec="ffv1", pixel_format="bgr0", exact=True),
    made("lossless_rgb.mkv", codec="libx264rgb", pixel_format="rgb24", options={"qp": "0"}, exact=True),
    made("animation.gif", codec="gif", pixel_format="rgb8", fps=10),
    made("animation.apng", codec="apng", pixel_format="rgb24", exact=True),
    made("exchange.mxf", codec="mpeg2video", fps=25),
    made("frames.y4m", codec="rawvideo"),
    made("odd_size.mp4", size=(97, 161), pixel_format="yuv444p"),
    made("tiny.mp4", size=(16, 16)),
    made("tall.mp4", size=(160, 16)),
    made("wide.mp4", size=(16, 160)),
    made("one_frame.mp4", count=1),
    made("two_frames.mp4", count=2),
    made("slow.mp4", fps=1, count=6),
    made("fast.mp4", fps=60),
    made("uneven.mp4", stamps=[*range(10), *range(12, 40, 3)], step=0.0),
    made("gap.mp4", stamps=[*range(10), *range(40, 50)], step=0.0),
    Odd("late.mp4", lambda path: late(path, 5), world_frames(), start=5),
    Odd("late.mkv", lambda path: late(path, 5), world_frames(), start=5),
    Odd("late.ts", lambda path: late(path, 1000), world_frames(), start=1000),
    Odd("edit_list.mp4", lambda path: late(path, -5 / FPS), world_frames()[5:]),
    Odd("two_streams.mp4", two_streams, world_frames()),
    Odd("cover.mp4", lambda path: two_streams(path, cover=True), world_frames()),
    Odd("wide_pixels.mp4", wide_pixels, world_frames()),
    Odd("latin_title.mp4", latin_title, world_frames()),
    Odd("long_tail.mp4", long_tail, world_frames()),
    Odd("still.png", still, world_frames(1), exact=True),
]


def encrypted(path: Path) -> Path:
    """Pictures that nobody can read without the key."""
    keys = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "0" * 32, "encryption_kid": "1" * 32}
    return encode(path, world_frames(), container_options=keys)


def huge_avi(path: Path) -> Path:
    """Raw video whose header declares a picture of 60000 x 60000."""
    encode(path, world_frames(5), codec="rawvideo", pixel_format="bgr24")
    data = path.read_bytes()
    header = data.index(b"strf") + 12
    return patched(path, path, {header: (60000).to_bytes(4, "little") * 2})


def huge_count(path: Path) -> Path:
    """A table of times that declares two thousand million frames."""
    data = encode(path, world_frames(5)).read_bytes()
    return patched(path, path, {data.index(b"stts") + 8: (0x7FFFFFFF).to_bytes(4, "big")})


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "encrypted.mp4": (encrypted, "is encrypted; decrypt it first"),
    "huge.avi": (huge_avi, "pixels|not a readable video|no frame"),
    "huge_count.mp4": (huge_count, "not a readable video"),
    "huge.png": (lambda path: huge_png(path, 60000, 60000), "pixels|not a readable video|no frame"),
}
"""Name -> (how it is made, what the refusal says)."""

WEBP = made("animated.webp", codec="libwebp_anim", pixel_format="yuva420p")
if "webp_anim" in av.formats_available:  # FFmpeg 9, PyAV 19
    GOOD.append(WEBP)
else:
    BAD[WEBP.name] = (WEBP.make, "no frame can be decoded")
