"""Streams: the same answers from a file, a pipe and a running source; late windows dropped and counted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import odd_video
import pytest
import torch
import use_world

from internvideo.apps import streaming
from internvideo.apps.streaming import Moment, Plan, Ring, stream
from internvideo.data.preprocessing import Span
from internvideo.errors import RecipeError, VideoError
from internvideo.inference.video_model import VideoModel
from internvideo.video import live as live_video
from internvideo.video.clock import Clock
from internvideo.video.live import LiveFrame, LiveVideo

FPS = 15


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


@pytest.fixture(scope="module")
def video(folder: Path) -> Path:
    return odd_video.encode(folder / "a.mkv", odd_video.moving_frames(50), gop=20)


@pytest.fixture(scope="module")
def brief(folder: Path) -> Path:
    return odd_video.encode(folder / "brief.mkv", odd_video.moving_frames(24))


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return use_world.language()


def same(found: list[Moment], expected: list[Moment]) -> None:
    assert [moment[:2] for moment in found] == [pytest.approx(moment[:2], abs=1e-6) for moment in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.value, other.value, atol=1e-6)  # type: ignore[arg-type]  # embeddings here


def test_a_file_gives_the_embeddings_of_its_windows(video: Path, model: VideoModel) -> None:
    running = stream(video, model, window_seconds=1.0, stride_seconds=0.4)
    found = list(running)
    assert [round(moment.start, 6) for moment in found] == [0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4]
    assert found[-1].time == pytest.approx(50 / FPS, abs=2e-3)
    for moment in found:
        expected = model.encode_video(Span(video, moment.start, moment.time))[0].numpy()
        np.testing.assert_allclose(moment.value, expected, atol=1e-6)
    assert len(running.latencies) == 7
    assert 0 < running.percentile(50) <= running.percentile(95) < 5
    assert (running.dropped, running.damaged) == (0, 0)
    assert stream(video, model).percentile(50) == 0.0


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "a.mp4", "turned.mp4", "uneven.mkv", "short.mkv"])
@pytest.mark.parametrize("stride", [0.4, 1.7])
def test_a_pipe_gives_what_the_file_gives(folder: Path, model: VideoModel, name: str, stride: float) -> None:
    path, frames = folder / f"pipe_{name}", odd_video.moving_frames(8 if name == "short.mkv" else 50)
    stamps = np.cumsum([40 if i == 20 else 1 + i % 2 for i in range(50)]).tolist() if name == "uneven.mkv" else None
    options = {"movflags": "frag_keyframe+empty_moov"} if name.endswith("mp4") else None
    turned = (90.0, False) if name == "turned.mp4" else None
    odd_video.encode(path, frames, gop=20, stamps=stamps, container_options=options, rotation=turned)
    with path.open("rb", buffering=0) as pipe:
        same(
            list(stream(pipe, model, window_seconds=1.0, stride_seconds=stride)),
            list(stream(path, model, window_seconds=1.0, stride_seconds=stride)),
        )


def test_a_named_pipe_is_followed_while_it_is_written(folder: Path, video: Path, model: VideoModel) -> None:
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    # The second half is only written once an answer has come, as a camera would.
    answered, data = threading.Event(), video.read_bytes()

    def write() -> None:
        with fifo.open("wb", buffering=0) as end:
            end.write(data[: len(data) * 3 // 4])
            answered.wait(20)
            end.write(data[len(data) * 3 // 4 :])

    writer = threading.Thread(target=write)
    writer.start()
    found = []
    for moment in stream(fifo, model, window_seconds=0.5):
        answered.set()
        found.append(moment)
    writer.join()
    same(found, list(stream(video, model, window_seconds=0.5)))


class SlowText(VideoModel):
    """Takes its time for texts."""

    seconds = 0.5

    def __init__(self, model: VideoModel) -> None:
        super().__init__(model.name, model.module, preprocessing=model.preprocessing)

    def encode_text(self, texts: Any, *, normalize: bool = True) -> torch.Tensor:
        time.sleep(self.seconds)
        return super().encode_text(texts, normalize=normalize)


def test_labels_and_classes_are_answered(video: Path, model: VideoModel) -> None:
    (first, *_) = stream(video, model, on=["a dog", "a cat"])
    assert first.value == pytest.approx(model.classify(Span(video, 0, 2), ["a dog", "a cat"])[0])
    (first, *_) = stream(video, SlowText(model), on=["a dog", "a cat"])
    assert first.latency < SlowText.seconds, "the texts are encoded before, also for a file"
    classifier = use_world.classifier()
    (first, *_) = stream(video, classifier, on="classes")
    assert isinstance(first.value, dict)
    assert list(first.value) == list(classifier.classify(Span(video, 0, 2))[0])


class SlowModel(VideoModel):
    """Takes its time for every clip."""

    def __init__(self, model: VideoModel, seconds: float) -> None:
        super().__init__(model.name, model.module, preprocessing=model.preprocessing)
        self.seconds = seconds

    def encode_clips(self, clips: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return super().encode_clips(clips)


def test_a_running_source_is_played_at_its_own_speed(brief: Path, model: VideoModel) -> None:
    began = time.perf_counter()
    running = stream(brief, model, window_seconds=0.5, stride_seconds=0.5, live=True)
    found = list(running)
    assert time.perf_counter() - began >= 23 / FPS - 0.1
    starts = [round(moment.start / 0.5) for moment in found]
    assert starts == sorted(set(starts))
    assert len(found) + running.dropped == 3
    by_start = {
        round(moment.start, 3): moment for moment in stream(brief, model, window_seconds=0.5, stride_seconds=0.5)
    }
    same(found, [by_start[round(moment.start, 3)] for moment in found])


def test_late_windows_are_dropped_and_counted(brief: Path, model: VideoModel) -> None:
    running = stream(brief, SlowModel(model, 0.5), window_seconds=0.4, stride_seconds=0.1, live=True)
    found = list(running)
    assert 2 <= len(found) <= 5
    assert running.dropped >= 5
    assert len(found) + running.dropped == 12
    assert running.percentile(50) >= 0.5
    assert found[-1].start == pytest.approx(1.1), "the newest window is answered, not the oldest that waits"


def test_a_source_that_waits_loses_nothing(video: Path, model: VideoModel) -> None:
    with video.open("rb", buffering=0) as pipe:
        running = stream(pipe, SlowModel(model, 0.01), window_seconds=0.4, stride_seconds=0.2)
        assert [round(moment.start / 0.2) for moment in running] == list(range(16))
    assert running.dropped == 0


def test_a_source_that_breaks_off_is_told(video: Path, model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = LiveVideo.__iter__

    def broken(self: LiveVideo) -> Iterator[LiveFrame]:
        for count, frame in enumerate(plain(self)):
            if count == 12:
                raise VideoError(self.name, "broke off: no such device")
            yield frame

    monkeypatch.setattr(LiveVideo, "__iter__", broken)
    for live in (True, False):
        with video.open("rb", buffering=0) as pipe, pytest.raises(VideoError, match="broke off"):
            list(stream(pipe, model, window_seconds=0.3, live=live))


def test_an_abandoned_stream_ends_its_thread(video: Path, model: VideoModel) -> None:
    for _ in stream(video, model, window_seconds=0.2, live=True):
        break
    deadline = time.monotonic() + 5
    while any(thread.name == "internvideo stream" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("on", ["labels", ["only one"], "classes"])
def test_what_the_model_cannot_be_asked(video: Path, model: VideoModel, on: Any) -> None:
    with pytest.raises(RecipeError):
        stream(video, model, on=on)


def test_lengths_must_be_above_zero(video: Path, model: VideoModel) -> None:
    with pytest.raises(RecipeError, match="more than 0 seconds"):
        stream(video, model, window_seconds=0.0)


# --------------------------------------------------------------------------------------------------- ring and plan


def frame(at: float) -> LiveFrame:
    return LiveFrame(at, 100 + at, SimpleNamespace(at=at, planes=[SimpleNamespace(buffer_size=10)]))


def test_the_ring_keeps_what_stands_and_forgets_the_rest() -> None:
    ring = Ring("camera", limit=50)
    for at in (0.0, 0.1, 0.2, 3.0):
        ring.add(frame(at))
    turn = ring.turn(0.1, 0.3)
    assert [picture.at for picture in turn.frames] == [0.1, 0.2]
    assert turn.complete == 103.0
    assert [picture.at for picture in ring.turn(1.0, 2.0).frames] == [0.2], "the picture that stands there"
    ring.forget(1.0)
    assert [kept.time for kept in ring.frames] == [0.2, 3.0]
    assert ring.bytes == 20
    for at in (3.1, 3.2, 3.3):
        ring.add(frame(at))
    with pytest.raises(VideoError, match="take a shorter window"):
        ring.add(frame(3.4))


def test_the_plan_finds_the_newest_window() -> None:
    plan = Plan(window_seconds=2.0, stride_seconds=0.5)
    plan.origin = 10.0
    assert [plan.newest(at) for at in (11.9, 12.0, 12.4, 12.5, 20.0)] == [-1, 0, 0, 1, 16]
    plan.number = 16
    assert (plan.start, plan.end) == (18.0, 20.0)


# -------------------------------------------------------------------------------------------------------- live video


def test_pictures_of_a_pipe_are_those_of_the_file(video: Path) -> None:
    expected, times = odd_video.decode_all(video)
    with video.open("rb", buffering=0) as pipe, LiveVideo(pipe) as live:
        assert live.kind == "pipe"
        found = [(frame.time, live.rgb(frame.frame)) for frame in live]
    np.testing.assert_allclose([at for at, _ in found], times, atol=1e-9)
    assert np.array_equal(np.stack([picture for _, picture in found]), expected)


def test_damaged_packets_are_left_out_and_counted(folder: Path, video: Path) -> None:
    position, size = odd_video.sample_places(video)[25]
    broken = odd_video.patched(video, folder / "broken.mkv", {position + 12: b"\xff" * (size - 12)})
    with broken.open("rb", buffering=0) as pipe, LiveVideo(pipe) as live:
        count = sum(1 for _ in live)
    assert live.damaged >= 1
    assert 30 <= count < 50


def test_the_clock_never_falls() -> None:
    clock = Clock(0.1, 0.001)
    stamps = [5000, 5100, None, 5250, 5240, 100, 200, 1000]
    assert [round(clock.to_seconds(stamp), 6) for stamp in stamps] == [0, 0.1, 0.2, 0.25, 0.25, 0.35, 0.45, 1.25]
    clock = Clock(0.1, 0.001)
    assert [clock.to_seconds(stamp) for stamp in (None, None, 1400)] == pytest.approx([0, 0.1, 1.4])


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("rtsp://127.0.0.1/x", "allow it with allow_urls"),
        ("absent.mp4", "cannot be opened"),
        ("camera:77", "not a readable camera"),
        ("/dev/null", "not a readable camera"),
    ],
)
def test_sources_that_are_refused(source: str, told: str) -> None:
    with pytest.raises(VideoError, match=told):
        LiveVideo(source)


def test_a_pipe_without_video_is_refused(folder: Path) -> None:
    (folder / "garbage").write_bytes(b"garbage" * 999)
    sound = odd_video.audio_only(folder / "sound.mp4")
    empty = odd_video.zero_frames(folder / "zero.mp4")
    for path, told in ((folder / "garbage", "not a readable pipe"), (sound, "video stream"), (empty, "no ")):
        with path.open("rb", buffering=0) as pipe, pytest.raises(VideoError, match=told):
            list(LiveVideo(pipe))


def test_a_camera_is_known_on_each_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"linux": ("/dev/video1", "v4l2"), "darwin": ("1", "avfoundation"), "win32": ("video=1", "dshow")}
    for platform, expected in names.items():
        monkeypatch.setattr("sys.platform", platform)
        assert live_video._camera("camera:1") == expected
    monkeypatch.setattr("sys.platform", "plan9")
    with pytest.raises(VideoError, match="no cameras are known on plan9"):
        live_video._camera("camera")


def test_the_limit_of_the_ring_is_a_memory_s_size() -> None:
    assert 2**28 <= streaming.RING_BYTES <= 2**32
