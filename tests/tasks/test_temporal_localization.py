"""Temporal localization from a folder of features to figures: reading, cutting, training, testing, drawing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import as_process

import window_baseline
from internvideo.apps.dry_run import describe
from internvideo.data.loader import LoaderSettings
from internvideo.data.manifest import Sample, Segment, write_manifest
from internvideo.errors import ManifestError, RecipeError, RunError, WeightsError
from internvideo.evaluation import evaluate_task
from internvideo.metrics.bootstrap import interval
from internvideo.metrics.temporal_detection import average_precision, detections, map_statistic
from internvideo.pipeline import run_recipe
from internvideo.recipe import Recipe, build_recipe
from internvideo.tasks import CATALOG
from internvideo.tasks.table import Predictions
from internvideo.tasks.temporal_localization import predict as localization
from internvideo.tasks.temporal_localization.data import (
    FeatureSettings,
    SequenceLoader,
    actions_in_steps,
    random_crop,
    read_feature_set,
    read_sequence,
)
from internvideo.tasks.temporal_localization.evaluate import load_detector
from internvideo.tasks.temporal_localization.nms import SuppressionSettings

pytestmark = pytest.mark.usefixtures("drawn_once")

CLASSES = ("jump", "run")
STEP = 0.5  # seconds between features: stride 4 at 8 fps


def world(folder: Path, videos: int = 12) -> Path:
    """Features that say which of two actions is going on; the index of `internvideo extract`."""
    rng = np.random.default_rng(0)
    database: dict[str, Any] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(videos):
        length = int(rng.integers(24, 32))
        values = 0.1 * rng.standard_normal((length, 4))
        found, at = [], int(rng.integers(1, 4))
        while at + 6 < length:
            size, label = int(rng.integers(3, 6)), int(rng.integers(2))
            values[at : at + size, label] += 1
            start, end = ((at - 0.5 + 0.5) * STEP, (at + size - 0.5 + 0.5) * STEP)
            found.append({"label": CLASSES[label], "label_id": label, "segment": [start, end]})
            at += size + int(rng.integers(2, 5))
        np.save(folder / f"v{number}.npy", values.astype(np.float32))
        entry = {"fps": 8.0, "frame": 4 * length, "duration": length * STEP, "annotations": found}
        database[f"v{number}"] = {"subset": "test" if number % 3 == 2 else "train", **entry}
    protocol = {"model": "m", "weights_sha256": "1", "layer": "pooled", "window": 4, "stride": 4, "fps": None}
    text = {"protocol": protocol, "classes": list(CLASSES), "database": database}
    (folder / "index.json").write_text(json.dumps(text))
    return folder


def recipe(folder: Path, **changes: Any) -> Recipe:
    model = {"input_width": 4, "width": 16, "heads": 2, "windows": [5], "max_length": 32, "branch_layers": 2,
             "ranges": [[0, 4], [4, 8], [8, 10000]], "stem_layers": 1, "embedding_layers": 1}  # fmt: skip
    tree = {
        "stage": "temporal_localization",
        "model": {"name": "actionformer-thumos", "overrides": model},
        "settings": {"initial_norm": 20},
        "data": {"train": str(folder), "split": "train", "loader": {"batch_size": 4}},
        "optimizer": {"base_lr": 3e-3},
        "schedule": {"steps": 60, "warmup": 5},
        "loop": {"max_grad_norm": 1.0, "log_every": 20},
    }
    return build_recipe({**tree, **changes})


# --- reading ---------------------------------------------------------------------------------------------------------


def test_an_index_is_read_with_its_grid_and_actions(tmp_path: Path) -> None:
    features = read_feature_set(world(tmp_path))
    assert (len(features), features.classes, features.width) == (12, CLASSES, 4)
    video = features.videos[0]
    assert (video.fps, video.stride, video.window) == (8.0, 4.0, 4.0)
    made = read_sequence(video, FeatureSettings())
    np.testing.assert_allclose(
        made.grid.steps(video.spans), (video.spans * video.fps - 0.5 * video.window) / video.stride
    )
    assert len(features.subset("TEST")) == 4
    with pytest.raises(ManifestError, match="train"):
        features.subset("validation")


def test_features_without_an_action_and_manifests_are_refused_for_training(tmp_path: Path) -> None:
    index = world(tmp_path) / "index.json"
    content = json.loads(index.read_text())
    for entry in content["database"].values():
        entry["annotations"] = []
    index.write_text(json.dumps(content))
    with pytest.raises(ManifestError, match=r"none of its 8 training videos has an action.*internvideo extract"):
        run_recipe(recipe(tmp_path), tmp_path / "run")
    (tmp_path / "my.jsonl").write_text('{"id": "a", "path": "a.mp4"}\n{"id": "b", "path": "b.mp4"}\n')
    with pytest.raises(ManifestError, match=r"no index of features.*internvideo extract"):
        read_feature_set(tmp_path / "my.jsonl")


def test_foreign_annotations_need_a_grid(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 3), np.float32))
    part = {"label": "b", "label_id": 2, "segment": [0.0, 1.0]}
    text = {
        "database": {"a": {"subset": "Validation", "duration": 3.0, "annotations": [part]}, "gone": {"duration": 1}}
    }
    (tmp_path / "gt.json").write_text(json.dumps(text))
    with pytest.raises(ManifestError, match=r"data\.features\.fps"):
        read_feature_set(tmp_path / "gt.json")
    found = read_feature_set(tmp_path / "gt.json", FeatureSettings(fps=30, stride=4, window=16))
    assert (found.classes, found.missing) == (("class 0", "class 1", "b"), ("gone",))
    assert found.videos[0].labels.tolist() == [2]


def test_a_manifest_gives_other_splits_and_actions(tmp_path: Path) -> None:
    row = Sample(id="v3", path="x.mp4", split="mine", segments=(Segment(start=1, end=2, label=0),))
    write_manifest(tmp_path / "m.jsonl", [row], ["sit"])
    found = read_feature_set(world(tmp_path / "f"), FeatureSettings(annotations=tmp_path / "m.jsonl"))
    assert [(video.id, video.subset) for video in found.videos] == [("v3", "mine")]
    assert found.classes == ("sit",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "no index"),
        ("[]", "no index"),
        ('{"database": {"a": {"duration": -1}}}', "duration"),
        ('{"database": {"a": {"duration": 1, "annotations": [{"label": "x"}]}}}', "segment"),
    ],
)
def test_a_wrong_index_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ManifestError, match=told):
        read_feature_set(tmp_path)


# --- cutting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_long_sequence_is_cut_to_a_part_with_an_action(seed: int) -> None:
    values = torch.arange(100.0)[None]
    spans, labels = torch.tensor([[10.0, 20.0], [70.0, 71.0]]), torch.tensor([0, 1])
    part, inside, kept = random_crop(values, spans, labels, 16, FeatureSettings(), np.random.RandomState(seed))
    start = int(part[0, 0])
    assert part[0].tolist() == list(range(start, start + 16))
    assert len(kept) >= 1
    for span, label in zip(inside, kept, strict=True):
        whole = spans[label]
        low, high = max(start, float(whole[0])), min(start + 16, float(whole[1]))
        assert (high - low) / float(whole[1] - whole[0]) >= 0.5
        assert span.tolist() == [low - start, high - start]


def test_a_short_sequence_loses_a_tenth_at_most() -> None:
    values, none = torch.zeros(1, 50), (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    sizes = {
        random_crop(values, *none, 64, FeatureSettings(), np.random.RandomState(s))[0].shape[1] for s in range(200)
    }
    assert (min(sizes), max(sizes)) == (45, 50)
    whole = random_crop(values, *none, 64, FeatureSettings(shortest=None), np.random.RandomState(0))
    assert whole[0].shape[1] == 50


def test_actions_behind_the_features_are_dropped_and_cut(tmp_path: Path) -> None:
    video = read_feature_set(world(tmp_path)).videos[0]
    made = read_sequence(video, FeatureSettings())
    length = made.values.shape[1]
    late = np.asarray([[1.0, 1000.0], [999.0, 1000.0]])
    from dataclasses import replace

    moved = replace(video, spans=late, labels=np.asarray([1, 0]))
    spans, labels = actions_in_steps(moved, made, FeatureSettings())
    assert spans.tolist() == [[1.5, float(length)]]
    assert labels.tolist() == [1]
    assert actions_in_steps(moved, made, FeatureSettings(class_agnostic=True))[1].tolist() == [0]


def test_a_stretched_sequence_has_the_stretched_grid(tmp_path: Path) -> None:
    video = read_feature_set(world(tmp_path)).videos[0]
    made = read_sequence(video, FeatureSettings(resized=64))
    assert made.values.shape == (4, 64)
    assert made.grid.stride == pytest.approx(video.duration * video.fps / 64)
    assert made.grid.steps(np.asarray([video.duration / 2]))[0] == pytest.approx(31.5)
    released = read_sequence(video, FeatureSettings(resized=64, resized_window=16))
    assert released.grid.window == pytest.approx(16 * released.grid.stride)


@pytest.mark.parametrize("start", [0, 1])
def test_a_batch_depends_on_its_place_alone(tmp_path: Path, start: int) -> None:
    features, settings = read_feature_set(world(tmp_path)), LoaderSettings(batch_size=5, cache_megabytes=1)
    loader = SequenceLoader(features, FeatureSettings(), 32, settings)
    assert len(loader) == 2
    list(loader.epoch(0))
    whole = list(loader.epoch(3))
    again = list(SequenceLoader(features, FeatureSettings(), 32, settings).epoch(3, start))
    for ours, theirs in zip(whole[start:], again, strict=True):
        assert ours.ids == theirs.ids
        assert torch.equal(ours.features, theirs.features)
        assert all(torch.equal(a, b) for a, b in zip(ours.segments, theirs.segments, strict=True))
    assert whole[0].mask.sum(dim=1).tolist() == [int(row.any(dim=0).sum()) for row in whole[0].features]
    assert loader.data_time > 0


def test_processes_share_an_epoch(tmp_path: Path) -> None:
    features, settings = read_feature_set(world(tmp_path)), LoaderSettings(batch_size=3)
    names: list[str] = []
    for rank in range(2):
        with as_process(rank, 2):
            loader = SequenceLoader(features, FeatureSettings(), 32, settings)
        names += [name for batch in loader.epoch(0) for name in batch.ids]
    assert sorted(names) == sorted(video.id for video in features.videos)


# --- learning and testing --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("temporal_localization")
    run_recipe(recipe(world(folder / "features")), folder / "run", device="cpu")
    return folder


def test_a_detector_learns_to_find(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = learned / "run" / "model.safetensors", learned / "test"
    settings = {"device": "cpu"}
    result = evaluate_task("temporal_localization", weights, learned / "features", out, settings, split="test")
    assert result["figures"]["mean_mAP"] > 0.5
    low, high = result["intervals"]["mean_mAP"]
    assert low <= result["figures"]["mean_mAP"] <= high
    assert "mAP@0.5" in capsys.readouterr().out
    table = Predictions.load(out / "temporal_localization.npz")
    assert localization.score(table)["figures"] == result["figures"]
    told = json.loads((out / "detections.json").read_text())["results"]
    assert set(told) == {"v2", "v5", "v8", "v11"}
    assert {row["label"] for rows in told.values() for row in rows} <= set(CLASSES)
    assert (out / "timelines.html").read_text().count("<svg") == 4


def test_features_made_otherwise_are_refused(learned: Path, tmp_path: Path) -> None:
    other = world(tmp_path)
    index = json.loads((other / "index.json").read_text())
    index["protocol"]["weights_sha256"] = "2"
    (other / "index.json").write_text(json.dumps(index))
    with pytest.raises(RunError, match="weights_sha256"):
        evaluate_task("temporal_localization", learned / "run" / "model.safetensors", other, tmp_path / "o", {})


def test_a_class_agnostic_detector_gets_classes_from_scores(tmp_path: Path) -> None:
    folder = world(tmp_path / "f")
    data = {"train": str(folder), "features": {"class_agnostic": True}, "loader": {"batch_size": 4}}
    run_recipe(recipe(folder, data=data, schedule={"steps": 3}), tmp_path / "run", device="cpu")
    weights = tmp_path / "run" / "model.safetensors"
    assert load_detector(weights, CATALOG, device="cpu").model.config.num_classes == 1
    nameless = evaluate_task("temporal_localization", weights, folder, tmp_path / "a", {"device": "cpu"})
    assert nameless["protocol"]["classes"] == "none, proposals"
    assert "best unmatched action" in nameless["protocol"]["matching"]
    rows = {video.id: [0.9, 0.4] for video in read_feature_set(folder).videos}
    (tmp_path / "s.json").write_text(json.dumps({"results": rows}))
    settings = {"device": "cpu", "class_scores": tmp_path / "s.json"}
    named = evaluate_task("temporal_localization", weights, folder, tmp_path / "b", settings)
    assert named["protocol"]["classes"] == "scores of whole videos"
    (tmp_path / "s.json").write_text(json.dumps({"results": {"v0": [0.9, 0.4]}}))
    with pytest.raises(RecipeError, match="none for 11 videos"):
        evaluate_task("temporal_localization", weights, folder, tmp_path / "c", settings)


def test_columns_of_class_scores_are_found_by_name_where_the_file_names_them(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"results": {"v": [0.1, 0.2, 0.7]}, "class": ["c", "b", "a"]}))
    assert localization.read_class_scores(path, ("a", "c"))["v"].tolist() == [0.7, 0.1]
    with pytest.raises(ManifestError, match="first 'd'"):
        localization.read_class_scores(path, ("a", "d"))
    path.write_text(json.dumps({"results": {"v": [0.1, 0.2, 0.7]}}))
    assert localization.read_class_scores(path, ("a", "b", "c"))["v"].tolist() == [0.1, 0.2, 0.7]
    with pytest.raises(ManifestError, match="2 finite numbers"):
        localization.read_class_scores(path, ("a", "b"))


def test_a_wrong_width_is_told_and_a_dry_run_trains_nothing(tmp_path: Path) -> None:
    folder = world(tmp_path / "f")
    told = describe(recipe(folder), device="cpu")
    assert "4 clips a batch of (4, 32)" in told
    wide = recipe(folder).model_dump(mode="json")
    wide["model"]["overrides"]["input_width"] = 8
    with pytest.raises(RecipeError, match="input_width=4"):
        describe(build_recipe(wide), device="cpu")


def test_what_is_no_detector_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        load_detector(tmp_path / "model.safetensors", CATALOG)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_the_statistic_of_every_video_once_is_the_figure() -> None:
    rng = np.random.default_rng(3)
    truth = detections(
        [(v, int(rng.integers(3)), s := float(rng.uniform(0, 50)), s + 5, 0) for v in range(9) for _ in "ab"]
    )
    found = detections(
        [
            (int(rng.integers(9)), int(rng.integers(3)), s := float(rng.uniform(0, 50)), s + 5, rng.random())
            for _ in range(300)
        ]
    )
    levels = (0.3, 0.5)
    statistic = map_statistic(truth, found, levels, 9)
    figure = average_precision(truth, found, levels)[0].mean(axis=1)
    np.testing.assert_allclose(statistic(np.ones((1, 9)))[0], [*figure, figure.mean()], atol=1e-9)
    twice = np.concatenate([np.ones((1, 9)), np.full((1, 9), 2.0)])
    np.testing.assert_allclose(statistic(twice)[0], statistic(twice)[1], atol=1e-9)
    low, high = interval(statistic, 9, draws=50)
    assert (low <= high).all()


def test_windows_in_a_row_are_merged() -> None:
    scores = np.asarray([[0.0], [0.6], [0.8], [0.1], [0.9]])
    found = window_baseline.merge_windows(scores, [0.5])
    assert found.spans.tolist() == [[0.5, 2.5], [3.5, 4.5]]
    assert found.scores.tolist() == pytest.approx([0.7, 0.9])


def test_the_window_baseline_finds_what_scores_say(tmp_path: Path) -> None:
    features = read_feature_set(world(tmp_path))
    table = window_baseline.predict(
        features, tiou_thresholds=(0.3,), classify=lambda rows: rows[:, :2].clip(0, 1), settings=SuppressionSettings()
    )
    assert localization.score(table)["figures"]["mAP@0.3"] > 0.5
    with pytest.raises(RunError, match="scores of the 2 classes"):
        window_baseline.predict(features, tiou_thresholds=(0.3,))
