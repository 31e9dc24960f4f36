"""Figures by kind: of wrong options, of unknown clips; and the sentences that class names are asked with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from internvideo.data.sample import Choice
from internvideo.errors import ManifestError
from internvideo.tasks.multiple_choice import predict as multiple_choice
from internvideo.tasks.open_set import metrics as open_set_metrics
from internvideo.tasks.open_set import predict as open_set
from internvideo.tasks.table import Predictions
from internvideo.tasks.zero_shot.templates import ACTION_TEMPLATES, read_templates

COVERAGE = {"asked": 3, "read": 3, "unreadable": []}


def test_accuracy_against_each_kind_of_wrong_option() -> None:
    kinds = np.asarray([["right", "shape", "place"], ["shape", "right", "place"], ["place", "shape", "right"]])
    scores = np.asarray([[0.5, 0.6, 0.1], [0.2, 0.7, 0.1], [0.4, 0.3, 0.3]])
    arrays = {
        "ids": np.asarray(["a", "b", "c"]),
        "answers": np.asarray([0, 1, 2]),
        "options": np.full(3, 3),
        "kinds": kinds,
        "probabilities": scores,
    }
    figures = multiple_choice.score(Predictions("multiple_choice", arrays, {}, COVERAGE))["figures"]
    assert figures["accuracy"] == pytest.approx(1 / 3)
    assert figures["against_shape"] == pytest.approx(1 / 3)  # a tie is no win
    assert figures["against_place"] == pytest.approx(2 / 3)
    assert "against_right" not in figures
    del arrays["kinds"]
    plain = multiple_choice.score(Predictions("multiple_choice", arrays, {}, COVERAGE))["figures"]
    assert set(plain) == {"accuracy"}


def test_every_option_has_a_kind_or_none() -> None:
    assert Choice(options=("a", "b"), answer=0, kinds=("right", "shape")).kinds == ("right", "shape")
    with pytest.raises(ValidationError, match="one kind for each of the 2 options"):
        Choice(options=("a", "b"), answer=0, kinds=("right",))


def test_the_open_set_tells_near_from_far_unknowns() -> None:
    rng = np.random.default_rng(0)
    labels = np.r_[np.zeros(40), np.ones(40), np.full(60, -1)].astype(int)
    novelty = np.asarray([""] * 80 + ["near"] * 30 + ["far"] * 30)
    doubt = rng.random(140) + np.where(novelty == "far", 0.8, 0.0)
    arrays = {
        "labels": labels,
        "strangers": np.asarray([""] * 80 + ["new"] * 60),
        "novelty": novelty,
        "predicted:model": np.r_[labels[:80], np.zeros(60)].astype(int),
        "uncertainty:model": doubt,
        "train_uncertainty:model": rng.random(100),
    }
    table = Predictions("open_set", arrays, {"known_classes": 2}, COVERAGE)
    figures = open_set.score(table)["figures"]
    for kind in ("near", "far"):
        expected = open_set_metrics.detection_metrics(doubt[:80], doubt[novelty == kind])["auroc"]
        assert figures[f"model.auroc_{kind}"] == pytest.approx(expected)
    assert figures["model.auroc_near"] < figures["model.auroc"] < figures["model.auroc_far"]
    del arrays["novelty"]  # a table of before
    assert "model.auroc_far" not in open_set.score(table)["figures"]


def test_templates_are_those_of_the_data_set(tmp_path: Path) -> None:
    manifest = tmp_path / "test.jsonl"
    assert read_templates(manifest) == ACTION_TEMPLATES
    (tmp_path / "templates.txt").write_text("a clip of {}\n\nsomething {}\n")
    assert read_templates(manifest) == ("a clip of {}", "something {}")
    (tmp_path / "test.templates.txt").write_text("{}\n")
    assert read_templates(manifest) == ("{}",)
    given = tmp_path / "own.txt"
    given.write_text("no place for it\n")
    with pytest.raises(ManifestError, match="no place for it"):
        read_templates(manifest, given)
