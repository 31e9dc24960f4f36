"""Videos under the names that downloaders give them, and files of a folder that are no videos."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from internvideo.data.manifest import read_manifest
from internvideo.datasets.prepare import VideoFolder
from internvideo.features.video_files import find_videos


@pytest.mark.parametrize(
    ("file", "asked"),
    [
        ("A title [dQw4w9WgXcQ].mkv", "dQw4w9WgXcQ.mp4"),
        ("A [title] of two [a-b_c].webm", "a-b_c"),
        ("dQw4w9WgXcQ.mp4.mkv", "dQw4w9WgXcQ.mp4"),
        ("dQw4w9WgXcQ.mp4.mkv", "dQw4w9WgXcQ"),
        ("dQw4w9WgXcQ.f137.mp4", "dQw4w9WgXcQ.mp4"),
        ("A title [dQw4w9WgXcQ].mp4.webm", "dQw4w9WgXcQ"),
        ("dQw4w9WgXcQ_000010_000020.mp4.mkv", "dQw4w9WgXcQ_000010_000020.mp4"),
    ],
)
def test_names_of_downloads_are_found(tmp_path: Path, file: str, asked: str) -> None:
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / file
    path.touch()
    found = VideoFolder(tmp_path).find([asked])
    assert found is not None
    assert found.path == str(path)


def test_the_plain_name_comes_first_and_other_brackets_are_no_names(tmp_path: Path) -> None:
    for name in ("Copy [abc].mkv", "abc.mp4", "[other] title.mp4"):
        (tmp_path / name).touch()
    folder = VideoFolder(tmp_path)
    found = folder.find(["abc.webm"])
    assert found is not None
    assert Path(found.path).name == "abc.mp4"
    assert folder.find(["other"]) is None
    assert folder.find(["title"]) is None


def test_files_passed_over_are_told_once_with_their_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/one.mp4", "a/two.rmvb", "a/three.RMVB", "a/notes", "a/.hidden.xyz"):
        (tmp_path / name).touch()
    caplog.set_level(logging.WARNING, logger="internvideo")
    videos = find_videos([tmp_path], recursive=True)
    assert [Path(video.path).name for video in videos] == ["one.mp4"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 3 files skipped, their endings are not those of videos: .rmvb (2), none (1)"
    ]
    assert any("3 files skipped" in note for note in read_manifest(tmp_path).notes)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.mp4").touch()
    caplog.clear()
    find_videos([tmp_path / "b"])
    assert not caplog.records
