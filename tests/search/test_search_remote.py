"""A collection of videos on other machines (fsspec): indexed, searched, previewed, cut; nothing outside its roots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import use_world

pytest.importorskip("fsspec")
pytest.importorskip("fastapi")
import fsspec
from running_server import Running

from internvideo.search.collection import Collection
from internvideo.search.export import save_clips
from internvideo.search.query import Example
from internvideo.video.reader import read_video_info


@pytest.fixture
def bucket() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    for number in range(2):
        files.pipe_file(f"/bucket/{number}.mp4", (use_world.clips() / f"{number}.mp4").read_bytes())
    files.pipe_file("/bucket2/secret.mp4", (use_world.clips() / "2.mp4").read_bytes())
    yield files
    files.store.clear()


def test_videos_of_a_bucket(bucket: Any, tmp_path: Path) -> None:
    with Collection.create(tmp_path / "c", use_world.language()) as collection:
        assert collection.add(["memory://bucket"]).read == 2
        assert collection.add(["memory://bucket"]).resumed == 2
        assert [video.path for video in collection.videos] == ["memory://bucket/0.mp4", "memory://bucket/1.mp4"]
        assert collection.roots == ("memory://bucket",)
        (best,) = collection.search("", like=[Example("memory://bucket/1.mp4", 1.0)], top=1).moments
        assert (best.path, round(best.score, 4)) == ("memory://bucket/1.mp4", 1.0)
        (clip,) = save_clips([best], tmp_path / "out")
        assert read_video_info(clip).frames > 0
        server = Running(collection)
        try:
            with httpx.Client(base_url=f"{server.address}/api/videos/{best.video}", timeout=60) as client:
                assert client.get("/preview", params={"end": 1}).headers["content-type"] == "video/webm"
                assert client.get("/clip", params={"start": 0, "end": 1}).status_code == 200
                assert client.get("/file").status_code == 404, "the page takes the preview"
                collection.store.records.set_fact("roots", ["memory://bucket2", "memory://buck"])
                assert client.get("/preview").status_code == 404, "not in its roots"
        finally:
            server.stop()
        bucket.rm("/bucket/0.mp4")
        assert collection.add(["memory://bucket"]).removed == ["memory://bucket/0.mp4"]
        assert collection.add(["memory://bucket2/secret.mp4"]).removed == [], "a file says nothing of its neighbours"
        assert len(collection.videos) == 2
