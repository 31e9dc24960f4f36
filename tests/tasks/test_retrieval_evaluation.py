"""Retrieval of saved models: captions, banks of texts, ensembles, numbers of frames, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_world
from small_world import small_recipe

from internvideo.data.manifest import read_manifest, write_manifest
from internvideo.errors import RecipeError, RunError
from internvideo.evaluation import evaluate_task, score
from internvideo.metrics.classification import l2_normalize, softmax
from internvideo.pipeline import run_recipe
from internvideo.recipe import build_recipe
from internvideo.tasks.multiple_choice import predict as multiple_choice
from internvideo.tasks.retrieval import metrics as metrics
from internvideo.tasks.retrieval import predict as retrieval
from internvideo.tasks.retrieval.evaluate import RetrievalOptions
from internvideo.tasks.table import Predictions


def run(folder: Path, seed: int, **changes: Any) -> Path:
    tree = small_recipe("retrieval", schedule={"steps": 2}, loop={"seed": seed}, **changes)
    return run_recipe(build_recipe(tree), folder, device="cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two retrieval models of the small world; the second reads one frame a second and learns pairs."""
    folder = tmp_path_factory.mktemp("runs")
    second = run(folder / "b", 1, sampling={"kind": "one_per_second", "frames": 3}, optimizer={"kind": "bert_adam"})
    return [run(folder / "a", 0), second]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips to search for, and eight others as a bank, in one folder."""
    world = read_manifest(small_world.world())
    rows = [row.model_copy(update={"path": str(world.video_path(row)), "segments": ()}) for row in world.rows]
    folder = tmp_path_factory.mktemp("manifests")
    write_manifest(folder / "test.jsonl", [row.model_copy(update={"split": "test"}) for row in rows[:6]], world.classes)
    write_manifest(folder / "bank.jsonl", rows[6:14], world.classes)
    return folder / "test.jsonl"


def evaluated(weights: Path, manifest: Path, output: Path, **settings: Any) -> tuple[dict[str, Any], Predictions]:
    evaluate_task("retrieval", weights, manifest, output, {"device": "cpu", **settings})
    return json.loads((output / "retrieval.json").read_text()), Predictions.load(output / "retrieval.npz")


def test_raw_dual_softmax_and_bank_stand_side_by_side(weights: list[Path], manifest: Path, tmp_path: Path) -> None:
    result, table = evaluated(weights[0], manifest, tmp_path, querybank=manifest.with_name("bank.jsonl"))
    assert table["bank"].shape == (8, 24)
    names = {f"t2v_r1{suffix}" for suffix in ("", "_dual_softmax", "_query_bank")}
    assert names <= set(result["figures"])
    assert "v2t_r1_query_bank" not in result["figures"]
    protocol = result["protocol"]
    assert protocol["query_bank"]["texts"] == 8
    assert "not in the paper" in protocol["query_bank_normalisation"]
    damped = metrics.querybank_normalize(
        retrieval.similarity(table), *metrics.querybank_statistics([bank_similarity(table)])
    )
    assert result["figures"]["t2v_r5_query_bank"] == (metrics.row_ranks(damped) < 5).mean()
    plain, _ = evaluated(weights[0], manifest, tmp_path / "plain")
    assert "none" in plain["protocol"]["query_bank_normalisation"]
    assert plain["figures"] == {name: value for name, value in result["figures"].items() if "bank" not in name}


def bank_similarity(table: Predictions) -> np.ndarray:
    unit = [value / np.linalg.norm(value, axis=1, keepdims=True) for value in (table["bank"], table["video"])]
    found: np.ndarray = float(table["scale"]) * unit[0].astype(np.float64) @ unit[1].T.astype(np.float64)
    return found


def test_a_bank_of_the_queries_themselves_is_refused(weights: list[Path], manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="6 of its videos are in the evaluated split"):
        evaluated(weights[0], manifest, tmp_path, querybank=manifest)


def test_captions_all_first_or_joined(weights: list[Path], manifest: Path, tmp_path: Path) -> None:
    rows = read_manifest(manifest).rows
    texts = {"all": sum(len(row.captions) for row in rows), "first": 6, "joined": 6}
    for captions, count in texts.items():
        result, table = evaluated(weights[0], manifest, tmp_path / captions, captions=captions)
        assert (result["protocol"]["captions"], result["protocol"]["texts"]) == (captions, count)
    assert table["captions"][0] == " ".join(rows[0].captions)
    with pytest.raises(RunError, match="has a table with other captions"):
        evaluated(weights[0], manifest, tmp_path / "joined", captions="first")
    with pytest.raises(RecipeError, match="first, all or joined"):
        RetrievalOptions(captions="some")  # type: ignore[arg-type]  # the mistake
    paragraphs = run(tmp_path / "run", 2, data={"captions": "joined"})
    assert evaluated(paragraphs, manifest, tmp_path / "own")[0]["protocol"]["captions"] == "joined"


def test_an_ensemble_has_the_mean_similarity(weights: list[Path], manifest: Path, tmp_path: Path) -> None:
    bank = manifest.with_name("bank.jsonl")
    tables = [evaluated(one, manifest, tmp_path / str(i))[1] for i, one in enumerate(weights)]
    result, both = evaluated(weights[0], manifest, tmp_path / "both", ensemble_with=(weights[1],), querybank=bank)
    mean = (retrieval.similarity(tables[0]) + retrieval.similarity(tables[1])) / 2
    np.testing.assert_allclose(retrieval.similarity(both), mean, rtol=1e-12)
    assert both["bank:1"].shape == both["bank"].shape
    members = result["protocol"]["ensemble"]["members"]
    assert [one["weights_sha256"] for one in members] == [one.protocol["weights_sha256"] for one in tables]
    with pytest.raises(RunError, match="other ensemble"):
        evaluated(weights[0], manifest, tmp_path / "both")
    with pytest.raises(RunError, match="different videos or captions"):
        retrieval.ensemble([tables[0], evaluated(weights[1], manifest, tmp_path / "all", captions="all")[1]])


def test_an_ensemble_recognises_and_chooses_by_the_mean_similarity(
    weights: list[Path], manifest: Path, tmp_path: Path
) -> None:
    """`--ensemble-with` in zero-shot recognition and multiple choice, essential for the paper (4.3.3)."""

    def table(task: str, name: str, first: Path, *also: Path) -> Predictions:
        evaluate_task(task, first, manifest, tmp_path / name, {"device": "cpu", "ensemble_with": also})
        return Predictions.load(tmp_path / name / f"{task}.npz")

    for task in ("zero_shot", "multiple_choice"):
        one, other = table(task, "a", weights[0]), table(task, "b", weights[1])
        both = table(task, "both", weights[0], weights[1])
        if task == "multiple_choice":
            mean = (multiple_choice.scores(one) + multiple_choice.scores(other)) / 2
            np.testing.assert_allclose(multiple_choice.scores(both), mean, rtol=1e-12)
        else:
            models = [(one["video"], one["text"], float(one["scale"])), (other["video"], other["text"], other["scale"])]
            logits = [
                [scale * l2_normalize(video.astype(float)) @ l2_normalize(names.astype(float)).T for names in text]
                for video, text, scale in models
            ]
            right = softmax((np.asarray(logits[0]) + np.asarray(logits[1])) / 2).mean(axis=0).argmax(axis=1)
            assert score(both)["figures"]["top1"] == (right == both["labels"]).mean()
            assert not np.allclose(logits[0], logits[1])
        members = both.protocol["ensemble"]["members"]
        assert [told["weights_sha256"] for told in members] == [x.protocol["weights_sha256"] for x in (one, other)]
        with pytest.raises(RunError, match="other ensemble"):
            table(task, "both", weights[0])
    recogniser = run_recipe(
        build_recipe(small_recipe("supervised", schedule={"steps": 1})), tmp_path / "c", device="cpu"
    )
    with pytest.raises(RecipeError, match="is a VideoMAEClassifier; expected: VideoLanguage or CLIPModel"):
        table("multiple_choice", "wrong", weights[0], recogniser)


def test_numbers_of_frames_are_tried_and_the_choice_is_told(
    weights: list[Path], manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, table = evaluated(weights[0], manifest, tmp_path, frames=(2, 3, 4))
    tried = result["protocol"]["frames_tried"]
    assert list(tried) == ["2", "3", "4"]
    means = {int(count): found["t2v_r1"] + found["v2t_r1"] for count, found in tried.items()}
    best = max(means, key=lambda count: (means[count], -count))
    assert table.protocol["frames"] == best
    assert "on this very split" in result["protocol"]["frames_chosen"]
    assert "each measured on this split" in capsys.readouterr().out
    single, _ = evaluated(weights[0], manifest, tmp_path / "single", frames=(best,))
    assert single["figures"] == result["figures"]
    assert "frames_tried" not in single["protocol"]
    evaluated(weights[0], manifest, tmp_path, frames=(2, 3, 4))  # the same measurement again
    with pytest.raises(RecipeError, match="4,0"):
        RetrievalOptions(frames=(4, 0))


def test_agreement_in_attributes_stands_beside_its_chance_among_alike_videos(
    weights: list[Path], manifest: Path, tmp_path: Path
) -> None:
    rows = read_manifest(manifest)
    result, table = evaluated(weights[0], manifest, tmp_path / "a", agreement="shape,action", within="action")
    shapes = [row.attributes["shape"] for row in rows.rows]
    actions = [row.attributes["action"] for row in rows.rows]
    chances, agrees = [], []
    for query, own in enumerate(table["owner"]):
        among = [video for video in range(len(rows)) if actions[video] == actions[own]]
        chances.append(np.mean([shapes[video] == shapes[own] for video in among]))
        best = max(among, key=lambda video: retrieval.similarity(table)[query, video])
        agrees.append(shapes[best] == shapes[own])
    figures = result["figures"]
    assert figures["t2v_shape_chance"] == pytest.approx(np.mean(chances))
    assert figures["t2v_shape"] == np.mean(agrees)
    assert figures["t2v_action"] == figures["t2v_action_chance"] == 1
    with pytest.raises(RecipeError, match="no attribute 'smell'"):
        evaluated(weights[0], manifest, tmp_path / "b", agreement="smell")
    with pytest.raises(RecipeError, match="within"):
        RetrievalOptions(within="action")
