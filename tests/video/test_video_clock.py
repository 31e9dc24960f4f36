"""One clock: joined recordings, clock leaps, missing and useless stamps; file and pipe agree."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from odd_video import add_sound, encode, moving_frames

from internvideo.features.window_sampling import WindowRule, frame_grid
from internvideo.video.clock import Clock
from internvideo.video.live import LiveVideo
from internvideo.video.reader import Video, VideoInfo, read_video_info

B_FRAMES = {"bf": "3", "b-adapt": "0", "x264-params": "b-pyramid=normal:scenecut=0"}


def stamped(path: Path, times: Sequence[float], *, codec: str = "libx264", sound: bool = False, **options: Any) -> Path:
    """A file whose pictures are shown at `times` (s), with sound from 0 on."""
    with av.open(str(path), "w", format=options.pop("format", None)) as container:
        stream: Any = container.add_stream(codec, rate=options.pop("rate", 25), options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.gop_size = Fraction(1, 90000), 12
        track: Any = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        if track is not None:
            add_sound(container, track)
        for frame, time in zip(moving_frames(len(times)), times, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = round(time * 90000), Fraction(1, 90000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def of_file_and_pipe(path: Path) -> VideoInfo:
    """What the file says; the times from a pipe are the same."""
    info = read_video_info(path)
    with path.open("rb", buffering=0) as pipe, LiveVideo(pipe) as live:
        np.testing.assert_allclose([frame.time for frame in live], info.times, atol=1e-6)
    return info


@pytest.mark.parametrize(
    ("container", "codec"), [("ts", "libx264"), ("ts", "libx265"), ("mpg", "mpeg2video"), ("vob", "mpeg2video")]
)
@pytest.mark.parametrize("seconds", [0.6, 2.0])
def test_joined_recordings_go_on(container: str, codec: str, seconds: float, tmp_path: Path) -> None:
    """The count starts anew in each; not one of them is long enough to be taken for jitter."""
    times = np.arange(round(seconds * 25)) / 25
    options = {"options": {"x265-params": "bframes=0"}} if codec == "libx265" else {}
    frames = moving_frames(len(times))
    parts = [encode(tmp_path / f"{n}.{container}", frames, codec=codec, fps=25, **options) for n in range(3)]
    info = of_file_and_pipe(joined(tmp_path / f"all.{container}", *parts))
    assert info.frames >= 3 * len(times) - 2
    assert info.duration == pytest.approx(3 * seconds, abs=0.15)
    assert np.diff(info.times) == pytest.approx(0.04, abs=0.02)
    assert info.fps == pytest.approx(25, rel=0.03)


@pytest.mark.parametrize("leap", [60.0, 3600.0, 80000.0])
def test_a_leap_of_the_clock_is_no_time_of_the_video(leap: float, tmp_path: Path) -> None:
    first = stamped(tmp_path / "a.ts", np.arange(50) / 25)
    second = stamped(tmp_path / "b.ts", leap + np.arange(50) / 25)
    info = of_file_and_pipe(joined(tmp_path / "both.ts", first, second))
    assert (info.frames, info.fps) == (100, pytest.approx(25, rel=0.01))
    assert info.times[-1] == pytest.approx(3.96, abs=0.01)
    assert len(set(frame_grid(info, WindowRule(16, 4)).indices.tolist())) == 100


def test_a_gap_of_a_slide_show_is_time_of_the_video(tmp_path: Path) -> None:
    """Containers that are not made for splices keep their gaps; a transport stream one below ten seconds."""
    for name, times in (("a.mp4", [0, 1, 30, 31, 200]), ("a.mkv", [0, 1, 30, 31, 200]), ("a.ts", [0, 1, 9, 10, 18])):
        info = of_file_and_pipe(stamped(tmp_path / name, times))
        assert info.times == pytest.approx(times, abs=0.01)
        assert info.variable_rate


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_small_differences_add_up(name: str, tmp_path: Path) -> None:
    """24 and then 25 frames a second: no single distance tells, but the steady rate is seconds off after an hour."""
    times = np.concatenate([np.arange(240) / 24, 10 + np.arange(250) / 25])
    info = read_video_info(stamped(tmp_path / name, times, rate=24))
    assert info.variable_rate
    grid = frame_grid(info, WindowRule(16, 4))
    shown = info.times[grid.indices]
    assert np.abs(shown - np.arange(len(shown)) / grid.fps).max() < 1.01 / 24
    assert not read_video_info(stamped(tmp_path / f"b{name}", np.arange(300) * 1001 / 24000, rate=24)).variable_rate


@pytest.mark.parametrize("suffix", ["avi", "h264", "ts", "mkv"])
def test_b_frames_come_one_after_another(suffix: str, tmp_path: Path) -> None:
    path = encode(tmp_path / f"a.{suffix}", moving_frames(40), options=B_FRAMES)
    assert np.diff(of_file_and_pipe(path).times) == pytest.approx(1 / 15, abs=1e-3)


@pytest.mark.parametrize(
    ("suffix", "codec"), [("h264", "libx264"), ("hevc", "libx265"), ("m2v", "mpeg2video"), ("m4v", "mpeg4")]
)
@pytest.mark.parametrize("fps", [24, 30, 50])
def test_raw_streams_take_the_rate_of_their_own_header(suffix: str, codec: str, fps: int, tmp_path: Path) -> None:
    form = "mpeg2video" if suffix == "m2v" else suffix
    path = encode(tmp_path / f"a.{suffix}", moving_frames(30), codec=codec, fps=fps, format=form)
    info = of_file_and_pipe(path)
    assert info.fps == pytest.approx(fps, rel=0.01)
    assert info.duration == pytest.approx(info.frames / fps, rel=0.01)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov", "flv"])
def test_time_0_is_where_the_sound_begins(suffix: str, tmp_path: Path) -> None:
    late = stamped(tmp_path / f"late.{suffix}", 3 + np.arange(50) / 25, sound=True)
    frames = moving_frames(50)
    info = of_file_and_pipe(late)
    assert info.times[[0, -1]] == pytest.approx([3, 4.96], abs=0.13)  # 0.128 s of priming
    assert (info.duration, info.fps) == (pytest.approx(5, abs=0.13), pytest.approx(25, rel=0.01))
    with Video(late) as video:
        got = video.frames_at([0, 2.9, info.times[0], info.times[25] + 0.01, 4.9]).astype(int)
    order = [int(np.abs(picture - frames.astype(int)).mean((1, 2, 3)).argmin()) for picture in got]
    assert order[:4] == [0, 0, 0, 25]
    grid = frame_grid(info, WindowRule(4, 4))
    assert np.abs(info.times[grid.indices[80:]] - (80 + np.arange(len(grid.indices) - 80)) / grid.fps).max() < 0.05
    together = read_video_info(stamped(tmp_path / f"together.{suffix}", np.arange(50) / 25, sound=True))
    assert together.times[0] == 0


def test_stamps_that_say_nothing() -> None:
    clock = Clock(0.1, 0.001)
    assert [clock.to_seconds(0) for _ in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])  # all equal
    clock = Clock(0.1, 0.001)
    assert [clock.to_seconds(stamp, 40) for stamp in (0, None, 80, 80, 160)] == pytest.approx(
        [0, 0.04, 0.08, 0.12, 0.16]
    )
    clock = Clock(0.1, 0.001)  # a burst with one stamp does not run ahead for ever
    assert [clock.to_seconds(stamp) for stamp in (0, 0, 0, 100, 200, 300)] == pytest.approx(
        [0, 0.1, 0.2, 0.2, 0.2, 0.3]
    )
