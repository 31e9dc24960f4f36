"""Names of outputs: ids with /, one name of two kinds, names that are no UTF-8 or too long. Everything is kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from internvideo.data.manifest import Sample, Segment, write_manifest
from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import RecipeError, VideoError, shown
from internvideo.features.embedding import EmbeddingSettings, embed
from internvideo.features.extract import ExtractSettings, extract, plan
from internvideo.features.feature_folder import find_items
from internvideo.features.video_files import VideoFile, find_videos, unique_file_names
from internvideo.features.window_sampling import WindowRule
from internvideo.inference.video_model import VideoModel
from internvideo.model_table import create_model
from internvideo.tasks.temporal_localization.data import read_feature_set
from internvideo.video.writer import write_video

ODD = os.fsdecode(b"caf\xe9.mp4")  # Latin-1, as old archives have it
RULE = WindowRule(4, 2)


@pytest.fixture(scope="module")
def model() -> VideoModel:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "frames": 4, "width": 8, "depth": 1, "heads": 2, "num_classes": 3}
    module = create_model("videomae-s-classifier", sizes)
    return VideoModel("videomae-s-classifier", module, preprocessing=Preprocessing(4, 16, short_side=16))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 255, (8, 16, 24, 3), dtype=np.uint8), 10)
    return path


def placed(clip: Path, folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder / name)
    return folder


def extracted(inputs: list[Path], output: Path, model: VideoModel) -> list[str]:
    """The ids in the index, each with its features."""
    items, classes = find_items(inputs, recursive=True)
    extract(items, model, output, ExtractSettings(RULE), classes=classes, progress=False)
    found = json.loads((output / "index.json").read_text(encoding="utf-8"))["database"]
    for name in found:
        assert np.load(output / f"{name}.npy").shape == (3, 8)
    return list(found)


def test_ids_with_a_slash_are_folders_and_detectors_find_them(tmp_path: Path, clip: Path, model: VideoModel) -> None:
    placed(clip, tmp_path, "v/run/a.mp4", "v/walk/a.mp4")
    part = (Segment(start=0, end=0.5, label=0),)
    rows = [Sample(id=f"{name}/a.mp4", path=f"v/{name}/a.mp4", segments=part) for name in ("run", "walk")]
    write_manifest(tmp_path / "m.jsonl", rows, ["one"])
    assert extracted([tmp_path / "m.jsonl"], tmp_path / "f", model) == ["run/a.mp4", "walk/a.mp4"]
    found = read_feature_set(tmp_path / "f")
    assert [video.id for video in found.videos] == ["run/a.mp4", "walk/a.mp4"]
    assert found.missing == ()
    items, _ = find_items([tmp_path / "m.jsonl"])
    assert all(line.startswith("done") for line in [*plan(items, tmp_path / "f", RULE)][:-1])
    assert not [path for path in (tmp_path / "f").rglob("*") if path.suffix in (".claim", ".rows")]


def test_paths_from_the_root_are_named_after_their_files(tmp_path: Path, clip: Path, model: VideoModel) -> None:
    placed(clip, tmp_path, "v/run/a.mp4", "v/run/b.mp4")
    paths = [tmp_path / "v/run/a.mp4", tmp_path / "v/run/b.mp4"]
    (tmp_path / "list.txt").write_text("".join(f"{path} 0\n" for path in paths))
    assert extracted([tmp_path / "list.txt"], tmp_path / "f", model) == ["a", "b"]


@pytest.mark.parametrize("name", ["../a", "/a", "a//b", ".a", "a/../b", "index", "protocol", "a\\b", "é" * 101])
def test_an_id_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    write_manifest(tmp_path / "m.jsonl", [Sample(id=name, path="a.mp4")], [])
    with pytest.raises(RecipeError, match="id"):
        find_items([tmp_path / "m.jsonl"])


def test_one_name_of_two_kinds(tmp_path: Path, clip: Path, model: VideoModel) -> None:
    placed(clip, tmp_path / "v", "IMG_0001.MOV", "IMG_0001.MP4", "b.mp4")
    assert extracted([tmp_path / "v"], tmp_path / "f", model) == ["IMG_0001.MOV", "IMG_0001.MP4", "b"]


def test_a_file_named_in_two_ways_is_one(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed(clip, tmp_path, "v/a.mp4")
    monkeypatch.chdir(tmp_path)
    items, _ = find_items(["v", "./v/a.mp4", tmp_path / "v"])
    assert [item.id for item in items] == ["a"]


def named(*paths: str) -> list[str]:
    return unique_file_names([VideoFile(path) for path in paths])


def test_equal_names_get_folders_endings_and_times() -> None:
    assert named("/v/a/x.mp4", "/v/b/x.mp4", "/v/b/y.mp4") == ["a_x", "b_x", "b_y"]
    assert named("/v/a/x.mp4", "/v/a/x.avi", "/v/b/x.mp4") == ["x.mp4", "x.avi", "x"]
    assert unique_file_names([VideoFile("x.mp4", 0.0, 2.5), VideoFile("x.mp4", 2.5, 4.0)]) == ["x_0-2.5", "x_2.5-4"]
    assert unique_file_names([VideoFile("/v/x.mp4"), VideoFile("/w/y.mp4")], ["", "x"]) == ["v_x", "x"]
    with pytest.raises(RecipeError, match="two are called 'x'"):
        unique_file_names([VideoFile("a.mp4"), VideoFile("b.mp4")], ["x", "x"])


def test_names_of_the_folder_itself_and_odd_ones_are_changed() -> None:
    assert unique_file_names([VideoFile("/v/index.mp4"), VideoFile("/v/a\\b.mp4")], reserved={"index"}) == [
        "index_",
        "a_b",
    ]
    long = [f"/v/{'語' * 83}{end}.mp4" for end in ("a", "b")]
    names = named(*long)
    assert len(set(names)) == 2
    assert all(len(os.fsencode(name)) <= 200 and name.startswith("語" * 50) for name in names)


def test_twenty_thousand_names_are_counted_not_compared() -> None:
    items = [VideoFile(f"/data/class{number // 100:05d}/{number % 100}.mp4") for number in range(20_000)]
    calls = 0

    class Counted(str):
        def __eq__(self, other: object) -> bool:
            nonlocal calls
            calls += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = unique_file_names(items, [Counted(f"id{number}") for number in range(20_000)])
    assert len(set(names)) == 20_000
    assert calls < 400_000  # comparing each with each would be 400 million


def test_a_name_that_is_not_utf8_is_kept_and_told(tmp_path: Path, clip: Path, model: VideoModel) -> None:
    placed(clip, tmp_path / "v", "ok.mp4", ODD)
    told = shown(ODD)
    assert told == "caf\\udce9.mp4"
    assert extracted([tmp_path / "v"], tmp_path / "f", model) == [ODD[:-4], "ok"]
    assert (tmp_path / "f" / f"{ODD[:-4]}.npy").is_file()
    assert len(read_feature_set(tmp_path / "f").videos) == 2
    videos = [*find_videos([tmp_path / "v"]), VideoFile(str(tmp_path / "v" / f"absent {ODD}"))]
    for name in ("e.npy", "e.parquet"):
        assert embed(videos, model, tmp_path / name, EmbeddingSettings(), progress=False).read == 2
    rows = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(os.path.basename(row["path"]) for row in rows) == [ODD, "ok.mp4"]
    assert sorted(Path(path).name for path in pq.read_table(tmp_path / "e.parquet")["path"].to_pylist()) == [
        told,
        "ok.mp4",
    ]
    (lost,) = (json.loads(line) for line in (tmp_path / "e.skipped.jsonl").read_text(encoding="utf-8").splitlines())
    assert lost["path"].endswith(f"absent {ODD}")
    with pytest.raises(VideoError) as caught:
        VideoFile(f"absent {ODD}").identity()
    assert str(caught.value).encode().startswith(b"absent caf\\udce9.mp4")


def test_the_command_line_shows_such_names(tmp_path: Path, clip: Path) -> None:
    placed(clip, tmp_path / "v", "ok.mp4", ODD)
    output = ["-o", str(tmp_path / "o.npy"), "-e", "x"]
    done = subprocess.run(
        [sys.executable, "-m", "internvideo", "embed", str(tmp_path / "v"), *output, "--dry-run"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=True,
    )
    assert b"v/caf\\udce9.mp4" in done.stdout
    assert b"v/ok.mp4" in done.stdout
