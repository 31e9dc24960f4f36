"""Evaluation of saved weights: the classes of the manifest, the clips of the recipe, and mistakes told early."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import in_process
import numpy as np
import pytest
import small_world
import torch
from small_world import CLASSES, small_recipe

from internvideo.data.manifest import Manifest, Sample, read_manifest, write_manifest
from internvideo.errors import ManifestError, RecipeError, RunError
from internvideo.evaluation import evaluate_task
from internvideo.pipeline import Trained, prepare, run_recipe
from internvideo.recipe import build_recipe
from internvideo.tasks import PRETRAINING, STAGES, TASKS
from internvideo.tasks.class_rows import map_labels_to_classes
from internvideo.tasks.clip_evaluation import make_clip_inputs
from internvideo.tasks.table import Predictions
from internvideo.tasks.task import ClipOptions

CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the small world after two steps."""
    recipe = build_recipe(small_recipe("supervised", schedule={"steps": 2}))
    return run_recipe(recipe, tmp_path_factory.mktemp("run"), device="cpu")


def rows_of_the_world(count: int = 6) -> list[Sample]:
    world = read_manifest(small_world.world())
    return [row.model_copy(update={"path": str(world.video_path(row)), "segments": ()}) for row in world.rows[:count]]


def labels(manifest: Path, weights: Path, output: Path) -> list[int]:
    evaluate_task("recognition", weights, manifest, output, CPU)
    return [int(label) for label in Predictions.load(output / "recognition.npz").arrays["labels"]]


def test_classes_in_another_order_are_found_by_name(weights: Path, tmp_path: Path) -> None:
    rows = rows_of_the_world()
    truth = [row.label for row in rows]
    assert set(truth) == {0, 1}
    other = [row.model_copy(update={"label": 2 - row.label if row.label is not None else None}) for row in rows]
    write_manifest(tmp_path / "test.jsonl", other, ("spinning", CLASSES[1], CLASSES[0]))
    assert labels(tmp_path / "test.jsonl", weights, tmp_path / "out") == truth


def test_numbers_without_names_are_the_models_indices(weights: Path, tmp_path: Path) -> None:
    rows = rows_of_the_world()
    (tmp_path / "test.csv").write_text("".join(f"{row.path} {row.label}\n" for row in rows))
    assert labels(tmp_path / "test.csv", weights, tmp_path / "out") == [row.label for row in rows]
    (tmp_path / "test.csv").write_text(f"{rows[0].path} 2\n")
    with pytest.raises(ManifestError, match="class 2; expected: 0 to 1"):
        evaluate_task("recognition", weights, tmp_path / "test.csv", tmp_path / "out", CPU)


def test_a_class_of_which_the_model_knows_nothing_is_named(weights: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "test.jsonl", rows_of_the_world(), (CLASSES[0], "moving rihgt to left"))
    with pytest.raises(ManifestError, match="not trained on the class 'moving rihgt to left'"):
        evaluate_task("recognition", weights, tmp_path / "test.jsonl", tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_names_that_are_numbers_are_names_where_a_file_says_so(tmp_path: Path) -> None:
    write_manifest(tmp_path / "test.jsonl", [Sample(id="a", path="a.mp4", label=0)], ("1", "0"))
    assert map_labels_to_classes(read_manifest(tmp_path / "test.jsonl"), ("0", "1")).rows[0].label == 1


@pytest.mark.parametrize("task", ["zero_shot", "retrieval", "multiple_choice"])
def test_language_tasks_keep_the_classes_of_the_manifest(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare(build_recipe(small_recipe("multimodal")))
    seen: list[Manifest] = []

    def stop(*given: object) -> None:
        seen.extend(one for one in given if isinstance(one, Manifest))
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "internvideo.evaluation.open_trained", lambda *_, **__: Trained(job.model, job.recipe, job.classes)
    )
    monkeypatch.setattr("internvideo.tasks.zero_shot.evaluate.predict", stop)
    monkeypatch.setattr("internvideo.tasks.multiple_choice.evaluate.predict", stop)
    monkeypatch.setattr("internvideo.tasks.retrieval.evaluate.predict", stop)
    write_manifest(tmp_path / "test.jsonl", rows_of_the_world(), ("falling", "rising"))
    with pytest.raises(KeyboardInterrupt):
        evaluate_task(task, tmp_path / "none", tmp_path / "test.jsonl", tmp_path, CPU)
    assert seen[0].classes == ("falling", "rising")


@pytest.mark.parametrize(
    ("sampling", "asked", "num_clips"),
    [
        ({"kind": "sparse", "num_clips": 3}, None, 3),
        ({"kind": "sparse", "num_clips": 3}, 2, 2),
        ({"kind": "sparse"}, None, 1),
        ({"kind": "dense", "stride": 2}, None, 1),
        ({"kind": "sparse_two_view"}, None, 1),
        ({"kind": "sparse_two_view"}, 2, 2),
        ({"kind": "segment_middle"}, None, 1),
        ({"kind": "segment_middle"}, 1, 1),
    ],
)
def test_views_are_those_asked_for_else_the_recipes(
    sampling: dict[str, Any], asked: int | None, num_clips: int
) -> None:
    recipe = build_recipe(small_recipe("supervised", sampling=sampling))
    manifest = read_manifest(small_world.world())
    trained = Trained(small_world.masked_classifier(), recipe, manifest.classes)
    one = Manifest(manifest.rows[:1], manifest.classes, manifest.root, manifest.source)
    inputs = make_clip_inputs(trained, one, ClipOptions(num_clips=asked))
    assert inputs.protocol.num_clips == num_clips
    assert np.concatenate([numbers for _, numbers in inputs.loader]).tolist() == list(range(num_clips))


@pytest.mark.parametrize(("sampling", "asked"), [({"kind": "segment_middle"}, 2), ({"kind": "sparse_two_view"}, 3)])
def test_views_that_a_sampler_does_not_have_are_refused(sampling: dict[str, Any], asked: int) -> None:
    manifest = read_manifest(small_world.world())
    recipe = build_recipe(small_recipe("supervised", sampling=sampling))
    trained = Trained(small_world.masked_classifier(), recipe, manifest.classes)
    with pytest.raises(RecipeError, match="num_clips"):
        make_clip_inputs(trained, manifest, ClipOptions(num_clips=asked))


def test_the_protocol_tells_the_recipes_views(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"schedule": {"steps": 1}, "sampling": {"kind": "sparse", "num_clips": 2}}
    path = run_recipe(build_recipe(small_recipe("supervised", **changes)), tmp_path / "run", device="cpu")
    write_manifest(tmp_path / "test.jsonl", rows_of_the_world(), CLASSES)
    evaluate_task("recognition", path, tmp_path / "test.jsonl", tmp_path, CPU)
    assert json.loads((tmp_path / "recognition.json").read_text())["protocol"]["views"] == 2


@pytest.mark.parametrize("setting", [{"num_crops": 2}, {"num_crops": 0}, {"num_clips": 0}])
def test_wrong_views_and_crops_are_told_before_anything_is_read(setting: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match=next(iter(setting))):
        ClipOptions(**setting)  # type: ignore[arg-type]  # mypy thinks of `device`


def test_the_table_of_another_measurement_is_kept(weights: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "test.jsonl", rows_of_the_world(), CLASSES)
    write_manifest(tmp_path / "fewer.jsonl", rows_of_the_world(4), CLASSES)
    write_manifest(tmp_path / "moved" / "test.jsonl", rows_of_the_world(), CLASSES)
    other = build_recipe(small_recipe("supervised", schedule={"steps": 1}))
    other_weights = run_recipe(other, tmp_path / "run", device="cpu")
    evaluate_task("recognition", weights, tmp_path / "test.jsonl", tmp_path, CPU)
    before = {path: path.read_bytes() for path in tmp_path.glob("recognition.*")}
    assert len(before) == 2
    for model, rows, settings, told in (
        (other_weights, "test.jsonl", CPU, "other weights;"),
        (weights, "fewer.jsonl", CPU, "other rows;"),
        (other_weights, "fewer.jsonl", {"device": "cpu", "num_crops": 3}, "other weights, rows, crops;"),
    ):
        with pytest.raises(RunError, match=f"has a table with {told} choose another --output"):
            evaluate_task("recognition", model, tmp_path / rows, tmp_path, settings)
    assert {path: path.read_bytes() for path in tmp_path.glob("recognition.*")} == before
    evaluate_task("recognition", weights, tmp_path / "moved" / "test.jsonl", tmp_path, CPU)
    assert len(Predictions.load(tmp_path / "recognition.npz")["ids"]) == 6
    (tmp_path / "recognition.npz").write_text("my notes")
    with pytest.raises(RunError, match="is not a table of"):
        evaluate_task("recognition", weights, tmp_path / "test.jsonl", tmp_path, CPU)
    assert (tmp_path / "recognition.npz").read_text() == "my notes"


@pytest.mark.parametrize("start", ["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_write_the_bytes_of_one(weights: Path, tmp_path: Path, start: str) -> None:
    rows = rows_of_the_world(17)
    rows[4] = rows[4].model_copy(update={"path": str(tmp_path / "gone.mp4")})
    rows[9] = rows[9].model_copy(update={"path": str(tmp_path / "gone.mp4")})
    write_manifest(tmp_path / "test.jsonl", rows, CLASSES)
    command = ["evaluate", "recognition", str(weights), str(tmp_path / "test.jsonl")]
    command += ["--device", "cpu", "--num-crops", "3", "--batch-size", "4", "-o"]
    one = in_process.command(*command, tmp_path / "one")
    if start == "forked":
        told = "".join(process.out for process in forked.two(in_process.command, *command, tmp_path / "two"))
    else:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc-per-node=2"]
        line += ["-m", "internvideo", *command, str(tmp_path / "two")]
        told = subprocess.run(line, env=env, timeout=300, check=True, capture_output=True, text=True).stdout
    assert one.out == told
    assert told.count("videos read: 15 of 17") == 1
    for file in ("recognition.npz", "recognition.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    table = Predictions.load(tmp_path / "two" / "recognition.npz")
    assert table["ids"].tolist() == [row.id for row in rows if "gone" not in row.path]
    assert table["sample"].tolist() == [sample for sample in range(15) for _ in range(3)]


def test_names_of_tasks_and_stages_are_their_own() -> None:
    assert len({task.name for task in TASKS}) == len(TASKS)
    assert len(STAGES) == len(PRETRAINING) + sum(len(task.stages) for task in TASKS)


def test_test_clips_are_cut_in_the_arithmetic_that_the_recipe_names(tmp_path: Path) -> None:
    """By torch without rounding, by OpenCV, squashed: the evaluation and an encoder of the run's weights cut alike."""
    write_manifest(tmp_path / "test.jsonl", rows_of_the_world(1), CLASSES)
    rows, first = read_manifest(tmp_path / "test.jsonl"), {}
    job = prepare(build_recipe(small_recipe("supervised")))
    for resize_backend, keep_aspect in (("pil", True), ("opencv", True), ("torch", True), ("pil", False)):
        changes = {
            "size": 20,
            "crop": "center",
            "resize_backend": resize_backend,
            "keep_aspect": keep_aspect,
            "test_resize": 24,
        }
        recipe = build_recipe(small_recipe("supervised", augment=changes))
        trained = Trained(job.model, recipe, job.classes)
        ((batch, _),) = make_clip_inputs(trained, rows, ClipOptions(device="cpu")).loader
        first[resize_backend, keep_aspect] = batch.video[0].float()
        assert batch.video.dtype == (torch.float32 if resize_backend == "torch" else torch.uint8)
        rule = recipe.data.preprocessing()
        assert (rule.resize_backend, rule.keep_aspect, rule.resize) == (resize_backend, keep_aspect, 24)
    found = list(first.values())[:3]  # the small world's frames are squares already
    assert all(not torch.equal(one, other) for i, one in enumerate(found) for other in found[:i])
    for wrong, told in (
        ({"bicubic": True}, "now 'data.augment.resize_backend=pil_bicubic'"),
        ({"crop": "random_resized", "keep_aspect": False}, "takes boxes of any aspect"),
    ):
        with pytest.raises(RecipeError, match=told):
            build_recipe(small_recipe("supervised", augment={"size": 20, **wrong}))
