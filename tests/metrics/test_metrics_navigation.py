"""Navigation metrics: every stored value of the golden, one test each, and what the formulas mean."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from goldens_folder import GOLDENS

from internvideo.tasks.navigation import metrics as n
from internvideo.tasks.navigation.metrics import WalkResult

FOLDER = GOLDENS / "tasks" / "vln_metrics"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text("utf-8"))
EPISODES: list[dict[str, Any]] = json.loads((FOLDER / "episodes.json").read_text("utf-8"))["episodes"]
QUANTITIES = tuple(EXPECTED["mean"])


@cache
def measured(number: int) -> dict[str, float]:
    episode = EPISODES[number]
    walked = WalkResult(
        np.asarray(episode["path"]),
        np.asarray(episode["geodesic_distance_to_goal_at_decisions"]),
        episode["stop_called"],
    )
    raw = np.asarray(episode["gt_locations"])
    dense = n.densify(raw)
    fast = n.ndtw(walked.path, dense)
    return {
        "distance_to_goal": n.navigation_error(walked),
        "success": n.success(walked),
        "oracle_success": n.oracle_success(walked),
        "path_length": n.path_length(walked),
        "spl": n.success_by_path_length(walked),
        "ndtw_fast_radius1_on_densified_gt": fast,
        "ndtw_exact_on_densified_gt": n.ndtw(walked.path, dense, fast=False),
        "ndtw_exact_on_raw_gt": n.ndtw(walked.path, raw, fast=False),
        "ndtw_fast_on_raw_gt": n.ndtw(walked.path, raw),
        "sdtw": n.success(walked) * fast,
        "densified_gt_length": len(dense),
    }


@pytest.mark.parity
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("number", range(len(EPISODES)))
def test_every_stored_quantity_of_an_episode(number: int, quantity: str) -> None:
    assert measured(number)[quantity] == pytest.approx(EXPECTED["per_episode"][number][quantity], abs=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_stored_mean(quantity: str) -> None:
    mean = np.mean([measured(number)[quantity] for number in range(len(EPISODES))])
    assert mean == pytest.approx(EXPECTED["mean"][quantity], abs=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("number", range(len(EXPECTED["densify"])))
def test_every_stored_densified_path(number: int) -> None:
    case = EXPECTED["densify"][number]
    np.testing.assert_allclose(n.densify(np.asarray(case["path"])), case["densified_0p25"], atol=1e-9)


@pytest.mark.parity
def test_every_stored_quantity_is_compared() -> None:
    assert set(EXPECTED) == {"per_episode", "mean", "densify"}
    assert len(EXPECTED["per_episode"]) == len(EPISODES)
    assert all(set(row) == set(measured(0)) == set(QUANTITIES) for row in EXPECTED["per_episode"])


# --- what they mean --------------------------------------------------------------------------------------------------


def line(*x: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.stack([np.asarray(x, dtype=np.float64), np.zeros(len(x))], axis=1)


def test_a_walk_along_the_reference_is_perfect() -> None:
    path = line(0, 1, 2, 3)
    walked = WalkResult(path, np.asarray([3.0, 0.0]), True)
    assert n.ndtw(path, path, fast=False) == n.ndtw(path, path) == 1.0
    assert n.success(walked) == n.success_by_path_length(walked) == 1.0


def test_being_off_by_the_radius_all_along_costs_a_factor_of_e() -> None:
    path = line(0, 1, 2, 3)
    assert n.ndtw(path + np.asarray([0, 3]), path, fast=False) == pytest.approx(math.exp(-1))


def test_a_detour_halves_spl_and_one_who_does_not_stop_has_none() -> None:
    there = WalkResult(line(0, 4, 0, 4), np.asarray([6.0, 2.0]), True)
    assert n.success_by_path_length(there) == pytest.approx(6 / 12)
    assert n.success_by_path_length(WalkResult(there.path, there.decision_distances, False)) == 0.0
    assert n.oracle_success(WalkResult(there.path, there.decision_distances, False)) == 1.0


def test_the_two_oracle_measures_differ_at_the_edge_and_between_decisions() -> None:
    walked = WalkResult(line(0, 1, 2), np.asarray([5.0, 3.0]), True, distances=np.asarray([5.0, 4.0, 3.0]))
    assert (n.oracle_success(walked), n.oracle_success_any_position(walked)) == (1.0, 0.0)
    passing = WalkResult(walked.path, np.asarray([5.0, 4.0]), True, distances=np.asarray([5.0, 1.0, 4.0]))
    assert (n.oracle_success(passing), n.oracle_success_any_position(passing)) == (0.0, 1.0)
    with pytest.raises(ValueError, match="has no distances between"):
        n.oracle_success_any_position(WalkResult(walked.path, walked.decision_distances, True))


def test_the_approximate_alignment_is_never_cheaper_and_equals_the_exact_one_within_a_wide_radius() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (rng.normal(size=(int(size), 2)).cumsum(axis=0) for size in rng.integers(1, 40, size=2))
        exact = n.exact_dtw(a, b)
        assert n.fast_dtw(a, b) >= exact - 1e-12
        assert n.fast_dtw(a, b, radius=40) == pytest.approx(exact)


def test_one_point_and_standing_still_are_walks_too() -> None:
    here = line(1.0)
    walked = WalkResult(here, np.asarray([0.0]), True)
    assert n.path_length(walked) == 0.0
    assert n.success_by_path_length(walked) == 1.0
    assert n.ndtw(here, line(0, 1), fast=True) == pytest.approx(math.exp(-1 / 6))
    np.testing.assert_array_equal(n.densify(here, height_axis=None), here)
