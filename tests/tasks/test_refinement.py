"""Refinement of a detector's segments: reading proposals, batches, learning, figures before and after, mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from proposal_world import world

from internvideo import evaluation
from internvideo.errors import InternVideoError, ManifestError, RecipeError, RunError
from internvideo.evaluation import evaluate_task
from internvideo.metrics.temporal_detection import detections, tiou
from internvideo.pipeline import load_trained, run_recipe
from internvideo.recipe import Recipe, build_recipe
from internvideo.storage import read_safetensors
from internvideo.tasks.refinement import predict as refinement
from internvideo.tasks.refinement.data import read_proposals
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.temporal_localization.data import FeatureSettings, read_feature_set
from internvideo.tasks.temporal_localization.nms import SuppressionSettings

pytestmark = pytest.mark.usefixtures("drawn_once")

CPU = torch.device("cpu")


def recipe(folder: Path, steps: int = 90, **data: Any) -> Recipe:
    sizes = {"input_width": 4, "width": 32, "heads": 4, "window": 5, "feed_forward": 32, "dropout": 0.0,
             "inference_factor": 1.0, "centre_factors": [1.0, 1.0], "action_samples": 8}  # fmt: skip
    proposals = {"files": [str(folder / "proposals.json")], "jitter": 0.2}
    tree = {
        "stage": "refinement",
        "model": {"name": "tcanet", "overrides": sizes},
        "settings": {"tiou_thresholds": [0.5, 0.7, 0.9]},
        "data": {"train": str(folder), "split": "train", "proposals": proposals, "loader": {"batch_size": 8}, **data},
        "optimizer": {"base_lr": 3e-3, "weight_decay": 1e-5},
        "schedule": {"steps": steps, "warmup": 5},
        "loop": {"max_grad_norm": 1.0, "checkpoint_every": 5, "log_every": 20},
    }
    return build_recipe(tree)


# --- learning and testing --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refinement")
    run_recipe(recipe(world(folder / "features")), folder / "run", device="cpu")
    return folder


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"device": "cpu", "proposals": folder / "features" / "proposals.json", **changes}


@pytest.fixture(scope="module")
def measured(learned: Path) -> Result:
    weights, features = learned / "run" / "model.safetensors", learned / "features"
    return evaluate_task("refinement", weights, features, learned / "test", settings(learned), split="test")


def test_refined_segments_are_better_than_the_proposals(learned: Path, measured: Result) -> None:
    result, out = measured, learned / "test"
    found, bounds = result["figures"], result["intervals"]
    assert found["mean_mAP"] > found["before_mean_mAP"] + 0.15
    assert found["gain"] == pytest.approx(found["mean_mAP"] - found["before_mean_mAP"])
    assert 0 < bounds["gain"][0] <= found["gain"] <= bounds["gain"][1]
    table = Predictions.load(out / "refinement.npz")
    assert evaluation.score(table)["figures"] == found
    assert len(result["protocol"]["weights_sha256"]) == 64
    assert result["protocol"]["detector_weights_sha256"] == "2"
    assert (out / "timelines.html").read_text().count("<svg") == 2 * 4
    assert set(json.loads((out / "detections.json").read_text())["results"]) == {f"v{n}" for n in range(5, 24, 6)}


def test_every_proposal_comes_nearer_on_average(learned: Path) -> None:
    trained = load_trained(learned / "run" / "model.safetensors", device="cpu")
    features = read_feature_set(learned / "features").subset("test")
    proposals = read_proposals(learned / "features" / "proposals.json", features.classes)
    before, after, quality = [], [], []
    for video in features.videos:
        own = proposals.for_video(video)
        refined = refinement.refine(trained.model, video, own, FeatureSettings(), CPU)  # type: ignore[arg-type]  # a TCANet
        same = refinement.refine(trained.model, video, own, FeatureSettings(), CPU, 0.0)  # type: ignore[arg-type]  # a Refiner
        assert (same.spans.tolist(), same.scores.tolist()) == (refined.spans.tolist(), own.scores.tolist())
        before += tiou(own.spans, video.spans).max(axis=1).tolist()
        after += tiou(refined.spans, video.spans).max(axis=1).tolist()
        quality += (refined.scores / own.scores).tolist()
    near = np.asarray(before) > 0.4
    assert np.mean(np.asarray(after)[near]) > np.mean(np.asarray(before)[near]) + 0.1
    assert np.corrcoef(quality, after)[0, 1] > 0.5


def test_refined_segments_can_be_refined_again(
    learned: Path, measured: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, again = (
        learned / "run" / "model.safetensors",
        settings(learned, proposals=learned / "test/detections.json"),
    )
    result = evaluate_task("refinement", weights, learned / "features", learned / "twice", again, split="test")
    assert result["figures"]["before_mean_mAP"] == pytest.approx(measured["figures"]["mean_mAP"], abs=1e-6)
    assert "before_mean_mAP" in capsys.readouterr().out


def test_padding_changes_no_segment(learned: Path) -> None:
    model = load_trained(learned / "run" / "model.safetensors", device="cpu").model
    values, spans = torch.randn(1, 4, 20), torch.tensor([[2.0, 5.0], [7.0, 10.0]])
    rows = torch.zeros(2, dtype=torch.long)
    longer = torch.nn.functional.pad(values, (0, 9))
    with torch.no_grad():
        _, alone = model(values, rows, spans)
        _, padded = model(longer, rows, spans, torch.arange(29)[None] < 20)
    torch.testing.assert_close(alone, padded)


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    folder = world(tmp_path / "f", videos=12)
    whole = run_recipe(recipe(folder, steps=10), tmp_path / "whole", device="cpu")
    torn = tmp_path / "torn"
    shutil.copytree(tmp_path / "whole", torn)
    (torn / "model.safetensors").unlink()
    (torn / "checkpoints" / "step-00000010.safetensors").unlink()
    again = run_recipe(recipe(folder, steps=10), torn, device="cpu")
    ours, theirs = (read_safetensors(path)[0] for path in (whole, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- classes of whole videos -----------------------------------------------------------------------------------------


def test_nameless_proposals_get_classes_from_scores(learned: Path, tmp_path: Path) -> None:
    folder, weights = world(tmp_path / "f", labels=False), learned / "run" / "model.safetensors"
    plain = settings(learned, proposals=folder / "proposals.json")
    nameless = evaluate_task("refinement", weights, folder, tmp_path / "a", plain, split="test")
    assert nameless["protocol"]["classes"] == "none, proposals"
    assert "best unmatched action" in nameless["protocol"]["matching"]
    assert nameless["figures"]["gain"] > 0
    rows = {video.id: [0.9, 0.4] for video in read_feature_set(folder).videos}
    (tmp_path / "s.json").write_text(json.dumps({"results": rows}))
    named = evaluate_task(
        "refinement", weights, folder, tmp_path / "b", {**plain, "class_scores": tmp_path / "s.json"}, split="test"
    )
    assert named["protocol"]["classes"] == "scores of whole videos"
    table = Predictions.load(tmp_path / "b" / "refinement.npz")
    assert set(table["label"]) == set(table["before_label"]) == {0, 1}
    with pytest.raises(RecipeError, match="given for proposals with classes"):
        evaluate_task(
            "refinement",
            weights,
            learned / "features",
            tmp_path / "c",
            settings(learned, class_scores=tmp_path / "s.json"),
        )


# --- figures ---------------------------------------------------------------------------------------------------------


def test_reached_is_the_best_overlap_of_every_action() -> None:
    truth = detections([(0, 0, 0, 10, 0), (0, 1, 20, 30, 0), (1, 0, 0, 10, 0)])
    found = detections([(0, 1, 0, 5, 0.1), (0, 0, 20, 30, 0.2)])
    assert refinement.best_tiou(truth, found).tolist() == [0.5, 1.0, 0.0]


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_features_made_otherwise_are_refused(learned: Path, tmp_path: Path) -> None:
    other = world(tmp_path / "features")
    index = json.loads((other / "index.json").read_text())
    index["protocol"]["weights_sha256"] = "2"
    (other / "index.json").write_text(json.dumps(index))
    with pytest.raises(RunError, match="weights_sha256"):
        evaluate_task("refinement", learned / "run" / "model.safetensors", other, tmp_path / "o", settings(learned))


def test_proposals_of_other_videos_are_refused(learned: Path, tmp_path: Path) -> None:
    content = json.loads((learned / "features" / "proposals.json").read_text())
    content["results"] = {f"x{name}": rows for name, rows in content["results"].items()}
    (tmp_path / "p.json").write_text(json.dumps(content))
    other = settings(learned, proposals=tmp_path / "p.json")
    weights = learned / "run" / "model.safetensors"
    with pytest.raises(ManifestError, match="xv0"):
        evaluate_task("refinement", weights, learned / "features", tmp_path / "o", other)
    with pytest.raises(ManifestError, match="xv0"):
        run_recipe(
            recipe(learned / "features", proposals={"files": [str(tmp_path / "p.json")]}), tmp_path / "r", device="cpu"
        )


def test_a_video_without_proposals_is_counted(learned: Path, tmp_path: Path) -> None:
    content = json.loads((learned / "features" / "proposals.json").read_text())
    del content["results"]["v5"]
    (tmp_path / "p.json").write_text(json.dumps(content))
    other = settings(learned, proposals=tmp_path / "p.json")
    result = evaluate_task(
        "refinement", learned / "run" / "model.safetensors", learned / "features", tmp_path / "o", other, split="test"
    )
    assert result["protocol"]["videos_without_proposals"] == 1
    assert result["protocol"]["videos"] == 4


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"proposals": {}}, r"data\.proposals\.files"),
        ({"proposals": {"files": ["none.json"]}}, "cannot be read"),
        ({"split": "validation"}, "validation"),
    ],
)
def test_a_recipe_without_its_proposals_is_refused(tmp_path: Path, data: dict[str, Any], told: str) -> None:
    with pytest.raises(InternVideoError, match=told):
        run_recipe(recipe(world(tmp_path / "f"), **data), tmp_path / "r", device="cpu")


def test_features_of_another_width_are_refused(tmp_path: Path) -> None:
    folder = world(tmp_path / "f")
    for file in folder.glob("*.npy"):
        np.save(file, np.load(file)[:, :3])
    with pytest.raises(RecipeError, match="input_width"):
        run_recipe(recipe(folder), tmp_path / "r", device="cpu")


def test_evaluation_needs_proposals_and_a_refiner(learned: Path, tmp_path: Path) -> None:
    weights = learned / "run" / "model.safetensors"
    with pytest.raises(RecipeError, match="proposals"):
        evaluate_task("refinement", weights, learned / "features", tmp_path / "o", {"device": "cpu"})
    with pytest.raises(RecipeError, match="ActionFormer"):
        evaluate_task("temporal_localization", weights, learned / "features", tmp_path / "o", {"device": "cpu"})


@pytest.mark.usefixtures("measured")
def test_other_proposals_do_not_overwrite_a_measurement(learned: Path, tmp_path: Path) -> None:
    weights, features = learned / "run" / "model.safetensors", learned / "features"
    content = json.loads((features / "proposals.json").read_text())
    content["results"]["v5"] = content["results"]["v5"][:1]
    (tmp_path / "p.json").write_text(json.dumps(content))
    other = settings(learned, proposals=tmp_path / "p.json")
    with pytest.raises(RunError, match="other proposals"):
        evaluate_task("refinement", weights, features, learned / "test", other, split="test")


def test_suppression_is_the_published_one(learned: Path) -> None:
    how = load_trained(learned / "run" / "model.safetensors", device="cpu").recipe.settings
    made = how.suppression(per_class=False)  # type: ignore[attr-defined]  # RefinementSettings
    assert made == SuppressionSettings(
        sigma=0.4, power=2.5, extent=0.0, min_score=0.0, max_segments=101, per_class=False, voting=0.0
    )


@pytest.mark.slow
def test_the_command_tells_what_is_missing(learned: Path) -> None:
    weights, features = learned / "run" / "model.safetensors", learned / "features"
    command = [sys.executable, "-m", "internvideo", "evaluate", "refinement", str(weights), str(features)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "add --proposals FILE" in done.stderr
