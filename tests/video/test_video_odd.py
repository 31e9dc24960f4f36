"""Odd files of every kind, each made here: the right frames at the right times, or a refusal of one line."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from odd_kinds import BAD, GOOD, Odd, world_frames
from odd_video import cut, decode_all, encode, patched, sample_places

from internvideo.errors import VideoError
from internvideo.video.reader import Video, read_frames, read_video_info


@pytest.mark.parametrize("odd", GOOD, ids=lambda odd: odd.name)
def test_good(odd: Odd, tmp_path: Path) -> None:
    path = tmp_path / odd.name
    odd.make(path)
    with Video(path) as video:
        info = video.info
        assert info.truncation_reason == ""
        frames = video.frames(range(info.frames))
        backwards = video.frames(range(info.frames)[::-1])
        np.testing.assert_array_equal(video.frames_at(info.times), frames)
    assert frames.shape == odd.frames.shape
    np.testing.assert_array_equal(frames, backwards[::-1])
    assert info.start == pytest.approx(odd.start, abs=1e-6)
    assert info.times[0] == 0
    if odd.step:
        np.testing.assert_allclose(np.diff(info.times), odd.step, atol=1.1e-3)
    assert info.variable_rate == (not odd.step)
    difference = np.abs(frames.astype(int) - odd.frames).mean((1, 2, 3))
    assert difference.max() <= (0 if odd.exact else 30)
    if len(frames) > 2:  # every picture is the one of its own moment
        apart = [[np.abs(got.astype(int) - want).mean() for want in odd.frames] for got in frames[[1, len(frames) - 2]]]
        assert np.argmin(apart, axis=1).tolist() == [1, len(frames) - 2]


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str, tmp_path: Path) -> None:
    make, reason = BAD[name]
    make(tmp_path / name)
    with pytest.raises(VideoError, match=reason) as error:
        read_video_info(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}], ids=str)
def test_cut_short(options: dict[str, str], tmp_path: Path) -> None:
    """What is there is read, what is not there is refused, and the file tells that it stops early."""
    whole = encode(tmp_path / "whole.mp4", world_frames(40), options={"bf": "2"}, gop=10, container_options=options)
    frames, times = decode_all(whole)
    path = cut(whole, tmp_path / "cut.mp4", 0.7)
    with Video(path) as video:
        count = video.info.frames
        assert 10 < count < 40
        assert video.info.truncation_reason
        same = np.abs(times[:, None] - video.info.times - video.info.start).argmin(0)
        np.testing.assert_array_equal(video.frames(range(count)), frames[same])
        with pytest.raises(VideoError, match=rf"frame {count} asked, readable are 0 to {count - 1} \("):
            video.frames([count])


@pytest.mark.parametrize("damage", ["skip", "stop", "repeat"])
def test_zeroed_middle(damage: str, tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mp4", world_frames(60), gop=10)
    frames, _ = decode_all(whole)
    places = sample_places(whole)
    path = patched(whole, tmp_path / "holed.mp4", {offset: bytes(size) for offset, size in places[24:30]})
    with Video(path, damage=damage) as video:
        count = video.info.frames
        if damage == "stop":
            assert 18 <= count <= 24
            assert video.info.truncation_reason
            np.testing.assert_array_equal(video.frames(range(count)), frames[:count])
            return
        assert video.info.times[-1] == pytest.approx(59 / 15, abs=1e-3)
        assert video.info.truncation_reason == ""
        sound = 0
        for number in range(60):
            at = (number + 0.5) / 15
            in_gap = any(begin <= at < stop for begin, stop in video.gaps)
            if in_gap and damage == "skip":
                with pytest.raises(VideoError, match="damaged"):
                    video.frames_at([at])
                continue
            same = np.array_equal(video.frames_at([at])[0], frames[number])
            assert same == (not in_gap)
            sound += same
        assert sound >= 50
        assert video.gaps[-1][1] == pytest.approx(30 / 15, abs=1e-3)
        assert "damaged, 0." in video.damage_report


def test_links(tmp_path: Path) -> None:
    real = encode(tmp_path / "real.mp4", world_frames(5))
    (tmp_path / "link.mp4").symlink_to(real)
    (tmp_path / "chain.mp4").symlink_to("link.mp4")
    assert read_video_info(tmp_path / "chain.mp4").frames == 5
    for name, target in {"broken.mp4": "nothing", "loop.mp4": "loop.mp4", "device.mp4": "/dev/zero"}.items():
        (tmp_path / name).symlink_to(target)
        with pytest.raises(VideoError, match=rf"{name}: "):
            read_video_info(tmp_path / name)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.mp4"))
        for path in (tmp_path / "pipe.mp4", tmp_path / "socket.mp4", Path("/dev/zero"), Path("/dev/null"), tmp_path):
            for prefix, allow_urls in (("", False), ("", True), ("file:", True), ("file://", True)):
                with pytest.raises(VideoError, match=r"is not a regular file|is a folder"):
                    read_video_info(f"{prefix}{path}", allow_urls=allow_urls)


class Asked(ThreadingHTTPServer):
    """A server of the files of a folder, with ranges; it notes what it was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.asked = folder, list[str]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Asked

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/moved.mp4":
            self.send_response(302)
            self.send_header("Location", f"file://{self.server.folder}/plain.mp4")
            self.end_headers()
            return
        file = self.server.folder / self.path[1:].removeprefix("no-ranges/")
        if not file.exists():
            self.send_error(404)
            return
        data, start = file.read_bytes(), 0
        if ranged := self.headers.get("Range") if "no-ranges" not in self.path else None:
            start = int(ranged.removeprefix("bytes=").split("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        try:
            self.wfile.write(data[start:])
        except (BrokenPipeError, ConnectionResetError):  # the reader has what it wants
            self.close_connection = True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Asked]:
    folder = tmp_path / "served"
    folder.mkdir()
    encode(folder / "plain.mp4", world_frames(40), gop=8)
    with Asked(folder) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_addresses_need_the_switch(server: Asked) -> None:
    address = f"{server.address}/plain.mp4"
    with pytest.raises(VideoError, match=r"is an address; .*allow it with allow_urls=True"):
        read_video_info(address)
    assert server.asked == []
    want = read_frames(server.folder / "plain.mp4", [33, 2])
    with Video(address, allow_urls=True) as video:
        assert video.info.frames == 40
        np.testing.assert_array_equal(video.frames([33, 2]), want)
    assert server.asked
    with pytest.raises(VideoError, match="not a readable video"):
        read_video_info(f"{server.address}/none.mp4", allow_urls=True)
    with pytest.raises(VideoError, match="not a readable video"):  # a redirection does not lead to local files
        read_video_info(f"{server.address}/moved.mp4", allow_urls=True)
    for other in ("ftp", "rtmp", "data", "concat", "gopher", "pipe"):
        with pytest.raises(VideoError, match=f"of the kind '{other}' are not opened"):
            read_video_info(f"{other}://127.0.0.1/plain.mp4", allow_urls=True)


def test_an_address_that_cannot_be_wound_back(server: Asked) -> None:
    """A server without ranges gives the same frames."""
    want = read_frames(server.folder / "plain.mp4", [33, 2])
    with Video(f"{server.address}/no-ranges/plain.mp4", allow_urls=True) as video:
        np.testing.assert_array_equal(video.frames([33, 2]), want)


@pytest.mark.parametrize("allow_urls", [False, True])
def test_lists_lead_nowhere(server: Asked, allow_urls: bool) -> None:
    """Playlists and scripts name other files; neither these nor the addresses in them are opened."""
    mpd = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT3S"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="9" codecs="avc1.640028">'
        "<BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )
    lists = {
        "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
        "mpd": mpd,
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns={}\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "imf": '<?xml version="1.0"?><AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM">{}</AssetMap>',
    }
    for target in (f"{server.address}/plain.mp4", f"{server.folder}/plain.mp4", f"file:{server.folder}/plain.mp4"):
        for ending, text in lists.items():
            for name in (f"list.{ending}", "list.mp4"):
                (server.folder / name).write_text(text.format(target))
                with pytest.raises(VideoError):
                    read_video_info(server.folder / name, allow_urls=allow_urls)
                if allow_urls:
                    with pytest.raises(VideoError):
                        read_video_info(f"{server.address}/{name}", allow_urls=True)
    assert not any("plain" in path for path in server.asked)
