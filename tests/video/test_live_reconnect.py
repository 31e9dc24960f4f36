"""A source on the network that breaks off is opened again, and its clock goes on."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

import numpy as np
import odd_video
import pytest

from internvideo.errors import VideoError
from internvideo.video import live as live_video
from internvideo.video.clock import Clock
from internvideo.video.live import LiveVideo

FPS = 15


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_video, "MIN_WAIT", 0.05)


class Server:
    """Sends one content a connection, after a pause before each but the first; afterwards nobody listens."""

    def __init__(self, contents: Sequence[bytes], pause: float = 0.0) -> None:
        self._contents, self._pause = contents, pause
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._listener:
            for number, content in enumerate(self._contents):
                time.sleep(self._pause if number else 0.0)
                connection, _ = self._listener.accept()
                with connection:
                    connection.sendall(content)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("parts")
    made = [
        odd_video.encode(folder / f"{size}.ts", odd_video.moving_frames(20, size, 64), codec="mpeg2video", gop=5)
        for size in (48, 32)
    ]
    return [path.read_bytes() for path in made]


def test_it_is_opened_again_and_the_clock_goes_on(parts: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    times: list[float] = []
    sizes: list[int] = []

    def look(video: LiveVideo) -> None:
        for frame in video:
            times.append(frame.time)
            sizes.append(video.rgb(frame.frame).shape[0])

    told = r"disconnected, and \d+ attempts to reconnect failed .*reconnect"
    address = Server(parts, pause=0.4).address
    with LiveVideo(address, allow_urls=True, reconnect=2.0) as video, pytest.raises(VideoError, match=told):
        look(video)
    second = sizes.index(32)
    assert sizes == [48] * second + [32] * (len(sizes) - second)
    assert min(second, len(sizes) - second) >= 18
    steps = np.diff(times)
    np.testing.assert_allclose(np.delete(steps, second - 1), 1 / FPS, atol=0.002)
    assert 0.15 < steps[second - 1] < 3  # a pause of 0.4 s, less what a busy machine was late before
    assert video.reconnects == 1
    assert "reconnecting for" in caplog.text
    assert "reconnected after" in caplog.text


def test_without_reconnect_it_ends(parts: list[bytes]) -> None:
    with LiveVideo(Server(parts).address, allow_urls=True, reconnect=0.0) as video:
        assert 18 <= len(list(video)) <= 20
    assert video.reconnects == 0


def test_an_abandoned_source_is_not_waited_for(parts: list[bytes]) -> None:
    with LiveVideo(Server(parts[:1]).address, allow_urls=True, reconnect=600.0) as video:
        timer = threading.Timer(0.5, video.abandon)
        timer.start()
        assert 18 <= len(list(video)) <= 20
        timer.join()


def test_the_clock_goes_on_in_other_ticks() -> None:
    class Stream:
        time_base, guessed_rate, average_rate = 0.5, 10, 10

    clock = Clock(0.1, 0.001)
    assert [clock.to_seconds(stamp) for stamp in (500, 600)] == [0.0, pytest.approx(0.1)]
    clock.restart(Stream(), 3.0)
    assert [clock.to_seconds(stamp) for stamp in (7, 8, None)] == [pytest.approx(t) for t in (3.1, 3.6, 3.7)]
    clock.restart(Stream(), 0.0)  # never back, and never at once
    assert clock.to_seconds(None) == pytest.approx(3.8)
