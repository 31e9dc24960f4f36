"""Adapt habitat-sim to `NavEnv`: Matterport3D and other scanned houses.

Written against the documented calls of habitat-sim and habitat-lab and tested with a fake of that interface; not run
with habitat itself, which cannot be installed with this package's Python version. Habitat is not imported: the caller
passes a function that opens a scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from internvideo.errors import RunError
from internvideo.tasks.navigation.world.episodes import from_habitat, heading_to_quaternion, to_habitat
from internvideo.tasks.navigation.world.protocol import STEP, VIEWS, Episode, NavEnv, Observation, Pose, Position

RGB, DEPTH = "rgb", "depth"
"""Names of the two sensors: 90 degrees wide, level, 1.25 m above the agent's feet."""


class Habitat(NavEnv):
    """A `NavEnv` over a habitat simulator; scanned houses are static.

    Args:
        open_scene: maps a scene to a simulator; called when the scene of an episode differs from the previous one.
            Methods of the simulator (habitat-lab's HabitatSim) that are used: get_observations_at(position, rotation,
            keep_agent_at_new_pose=False), which returns None at an invalid position, geodesic_distance(a, b),
            pathfinder.try_step(start, end) and pathfinder.is_navigable(point), with positions [X, Y, Z] and
            quaternions [x, y, z, w].
        max_depth: meters of depth 1.0. None for depth sensors with normalize_depth, whose values are 0..1 already.
    """

    def __init__(self, open_scene: Callable[[str], Any], max_depth: float | None = None) -> None:
        super().__init__()
        self._open_scene, self._max_depth = open_scene, max_depth
        self._scene = ""
        self._simulator: Any = None

    @property
    def simulator(self) -> Any:
        """The open scene. Raises ValueError before the first reset."""
        if self._simulator is None:
            raise ValueError("no simulator before the first reset")
        return self._simulator

    def reset(self, episode: Episode) -> Pose:
        """Go to the start of an episode."""
        if self._simulator is None or episode.scene != self._scene:
            self._simulator, self._scene = self._open_scene(episode.scene), episode.scene
        self.set_state(episode.start, 0)
        return episode.start

    def observe(self, pose: Pose | None = None, tick: int | None = None) -> Observation:
        """Render 12 views counter-clockwise at any pose.

        Raises:
            RunError: the simulator renders nothing there, or lacks a sensor.
        """
        pose = pose or self.pose
        rgb, depths = [], []
        for view in range(VIEWS):
            rotation = heading_to_quaternion(pose.heading + view * 2 * math.pi / VIEWS)
            images = self.simulator.get_observations_at(
                to_habitat(pose.position), rotation, keep_agent_at_new_pose=False
            )
            if images is None or RGB not in images or DEPTH not in images:
                found = "nothing" if images is None else ", ".join(sorted(images))
                raise RunError(self._scene, f"renders {found} at {pose}", f"sensors named {RGB} and {DEPTH}")
            rgb.append(np.asarray(images[RGB], dtype=np.uint8)[..., :3])
            depth = np.asarray(images[DEPTH], dtype=np.float32)
            depths.append(depth[..., 0] if depth.ndim == 3 else depth)
        return Observation(np.stack(rgb), np.clip(np.stack(depths) / (self._max_depth or 1.0), 0, 1))

    def _forward(self, pose: Pose) -> tuple[Pose, bool]:
        ahead = (pose.x + STEP * math.cos(pose.heading), pose.y + STEP * math.sin(pose.heading), pose.height)
        reached = self.simulator.pathfinder.try_step(to_habitat(pose.position), to_habitat(ahead))
        x, y, height = from_habitat([float(value) for value in reached])
        # Steps over stairs end higher or lower, so only the floor's axes show a collision.
        return Pose(x, y, pose.heading, height), math.dist((x, y), ahead[:2]) > 1e-3

    def geodesic(self, a: Position, b: Position) -> float:
        """Return the path length over the navigation mesh, m; inf if there is no path."""
        return float(self.simulator.geodesic_distance(to_habitat(a), to_habitat(b)))

    def free(self, position: Position) -> bool:
        """Return whether the agent can stand at a position."""
        return bool(self.simulator.pathfinder.is_navigable(to_habitat(position)))
