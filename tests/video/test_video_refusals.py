"""What the video reader must refuse: damaged, hostile and endless files; always a VideoError of one line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import odd_video
import pytest
from odd_video import decode_all, encode, moving_frames

from internvideo.errors import VideoError
from internvideo.video.reader import Video, read_frames, read_video_info

PYRAMID = {"bf": "3", "b-adapt": "0", "x264-params": "b-pyramid=normal:scenecut=0"}


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames, 15 a second, H.264 with B-frames, a key frame every 12, the header in front."""
    folder = tmp_path_factory.mktemp("plain")
    return encode(folder / "plain.mp4", moving_frames(60), options=PYRAMID, container_options={"movflags": "faststart"})


@pytest.mark.parametrize("bad", [[60], [-1], [0, 1000]])
def test_index_outside(plain: Path, bad: list[int]) -> None:
    with Video(plain) as video, pytest.raises(VideoError, match=r"plain\.mp4: frame -?\d+ asked, readable are 0 to 59"):
        video.frames(bad)


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts", "flv"])
def test_truncated_file_knows_what_it_has(container: str, tmp_path: Path) -> None:
    whole = encode(
        tmp_path / f"whole.{container}",
        moving_frames(60),
        options=PYRAMID,
        container_options={"movflags": "faststart"} if container == "mp4" else {},
    )
    frames, times = decode_all(whole)
    path = odd_video.cut(whole, tmp_path / f"cut.{container}", 0.6)
    with Video(path) as video:
        info = video.info
        assert 10 < info.frames < 50
        # A frame is the one that the whole file shows at that time (the cut may lie between a frame and its B-frames).
        shown = info.start + info.times
        same = np.abs(times[:, None] - shown).argmin(0)
        np.testing.assert_allclose(shown, times[same], atol=1e-6)
        np.testing.assert_array_equal(video.frames(range(info.frames)), frames[same])
        with pytest.raises(VideoError, match=rf"cut\.{container}: frame 59 asked.* at \d+\.\d+ s"):
            video.frames([59])


@pytest.mark.parametrize("mode", ["zeros", "noise"])
def test_damage_is_an_error_never_a_wrong_picture(mode: str, tmp_path: Path) -> None:
    """Whatever is damaged inside the pictures of an H.264 file, every frame handed out equals the undamaged one."""
    whole = encode(tmp_path / "whole.mp4", moving_frames(40, 240, 320), options=PYRAMID)
    frames, _ = decode_all(whole)
    places = odd_video.sample_places(whole)
    rng = np.random.RandomState(3)
    refused = given = 0
    for number in range(8):
        offset, size = places[rng.randint(1, len(places))]
        start = offset + min(size - 2, 16 if number % 2 else 6)
        length = max(1, min((8, 64, size)[number % 3], size - (start - offset)))
        junk = bytes(length) if mode == "zeros" else rng.bytes(length)
        path = odd_video.patched(whole, tmp_path / f"{mode}{number}.mp4", {start: junk})
        with Video(path) as video:
            for index in range(video.info.frames):
                got = frame_or_error(video, index)
                if isinstance(got, str):
                    assert str(path) in got
                    assert f"frame {index} is damaged at {video.info.times[index]:.3f} s" in got
                    assert "\n" not in got
                    refused += 1
                else:
                    np.testing.assert_array_equal(got, frames[index])
                    given += 1
    assert refused > 8
    assert given > 80


def frame_or_error(video: Video, index: int) -> np.ndarray | str:
    try:
        return video.frames([index])[0]
    except VideoError as error:
        return str(error)


def one_line(error: pytest.ExceptionInfo[VideoError], path: object) -> None:
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_video(plain: Path, tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    files: dict[str, bytes] = {
        "empty.mp4": b"",
        "zeros.mp4": bytes(4096),
        "garbage.mp4": rng.bytes(5000),
        "text.mp4": b"no video, just words\n" * 30,
        "page.mp4": b"<!DOCTYPE html><html><body>404 not found</body></html>",
        "pointer.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
        "head.mp4": plain.read_bytes()[:100],
        "spoilt.mp4": rng.bytes(64) + plain.read_bytes()[64:],
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(VideoError) as error:
            read_video_info(tmp_path / name)
        one_line(error, tmp_path / name)
    late = encode(tmp_path / "late.mp4", moving_frames(30))  # its header stands at the end
    odd_video.cut(late, tmp_path / "headless.mp4", 0.5)
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    odd_video.zero_frames(tmp_path / "none.mp4")
    for name in ("headless.mp4", "folder.mp4", "pipe.mp4", "none.mp4", "missing.mp4"):
        with pytest.raises(VideoError) as error:
            read_video_info(tmp_path / name)
        one_line(error, tmp_path / name)
    with pytest.raises(VideoError):
        read_video_info("nul\0name.mp4")


@pytest.mark.parametrize("cover", [False, True])
def test_sound_is_no_video(cover: bool, tmp_path: Path) -> None:
    path = odd_video.audio_only(tmp_path / "sound.mp4", cover=cover)
    with pytest.raises(VideoError, match="no video stream" + (", only a cover picture" if cover else "$")):
        read_video_info(path)


def test_file_without_permission(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "secret.mp4")

    path = tmp_path / "secret.mp4"
    path.write_bytes(plain.read_bytes())
    monkeypatch.setattr("av.open", refuse)  # the tests may run as a user who may read everything
    with pytest.raises(VideoError, match=r"secret\.mp4: .*permission denied"):
        read_video_info(path)


def test_nothing_else_is_opened(plain: Path, tmp_path: Path) -> None:
    """Addresses and playlists are refused, so that a data set cannot make the reader fetch or read other files."""
    playlists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\nfile://{plain}\n#EXT-X-ENDLIST\n",
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\n{plain}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{plain}'\n",
        "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }
    for name, text in playlists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(VideoError) as error:
            read_video_info(tmp_path / name)
        one_line(error, tmp_path / name)
    for name in (
        "http://127.0.0.1:9/a.mp4",
        f"file:{plain}",
        f"concat:{plain}|{plain}",
        f"subfile,,start,0,end,0,,:{plain}",
    ):
        with pytest.raises(VideoError):
            read_video_info(name)
    with Video(f"file:{plain}", allow_urls=True) as video:
        assert video.info.frames == 60


def test_declared_size_is_refused_before_memory_is_taken(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoError):
        read_video_info(odd_video.huge_png(tmp_path / "huge.png", 60000, 60000))
    header = b"YUV4MPEG2 W40000 H40000 F25:1 Ip A1:1 C420\nFRAME\n"
    (tmp_path / "huge.y4m").write_bytes(header + bytes(1000))
    with pytest.raises(VideoError) as error:
        read_video_info(tmp_path / "huge.y4m")
    one_line(error, tmp_path / "huge.y4m")


def test_limits_of_time(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="longer than 2 s"):
        Video(plain, max_seconds=2)
    slow = encode(tmp_path / "slow.ts", moving_frames(60))
    with pytest.raises(VideoError, match="longer than 2 s"):
        Video(slow, max_seconds=2)
    with pytest.raises(VideoError, match="took longer than"):
        Video(slow, budget=1e-6)
    with Video(plain, budget=60) as video:
        video._budget = 0.0
        with pytest.raises(VideoError, match="took longer than"):
            video.frames([30])


def test_no_file_stays_open(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.mp4").write_bytes(plain.read_bytes()[:100])
    spoilt = encode(tmp_path / "a.ts", moving_frames(4))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(150):
        read_frames(plain, [3])
        read_frames(spoilt, [1])
        with pytest.raises(VideoError):
            read_video_info(tmp_path / "junk.mp4")
    assert len(os.listdir("/proc/self/fd")) <= before + 1
