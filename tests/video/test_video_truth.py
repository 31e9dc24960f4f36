"""Frame i by seeking is frame i by walking is frame i by decoding everything, whatever the container claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from odd_video import Frames, add_sound, decode_all, encode, moving_frames

from internvideo.errors import VideoError
from internvideo.video.live import LiveVideo
from internvideo.video.reader import Video, read_frames, read_video_info
from internvideo.video.sequential import iter_frames

KEYS = [
    ("mp4", "mpeg4", {}),
    ("mp4", "mpeg4", {"bf": "2"}),
    ("3gp", "h263", {}),
    ("mp4", "libx264", {"bf": "3"}),
    ("mp4", "libx265", {"x265-params": "bframes=3"}),
]


def check(path: Path, expected: Frames) -> None:
    """Every way to a frame gives the expected one."""
    with Video(path) as video:
        assert video.info.frames == len(expected)
        for index in np.random.RandomState(0).permutation(len(expected)).tolist():
            np.testing.assert_array_equal(video.frames([index])[0], expected[index])
        np.testing.assert_array_equal(np.stack(list(iter_frames(video, range(len(expected))))), expected)


@pytest.mark.parametrize(("suffix", "codec", "options"), KEYS, ids=str)
@pytest.mark.parametrize("claim", ["all", "first", "wrong"])
def test_key_frames_are_those_of_the_stream(
    suffix: str, codec: str, options: dict[str, str], claim: str, tmp_path: Path
) -> None:
    """The list of key frames (stss) is missing, which declares every frame one, or too short, or names other ones."""
    size = (144, 176) if codec == "h263" else (48, 64)
    path = encode(tmp_path / f"a.{suffix}", moving_frames(30, *size), codec=codec, gop=8, options=options)
    expected, _ = decode_all(path)
    data = bytearray(path.read_bytes())
    table = data.index(b"stss")
    if claim == "all":
        data[table : table + 4] = b"free"
    elif claim == "first":
        data[table + 8 : table + 12] = (1).to_bytes(4, "big")
    else:
        for number in range(1, int.from_bytes(data[table + 8 : table + 12], "big")):
            place = table + 12 + 4 * number
            named = int.from_bytes(data[place : place + 4], "big") + 3
            data[place : place + 4] = named.to_bytes(4, "big")
    path.write_bytes(data)
    check(path, expected)


def test_time_stamps_that_do_not_rise(tmp_path: Path) -> None:
    """Some packets have changed their stamps: a frame is the one whose stamp stands at its place, on every way."""
    plain = encode(tmp_path / "plain.webm", moving_frames(60), codec="libvpx", options={"cpu-used": "8"})
    path = tmp_path / "late.webm"
    order = np.arange(60)
    for place in (17, 29, 41):
        order[[place, place + 3]] = order[[place + 3, place]]
    with av.open(str(plain)) as old, av.open(str(path), "w") as new:
        source: Any = old.streams.video[0]
        copy = new.add_stream_from_template(source)
        packets = [packet for packet in old.demux(source) if packet.size]
        stamps = [packet.pts for packet in packets]
        for place, packet in enumerate(packets):
            packet.stream, packet.pts, packet.dts = copy, stamps[order[place]], stamps[place] - 300
            new.mux(packet)
    frames, _ = decode_all(plain)
    check(path, frames[np.argsort(order)])


def late_sound(path: Path) -> tuple[Path, Frames]:
    """An FLV with a header that knows of no stream; its sound begins after twelve seconds, when all have been found."""
    clip = encode(path.with_name("clip.flv"), moving_frames(80), fps=5, codec="flv")
    with av.open(str(path.with_name("sound.flv")), "w") as container:
        add_sound(container, container.add_stream("aac", rate=8000, layout="mono"))
    tags: list[tuple[int, int, bytes]] = []  # time, place, tag
    for shift, source in ((0, clip), (12_000, path.with_name("sound.flv"))):
        data, at = source.read_bytes(), 13
        while at < len(data):
            size = 11 + int.from_bytes(data[at + 1 : at + 4], "big")
            time = int.from_bytes(data[at + 4 : at + 7], "big") + shift
            if data[at] in (8, 9):
                tag = data[at : at + 4] + time.to_bytes(3, "big") + data[at + 7 : at + size + 4]
                tags.append((time, len(tags), tag))
            at += size + 4
    path.write_bytes(b"FLV\x01\x00\x00\x00\x00\x09\x00\x00\x00\x00" + b"".join(tag for *_, tag in sorted(tags)))
    return path, decode_all(clip)[0]


def test_a_stream_that_appears_after_the_others_were_found(tmp_path: Path) -> None:
    path, frames = late_sound(tmp_path / "late.flv")
    if int(av.__version__.partition(".")[0]) < 19:  # what has to be gone around
        with pytest.raises(IndexError), av.open(str(path)) as container:
            list(container.demux(container.streams.video[0]))
    check(path, frames)
    with path.open("rb", buffering=0) as pipe, LiveVideo(pipe) as live:
        assert sum(1 for _ in live) == len(frames)


def test_whatever_the_library_raises_is_a_fault_of_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.ts", moving_frames(20))
    for error in (
        IndexError("list index out of range"),
        ValueError("0x77 is no valid side data"),
        OverflowError("big"),
    ):
        path.touch()  # its index may be known from the round before

        def broken(*_: object, error: Exception = error) -> object:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("internvideo.video.scan.decode", broken)
            with pytest.raises(VideoError, match=r"a\.ts: cannot be read: "):
                read_video_info(path)
        with monkeypatch.context() as patch, Video(path) as video:
            patch.setattr("internvideo.video.reader.Converter.write", broken)
            with pytest.raises(VideoError, match=r"a\.ts: cannot be read: "):
                video.frames([3])
    assert read_frames(path, [3]).shape == (1, 48, 64, 3)
