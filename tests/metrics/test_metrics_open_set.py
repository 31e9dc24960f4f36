"""Open-set figures: the stored results of the published evaluator, an independent library, and closed forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from goldens_folder import GOLDENS
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, f1_score, precision_recall_curve, roc_auc_score

from internvideo.tasks.open_set import metrics as o

FOLDER = GOLDENS / "tasks" / "open_set"
STORED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text("utf-8"))["evaluation"]
with np.load(FOLDER / "open_set.npz", allow_pickle=False) as file:
    ARRAYS = {name: file[name] for name in file.files}
CLASSES = ARRAYS["ind_logits"].shape[1]
KINDS = {"raw_uncertainty", "binarised_at_threshold", "softmax_max_prob_baseline"}


def evidence(logits: Any) -> Any:
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def uncertainties(kind: str) -> tuple[Any, Any]:
    if kind == "softmax_max_prob_baseline":
        return tuple(1 - evidence(ARRAYS[f"{name}_logits"].astype(np.float64)).max(axis=1) for name in ("ind", "ood"))
    return ARRAYS["ind_unctt"], ARRAYS["ood_unctt"]


@pytest.mark.parity
def test_every_stored_figure_is_read() -> None:
    text = Path(__file__).read_text("utf-8")
    assert [name for name in STORED if f'STORED["{name}"]' not in text and name not in KINDS] == []
    assert {group for group, values in STORED.items() if isinstance(values, dict)} == KINDS


@pytest.mark.parity
def test_threshold() -> None:
    train = ARRAYS["train_unctt"]
    assert np.sort(train)[-STORED["rank_used_from_top"]] == o.rejection_threshold(train)
    assert o.rejection_threshold(ARRAYS["train_unctt"]) == pytest.approx(STORED["train_threshold_95"], abs=1e-6)


GROUPS = [(group, name) for group, values in STORED.items() if isinstance(values, dict) for name in values]


@pytest.mark.parity
@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_binary_figures(group: str, name: str) -> None:
    threshold = STORED["train_threshold_95"] if group == "binarised_at_threshold" else None
    if name == "closed_set_accuracy":
        value = float((ARRAYS["ind_logits"].argmax(axis=1) == ARRAYS["ind_labels"]).mean())
    else:
        value = o.detection_metrics(*uncertainties(group), threshold)[name]
    assert value == pytest.approx(STORED[group][name], abs=1e-6)


@pytest.mark.parity
def test_mann_whitney() -> None:
    raw = o.auroc(*uncertainties("raw"))
    assert raw == pytest.approx(STORED["independent_auroc_mann_whitney"], abs=1e-9)
    binary = o.detection_metrics(*uncertainties("raw"), STORED["train_threshold_95"])["auroc"]
    assert binary == pytest.approx(STORED["independent_binarised_auroc"], abs=1e-9)


@pytest.mark.parity
def test_openness() -> None:
    stored = STORED["openness_percent_by_number_of_unknown_classes"]
    assert [100 * o.openness(CLASSES, n) for n in range(len(stored))] == pytest.approx(stored, abs=1e-9)


def predictions() -> tuple[Any, Any]:
    return tuple(
        o.reject_uncertain(
            ARRAYS[f"{name}_logits"].argmax(axis=1), ARRAYS[f"{name}_unctt"], STORED["train_threshold_95"], CLASSES
        )
        for name in ("ind", "ood")
    )


@pytest.mark.parity
def test_macro_f1() -> None:
    known, unknown = predictions()
    labels = ARRAYS["ind_labels"]
    assert o.macro_f1(labels, known) == pytest.approx(STORED["macro_f1_closed"], abs=1e-9)
    every = np.concatenate([labels, np.full(len(unknown), CLASSES)])
    assert o.macro_f1(every, np.concatenate([known, unknown])) == pytest.approx(
        STORED["macro_f1_all_unknown"], abs=1e-9
    )


@pytest.mark.parity
@pytest.mark.parametrize("index", range(len(STORED["macro_f1_one_unknown_class_each"])))
def test_macro_f1_with_one_unknown_class(index: int) -> None:
    known, unknown = predictions()
    chosen = ARRAYS["ood_labels"] == np.unique(ARRAYS["ood_labels"])[index]
    labels = np.concatenate([ARRAYS["ind_labels"], np.full(int(chosen.sum()), CLASSES)])
    value = o.macro_f1(labels, np.concatenate([known, unknown[chosen]]))
    assert value == pytest.approx(STORED["macro_f1_one_unknown_class_each"][index], abs=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("index", range(len(STORED["macro_f1_one_unknown_class_each"])))
def test_open_macro_f1_of_one_unknown_class_is_its_macro_f1(index: int) -> None:
    known, unknown = predictions()
    chosen = ARRAYS["ood_labels"] == np.unique(ARRAYS["ood_labels"])[index]
    rest = (ARRAYS["ood_labels"][chosen], unknown[chosen])
    value = o.open_macro_f1((ARRAYS["ind_labels"], known), rest, CLASSES)
    assert value == pytest.approx(STORED["macro_f1_one_unknown_class_each"][index], abs=1e-9)


@pytest.mark.parity
def test_entropy_of_draws() -> None:
    draws = ARRAYS["stochastic_probs"].astype(np.float64)
    np.testing.assert_allclose(o.entropy(draws), STORED["entropy"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(o.mutual_information(draws), STORED["bald"], rtol=0, atol=1e-6)


def test_certain_draws_have_no_entropy() -> None:
    """Soft-max rounds to 0 and 1: 0 log 0 is 0."""
    one, other = [1.0, 0.0], [0.0, 1.0]
    draws = np.asarray([[one, one], [one, other]]).transpose(0, 2, 1)
    np.testing.assert_allclose(o.entropy(draws), [0.0, np.log(2)])
    np.testing.assert_allclose(o.mutual_information(draws), [0.0, np.log(2)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_against_an_independent_library(known: list[int], unknown: list[int]) -> None:
    scores, labels = known + unknown, [0] * len(known) + [1] * len(unknown)
    a, b = np.asarray(known, dtype=float), np.asarray(unknown, dtype=float)
    assert o.auroc(a, b) == pytest.approx(roc_auc_score(labels, scores))
    assert o.macro_f1(np.asarray(labels), np.asarray(scores)) == pytest.approx(
        f1_score(labels, scores, average="macro", zero_division=0)
    )
    precision, recall, _ = precision_recall_curve(labels, scores)
    assert o.aupr(a, b) == pytest.approx(auc(recall, precision))


def test_perfect_and_useless_uncertainty() -> None:
    low, high = np.zeros(5), np.ones(4)
    assert o.detection_metrics(low, high) == {"auroc": 1.0, "aupr": 1.0, "fpr95": 0.0}
    assert o.auroc(low, np.zeros(4)) == 0.5
    with pytest.raises(ValueError, match="both known and unknown"):
        o.auroc(low, np.zeros(0))
    with pytest.raises(ValueError, match="no threshold"):
        o.rejection_threshold(np.zeros(0))


@pytest.mark.parametrize("digits", [8, 1])
def test_figures_of_drawn_samples_are_those_of_the_samples(digits: int) -> None:
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(size=60).round(digits), rng.normal(1, 1, size=40).round(digits)
    statistic = o.detection_statistic(np.concatenate([known, unknown]), np.repeat([False, True], [60, 40]))
    draws = rng.integers(0, 3, (5, 100))
    draws[0] = 1
    expected = [
        list(o.detection_metrics(np.repeat(known, drawn[:60]), np.repeat(unknown, drawn[60:])).values())
        for drawn in draws
    ]
    np.testing.assert_allclose(statistic(draws.astype(float)), expected, rtol=1e-12)


def test_a_draw_without_one_kind_takes_all_of_it() -> None:
    statistic = o.detection_statistic(np.array([0.1, 0.2, 0.3, 0.15]), np.array([False, False, True, True]))
    values = statistic(np.array([[2.0, 2.0, 0.0, 0.0], [2.0, 2.0, 1.0, 1.0]]))
    assert values[0].tolist() == values[1].tolist()


def test_risk_of_what_is_accepted() -> None:
    coverage, risk = o.risk_coverage(np.array([0.3, 0.1, 0.2, 0.9]), np.array([False, True, True, False]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == [0.0, 0.0, 1 / 3, 0.5]
