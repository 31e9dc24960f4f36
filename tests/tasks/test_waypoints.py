"""Waypoint decoding: every stored value of the golden, and the geometry of the heat map."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from goldens_folder import GOLDENS
from torch import Tensor

from internvideo.tasks.navigation.waypoints import (
    Candidates,
    WaypointConfig,
    WaypointPredictor,
    clockwise,
    extract_candidates,
    jitter_waypoints,
    neighbor_mask,
    non_max_suppression,
    panorama_angles,
)

FOLDER = GOLDENS / "tasks" / "vln_waypoints"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text("utf-8"))
PARTS = {
    "angle_index": "angle",
    "distance_index": "distance",
    "turn_angle_ccw_rad": "heading_change",
    "distance_m": "meters",
    "panorama_image_index_ccw": "view",
    "angle_feature_clockwise": "angle_feature",
    "distance_feature": "distance_feature",
}
"""Stored name -> ours."""


def stored(name: str) -> Tensor:
    with np.load(FOLDER / "waypoints.npz", allow_pickle=False) as file:
        return torch.from_numpy(file[name])


def probabilities() -> Tensor:
    logits = stored("heatmap_logits")
    return logits.flatten(1).softmax(dim=1).view_as(logits)


def small() -> WaypointPredictor:
    torch.manual_seed(0)
    return WaypointPredictor(WaypointConfig(depth_width=6, width=8, heads=2, dropout=0.0)).eval()


def names() -> list[str]:
    with np.load(FOLDER / "waypoints.npz", allow_pickle=False) as file:
        return list(file.files)


@pytest.mark.parity
@pytest.mark.parametrize("name", names())
def test_every_stored_array(name: str) -> None:
    if name == "heatmap_logits":
        assert len(stored(name)) == len(EXPECTED["candidates"])
    elif name == "attention_mask_neighbour1":
        assert torch.equal(neighbor_mask(), stored(name)[0, 0].bool())
    else:
        whole = {"nms_map_true_division": False, "nms_map_floor_division": True}[name]
        found = non_max_suppression(probabilities(), floor_rows=whole)
        torch.testing.assert_close(found, stored(name), rtol=1e-5, atol=1e-7)


@pytest.mark.parity
def test_panorama_angles() -> None:
    torch.testing.assert_close(panorama_angles(), torch.tensor(EXPECTED["panorama_angle_features"]), rtol=0, atol=1e-7)


@pytest.mark.parity
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("number", range(len(EXPECTED["candidates"])))
def test_candidates(number: int, name: str) -> None:
    found = extract_candidates(non_max_suppression(probabilities())[number])
    value: Tensor = getattr(found, PARTS[name])
    if name == "distance_feature":
        assert bool((value == value[:, :1]).all())
        value = value[:, 0]
    torch.testing.assert_close(value, torch.tensor(EXPECTED["candidates"][number][name]), rtol=1e-6, atol=1e-6)


@pytest.mark.parity
def test_every_stored_value_is_compared() -> None:
    assert set(EXPECTED) == {"panorama_angle_features", "candidates"}
    assert all(set(case) == set(PARTS) for case in EXPECTED["candidates"])


# --- geometry --------------------------------------------------------------------------------------------------------


def test_the_view_of_a_place_looks_at_most_fifteen_degrees_past_it() -> None:
    every = Candidates(torch.arange(120), torch.zeros(120, dtype=torch.int64))
    off = torch.remainder(every.heading_change - every.view * math.pi / 6 + math.pi, 2 * math.pi) - math.pi
    assert math.degrees(float(off.abs().max())) <= 15 + 1e-4


def test_a_view_answers_for_the_directions_around_it_and_is_heard_by_its_neighbours_of_two_layers() -> None:
    model = small()
    depth = torch.randn(1, 12, 6, generator=torch.Generator().manual_seed(0))
    changed = depth.clone()
    changed[0, 3] += 1  # to the left: 270 degrees clockwise, bins 85..94
    moved = (model(depth) - model(changed)).abs().sum(dim=2)[0]
    per_view = moved.roll(5).reshape(12, 10).sum(dim=1)  # clockwise
    assert torch.equal(per_view > 0, torch.tensor([number in (7, 8, 9, 10, 11) for number in range(12)]))


def test_clockwise_and_back() -> None:
    views = torch.arange(12)[None]
    assert clockwise(views)[0, :3].tolist() == [0, 11, 10]
    assert torch.equal(clockwise(clockwise(views)), views)


def test_spreading_stays_inside_the_view_and_follows_the_heat() -> None:
    found = Candidates(torch.tensor([2, 58, 118]), torch.tensor([0, 5, 11]))
    logits = torch.zeros(120, 12)
    drawn = [jitter_waypoints(found, logits, torch.Generator().manual_seed(seed)) for seed in range(30)]
    assert all(torch.equal(one.view, found.view) for one in drawn)
    assert len({tuple(one.angle.tolist()) for one in drawn}) > 10
    logits[57, 3] = 100.0
    sure = jitter_waypoints(found, logits, torch.Generator().manual_seed(0))
    assert (int(sure.angle[1]), int(sure.distance[1])) == (57, 3)


def test_fewer_places_than_picks_where_the_map_is_narrow() -> None:
    heat = torch.zeros(1, 120, 12)
    heat[0, 60, 4] = 1.0
    found = extract_candidates(non_max_suppression(heat)[0])
    assert (found.angle.tolist(), found.distance.tolist()) == ([60], [4])
