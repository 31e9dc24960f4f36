"""The video writer: equal bytes for equal input, the right pictures, never half a file."""

from __future__ import annotations

import os
import resource
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from odd_video import moving_frames

from internvideo.errors import VideoError
from internvideo.sample_world.generate import WorldSettings, plan, render
from internvideo.video.reader import read_frames, read_video_info
from internvideo.video.writer import write_video


def test_write_video_is_deterministic_and_whole(tmp_path: Path) -> None:
    frames = moving_frames(20)
    assert write_video(tmp_path / "a.mp4", frames, 15) == 20
    write_video(tmp_path / "b.mp4", iter(frames), Fraction(15))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    got = read_frames(tmp_path / "a.mp4", range(20))
    assert np.abs(got.astype(int) - frames).mean() < 12
    info = read_video_info(tmp_path / "a.mp4")
    assert (info.fps, info.duration) == (pytest.approx(15), pytest.approx(20 / 15))
    write_video(tmp_path / "ntsc.mp4", frames, 30000 / 1001, codec="libx265")
    assert read_video_info(tmp_path / "ntsc.mp4").fps == pytest.approx(30000 / 1001, rel=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "ntsc.mp4"]


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has no scheduling classes")
def test_no_encoder_changes_the_scheduling_of_the_process(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0)
    write_video(tmp_path / "a.mp4", moving_frames(3, 64, 96), 15, codec="libsvtav1", options={"preset": "12"})
    assert os.sched_getscheduler(0) == before


CODECS = [
    ("libx264", "mp4", "yuv420p", {"preset": "veryfast"}),
    ("libx264", "mp4", "yuv420p", {"x264-params": "rc-lookahead=40"}),
    ("h264", "mkv", "yuv420p", {"preset": "slower"}),
    ("libx264rgb", "mkv", "rgb24", {}),
    ("libx265", "mp4", "yuv420p", {"preset": "ultrafast"}),
    ("libvpx-vp9", "webm", "yuv420p", {"cpu-used": "8", "deadline": "realtime"}),
    ("libvpx", "webm", "yuv420p", {"cpu-used": "8"}),
    ("libsvtav1", "mp4", "yuv420p", {"preset": "12"}),
    ("mpeg4", "avi", "yuv420p", {}),
    ("mpeg2video", "mpg", "yuv420p", {}),
    ("mjpeg", "avi", "yuvj420p", {}),
    ("prores_ks", "mov", "yuv422p10le", {}),
    ("ffv1", "mkv", "yuv420p", {}),
]


@pytest.mark.parametrize(("codec", "suffix", "pixel_format", "options"), CODECS, ids=str)
def test_bytes_are_the_same_every_time(
    codec: str, suffix: str, pixel_format: str, options: dict[str, str], tmp_path: Path
) -> None:
    """Eight times, with other things in memory each time; the frames are some that x264 by itself gave 8 files of."""
    world = WorldSettings(clips=40, seed=3, size=96, frames=16, fps=6, long_videos=2)
    frames = render(plan(world, "train", 0).scene)[0]
    written = set()
    for number in range(8):
        junk = np.full(100_003 * (1 + number), number, np.uint8)
        path = tmp_path / f"{number}.{suffix}"
        write_video(path, frames, 25, codec=codec, crf=20, pixel_format=pixel_format, options=options)
        written.add(path.read_bytes())
        del junk
    assert len(written) == 1


@pytest.mark.parametrize(
    ("codec", "pixel_format", "key", "value"),
    [
        ("libx264", "yuv420p", "x264-params", "asm=0"),
        ("libx264rgb", "rgb24", "x264-params", "asm=0"),
        ("libsvtav1", "yuv420p", "svtav1-params", "asm=c"),
    ],
)
def test_bytes_are_the_same_with_any_instruction_set(
    codec: str, pixel_format: str, key: str, value: str, tmp_path: Path
) -> None:
    frames = moving_frames(30, 96, 128)
    write_video(tmp_path / "native.mkv", frames, 15, codec=codec, pixel_format=pixel_format)
    write_video(tmp_path / "plain.mkv", frames, 15, codec=codec, pixel_format=pixel_format, options={key: value})
    assert (tmp_path / "plain.mkv").read_bytes() == (tmp_path / "native.mkv").read_bytes()


def test_write_video_leaves_nothing_half_written(tmp_path: Path) -> None:
    frames = moving_frames(5)

    def broken() -> object:
        yield frames[0]
        raise RuntimeError("renderer failed")

    (tmp_path / "old.mp4").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="renderer failed"):
        write_video(tmp_path / "old.mp4", broken(), 15)  # type: ignore[arg-type]  # a generator of frames
    with pytest.raises(VideoError, match="no frames"):
        write_video(tmp_path / "old.mp4", [], 15)
    for name, codec in (("old.mp4", "nosuchcodec"), ("a.webm", "mpeg2video"), ("a.nosuchkind", "libx264")):
        with pytest.raises(VideoError, match=rf"{name}: cannot be written with {codec}"):
            write_video(tmp_path / name, frames, 15, codec=codec)
    with pytest.raises(VideoError, match="cannot be written"):
        write_video(tmp_path / "old.mp4", moving_frames(2, 47, 63), 15)
    with pytest.raises(VideoError, match="folder does not exist"):
        write_video(tmp_path / "none" / "a.mp4", frames, 15)
    with pytest.raises(ValueError, match="frame 1 has shape"):
        write_video(tmp_path / "old.mp4", [frames[0], frames[0][:24]], 15)
    assert (tmp_path / "old.mp4").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["old.mp4"]


def test_write_video_on_a_full_disk(tmp_path: Path) -> None:
    """A write that fails half-way (here at a limit of the file size) leaves no file."""
    noise = np.random.RandomState(0).randint(0, 256, (30, 96, 128, 3)).astype(np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(VideoError, match=r"big\.mp4: cannot be written"):
            write_video(tmp_path / "big.mp4", noise, 15)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("suffix", "codec", "pixel_format"),
    [("mkv", "libx264", "yuv444p"), ("webm", "libvpx-vp9", "yuv420p"), ("avi", "mpeg4", "yuv420p")],
)
def test_write_video_in_other_formats(suffix: str, codec: str, pixel_format: str, tmp_path: Path) -> None:
    frames = moving_frames(10)
    path = tmp_path / f"a.{suffix}"
    write_video(path, frames, 12, codec=codec, pixel_format=pixel_format)
    got = read_frames(path, range(10))
    assert np.abs(got.astype(int) - frames).mean() < 25
    assert np.argmin([np.abs(got[4].astype(int) - frame).mean() for frame in frames]) == 4
