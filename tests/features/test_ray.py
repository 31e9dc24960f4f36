"""The engine on Ray: the table and the folder of the plain commands, also where a node is lost half way."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import use_world

from internvideo.errors import RunError, VideoError
from internvideo.features import ray_engine
from internvideo.features.embedding import EmbeddingSettings, embed
from internvideo.features.extract import ExtractSettings, extract
from internvideo.features.feature_folder import find_items
from internvideo.features.video_files import find_videos
from internvideo.features.window_sampling import WindowRule
from internvideo.inference.video_model import VideoModel

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402  # only where Ray is installed

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STORE = 100 * 2**20


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return use_world.language()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Eight clips of 3 s and a file that is broken."""
    folder = tmp_path / "clips"
    shutil.copytree(use_world.clips(), folder)
    for number, path in enumerate(sorted(folder.glob("*.mp4"))):
        shutil.copy(path, folder / f"copy_{number}.mp4")
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def one_node() -> Iterator[None]:
    ray.init(num_cpus=2, object_store_memory=STORE, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def rows(path: Path) -> tuple[list[tuple[Any, ...]], np.ndarray]:
    found = pq.read_table(path)
    told = [(row["path"], row["start"], row["end"]) for row in found.to_pylist()]
    return told, np.stack(found["embedding"].to_numpy())


def test_results_are_those_of_the_plain_commands(
    tmp_path: Path, clips: Path, model: VideoModel, one_node: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = find_videos([clips])
    settings = {"window_seconds": 1.0, "stride_seconds": 0.5, "batch_size": 3}
    embed(videos, model, tmp_path / "plain.parquet", EmbeddingSettings(**settings))
    report = embed(videos, model, tmp_path / "ray.parquet", EmbeddingSettings(**settings, ray="local"))
    (told, values), (expected, plain) = rows(tmp_path / "ray.parquet"), rows(tmp_path / "plain.parquet")
    assert told == expected
    np.testing.assert_allclose(values, plain, atol=2e-6)
    assert (report.requested, report.read, report.vectors) == (9, 8, 40)
    assert [Path(lost.path).name for lost in report.unreadable] == ["broken.mp4"]
    listed = (tmp_path / "ray.skipped.jsonl").read_text()
    assert listed == (tmp_path / "plain.skipped.jsonl").read_text()
    assert report.video_seconds == pytest.approx(24)

    items, classes = find_items([clips])
    rule = ExtractSettings(WindowRule(4, 2))
    extract(items, model, tmp_path / "plain", rule, classes=classes)
    extract(items, model, tmp_path / "ray", ExtractSettings(WindowRule(4, 2), ray="local"), classes=classes)
    names = sorted(path.name for path in (tmp_path / "plain").glob("*.npy"))
    assert sorted(path.name for path in (tmp_path / "ray").glob("*.npy")) == names
    assert len(names) == 8
    for name in names:
        made, expected_values = (np.load(tmp_path / kind / name) for kind in ("ray", "plain"))
        np.testing.assert_allclose(made, expected_values, atol=2e-5)
    index, expected_index = (json.loads((tmp_path / kind / "index.json").read_text()) for kind in ("ray", "plain"))
    assert index["database"] == expected_index["database"]

    def nothing_to_do(*_: object) -> None:
        raise AssertionError("read again")

    (clips / "broken.mp4").unlink()
    monkeypatch.setattr(ray_engine, "_run", nothing_to_do)
    again = embed(find_videos([clips]), model, tmp_path / "ray.parquet", EmbeddingSettings(**settings, ray="local"))
    assert (again.resumed, again.vectors) == (8, 40)


def test_a_lost_node_changes_nothing(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    for copy in range(40):
        shutil.copy(clips / f"{copy % 4}.mp4", clips / f"more_{copy}.mp4")
    videos = find_videos([clips])
    settings = {"window_seconds": 1.0, "batch_size": 4}
    embed(videos, model, tmp_path / "plain.parquet", EmbeddingSettings(**settings))
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False},
    )
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        killed, parts = list[int](), tmp_path / "ray.parquet.parts"

        def kill_half_way() -> None:
            while len(list(parts.glob("*"))) < 8:
                time.sleep(0.1)
            cluster.remove_node(nodes[1], allow_graceful=False)
            killed.append(len(list(parts.glob("*"))))

        watch = Thread(target=kill_half_way, daemon=True)
        watch.start()
        report = embed(videos, model, tmp_path / "ray.parquet", EmbeddingSettings(**settings, ray="auto"))
        watch.join(60)
        assert killed
        assert killed[0] < len(videos)  # it was lost while others were still to be read
    finally:
        ray.shutdown()
        cluster.shutdown()
    (told, values), (expected, plain) = rows(tmp_path / "ray.parquet"), rows(tmp_path / "plain.parquet")
    assert told == expected
    np.testing.assert_allclose(values, plain, atol=2e-6)
    assert (report.read, len(report.unreadable)) == (48, 1)


def test_no_cluster_and_no_readable_video_are_one_line(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    videos = find_videos([clips / "0.mp4"])
    with pytest.raises(RunError, match="no Ray cluster answers") as told:
        embed(videos, model, tmp_path / "a.parquet", EmbeddingSettings(ray="127.0.0.1:1"))
    assert "\n" not in str(told.value)
    with pytest.raises(VideoError):
        embed(find_videos([clips / "broken.mp4"]), model, tmp_path / "b.parquet", EmbeddingSettings(ray="local"))
