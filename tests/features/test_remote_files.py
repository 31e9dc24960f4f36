"""Videos at addresses and behind globs: the vectors of the plain files, by the same command."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest
import use_world

from internvideo.errors import VideoError
from internvideo.features.embedding import EmbeddingSettings, embed
from internvideo.features.remote_files import url_of
from internvideo.features.video_files import VideoFile, find_videos


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in sorted(use_world.clips().glob("*.mp4")):
        memory.pipe_file(f"/lake/part/{path.name}", path.read_bytes())
    memory.pipe_file("/lake/notes.txt", b"no video")
    return "memory://lake"


def test_vectors_of_addresses_are_those_of_files(tmp_path: Path, bucket: str) -> None:
    model = use_world.language()
    embed(find_videos([use_world.clips()]), model, tmp_path / "a.npy", EmbeddingSettings())
    report = embed(find_videos([Path(bucket)]), model, tmp_path / "b.npy", EmbeddingSettings())
    assert (report.read, report.unreadable) == (4, [])
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    assert embed(find_videos([bucket]), model, tmp_path / "b.npy", EmbeddingSettings()).resumed == 4
    fsspec.filesystem("memory").pipe_file("/lake/part/0.mp4", b"changed")
    again = embed(find_videos([bucket]), model, tmp_path / "b.npy", EmbeddingSettings())
    assert again.resumed == 3
    assert [lost.path for lost in again.unreadable] == ["memory://lake/part/0.mp4"]
    assert "/tmp" not in again.unreadable[0].reason


def test_what_is_meant(tmp_path: Path, bucket: str) -> None:
    assert [video.path for video in find_videos([f"{bucket}/part/[01].mp4"])] == [
        "memory://lake/part/0.mp4",
        "memory://lake/part/1.mp4",
    ]
    folder = use_world.clips()
    assert find_videos([folder / "[23].mp4"]) == [VideoFile(str(folder / f"{number}.mp4")) for number in (2, 3)]
    assert url_of(Path("s3://a/b.mp4")) == "s3://a/b.mp4"
    assert url_of(tmp_path) is None
    assert url_of("C:\\videos") is None
    for absent in (f"{bucket}/nothing", f"{bucket}/*.mp4", "nothere://a/b.mp4", str(tmp_path / "*.mp4")):
        with pytest.raises(VideoError) as told:
            find_videos([absent])
        assert "\n" not in str(told.value)
