"""Learning to choose among texts about a clip: batches, a toy problem, recipe to figures, TGIF-QA's five-way form."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_apps
import small_world
import torch
from goldens_folder import SAMPLES
from small_world import FRAMES, LANGUAGE, SIDE, WORDS, learn, small_recipe
from task_world import CPU, Source

from internvideo.data.loader import Loader, LoaderSettings
from internvideo.data.manifest import Manifest, read_manifest, write_manifest
from internvideo.data.sample import Choice, Sample
from internvideo.data.sampling import SegmentMiddle
from internvideo.data.transforms import TrainTransform
from internvideo.datasets.prepare import prepare
from internvideo.errors import ManifestError
from internvideo.evaluation import evaluate_task, score_table
from internvideo.models.video_language import VideoLanguage
from internvideo.pipeline import run_recipe
from internvideo.recipe import build_recipe
from internvideo.tasks.multiple_choice import predict as multiple_choice
from internvideo.tasks.multiple_choice.data import ChoiceLoader, choice_texts
from internvideo.tasks.protocol import ClipInputs, ClipProtocol
from internvideo.tasks.question_answering.data import question_tokens
from internvideo.tasks.question_answering.stage import AnsweringSettings, AnsweringStage
from internvideo.tasks.table import Predictions
from internvideo.weights.state import save_model


def loader(rows: Manifest) -> ChoiceLoader:
    transform = TrainTransform(size=SIDE, crop="center")
    return ChoiceLoader(Loader(rows, SegmentMiddle(frames=FRAMES), transform, LoaderSettings(batch_size=4)), WORDS)


# --- data ---


def test_a_question_stands_before_every_option() -> None:
    choice = Choice(options=("spin", "wave"), answer=1)
    row = Sample(id="a", path="a.mp4", choices=choice, attributes={"question": "what does it do?"})
    assert choice_texts(row) == ["what does it do? spin", "what does it do? wave"]
    assert choice_texts(row.model_copy(update={"attributes": {}})) == ["spin", "wave"]
    with pytest.raises(ValueError, match="no choices"):
        choice_texts(Sample(id="b", path="b.mp4"))


def test_batches_have_the_texts_of_their_rows() -> None:
    rows = read_manifest(small_world.world())
    of_id = {row.id: row for row in rows.rows}
    batches = loader(rows)
    first = next(batches.epoch(0))
    assert first.text_ids is not None
    assert first.labels is not None
    assert first.text_ids.shape[:2] == (4, 5)
    for name, tokens, label in zip(first.ids, first.text_ids, first.labels.tolist(), strict=True):
        expected = question_tokens(choice_texts(of_id[name]), WORDS)
        assert torch.equal(tokens[:, : expected.shape[1]], expected[:, : tokens.shape[1]])
        choices = of_id[name].choices
        assert choices is not None
        assert label == choices.answer
    epoch = list(batches.epoch(1))
    again = next(batches.epoch(1, 2))
    assert len(epoch) == len(batches)
    assert again.ids == epoch[2].ids


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"choices": None}, "1 of 42 rows have no choices, first '"),
        ({"choices": Choice(options=("a", "b"), answer=0)}, r"rows of 2 \('\w+'\) and 5 \('\w+'\) options"),
    ],
)
def test_rows_that_cannot_be_learned_from_are_refused(changed: dict[str, Choice | None], told: str) -> None:
    rows = read_manifest(small_world.world())
    with pytest.raises(ManifestError, match=told):
        loader(replace(rows, rows=(rows.rows[0].model_copy(update=changed), *rows.rows[1:])))


# --- learning ---


def test_the_right_one_of_five_is_learned_whatever_their_order() -> None:
    stage = AnsweringStage(small_world.choosing_model(), AnsweringSettings())
    clips = small_world.choices(8)
    losses = learn(stage, clips, 60, rate=2e-3)
    assert losses[0] == pytest.approx(math.log(5), abs=0.2)
    assert sum(losses[-10:]) / 10 < 0.2 * math.log(5)
    assert clips.text_ids is not None
    assert clips.labels is not None
    turned = replace(clips, text_ids=clips.text_ids.roll(1, dims=1), labels=(clips.labels + 1) % 5)
    with torch.no_grad():
        parts = stage.eval()(turned, torch.Generator())
    assert parts["accuracy"] > 0.9


def test_recipe_to_figures_from_the_weights_of_stage_2(tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_model(tmp_path / "stage2.safetensors", VideoLanguage(LANGUAGE), {})
    tree = small_recipe("multiple_choice", init={"weights": str(tmp_path / "stage2.safetensors")})
    weights = run_recipe(build_recipe(tree), tmp_path / "run", device="cpu")
    out = tmp_path / "out"
    settings = {"num_clips": 1, "device": "cpu"}
    result = evaluate_task("multiple_choice", weights, small_world.world(), out, settings)
    assert result["protocol"]["chance_accuracy"] == pytest.approx(0.2)
    assert result["protocol"]["merge"] == "softmax mean"
    table = Predictions.load(out / "multiple_choice.npz")
    np.testing.assert_allclose(table["probabilities"].sum(axis=1), 1, atol=1e-5)
    hits = table["probabilities"].argmax(axis=1) == table["answers"]
    assert result["figures"]["accuracy"] == pytest.approx(hits.mean())
    assert score_table(out / "multiple_choice.npz") == json.loads(json.dumps(result))


def test_rows_of_different_numbers_of_options_are_tested() -> None:
    rows = read_manifest(small_world.world())
    three = Choice(options=("up", "down", "round"), answer=2)
    few = replace(rows, rows=(rows.rows[0].model_copy(update={"choices": three}), *rows.rows[1:3]))
    clips = ClipProtocol(frames=FRAMES, size=SIDE)
    table = multiple_choice.predict_pair_scores(
        ClipInputs(small_world.choosing_model(), Source(few, clips), few, clips, CPU)
    )
    assert table["options"].tolist() == [3, 5, 5]
    assert table["probabilities"][0, 3:].tolist() == [0, 0]
    assert multiple_choice.scores(table)[0, 3:].tolist() == [-1, -1]


# --- TGIF-QA ---


def test_zero_shot_choice_runs_on_the_official_rows(tmp_path: Path) -> None:
    """Actions and transitions as TGIF-QA tells them, scored by a video-language model that never learned to choose."""
    annotations = SAMPLES / "tasks" / "annotations" / "tgif_qa"
    prepare("tgif_choice", annotations, tmp_path / "names")
    (row,) = read_manifest(tmp_path / "names" / "test.jsonl").rows
    assert choice_texts(row)[4] == "What does the robot do 3 times ? blink"
    world = read_manifest(small_world.world())
    placed = row.model_copy(update={"path": str(world.video_path(world.rows[0]))})
    write_manifest(tmp_path / "test.jsonl", [placed], ())
    weights = small_apps.trained("multimodal")
    settings = {"num_clips": 1, "device": "cpu"}
    result = evaluate_task("multiple_choice", weights, tmp_path / "test.jsonl", tmp_path / "out", settings)
    assert result["figures"]["accuracy"] in (0.0, 1.0)
    assert result["protocol"]["chance_accuracy"] == pytest.approx(0.2)
