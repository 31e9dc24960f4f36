"""Two processes share the videos of a task: the files are those of one process."""

from __future__ import annotations

from pathlib import Path

import forked
import in_process
import numpy as np
import test_spatio_temporal_localization
import test_temporal_localization

from internvideo.data.manifest import write_manifest
from internvideo.evaluation import evaluate_task
from internvideo.pipeline import run_recipe
from internvideo.tasks.table import Predictions

CPU = {"device": "cpu"}


def in_two(task: str, weights: Path, manifest: Path, output: Path) -> tuple[in_process.Told, in_process.Told]:
    """`internvideo evaluate` in two processes; test_evaluation.py has them started by torchrun."""
    words = ("evaluate", task, weights, manifest, "--split", "test", "--device", "cpu", "-o", output)
    one, other = forked.two(in_process.command, *words)
    return one, other


def same_files(one: Path, two: Path) -> set[str]:
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in two.iterdir()}
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    return names


def test_segments(tmp_path: Path) -> None:
    features = test_temporal_localization.world(tmp_path / "f", videos=15)  # five of them for testing: unequal shares
    recipe = test_temporal_localization.recipe(features, schedule={"steps": 4, "warmup": 1})
    weights = run_recipe(recipe, tmp_path / "run", device="cpu")
    evaluate_task("temporal_localization", weights, features, tmp_path / "one", CPU, split="test")
    first, second = in_two("temporal_localization", weights, features, tmp_path / "two")
    assert (first.code, second.code) == (0, 0), (first, second)
    assert (first.out + second.out).count("mean_mAP") == 1
    assert "detections.json" in same_files(tmp_path / "one", tmp_path / "two")


def test_boxes_with_a_video_that_cannot_be_read(tmp_path: Path) -> None:
    manifest = test_spatio_temporal_localization.world(tmp_path / "w", videos=12)
    recipe = test_spatio_temporal_localization.recipe(tmp_path / "w", schedule={"steps": 4, "warmup": 1})
    weights = run_recipe(recipe, tmp_path / "run", device="cpu")
    rows = [row.model_copy(update={"path": "gone.mp4"}) if row.id == "v5" else row for row in manifest.rows]
    write_manifest(tmp_path / "w" / "lost.jsonl", rows, manifest.classes)
    path = tmp_path / "w" / "lost.jsonl"
    evaluate_task("spatio_temporal_localization", weights, path, tmp_path / "one", CPU, split="test")
    first, second = in_two("spatio_temporal_localization", weights, path, tmp_path / "two")
    assert (first.code, second.code) == (0, 0), (first, second)
    assert {"results.csv", "frames.svg"} <= same_files(tmp_path / "one", tmp_path / "two")
    table = Predictions.load(tmp_path / "two" / "spatio_temporal_localization.npz")
    assert [lost["id"] for lost in table.coverage["unreadable"]] == ["v5", "v5"]
    assert len(np.unique(table["frame"])) == 6
    other = tmp_path / "two" / "spatio_temporal_localization.npz"
    Predictions(table.task, table.arrays, {**table.protocol, "split_sha256": "of others"}, table.coverage).save(other)
    refused = in_two("spatio_temporal_localization", weights, path, tmp_path / "two")
    assert [told.code for told in refused] == [2, 2]
    assert all("has a table with other rows" in told.err for told in refused)
