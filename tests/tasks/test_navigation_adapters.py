"""Other worlds behind the same protocol: habitat through a stand-in, MiniWorld where it can be used."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from internvideo.errors import RunError
from internvideo.tasks.navigation.world.episodes import from_habitat, quaternion_to_heading, to_habitat
from internvideo.tasks.navigation.world.habitat import Habitat
from internvideo.tasks.navigation.world.house import generate_house
from internvideo.tasks.navigation.world.miniworld import MiniWorld
from internvideo.tasks.navigation.world.protocol import Episode, NavEnv, Pose
from internvideo.tasks.navigation.world.raycast import MAX_DEPTH
from internvideo.tasks.navigation.world.world import House, World

SCENES = {name: generate_house(name, seed) for name, seed in (("a", 3), ("b", 4))}


class StandIn:
    """The calls of habitat's simulator, answered by an embedded house on a floor at 0.3 m. It is not habitat."""

    def __init__(self, scene: str) -> None:
        self.house = House(SCENES[scene])
        self.sensors = {"rgb", "depth"}
        self.pathfinder = self

    def get_observations_at(
        self, position: list[float], rotation: list[float], keep_agent_at_new_pose: bool = False
    ) -> Mapping[str, Any] | None:
        assert not keep_agent_at_new_pose
        if not self.is_navigable(position):
            return None
        x, y, _ = from_habitat(position)
        rgb, depth = self.house.camera.views(Pose(x, y, 0.0), np.array([quaternion_to_heading(rotation)]), 0, 16)
        alpha = np.full((16, 16, 1), 255, dtype=np.uint8)
        seen = {"rgb": np.concatenate([rgb[0], alpha], axis=2), "depth": depth[0][..., None] * MAX_DEPTH}
        return {name: seen[name] for name in self.sensors}

    def geodesic_distance(self, position_a: list[float], position_b: list[float]) -> float:
        a, b = from_habitat(position_a), from_habitat(position_b)
        return float(self.house.ground.distances(np.array([a[:2]]), b)[0])

    def try_step(self, start: list[float], end: list[float]) -> np.ndarray:
        a, b = from_habitat(start), from_habitat(end)
        (x, y), _ = self.house.ground.slide(a[:2], (b[0] - a[0], b[1] - a[1]))
        return np.array(to_habitat((x, y, 0.3)), dtype=np.float64)

    def is_navigable(self, point: list[float]) -> bool:
        return bool(self.house.ground.free(np.array([from_habitat(point)[:2]]))[0])


def episode(scene: str) -> Episode:
    x, y = SCENES[scene].rooms[0].x0 + 0.6, SCENES[scene].rooms[0].y0 + 0.6
    return Episode("1", scene, "train", Pose(x, y, 0.4, 0.3), None, 3.0, "Stop.", "1", np.zeros((0, 3)), None)


def test_habitat_and_the_embedded_world_agree_on_the_same_house() -> None:
    opened: list[str] = []

    def open_scene(name: str) -> StandIn:
        opened.append(name)
        return StandIn(name)

    habitat: NavEnv = Habitat(open_scene, max_depth=MAX_DEPTH)
    world: NavEnv = World(SCENES, 16)
    for scene in ("a", "b", "b"):
        assert habitat.reset(episode(scene)) == world.reset(episode(scene))
        rng = np.random.default_rng(0)
        for _ in range(6):
            turn, distance = float(rng.uniform(-3, 3)), float(rng.uniform(0, 3))
            ours, theirs = world.step(turn, distance), habitat.step(turn, distance)
            assert (ours.ticks, ours.collided) == (theirs.ticks, theirs.collided)
            for a, b in zip(ours.poses, theirs.poses, strict=True):
                np.testing.assert_allclose((a.x, a.y, a.heading, a.height), (b.x, b.y, b.heading, b.height), atol=1e-9)
        seen, other = world.observe(tick=0), habitat.observe()
        assert (np.abs(seen.rgb.astype(int) - other.rgb) > 2).mean() < 0.01
        assert (np.abs(seen.depth - other.depth) > 1e-3).mean() < 0.01
        assert other.depth.shape == (12, 16, 16)
        goal = SCENES[scene].rooms[-1].x1 - 0.5, SCENES[scene].rooms[-1].y1 - 0.5, 0.3
        assert habitat.geodesic(habitat.pose.position, goal) == pytest.approx(world.geodesic(world.pose.position, goal))
        assert habitat.free(goal)
        assert not habitat.free((-1, -1, 0.3))
    assert opened == ["a", "b"]


def test_what_habitat_does_not_show_is_told() -> None:
    habitat = Habitat(StandIn)
    with pytest.raises(ValueError, match="reset"):
        habitat.observe()
    habitat.reset(episode("a"))
    with pytest.raises(RunError, match="nothing"):
        habitat.observe(Pose(-5, -5, 0.0))
    habitat.simulator.sensors.discard("depth")  # type: ignore[attr-defined]  # of the stand-in
    with pytest.raises(RunError, match="rgb"):
        habitat.observe()
    habitat.set_state(Pose(1, 1, 0.0), 4)
    assert (habitat.pose, habitat.tick) == (Pose(1, 1, 0.0), 4)


@pytest.mark.skipif(importlib.util.find_spec("miniworld") is None, reason="MiniWorld is an optional extra")
@pytest.mark.slow  # OpenGL in software takes 10 s to start
@pytest.mark.filterwarnings("ignore")  # of pyglet and gymnasium, on import
def test_miniworld_draws_the_same_houses() -> None:
    """Depth agrees with the rays' but for the depth buffer's 16 bits and pixels on edges."""
    try:
        drawn: NavEnv = MiniWorld(SCENES, 48)
    except RunError as error:
        pytest.skip(str(error))  # no OpenGL on this machine
    rays = World(SCENES, 48)
    for scene in ("a", "b"):
        drawn.reset(episode(scene))
        rays.reset(episode(scene))
        for env in (drawn, rays):
            env.step(math.radians(60), 1.0)
        assert drawn.pose == rays.pose
        seen, expected = drawn.observe(tick=3), rays.observe(tick=3)
        assert seen.rgb.shape == expected.rgb.shape
        assert (np.abs(seen.depth - expected.depth) > 0.02).mean() < 0.03
        assert np.abs(seen.depth - expected.depth).mean() < 0.005


@pytest.mark.skipif(importlib.util.find_spec("miniworld") is not None, reason="MiniWorld is there")
def test_without_miniworld_its_world_says_what_to_do() -> None:
    with pytest.raises(RunError, match="pip install"):
        MiniWorld(SCENES)
