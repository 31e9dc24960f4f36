"""Folders of numbered images read as videos, wherever a video may stand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from goldens_folder import SAMPLES
from PIL import Image

from internvideo.data.decoding.clip_decoder import ManifestClipDecoder
from internvideo.data.manifest import read_manifest
from internvideo.data.preprocessing import Preprocessing, Span
from internvideo.datasets.prepare import prepare
from internvideo.errors import ManifestError, VideoError
from internvideo.features.video_files import VideoFile, find_videos
from internvideo.features.windows import windows
from internvideo.video.damage import DamageError
from internvideo.video.pool import borrow
from internvideo.video.reader import Video, read_frames, read_video_info
from internvideo.video.sequential import iter_frames

FILES = SAMPLES / "tasks" / "annotations"
SIZE = (32, 24)


def level(number: int) -> int:
    return (number * 17) % 251


def picture(path: Path, value: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def frames(folder: Path, count: int = 12, name: str = "{:05d}.jpg", first: int = 1) -> Path:
    for number in range(first, first + count):
        picture(folder / name.format(number), level(number))
    return folder


def levels(got: np.ndarray) -> list[int]:
    return got[..., 0].mean((1, 2)).round().astype(int).tolist()


@pytest.mark.parametrize(
    ("name", "first"),
    [("{:05d}.jpg", 1), ("{:06d}.png", 0), ("frame{}.jpg", 1), ("img_{:05d}.JPEG", 5), ("v1_g01_{}.png", 8)],
)
def test_frames_follow_each_other_by_number(tmp_path: Path, name: str, first: int) -> None:
    folder = frames(tmp_path / "7", 12, name, first)
    expected = [level(number) for number in range(first, first + 12)]
    info = read_video_info(folder, fps=12)
    assert (info.width, info.height, info.fps, info.frames, info.duration) == (*SIZE, 12.0, 12, 1.0)
    assert not info.variable_rate
    np.testing.assert_allclose(info.times, np.arange(12) / 12)
    assert levels(read_frames(folder, [11, 0, 9, 10, 9], fps=12)) == [expected[i] for i in (11, 0, 9, 10, 9)]
    with Video(folder, fps=12, short_side=12) as video:
        assert levels(np.stack(list(iter_frames(video, np.arange(12))))) == expected
        assert levels(video.frames_at([0.0, 0.5, 0.99])) == [expected[i] for i in (0, 6, 11)]
        assert video.frames([0]).shape == (1, 12, 16, 3)


def test_pixels_are_those_of_the_pictures(tmp_path: Path) -> None:
    values = np.random.RandomState(0).randint(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    for number, value in enumerate(values):
        Image.fromarray(value).save(tmp_path / f"{number}.png")
    np.testing.assert_array_equal(read_frames(tmp_path, [2, 0, 1], fps=5), values[[2, 0, 1]])


def test_a_rate_is_never_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = frames(tmp_path / "7")
    with pytest.raises(VideoError, match=r"folder of 12 frames, whose rate is not known; give fps"):
        read_video_info(folder)
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(VideoError, match="frames a second"):
            read_video_info(folder, fps=fps)
    monkeypatch.setenv("INTERNVIDEO_FRAME_RATE", "6")
    assert (read_video_info(folder).fps, read_video_info(folder, fps=3).fps) == (6.0, 3.0)
    monkeypatch.setenv("INTERNVIDEO_FRAME_RATE", "fast")
    with pytest.raises(VideoError, match="INTERNVIDEO_FRAME_RATE: 'fast' frames a second"):
        read_video_info(folder)


def test_what_lies_beside_the_frames_is_none(tmp_path: Path) -> None:
    folder = frames(tmp_path / "7", 4, "img_{:05d}.jpg")
    for other in ("flow_x_{:05d}.jpg", "flow_y_{:05d}.jpg"):
        frames(folder, 4, other)
    for name in (".00009.jpg", "._img_00002.jpg", "Thumbs.db", "thumb_1.jpg", "cover.jpg", "notes.txt"):
        (folder / name).write_bytes(b"x")
    frames(folder / "thumbs", 3)
    assert levels(read_frames(folder, range(4), fps=1)) == [level(number) for number in range(1, 5)]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "is a folder, not a video"),
        (["cat.jpg", "dog.png"], "2 images without numbers"),
        (["a1.jpg", "a2.jpg", "b1.jpg", "b2.jpg"], r"2 series of numbered images: a \(2\), b \(2\)"),
        (["1.jpg", "01.jpg", "2.jpg"], "two images with one number, 01.jpg and 1.jpg"),
        (["1.jpg", "1.png", "2.jpg"], "two images with one number, 1.jpg and 1.png"),
        (["1.jpg", "6.jpg", "11.jpg"], "3 images with numbers from 1 to 11, most of which are missing"),
        (["1.jpg", "999999999999999999.jpg"], "most of which are missing"),
    ],
)
def test_what_is_no_series_is_refused(tmp_path: Path, names: list[str], told: str) -> None:
    for name in names:
        picture(tmp_path / name, 9)
    with pytest.raises(VideoError, match=told):
        read_video_info(tmp_path, fps=12)


def test_a_missing_number_is_a_gap(tmp_path: Path) -> None:
    folder = frames(tmp_path / "7")
    (folder / "00004.jpg").unlink()
    with Video(folder, fps=4) as video:
        assert video.info.frames == 11
        assert video.info.times[3] == 1.0
        assert video.gaps == [(0.75, 1.0)]
        assert video.damage_report
        assert levels(video.frames_at([0.5, 1.0])) == [level(3), level(5)]
        with pytest.raises(DamageError, match="is damaged"):
            video.frames_at([0.8])
    with Video(folder, fps=4, damage="repeat") as video:
        assert levels(video.frames_at([0.8])) == [level(3)]
    with Video(folder, fps=4, damage="stop") as video:
        assert video.info.frames == 3
        assert "missing" in video.info.truncation_reason


@pytest.mark.parametrize("harm", ["empty", "cut", "text", "folder", "link"])
def test_a_damaged_picture_is_a_damaged_frame(tmp_path: Path, harm: str) -> None:
    folder = frames(tmp_path / "7", name="{:05d}.jpg")
    values = np.random.RandomState(0).randint(0, 256, (24, 32, 3), dtype=np.uint8)
    target = folder / "00003.jpg"
    Image.fromarray(values).save(target)
    data = target.read_bytes()
    target.unlink()
    if harm == "folder":
        target.mkdir()
    elif harm == "link":
        target.symlink_to(tmp_path / "absent")
    else:
        target.write_bytes({"empty": b"", "cut": data[: len(data) * 2 // 3], "text": b"frame 3"}[harm])
    with Video(folder, fps=4) as video:
        with pytest.raises(DamageError, match=r"frame 2 .*damaged at 0\.500 s"):
            video.frames(range(12))
        assert video.gaps == [(0.5, 0.75)]
        (got,) = video.sample(np.arange(4), lambda left: [np.arange(len(left))])
        assert levels(got) == [level(number) for number in (1, 2, 4)]
    with Video(folder, fps=4, damage="repeat") as video:
        assert levels(video.frames([1, 2, 3])) == [level(2), level(2), level(4)]
        assert levels(np.stack(list(iter_frames(video, np.arange(4))))) == [level(number) for number in (1, 2, 2, 4)]


def test_not_one_sound_picture(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"no picture")
    with pytest.raises(VideoError, match=r"not one of its 3 images can be decoded \(.*: neither JPEG nor PNG"):
        read_video_info(tmp_path, fps=12)


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    folder = frames(tmp_path / "7")
    picture(folder / "00006.jpg", 3, (24, 32))
    assert levels(read_frames(folder, [4], fps=12)) == [level(5)]
    with pytest.raises(VideoError, match=r"frame 5 \(00006\.jpg\) is 24 x 32, not 32 x 24 as the first"):
        read_frames(folder, [4, 5], fps=12)


def test_changed_folders_are_noticed(tmp_path: Path) -> None:
    folder = frames(tmp_path / "7", 3)
    long_ago = 1_600_000_000

    def age() -> None:
        for place in (*folder.iterdir(), folder):
            os.utime(place, (long_ago, long_ago))

    age()
    with borrow(folder, fps=2) as video:
        assert video.info.frames == 3
    with borrow(folder, fps=4) as video:
        assert video.info.duration == 0.75
    picture(folder / "00004.jpg", level(4))
    age()
    with borrow(folder, fps=4) as video:
        assert video.info.frames == 4
        before = VideoFile(str(folder), fps=4).identity()
        picture(folder / "00004.jpg", 200)
        with pytest.raises(VideoError, match=r"00004\.jpg was changed"):
            video.frames([3])
    assert VideoFile(str(folder), fps=4).identity() != before
    assert VideoFile(str(folder), fps=4).identity() != VideoFile(str(folder), fps=5).identity()
    with borrow(folder, fps=4) as video:
        assert levels(video.frames([3])) == [200]


def test_manifests_tell_the_rate(tmp_path: Path) -> None:
    frames(tmp_path / "7")
    texts = {
        "a.jsonl": '{"id": "a", "path": "7", "fps": 4, "label": 0}\n',
        "b.jsonl": '{"id": "a", "path": "7", "label": 0, "attributes": {"fps": "4"}}\n',
        "c.csv": "path,label,fps\n7,walk,4\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        rows = read_manifest(tmp_path / name)
        (clip,) = ManifestClipDecoder(rows).clips(rows.rows[0], lambda times: [np.flatnonzero(times >= 2.5)])
        assert levels(clip.numpy()) == [level(11), level(12)]
        (video,) = find_videos([tmp_path / name])
        assert [(one.start, one.end) for one in windows(video.source, Preprocessing(2, 16), window_seconds=2.0)] == [
            (0.0, 2.0),
            (2.0, 3.0),
        ]
    assert any("'fps' is used only for folders of frames" in note for note in read_manifest(tmp_path / "c.csv").notes)
    (tmp_path / "d.csv").write_text("path,label,fps\n7,walk,unknown\n")
    rows = read_manifest(tmp_path / "d.csv")
    with pytest.raises(VideoError, match="nan frames a second"):
        ManifestClipDecoder(rows).clips(rows.rows[0], lambda times: [np.arange(2)])


def test_lists_of_frame_folders(tmp_path: Path) -> None:
    for number in ("7", "8"):
        frames(tmp_path / "v" / number)
    (tmp_path / "train.txt").write_text("v/7 12 1\nv/8 14 0\n")
    manifest = read_manifest(tmp_path / "train.txt")
    assert [(row.path, row.label) for row in manifest.rows] == [("v/7", 1), ("v/8", 0)]
    told = "1 folders have another number of frames than in the list, such as v/8 (12, not 14)"
    assert manifest.notes == (told,)


def test_folders_of_frames_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in ("7", "8"):
        frames(tmp_path / "data" / "walk" / number, 3)
    frames(tmp_path / "data" / "run" / "9", 3)
    (tmp_path / "data" / "run" / "9" / "Thumbs.db").touch()
    manifest = read_manifest(tmp_path / "data")
    assert [(row.path, manifest.classes[row.label or 0]) for row in manifest.rows] == [
        ("run/9", "run"),
        ("walk/7", "walk"),
        ("walk/8", "walk"),
    ]
    assert manifest.notes == ("1 files skipped, their endings are not those of videos: .db (1)",)
    found = [video.path for video in find_videos([tmp_path / "data"], recursive=True)]
    assert [os.path.relpath(path, tmp_path / "data") for path in found] == ["run/9", "walk/7", "walk/8"]
    assert "1 files skipped" in caplog.text
    assert len(find_videos([tmp_path / "data" / "walk"])) == 2
    assert [video.path for video in find_videos([tmp_path / "data" / "walk" / "7"])] == [f"{tmp_path}/data/walk/7"]
    with pytest.raises(VideoError, match="add --recursive"):
        find_videos([tmp_path / "data"])


def test_prepare_finds_the_frames_of_something_v1(tmp_path: Path) -> None:
    videos = tmp_path / "20bn-something-something-v1"
    frames(videos / "59729")
    frames(videos / "26694")
    done = prepare("something_v1", FILES / "something_v1", tmp_path / "out", videos=videos, check_videos=True)
    present = sum(split.present for split in done.splits.values())
    assert (present, sum(split.unreadable for split in done.splits.values())) == (2, 0)
    for split in done.splits.values():
        for row in read_manifest(tmp_path / "out" / split.manifest).rows if split.manifest else ():
            assert (row.fps, read_video_info(row.path, fps=row.frame_rate).duration) == (12.0, 1.0)
    prepare("something_v1", FILES / "something_v1", tmp_path / "other", videos=videos, frame_rate=6)
    rows = [json for path in (tmp_path / "other").glob("*.jsonl") for json in path.read_text().splitlines()]
    assert all('"fps":6.0' in row for row in rows)
    shutil.rmtree(videos)
    frames(videos / "59729", 2, "{}.jpg")
    frames(videos / "59729", 2, "b{}.jpg")
    done = prepare("something_v1", FILES / "something_v1", tmp_path / "out", videos=videos)
    assert any("'59729' holds 2 series" in warning for warning in done.warnings)


def test_prepare_asks_for_a_rate_that_is_not_published(tmp_path: Path) -> None:
    frames(tmp_path / "videos" / "ZirLnqB0PRf_000001_000011")
    source = FILES / "kinetics400" / "val_space_list.csv"
    with pytest.raises(ManifestError, match="a folder of frames of unknown frame rate; expected: --frame-rate"):
        prepare("kinetics400", source, tmp_path / "out", videos=tmp_path / "videos")
    done = prepare("kinetics400", source, tmp_path / "out", videos=tmp_path / "videos", frame_rate=25)
    assert done.splits["val"].present == 1


def test_a_span_of_a_folder(tmp_path: Path) -> None:
    folder = frames(tmp_path / "7")
    (clip,) = Preprocessing(3, 24, sampler="linspace").read(Span(folder, 1.0, 2.0, fps=4))
    assert sorted(set(clip[0, :, 12, 12].tolist())) == [level(number) for number in (5, 6, 8)]
