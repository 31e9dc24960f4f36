"""Windows over long videos: the clips of their spans, one decode, memory that does not grow."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import odd_video
import psutil
import pytest
import torch

from internvideo.data.preprocessing import Preprocessing, Span
from internvideo.errors import RecipeError, VideoError
from internvideo.features import windows as home
from internvideo.features.windows import ClipWindow, spans, windows
from internvideo.video import seek as video_seek
from internvideo.video.reader import Video
from internvideo.video.sequential import iter_frames
from internvideo.video.writer import write_video

FPS = 15
CLIPS = Preprocessing(4, 32, sampler="segment_middle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("windows")


@pytest.fixture(scope="module")
def video(folder: Path) -> Path:
    return odd_video.encode(folder / "plain.mp4", odd_video.moving_frames(100), gop=24)


@pytest.mark.parametrize(
    ("end", "window", "stride", "expected"),
    [
        (10.0, None, None, [(0, 10)]),
        (10.0, 4.0, None, [(0, 4), (4, 8), (8, 10)]),
        (10.0, 4.0, 2.0, [(0, 4), (2, 6), (4, 8), (6, 10)]),
        (9.0, 4.0, 2.0, [(0, 4), (2, 6), (4, 8), (6, 9)]),
        (3.0, 4.0, 1.0, [(0, 3)]),
        (10.0, 1.0, 5.0, [(0, 1), (5, 6)]),
        (11.0, 1.0, 5.0, [(0, 1), (5, 6), (10, 11)]),
        (0.3, 0.1, 0.1, [(0, 0.1), (0.1, 0.2), (0.2, 0.3)]),
    ],
)
def test_spans_see_everything_once_and_stop(
    end: float, window: float | None, stride: float | None, expected: list[tuple[float, float]]
) -> None:
    np.testing.assert_allclose(spans(0.0, end, window, stride), expected, atol=1e-12)
    np.testing.assert_allclose(spans(7.0, 7 + end, window, stride), np.array(expected) + 7, atol=1e-12)


@pytest.mark.parametrize(("window", "stride"), [(0.0, None), (-1.0, None), (1.0, 0.0), (float("nan"), None)])
def test_lengths_must_be_above_zero(video: Path, window: float, stride: float | None) -> None:
    with pytest.raises(RecipeError, match="more than 0 seconds"):
        next(windows(video, CLIPS, window_seconds=window, stride_seconds=stride))


def test_a_stride_needs_a_window() -> None:
    with pytest.raises(RecipeError, match="give window_seconds too"):
        spans(0, 1, None, 1.0)


def same(found: list[ClipWindow], path: Path, preprocessing: Preprocessing) -> None:
    with Video(path, short_side=preprocessing.short_side) as opened:
        for start, end, clip in found:
            assert torch.equal(clip, preprocessing.clip(opened, start, end)), (start, end)


@pytest.mark.parametrize("resize_backend", ["pil", "opencv", "torch"])
@pytest.mark.parametrize("sampler", ["segment_middle", "linspace", "dense"])
def test_every_window_is_the_clip_of_its_span(video: Path, resize_backend: Any, sampler: str) -> None:
    stride = 2 if sampler == "dense" else None
    preprocessing = Preprocessing(4, 32, sampler=sampler, stride=stride, resize_backend=resize_backend, short_side=40)
    found = list(windows(video, preprocessing, window_seconds=1.5, stride_seconds=0.7))
    assert [round(window.start, 6) for window in found] == [round(0.7 * k, 6) for k in range(9)]
    assert found[-1].end == pytest.approx(100 / FPS)
    assert found[0].clip.dtype == (torch.float32 if resize_backend == "torch" else torch.uint8)
    same(found, video, preprocessing)


@pytest.mark.parametrize("kind", ["variable", "rotated", "transport", "few_keys", "old"])
def test_odd_files_have_windows_too(folder: Path, kind: str) -> None:
    frames = odd_video.moving_frames(60)
    path = folder / {"transport": "a.ts", "old": "a.avi"}.get(kind, f"{kind}.mp4")
    if kind == "variable":
        stamps = np.cumsum(np.random.RandomState(0).choice([1, 1, 2, 40], size=60)).tolist()
        odd_video.encode(path, frames, stamps=stamps)
    elif kind == "rotated":
        odd_video.encode(path, frames, rotation=(90, False))
    elif kind == "old":
        odd_video.encode(path, frames, codec="mpeg4")
    else:
        odd_video.encode(path, frames, gop=1000)
    found = list(windows(path, CLIPS, window_seconds=1.0, stride_seconds=0.5))
    assert len(found) >= 7
    same(found, path, CLIPS)


def test_a_piece_of_a_file(video: Path) -> None:
    found = list(windows(Span(video, 2.0, 4.5), CLIPS, window_seconds=1.0))
    assert [window[:2] for window in found] == [(2.0, 3.0), (3.0, 4.0), (4.0, 4.5)]
    same(found, video, CLIPS)
    (whole,) = windows(Span(video, 2.0, 400.0), CLIPS)
    assert torch.equal(whole.clip, CLIPS.read(Span(video, 2.0, 400.0))[0])
    with pytest.raises(VideoError, match=r"no frame from 50 s to 51 s; expected: 0\.000 s to 6\.667 s"):
        next(windows(Span(video, 50, 60), CLIPS, window_seconds=1.0))


def test_without_a_window_it_is_the_whole_video(video: Path) -> None:
    (window,) = windows(video, CLIPS)
    assert window[:2] == pytest.approx((0, 100 / FPS))
    assert torch.equal(window.clip, CLIPS.read(video)[0])


def test_nothing_is_decoded_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = odd_video.encode(folder / "long_group.mp4", odd_video.moving_frames(90), gop=1000, options={"bf": "0"})
    decoded = []
    plain = video_seek.decode

    def counting(context: Any, packet: Any) -> Any:
        decoded.append(packet)
        return plain(context, packet)

    monkeypatch.setattr(video_seek, "decode", counting)
    assert len(list(windows(path, CLIPS, window_seconds=1.0, stride_seconds=0.2))) == 26
    assert len(decoded) <= 91, "90 packets and one draining"


def test_only_what_is_still_needed_is_kept(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    plain = Preprocessing.transform_frames

    def watched(self: Preprocessing, frames: Any) -> torch.Tensor:
        square = plain(self, frames)
        made.append(weakref.ref(square))
        return square

    monkeypatch.setattr(Preprocessing, "transform_frames", watched)
    most = 0
    for _ in windows(video, CLIPS, window_seconds=1.0, stride_seconds=0.5):
        most = max(most, sum(square() is not None for square in made))
    assert len(made) >= 40
    assert most <= 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hour.mp4", "hour.ts"])
def test_an_hour_takes_no_more_memory_than_a_minute(tmp_path: Path, name: str) -> None:
    frames = odd_video.moving_frames(60)
    write_video(tmp_path / name, (frames[i % 60] for i in range(5 * 3600)), 5, gop=100)
    hour, process = windows(tmp_path / name, CLIPS, window_seconds=2.0, stride_seconds=1.0), psutil.Process()
    sizes = [process.memory_info().rss for place, _ in enumerate(hour) if place % 60 == 0]
    assert len(sizes) == 60
    assert max(sizes[1:]) - sizes[1] < 30 * 2**20


def test_windows_before_the_damage_are_given(folder: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = odd_video.sample_places(video)
    broken = odd_video.patched(video, folder / "broken.mp4", {places[60][0] + 8: b"\xff" * (places[60][1] - 8)})
    found: list[ClipWindow] = []
    monkeypatch.setenv("INTERNVIDEO_DAMAGE", "stop")
    with pytest.raises(VideoError, match=r"broken\.mp4: .*damaged"):
        found.extend(windows(broken, CLIPS, window_seconds=0.5))  # keeps what came before the error
    assert 6 <= len(found) <= 8
    same(found, video, CLIPS)
    monkeypatch.setenv("INTERNVIDEO_DAMAGE", "skip")
    on = list(windows(broken, CLIPS, window_seconds=0.5))
    assert on[-1].end == pytest.approx(100 / 15, abs=0.01)
    same(on[-2:], video, CLIPS)


def test_walking_gives_the_frames_of_the_file(video: Path) -> None:
    expected, _ = odd_video.decode_all(video)
    wanted = [0, 1, 5, 30, 31, 77, 99]
    with Video(video) as opened:
        for index, frame in zip(wanted, iter_frames(opened, wanted), strict=True):
            assert np.array_equal(frame, expected[index])
        assert list(iter_frames(opened, [])) == []
        with pytest.raises(ValueError, match="strictly increasing"):
            next(iter_frames(opened, [3, 3]))
        given: list[Any] = []
        with pytest.raises(VideoError, match="frame 100 asked"):
            given.extend(iter_frames(opened, [98, 100]))


def test_hours_may_be_opened(video: Path) -> None:
    assert home.MAX_SECONDS >= 6 * 3600
    with home.open_long_video(video) as opened:
        assert opened.info.frames == 100
    with pytest.raises(VideoError, match="cannot be opened"):
        home.open_long_video(video.with_name("absent.mp4"))
