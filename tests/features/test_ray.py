"""The engine on Ray: the table and the folder of the plain commands, also where a node is lost half way."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import in_process
import numpy as np
import pyarrow.parquet as pq
import pytest
import use_world
from test_localize_video import trained as trained  # a fixture

from internvideo.apps.classify import Scorer, encode_videos
from internvideo.errors import RunError, VideoError
from internvideo.features import ray_engine
from internvideo.features.embedding import EmbeddingSettings, embed
from internvideo.features.engine import VideoEnd
from internvideo.features.extract import ExtractSettings, extract
from internvideo.features.feature_folder import find_items
from internvideo.features.read_report import ReadReport
from internvideo.features.video_files import VideoFile, find_videos
from internvideo.features.window_sampling import WindowRule
from internvideo.inference.video_model import VideoModel
from internvideo.search.collection import Collection
from internvideo.search.indexing import IndexSettings

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402  # only where Ray is installed

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STORE = 100 * 2**20
Result = tuple[ReadReport, list[tuple[Any, ...]], np.ndarray]
"""Report, (path, start, end) of each vector, and the vectors."""


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


def embedded(videos: list[VideoFile], model: VideoModel, output: Path, address: str | None) -> Result:
    settings = EmbeddingSettings(window_seconds=1.0, batch_size=4, ray=address)
    report = embed(videos, model, output.with_suffix(".parquet"), settings)
    told, values = rows(output.with_suffix(".parquet"))
    return report, told, values


def classified(videos: list[VideoFile], model: VideoModel, output: Path, address: str | None) -> Result:
    settings = EmbeddingSettings(window_seconds=1.0, batch_size=4, ray=address)
    scorer = Scorer(model, ["a dog", "a cat", "a bird"])
    writer = encode_videos(videos, model, scorer.make_encode, output.with_suffix(".jsonl"), settings, scorer.names)
    done = list(writer.read_finished())
    told = [(part.path, *span) for part in done for span in part.spans.tolist()]
    return writer.report, told, np.concatenate([part.values for part in done])


def indexed(videos: list[VideoFile], model: VideoModel, output: Path, address: str | None) -> Result:
    with Collection.create(output, model, scales=(1.0, 2.0)) as collection:
        report = collection.add([video.path for video in videos], IndexSettings(batch_size=4, ray=address))
        assert collection.store.records.fact("time_order")["windows"] >= 8
        state = collection.store.snapshot()
        vectors = np.concatenate([np.asarray(segment) for segment in state.segments])
        told = [
            (state.videos[video].path, *window[:3].tolist())
            for video, window in zip(state.video_index.tolist(), state.windows, strict=True)
        ]
    order = sorted(range(len(told)), key=told.__getitem__)
    return report, [told[place] for place in order], vectors[order]


COMMANDS = {"embed": embedded, "classify": classified, "index": indexed}


@pytest.mark.parametrize("command", ["classify", "index"])
def test_other_commands_give_what_they_give_here(
    tmp_path: Path, clips: Path, model: VideoModel, one_node: None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = find_videos([clips])
    plain, expected, values = COMMANDS[command](videos, model, tmp_path / "plain", None)
    report, told, made = COMMANDS[command](videos, model, tmp_path / "ray", "local")
    assert told == expected
    np.testing.assert_allclose(made, values, atol=2e-6)
    assert (report.read, report.unreadable) == (plain.read, plain.unreadable)
    assert (report.read, len(report.unreadable)) == (8, 1)
    (clips / "broken.mp4").unlink()
    monkeypatch.setattr(ray_engine, "_run", None)  # nothing is read again
    again = COMMANDS[command](find_videos([clips]), model, tmp_path / "ray", "local")
    assert again[0].resumed == 8


def test_localize_takes_features_that_were_extracted_there(
    trained: Path, tmp_path: Path, one_node: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("localize", trained / "v1.mp4", trained / "v2.mp4", "-e", trained / "model", "-d",
             trained / "run" / "model.safetensors", "--score-threshold", 0, "--device", "cpu", "--json")  # fmt: skip
    plain, found = (in_process.command(*words, *more) for more in ((), ("--ray", "local")))
    assert (plain.code, found.code) == (0, 0), (plain.err, found.err)
    for line, expected in zip(found.out.splitlines(), plain.out.splitlines(), strict=True):
        made, wanted = json.loads(line), json.loads(expected)
        assert made["path"] == wanted["path"]
        scores = [[action["score"] for action in row["actions"]] for row in (made, wanted)]
        np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_lost_node_changes_nothing(tmp_path: Path, clips: Path, model: VideoModel, command: str) -> None:
    for copy in range(40):
        shutil.copy(clips / f"{copy % 4}.mp4", clips / f"more_{copy}.mp4")
    videos = find_videos([clips])
    _, expected, plain = COMMANDS[command](videos, model, tmp_path / "plain", None)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False},
    )
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        finished, killed = list[int](), list[int]()
        finish = ray_engine._ReorderBuffer._finish

        def count(self: ray_engine._ReorderBuffer, index: int, end: VideoEnd) -> None:
            finish(self, index, end)
            finished.append(index)

        def kill_half_way() -> None:
            while len(finished) < 8:
                time.sleep(0.1)
            cluster.remove_node(nodes[1], allow_graceful=False)
            killed.append(len(finished))

        watch = Thread(target=kill_half_way, daemon=True)
        watch.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray_engine._ReorderBuffer, "_finish", count)
            report, told, values = COMMANDS[command](videos, model, tmp_path / "ray", "auto")
        watch.join(60)
        assert killed
        assert killed[0] < len(videos)  # it was lost while others were still to be read
        assert len(finished) == len(set(finished)) == len(videos)
    finally:
        ray.shutdown()
        cluster.shutdown()
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
