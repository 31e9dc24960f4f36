"""Future hands: the stored results of the published evaluator, one test a quantity, and closed forms."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from goldens_folder import GOLDENS

from internvideo.metrics import bootstrap
from internvideo.objectives.positions import masked_smooth_l1
from internvideo.tasks.future_hands.metrics import FIGURES, HANDS, MOMENTS, displacement_statistic

FOLDER = GOLDENS / "tasks" / "ego4d_fhp"


def read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


STORED = read("expected")
NO_FIGURES = ("num_clips", "order", "masked_smooth_l1_beta5")


def positions() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    truth, found = read("gt"), read("pred")
    submitted = np.asarray([found[name] for name in truth], dtype=np.float64)
    true = np.asarray(list(truth.values()), dtype=np.float64).reshape(-1, 5, 2, 2)
    # A submission has the sum over the views of a video.
    return submitted.reshape(-1, MOMENTS, HANDS, 2) / STORED["num_clips"], true


def displacement(predicted: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> dict[str, float]:
    figures = displacement_statistic(predicted, truth)(np.ones((1, len(truth))))[0]
    return dict(zip(FIGURES, figures.tolist(), strict=True))


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in STORED if name not in NO_FIGURES])
def test_displacement(name: str) -> None:
    assert displacement(*positions())[name] == pytest.approx(STORED[name], abs=1e-6)


@pytest.mark.parity
def test_every_figure_is_stored() -> None:
    assert set(STORED) >= {*FIGURES, *NO_FIGURES}
    assert STORED["order"].split(" for ")[0] == "x_left,y_left,x_right,y_right"


@pytest.mark.parity
def test_loss() -> None:
    predicted, truth = (torch.from_numpy(values) for values in positions())
    loss = masked_smooth_l1(predicted, truth, truth != 0)
    assert loss.item() == pytest.approx(STORED["masked_smooth_l1_beta5"], rel=1e-6)


def test_only_visible_hands_count() -> None:
    truth = np.zeros((2, 5, 2, 2))
    truth[0, 4, 0] = (10.0, 20.0)
    truth[1, 0, 0] = (10.0, 20.0)
    predicted = truth + np.array([3.0, 4.0])
    predicted[:, :, 1] = 1e9
    found = displacement(predicted, truth)
    assert found["left_mean_displacement"] == found["left_contact_displacement"] == 5.0
    assert np.isnan([found["right_mean_displacement"], found["right_contact_displacement"]]).all()


def test_the_interval_of_equal_errors_is_a_point() -> None:
    truth = np.random.default_rng(0).uniform(10, 90, (6, 5, 2, 2))
    statistic = displacement_statistic(truth + np.array([6.0, 8.0]), truth)
    np.testing.assert_allclose(bootstrap.interval(statistic, 6, draws=50), 10.0)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="predicted"):
        displacement(np.zeros((3, 5, 2, 2)), np.zeros((2, 5, 2, 2)))


def test_nothing_visible_costs_nothing() -> None:
    predicted = torch.ones(2, 20, requires_grad=True)
    loss = masked_smooth_l1(predicted, torch.zeros(2, 20), torch.zeros(2, 20, dtype=torch.bool))
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert predicted.grad is not None
    assert not predicted.grad.any()
