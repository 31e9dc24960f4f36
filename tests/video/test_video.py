"""The video reader: the right frame at every index and time, for every kind of file, or a VideoError in one line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import odd_video
import pytest
import torch
from odd_video import decode_all, encode, moving_frames
from torch.nn import functional

from internvideo.errors import VideoError
from internvideo.video import seek as video_seek
from internvideo.video.reader import Video, read_frames, read_video_info

B_FRAMES = {"bf": "3", "b-adapt": "0"}
PYRAMID = {**B_FRAMES, "x264-params": "b-pyramid=normal:scenecut=0"}
OPEN_GOP = {**B_FRAMES, "x264-params": "open-gop=1:scenecut=0:b-pyramid=normal"}

# name, container, codec, pixel format, distance of key frames, encoder options
KINDS = [
    ("h264", "mp4", "libx264", "yuv420p", 12, {}),
    ("h264_intra", "mp4", "libx264", "yuv420p", 1, {}),
    ("h264_no_b", "mp4", "libx264", "yuv420p", 8, {"bf": "0"}),
    ("h264_pyramid", "mp4", "libx264", "yuv420p", 10, PYRAMID),
    ("h264_long_gop", "mp4", "libx264", "yuv420p", 250, PYRAMID),
    ("h264_open_gop", "mkv", "libx264", "yuv420p", 9, OPEN_GOP),
    ("h264_open_gop_mp4", "mp4", "libx264", "yuv420p", 9, OPEN_GOP),
    ("h264_fragments", "mp4", "libx264", "yuv420p", 12, {}),
    ("h264_ten_bit", "mp4", "libx264", "yuv420p10le", 12, {}),
    ("h264_444", "mkv", "libx264", "yuv444p", 12, {}),
    ("h264_gray", "mp4", "libx264", "gray", 12, {}),
    ("h264_full_range", "mp4", "libx264", "yuvj420p", 12, {}),
    ("h264_rgb", "mkv", "libx264rgb", "rgb24", 12, {}),
    ("h264_intra_refresh", "mp4", "libx264", "yuv420p", 12, {"x264-params": "intra-refresh=1", "bf": "0"}),
    ("h264_ts", "ts", "libx264", "yuv420p", 12, {}),
    ("h264_flv", "flv", "libx264", "yuv420p", 12, {}),
    ("h264_avi", "avi", "libx264", "yuv420p", 12, {"bf": "0"}),
    ("hevc", "mp4", "libx265", "yuv420p", 10, {"preset": "fast"}),
    ("hevc_open_gop", "mkv", "libx265", "yuv420p", 10, {"x265-params": "open-gop=1:bframes=4:keyint=10:min-keyint=10"}),
    ("vp9", "webm", "libvpx-vp9", "yuv420p", 10, {"cpu-used": "8", "deadline": "realtime"}),
    ("vp9_hidden", "webm", "libvpx-vp9", "yuv420p", 20, {"cpu-used": "5", "lag-in-frames": "16", "auto-alt-ref": "1"}),
    ("vp9_alpha", "webm", "libvpx-vp9", "yuva420p", 10, {"cpu-used": "8", "auto-alt-ref": "0"}),
    ("vp8_hidden", "webm", "libvpx", "yuv420p", 20, {"lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "4"}),
    ("av1", "mp4", "libsvtav1", "yuv420p", 12, {"preset": "12"}),
    ("mpeg4", "mp4", "mpeg4", "yuv420p", 12, {}),
    ("mpeg4_avi", "avi", "mpeg4", "yuv420p", 12, {"bf": "2"}),
    ("mpeg2", "mpg", "mpeg2video", "yuv420p", 12, {"bf": "2"}),
    ("mjpeg", "avi", "mjpeg", "yuvj420p", 12, {}),
    ("prores", "mov", "prores_ks", "yuv422p10le", 12, {}),
    ("ffv1", "mkv", "ffv1", "bgra", 12, {}),
    ("gif", "gif", "gif", "rgb8", 12, {}),
    ("wmv", "wmv", "wmv2", "yuv420p", 12, {}),
]
FPS = {"mpeg2": 25, "gif": 10, "av1": 15}
SIZES = {"av1": (64, 96), "h264_444": (49, 63)}


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames, 15 a second, H.264 with B-frames, a key frame every 12, the header in front."""
    folder = tmp_path_factory.mktemp("plain")
    return encode(folder / "plain.mp4", moving_frames(60), options=PYRAMID, container_options={"movflags": "faststart"})


def orders(frames: int, rng: np.random.RandomState) -> list[list[int]]:
    """Index lists: forwards, backwards, single, repeated, sparse, in any order, none."""
    lists = [list(range(frames)), list(range(frames))[::-1], [frames - 1], [0], [frames // 2] * 3, []]
    lists += [np.sort(rng.choice(frames, 8, replace=False)).tolist() for _ in range(8)]
    lists += [rng.randint(0, frames, 6).tolist() for _ in range(8)]
    return lists + [[int(index)] for index in rng.permutation(frames)[:12]]


@pytest.mark.parametrize(("name", "container", "codec", "pixel_format", "gop", "options"), KINDS, ids=lambda k: str(k))
def test_frames_equal_plain_decoding(
    name: str, container: str, codec: str, pixel_format: str, gop: int, options: dict[str, str], tmp_path: Path
) -> None:
    height, width = SIZES.get(name, (48, 64))
    path = encode(
        tmp_path / f"{name}.{container}",
        moving_frames(45, height, width),
        codec=codec,
        pixel_format=pixel_format,
        gop=gop,
        fps=FPS.get(name, 15),
        options=options,
        container_options={"movflags": "frag_keyframe+empty_moov"} if name == "h264_fragments" else {},
    )
    frames, times = decode_all(path)
    assert len(frames) >= 44
    with Video(path) as video:
        info = video.info
        assert (info.frames, info.height, info.width) == frames.shape[:3]
        np.testing.assert_allclose(info.start + info.times, times, atol=1e-9)
        assert not info.variable_rate
        assert info.fps == pytest.approx(FPS.get(name, 15), rel=0.04)
        for order in orders(info.frames, np.random.RandomState(1)):
            got = video.frames(order)
            assert got.dtype == np.uint8
            assert got.flags.c_contiguous
            np.testing.assert_array_equal(got, frames[order])


def test_only_what_is_needed_is_decoded(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frames of one group cost one pass over it; a frame of a later group does not decode those between."""
    seen: list[int | None] = []
    real = video_seek.decode

    def counting(context: object, packet: object) -> list[object]:
        seen.append(None if packet is None else packet.pts)  # type: ignore[attr-defined]  # an av packet
        return real(context, packet)

    monkeypatch.setattr(video_seek, "decode", counting)
    with Video(plain) as video:
        video.frames([1, 50, 3])
    packets = [stamp for stamp in seen if stamp is not None]
    assert len(packets) == len(set(packets)), "a packet was decoded twice"
    assert len(packets) <= 2 * 12


def test_times_of_a_variable_rate_file(tmp_path: Path) -> None:
    stamps = [0, 1, 2, 5, 6, 20, 21, 25, 26, 27, 40, 44]
    path = encode(tmp_path / "vfr.mp4", moving_frames(12), fps=30, stamps=stamps, gop=5)
    frames, _ = decode_all(path)
    with Video(path) as video:
        info = video.info
        np.testing.assert_allclose(info.times, np.array(stamps) / 30, atol=1e-4)
        assert info.variable_rate
        assert info.frames == 12
        asked = [0.0, 4 / 30, 5 / 30, 19.9 / 30, 44 / 30, 10 / 30]
        np.testing.assert_array_equal(video.frames_at(asked), frames[[0, 2, 3, 4, 11, 4]])
        with pytest.raises(VideoError, match=r"nothing is shown.*9\.000 s"):
            video.frames_at([9.0])
        with pytest.raises(VideoError, match="nothing is shown"):
            video.frames_at([-1.0])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_applied(degrees: int, mirrored: bool, tmp_path: Path) -> None:
    source = moving_frames(4, 48, 80)
    path = encode(tmp_path / "turned.mp4", source, rotation=(degrees, mirrored), options={"crf": "1"})
    turned = np.rot90(source, degrees // 90, axes=(1, 2))  # counter-clockwise, as the container has it
    expected = turned[:, :, ::-1] if mirrored else turned  # the container mirrors after the rotation
    with Video(path) as video:
        got = video.frames([0, 3])
        assert (video.info.height, video.info.width) == got.shape[1:3]
        if not mirrored:
            assert video.info.rotation == -degrees % 360
        assert video.info.mirrored == mirrored
    error = np.abs(got.astype(int) - expected[[0, 3]].astype(int)).mean()
    others = [np.abs(got.astype(int) - np.rot90(expected[[0, 3]], k, axes=(1, 2)).astype(int)).mean() for k in (2,)]
    assert error < 12 < min(others)


def test_short_side(plain: Path, tmp_path: Path) -> None:
    upright = encode(tmp_path / "turned.mp4", moving_frames(3, 96, 160), rotation=(90, False))
    assert read_frames(upright, [0], short_side=48).shape == (1, 80, 48, 3)
    assert read_frames(upright, [0], short_side=500).shape == (1, 160, 96, 3)
    full, small = read_frames(plain, [7]), read_frames(plain, [7], short_side=24)
    assert small.shape == (1, 24, 32, 3)
    exact = functional.interpolate(
        torch.from_numpy(full).permute(0, 3, 1, 2).float(), size=(24, 32), mode="bilinear", antialias=True
    )
    assert (exact.permute(0, 2, 3, 1) - torch.from_numpy(small)).abs().mean() < 8
    with pytest.raises(ValueError, match="short_side"):
        Video(plain, short_side=0)


def test_probe_of_a_long_lived_path_object(plain: Path) -> None:
    info = read_video_info(plain)
    assert (info.frames, info.codec, info.pixel_format) == (60, "h264", "yuv420p")
    assert info.duration == pytest.approx(4.0)
    assert info.fps == pytest.approx(15.0)
    assert info.truncation_reason == ""


def test_names_that_look_like_something_else(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-dash.mp4", "wrong.txt", "noise.avi", "ünï 视频 %03d.mp4", "http:x.mp4", "concat:a|b.mp4"):
        Path(name).write_bytes(plain.read_bytes())
        assert read_video_info(name).frames == 60
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.mp4"
    Path(os.fsdecode(odd)).write_bytes(plain.read_bytes())
    assert read_video_info(os.fsdecode(odd)).frames == 60


def test_metadata_that_is_not_utf8(tmp_path: Path) -> None:
    path = encode(tmp_path / "title.mp4", moving_frames(3), title="TITLEHERE")
    offset = path.read_bytes().index(b"TITLEHERE")
    assert read_video_info(odd_video.patched(path, tmp_path / "latin.mp4", {offset: b"\xff\xfe\xe9\xe8"})).frames == 3


def test_second_stream_and_sound_do_not_disturb(tmp_path: Path) -> None:
    path = encode(tmp_path / "sound.mp4", moving_frames(20), audio=True)
    frames, _ = decode_all(path)
    np.testing.assert_array_equal(read_frames(path, [19, 2]), frames[[19, 2]])


def test_raw_stream_without_times(tmp_path: Path) -> None:
    path = encode(tmp_path / "raw.h264", moving_frames(30), options=PYRAMID, format="h264")
    info = read_video_info(path)
    assert info.frames == 30
    assert (np.diff(info.times) > 0).all()
    assert not info.variable_rate


def test_slow_way_without_kept_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internvideo.video.index.FRAME_CACHE_BYTES", 20_000)
    path = encode(tmp_path / "a.ts", moving_frames(30), options=PYRAMID)
    frames, _ = decode_all(path)
    with Video(path) as video:
        for order in orders(30, np.random.RandomState(0))[:12]:
            np.testing.assert_array_equal(video.frames(order), frames[order])


def test_picture_size_changes_midway(tmp_path: Path) -> None:
    """A broadcast may change its size: frames are brought to the first one's."""
    first = encode(tmp_path / "1.h264", moving_frames(5, 48, 64), format="h264")
    second = encode(tmp_path / "2.h264", moving_frames(5, 96, 128), format="h264")
    both = tmp_path / "both.h264"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    assert read_frames(both, range(10)).shape == (10, 48, 64, 3)
