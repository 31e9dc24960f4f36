"""The embedded world: houses rendered by ray casting, with exact distances. Needs only NumPy and SciPy."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from internvideo.errors import ManifestError
from internvideo.tasks.navigation.world.free_space import FreeSpace
from internvideo.tasks.navigation.world.protocol import STEP, Episode, NavEnv, Observation, Pose, Position
from internvideo.tasks.navigation.world.raycast import Camera
from internvideo.tasks.navigation.world.scene import BODY, Scene, build_walls, footprints, read_scene


class House:
    """A scene with its camera and free space, both built on first use."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.walls = build_walls(scene)

    @cached_property
    def camera(self) -> Camera:
        """Renderer of the scene."""
        return Camera(self.scene, self.walls)

    @cached_property
    def ground(self) -> FreeSpace:
        """Free space of the scene."""
        return FreeSpace(footprints(self.scene, self.walls), (0.0, 0.0, *self.scene.size), BODY)


class World(NavEnv):
    """The embedded world (a `NavEnv`).

    Args:
        scenes: scenes in memory by name; or a folder of `internvideo navigation-world`, where names are relative paths.
        size, depth_size: sides of the RGB and of the depth views in pixels; `depth_size` is `size` by default.
    """

    def __init__(self, scenes: Mapping[str, Scene] | Path, size: int = 32, depth_size: int | None = None) -> None:
        if size < 1 or (depth_size is not None and depth_size < 1):
            raise ValueError(f"views of {size} and {depth_size} pixels")
        super().__init__()
        self._scenes, self._size, self._depth_size = scenes, size, depth_size
        self._houses: dict[str, House] = {}
        self._house: House | None = None

    @property
    def house(self) -> House:
        """Current house. Raises ValueError before the first reset."""
        if self._house is None:
            raise ValueError("no house before the first reset")
        return self._house

    def load_house(self, scene: str) -> House:
        """Load the house of a name without moving the agent.

        Raises:
            ManifestError: no such scene, or an invalid scene file.
        """
        if scene not in self._houses:
            if isinstance(self._scenes, Path):
                path = self._scenes / scene
                if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._scenes)):
                    raise ManifestError(path, "lies outside the world's folder")
                self._houses[scene] = House(read_scene(path))
            elif scene in self._scenes:
                self._houses[scene] = House(self._scenes[scene])
            else:
                raise ManifestError(scene, "no such scene", ", ".join(sorted(self._scenes)[:8]))
        return self._houses[scene]

    def reset(self, episode: Episode) -> Pose:
        """Go to the start of an episode. Raises ManifestError: no such scene, or the start is inside an obstacle."""
        self._house = self.load_house(episode.scene)
        if not self.free(episode.start.position):
            raise ManifestError(f"episode {episode.id}", f"start is blocked: {episode.start.position[:2]}")
        self.set_state(episode.start, 0)
        return episode.start

    def observe(self, pose: Pose | None = None, tick: int | None = None) -> Observation:
        """Render the panorama at any pose and tick, by default the current ones."""
        tick = self.tick if tick is None else tick
        return self.house.camera.panorama(pose or self.pose, tick, self._size, self._depth_size)

    def _forward(self, pose: Pose) -> tuple[Pose, bool]:
        move = (STEP * math.cos(pose.heading), STEP * math.sin(pose.heading))
        (x, y), hit = self.house.ground.slide((pose.x, pose.y), move)
        return replace(pose, x=x, y=y), hit

    def geodesic(self, a: Position, b: Position) -> float:
        """Return the length of the shortest path in this house, m; inf if there is none."""
        return float(self.house.ground.distances(np.array([a[:2]]), b)[0])

    def free(self, position: Position) -> bool:
        """Return whether the agent can stand at a position."""
        return bool(self.house.ground.free(np.array([position[:2]]))[0])
