"""Captions: drawn words, written tables, figures of published packages on sentences whose figures are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_apps
import small_world
import torch

from internvideo.data.manifest import read_manifest, write_manifest
from internvideo.errors import RecipeError
from internvideo.evaluation import evaluate_task, score_table
from internvideo.models.generation import sample
from internvideo.tasks.captioning import predict as captioning
from internvideo.tasks.table import Predictions

HERE = torch.device("cpu")


def table(written: list[str], references: list[list[str]]) -> Predictions:
    arrays = {
        "ids": np.asarray([f"clip{number}" for number in range(len(written))]),
        "written": np.asarray(written),
        "references": np.asarray([text for own in references for text in own]),
        "owner": np.asarray([number for number, own in enumerate(references) for _ in own]),
    }
    coverage = {"asked": len(written), "read": len(written), "unreadable": []}
    return Predictions(captioning.NAME, arrays, {"decoding": {}}, coverage)


def test_a_word_is_drawn_from_the_nucleus_and_as_often_as_it_is_likely() -> None:
    # Words: 0 padding, 1 start, 2 end, 3, 4, 5. The nucleus of 0.8 holds 3 and 4 alone.
    likely = torch.tensor([1e-9, 1e-9, 1e-9, 0.6, 0.3, 0.1])
    step = lambda ids, _: likely.log().expand(len(ids), -1)  # noqa: E731  # a table of words
    drawn = sample(step, 4000, 1, 2, 3, device=HERE, top_p=0.8, generator=torch.Generator().manual_seed(0))
    words = drawn[:, 1]
    assert set(words.tolist()) == {3, 4}
    assert (words == 3).float().mean().item() == pytest.approx(2 / 3, abs=0.03)
    assert (drawn[:, 0] == 1).all()
    assert (drawn[:, 2] == 2).all()
    again = sample(step, 4000, 1, 2, 3, device=HERE, top_p=0.8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    narrow = sample(step, 50, 1, 2, 3, device=HERE, top_p=0.1)
    assert (narrow[:, 1] == 3).all()  # the likeliest word is always in
    with pytest.raises(ValueError, match="top_p"):
        sample(step, 1, 1, 2, 3, device=HERE, top_p=0.0)


def test_nothing_follows_the_end_of_a_drawn_text() -> None:
    likely = torch.full((4, 4), 1e-9)
    likely[1, 2] = likely[2, 3] = likely[3, 3] = 1.0
    drawn = sample(lambda ids, _: likely[ids[:, -1]].log(), 2, 1, 2, 6, device=HERE)
    assert drawn.tolist() == [[1, 2, 0, 0, 0, 0]] * 2


def test_figures_of_known_sentences() -> None:
    own = [["A red ball moves left.", "the ball goes left"], ["a box opens"], ["a green star spins slowly"]]
    right = captioning.score(table(["a red ball moves left", "a box opens", "A green star, spins slowly"], own))
    assert right["figures"]["bleu4"] == pytest.approx(1.0, abs=1e-3)
    assert right["figures"]["rouge_l"] == pytest.approx(1.0)
    wrong = captioning.score(table(["something else", "other words", "no match here"], own))
    assert wrong["figures"]["cider"] == wrong["figures"]["rouge_l"] == wrong["figures"]["meteor_exact"] == 0.0
    assert right["figures"]["cider"] > 3.0
    assert right["figures"]["cider_one_for_all"] < right["figures"]["cider"] / 2
    assert right["intervals"]["cider"][0] <= right["figures"]["cider"] <= right["intervals"]["cider"][1]
    assert "bleu4" not in right["intervals"]
    assert right["protocol"]["different"] == 3


def test_rouge_of_a_half_right_sentence_is_the_published_formula() -> None:
    result = captioning.score(table(["a ball falls", "a box opens"], [["a ball rises"], ["a box opens"]]))
    assert result["figures"]["rouge_l"] == pytest.approx((2 / 3 + 1) / 2)  # precision = recall = 2 / 3: so is F


def test_an_empty_caption_is_scored_as_wrong() -> None:
    result = captioning.score(table(["", "a box opens"], [["a ball rises"], ["a box opens"]]))
    assert result["figures"]["rouge_l"] == pytest.approx(0.5)


@pytest.fixture(scope="module")
def weights() -> Path:
    return small_apps.trained("multimodal")


def rows(folder: Path, count: int) -> Path:
    """A manifest of so many clips of the small world."""
    whole = read_manifest(small_world.world())
    placed = [row.model_copy(update={"path": str(whole.video_path(row))}) for row in whole.rows[:count]]
    write_manifest(folder / "rows.jsonl", placed, whole.classes)
    return folder / "rows.jsonl"


def test_a_split_is_captioned_and_scored_again_from_its_table(weights: Path, tmp_path: Path) -> None:
    settings = {"device": "cpu", "batch_size": 5, "num_beams": 2}
    result = evaluate_task("captioning", weights, rows(tmp_path, 22), tmp_path, settings)
    assert result["coverage"]["read"] == 22
    assert result["protocol"]["decoding"] == {"num_beams": 2, "top_p": 0.0, "seed": 0}
    assert score_table(tmp_path / "captioning.npz")["figures"] == result["figures"]
    assert len((tmp_path / "examples.jsonl").read_text().splitlines()) == 20, "no more than so many"


def test_drawn_captions_follow_from_the_seed(weights: Path, tmp_path: Path) -> None:
    written, few = [], rows(tmp_path, 4)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        settings = {"device": "cpu", "top_p": 0.95, "seed": seed}
        evaluate_task("captioning", weights, few, tmp_path / name, settings)
        written.append(Predictions.load(tmp_path / name / "captioning.npz")["written"].tolist())
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize(("beams", "nucleus"), [(0, 0.0), (2, 0.5), (1, 1.5)])
def test_ways_of_writing_that_there_are_not(beams: int, nucleus: float) -> None:
    with pytest.raises(RecipeError, match="decoding"):
        captioning.DecodingSettings(beams, nucleus)
