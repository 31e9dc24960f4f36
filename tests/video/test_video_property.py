"""Frame i by seeking = by walking = by full decoding, its time = that of plain decoding, or a VideoError.

Over every codec, container and change of files that can be written here; a file depends on its number alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from odd_video import Frames, encode, moving_frames

from internvideo.errors import VideoError
from internvideo.video.reader import Video
from internvideo.video.sequential import iter_frames

QUICK = {"cpu-used": "8", "deadline": "realtime"}
B_FRAMES = {"bf": "3", "b-adapt": "0", "x264-params": "b-pyramid=normal:scenecut=0"}
OPEN_GOP = {"bf": "3", "b-adapt": "0", "x264-params": "open-gop=1:scenecut=0:b-pyramid=normal"}
H265 = {"preset": "ultrafast", "x265-params": "bframes=3"}
# codec, pixel format, encoder options, containers
CODECS: list[tuple[str, str, dict[str, str], str]] = [
    ("libx264", "yuv420p", {"bf": "0"}, "mp4 mkv ts flv avi mov h264"),
    ("libx264", "yuv420p", B_FRAMES, "mp4 mkv ts flv avi mov h264"),
    ("libx264", "yuv420p", OPEN_GOP, "mp4 mkv ts"),
    ("libx265", "yuv420p", H265, "mp4 mkv ts hevc"),
    ("libvpx-vp9", "yuv420p", QUICK, "webm mp4 ivf"),
    ("libvpx", "yuv420p", QUICK, "webm ivf"),
    ("libsvtav1", "yuv420p", {"preset": "12"}, "mp4 mkv ivf obu"),
    ("mpeg4", "yuv420p", {}, "mp4 avi mkv ts m4v"),
    ("mpeg4", "yuv420p", {"bf": "2"}, "mp4 avi mkv"),
    ("h263", "yuv420p", {}, "3gp avi"),
    ("msmpeg4", "yuv420p", {}, "avi"),
    ("mpeg2video", "yuv420p", {"bf": "2"}, "mpg ts vob mxf mkv"),
    ("mpeg1video", "yuv420p", {"bf": "2"}, "mpg"),
    ("wmv2", "yuv420p", {}, "wmv avi"),
    ("flv", "yuv420p", {}, "flv"),
    ("mjpeg", "yuvj420p", {}, "avi mov mkv"),
    ("prores_ks", "yuv422p10le", {}, "mov mkv"),
    ("ffv1", "yuv420p", {}, "mkv avi"),
    ("huffyuv", "yuv422p", {}, "avi"),
    ("gif", "rgb8", {}, "gif"),
]
KINDS = [(codec, form, options, name) for codec, form, options, names in CODECS for name in names.split()]
JOINED = ("ts", "mpg", "vob", "h264", "hevc")
BLIND = ("ffv1", "libvpx", "libx265", "mjpeg")
"""Encoders whose decoders make of damage that they do not see what happens to be in their memory: another picture each
time. Nothing in the stream would tell (see `video.damage`)."""


class Plain(NamedTuple):
    """What plain decoding gives, in order of output."""

    stamps: list[int | None]
    frames: list[Frames]
    base: float


@cache
def source(folder: Path, number: int) -> Path:
    codec, form, options, suffix = KINDS[number % len(KINDS)]
    rng = np.random.RandomState(number // len(KINDS) % 4)
    count, gop = int(rng.randint(18, 30)), int(rng.choice([1, 6, 12, 50]))
    size = (96, 128) if codec in ("h263", "libsvtav1") else (48, 64)
    frames = moving_frames(count, *size, seed=int(rng.randint(100)))
    path = folder / f"source{number % len(KINDS)}_{number // len(KINDS) % 4}.{suffix}"
    forms = {"mpg": "mpeg", "hevc": "hevc"}
    stamps = (
        sorted(rng.choice(3 * count, count, replace=False).tolist()) if suffix == "mkv" and rng.randint(2) else None
    )
    form_of = forms.get(suffix)
    return encode(path, frames, codec=codec, pixel_format=form, fps=25, gop=gop, options=options, format=form_of,
                  stamps=stamps)  # fmt: skip


def changed(path: Path, target: Path, rng: np.random.RandomState) -> str:
    """Write a changed copy; returns what was done."""
    data = bytearray(path.read_bytes())
    suffix = path.suffix[1:]
    ways: list[tuple[str, Callable[[], Any]]] = [("as it is", lambda: None)]

    def bytes_damaged() -> None:
        for _ in range(rng.choice([1, 1, 3])):
            at, length = int(rng.randint(len(data) // 10, len(data))), int(rng.choice([1, 4, 40, 300]))
            data[at : at + length] = rng.bytes(len(data[at : at + length]))

    def cut_off() -> None:
        del data[int(rng.randint(len(data) // 3, len(data))) :]

    def piece_lost() -> None:
        at = int(rng.randint(len(data) // 10, len(data)))
        del data[at : at + int(rng.choice([1, 188, 500]))]

    def key_table(all_keys: bool) -> None:
        table = data.index(b"stss")
        if all_keys:
            data[table : table + 4] = b"free"
            return
        for entry in range(1, int.from_bytes(data[table + 8 : table + 12], "big")):
            place = table + 12 + 4 * entry
            data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + 2).to_bytes(4, "big")

    ways += [("damaged", bytes_damaged), ("damaged", bytes_damaged), ("cut", cut_off), ("lost", piece_lost)]
    if b"stss" in data:
        ways += [("all keys", lambda: key_table(True)), ("other keys", lambda: key_table(False))] * 2
    if suffix in JOINED:
        ways += [("joined", lambda: data.extend(bytes(data)))] * 3
    name, do = ways[rng.randint(len(ways))]
    do()
    target.write_bytes(data)
    return name


def plainly(path: Path) -> Plain:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        pictures = list(container.decode(stream))
        return Plain(
            [picture.pts for picture in pictures],
            [picture.to_ndarray(format="rgb24") for picture in pictures],
            float(stream.time_base or 1),
        )


def ways_to(video: Video, *, blind: bool) -> dict[int, Frames]:
    """Frames that can be had; each is the same by every way (`blind`: has the same shape)."""
    singly: dict[int, Frames] = {}
    for index in np.random.RandomState(video.info.frames).permutation(video.info.frames).tolist():
        try:
            singly[index] = video.frames([index])[0]
        except VideoError:
            continue
    had = np.array(sorted(singly), np.int64)
    for way in ((), iter_frames(video, had)) if blind else (video.frames(had), iter_frames(video, had)):
        for index, frame in zip(had.tolist(), way, strict=not blind):
            assert frame.shape == singly[index].shape
            assert blind or np.array_equal(frame, singly[index])
    return singly


def check(path: Path, change: str, codec: str, suffix: str) -> str:
    """Look at one file in all ways; returns what became of it."""
    harmed = change in ("damaged", "lost", "cut")
    try:
        with Video(path, backend="pyav") as video:
            singly, info, exact = ways_to(video, blind=harmed and codec in BLIND), video.info, video._index.seekable
            trouble = bool(video.damage_report)
    except VideoError:
        if not harmed:
            raise
        return "refused"
    assert (np.diff(info.times) >= 0).all()
    if harmed:
        return "in part" if trouble or len(singly) < info.frames else "whole"
    plain = plainly(path)
    order: NDArray[Any] = np.arange(len(plain.frames))
    if exact:
        order = np.argsort(np.array(plain.stamps), kind="stable")
    assert len(singly) == info.frames == len(order)
    for index, frame in singly.items():
        np.testing.assert_array_equal(frame, plain.frames[order[index]])
    if change == "joined":
        half = info.frames // 2
        assert info.times[-1] == pytest.approx(2 * info.times[half - 1], rel=0.2, abs=0.1)
    elif suffix != "avi" and None not in plain.stamps:
        stamps = np.array(plain.stamps, np.float64)[order] * plain.base
        # A picture with the stamp of the one before it is shown after it (VOB).
        rising = np.diff(stamps, prepend=-1.0) > 0
        np.testing.assert_allclose((info.start + info.times)[rising], stamps[rising], atol=1e-6)
    return "whole"


def run(folder: Path, numbers: range) -> Counter[str]:
    found: Counter[str] = Counter()
    for number in numbers:
        path = source(folder, number)
        target = folder / f"changed{path.suffix}"
        change = changed(path, target, np.random.RandomState(number))
        try:
            found[check(target, change, KINDS[number % len(KINDS)][0], path.suffix[1:])] += 1
        except Exception as error:  # told again with the number of the file that shows it
            raise AssertionError(f"file {number} ({path.name}, {change}): {error}") from error
    return found


def test_fifty_files(tmp_path: Path) -> None:
    found = run(tmp_path, range(50))
    assert sum(found.values()) == 50
    assert min(found["whole"], found["in part"] + found["refused"]) > 10


@pytest.mark.slow
def test_two_thousand_files(tmp_path: Path) -> None:
    found = run(tmp_path, range(100, 2100))
    assert sum(found.values()) == 2000
    assert min(found["whole"], found["in part"], found["refused"]) > 100
