"""Habitat's calls over a floor without end, for tests of what needs Matterport3D. It is not habitat."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

SIZE = 32


class Floor:
    """Everything can be walked on."""

    def try_step(self, start: Any, end: Any) -> Any:
        """There is nothing in the way."""
        return end

    def is_navigable(self, point: Any) -> bool:
        """Everywhere."""
        return True


class Empty:
    """A scene without anything."""

    pathfinder = Floor()

    def get_observations_at(
        self, position: list[float], rotation: list[float], keep_agent_at_new_pose: bool = False
    ) -> dict[str, Any]:
        """Grey, 5 m away."""
        rgb = np.full((SIZE, SIZE, 3), 128, np.uint8)
        return {"rgb": rgb, "depth": np.full((SIZE, SIZE, 1), 5.0, np.float32)}

    def geodesic_distance(self, position_a: list[float], position_b: list[float]) -> float:
        """As the crow flies."""
        return math.dist(position_a, position_b)


def open_scene(name: str) -> Empty:
    """Any scene."""
    return Empty()
