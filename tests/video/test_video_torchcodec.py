"""The second decoder: the same frames, the same times, the same refusals, and used only where it should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import odd_video
import pytest
from odd_kinds import GOOD, Odd, encrypted, world_frames

from internvideo.errors import VideoError
from internvideo.video import torchcodec_backend as video_torchcodec
from internvideo.video.reader import Video, read_video_info

LOADED = not isinstance(video_torchcodec.torchcodec_class(), str)
needs_torchcodec = pytest.mark.skipif(
    not LOADED, reason=f"torchcodec cannot be loaded: {video_torchcodec.torchcodec_class()}"
)
AV1 = {"codec": "libsvtav1", "options": {"preset": "12"}}


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is known yet of any kind of picture, and the environment chooses nothing."""
    monkeypatch.delenv(video_torchcodec.ENVIRONMENT, raising=False)
    video_torchcodec._verified.clear()
    yield
    video_torchcodec._verified.clear()


@needs_torchcodec
@pytest.mark.parametrize("odd", GOOD, ids=lambda odd: odd.name)
def test_parity(odd: Odd, tmp_path: Path) -> None:
    path = tmp_path / odd.name
    odd.make(path)
    with Video(path, backend="pyav") as ours, Video(path, backend="torchcodec") as theirs:
        assert theirs.info == ours.info
        np.testing.assert_array_equal(theirs.info.times, ours.info.times)
        count = ours.info.frames
        orders = [
            [0, count // 2],
            list(range(count)),
            list(range(count))[::-1],
            [count - 1, 0, count - 1],
            [count // 3],
        ]
        for order in orders:
            np.testing.assert_array_equal(theirs.frames(order), ours.frames(order))
        assert ours.decoder == "pyav"
        times = ours.info.times[::3] + 0.01
        np.testing.assert_array_equal(theirs.frames_at(times), ours.frames_at(times))


@needs_torchcodec
def test_it_is_really_used(tmp_path: Path) -> None:
    """The first request of a kind is answered by both decoders; from then on torchcodec answers alone."""
    used = []
    for name in ("plain.mp4", "uneven.mp4", "vp9.webm", "av1.mkv", "late.mp4", "odd_size.mp4", "wide_pixels.mp4"):
        odd = next(odd for odd in GOOD if odd.name == name)
        odd.make(tmp_path / name)
        with Video(tmp_path / name, backend="torchcodec") as video:
            for order in ([0], [1, 2]):
                video.frames(order)
                used.append(video.decoder)
    assert set(used[1::2]) == {"torchcodec"}
    assert used[0] == "pyav"


@needs_torchcodec
def test_other_pixels_are_never_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = odd_video.encode(tmp_path / "a.mp4", world_frames())
    real = video_torchcodec.TorchcodecDecoder.frames

    def off_by_one(self: video_torchcodec.TorchcodecDecoder, wanted: np.ndarray) -> np.ndarray | None:
        frames = real(self, wanted)
        return None if frames is None else frames ^ 1

    monkeypatch.setattr(video_torchcodec.TorchcodecDecoder, "frames", off_by_one)
    want = odd_video.decode_all(path)[0]
    for _ in range(2):
        with Video(path, backend="torchcodec") as video:
            np.testing.assert_array_equal(video.frames([3, 1]), want[[3, 1]])
            np.testing.assert_array_equal(video.frames([5]), want[[5]])
            assert video.decoder == "pyav"
    assert list(video_torchcodec._verified.values()) == [False]


@needs_torchcodec
def test_what_auto_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av1 = odd_video.encode(tmp_path / "av1.mp4", world_frames(60, 64, 96), **AV1)  # type: ignore[arg-type]  # settings
    h264 = odd_video.encode(tmp_path / "h264.mp4", world_frames(60))
    sparse, dense = [2, 30, 57], list(range(12))

    def decoder(path: Path, order: list[int], **settings: str | int) -> str:
        with Video(path, **settings) as video:  # type: ignore[arg-type]  # settings
            video.frames(order)
            video.frames(order)
            return video.decoder

    assert decoder(av1, sparse) == "torchcodec"
    assert decoder(av1, dense) == decoder(h264, sparse) == decoder(h264, dense) == "pyav"
    assert decoder(av1, sparse, short_side=32) == decoder(av1, sparse, backend="pyav") == "pyav"
    monkeypatch.setenv("INTERNVIDEO_DECODER", "pyav")
    assert decoder(av1, sparse) == "pyav"
    assert decoder(av1, sparse, backend="auto") == "torchcodec"
    monkeypatch.setenv("INTERNVIDEO_DECODER", "torchcodec")
    assert decoder(h264, dense) == "torchcodec"


@needs_torchcodec
def test_damage_in_av1(tmp_path: Path) -> None:
    """The codec that is chosen by itself: no picture but the right one from either decoder, and mostly one verdict."""
    whole = odd_video.encode(tmp_path / "whole.mp4", world_frames(40, 64, 96), gop=20, **AV1)  # type: ignore[arg-type]  # settings
    frames, _ = odd_video.decode_all(whole)
    with Video(whole, backend="torchcodec") as video:
        video.frames([1, 30])
    assert list(video_torchcodec._verified.values()) == [True]
    places, rng = odd_video.sample_places(whole), np.random.RandomState(0)
    refused = given = 0
    for number in range(12):
        offset, size = places[rng.randint(1, len(places))]
        junk = rng.bytes(max(1, size - 2))
        path = odd_video.patched(whole, tmp_path / f"{number}.mp4", {offset + 2: junk})
        for index in range(1, 40, 6):
            found = []
            for backend in ("pyav", "torchcodec"):
                with Video(path, backend=backend) as video:
                    try:
                        found.append(video.frames([index])[0])
                    except VideoError as error:
                        found.append(str(error))
            ours, theirs = found
            if isinstance(ours, str) or isinstance(theirs, str):
                assert ours == theirs or np.array_equal(theirs, frames[index])
                refused += 1
            else:
                np.testing.assert_array_equal(ours, theirs)
                given += 1
    assert refused > 10
    assert given > 20


@needs_torchcodec
def test_files_that_begin_as_something_else_stay_with_pyav(tmp_path: Path) -> None:
    """torchcodec cannot be told which formats to allow, so it gets only what can be nothing but MP4 or Matroska."""
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    path = odd_video.encode(tmp_path / "a.mp4", world_frames(), container_options=fragments)
    path.write_bytes((16).to_bytes(4, "big") + b"free" + b"#EXTM3U\n" + path.read_bytes())
    with Video(path, backend="torchcodec") as video:
        assert video.info.frames == 20
        for _ in range(2):
            video.frames([1])
            assert video.decoder == "pyav"


def test_refusals_do_not_depend_on_it(tmp_path: Path) -> None:
    encrypted(tmp_path / "encrypted.mp4")
    odd_video.zero_frames(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("words")
    for backend in ("pyav", "auto", *(["torchcodec"] if LOADED else [])):
        for name in ("encrypted.mp4", "none.mp4", "text.mp4", "missing.mp4"):
            with pytest.raises(VideoError) as error:
                Video(tmp_path / name, backend=backend)
            with pytest.raises(VideoError) as plain:
                read_video_info(tmp_path / name)
            assert str(error.value) == str(plain.value)


def test_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = odd_video.encode(tmp_path / "a.mp4", world_frames(4))
    with pytest.raises(VideoError, match=r"'opencv'.*auto, pyav, torchcodec"):
        Video(path, backend="opencv")
    monkeypatch.setenv("INTERNVIDEO_DECODER", "fastest")
    with pytest.raises(VideoError, match="INTERNVIDEO_DECODER"):
        Video(path)
    monkeypatch.setenv("INTERNVIDEO_DECODER", "auto")
    monkeypatch.setattr(video_torchcodec, "torchcodec_class", lambda: "libavcodec.so was not found")
    with pytest.raises(VideoError, match=r"torchcodec cannot be loaded: libavcodec.so was not found; .*'pyav'"):
        Video(path, backend="torchcodec")
    with Video(path) as video:
        assert len(video.frames([0, 3])) == 2
        assert video.decoder == "pyav"
