"""Walkable positions and exact shortest paths among rectangular obstacles.

The agent is an axis-parallel square; obstacles are axis-parallel rectangles, grown by half the agent's side. A
shortest path among them is a polyline over their corners, so the visibility graph of the corners contains it:
distances are exact up to rounding (1e-6 m), unlike distances on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from internvideo.extras import require
from internvideo.tasks.navigation.world.protocol import Position

SLACK = 1e-7
"""Obstacles shrink by this (m) in queries, so that the agent can walk along their sides."""
_CHUNK = 2**20

Points = NDArray[np.float64]


class Field(NamedTuple):
    """Shortest paths to one goal: distance from each corner, and the next corner (-1: straight to the goal)."""

    goal: Points
    distance: NDArray[np.float64]
    following: NDArray[np.int64]


class FreeSpace:
    """The free floor among rectangles.

    Args:
        obstacles: (n, 4) x0, y0, x1, y1 in meters. The agent can pass between touching ones: let them overlap.
        bounds: x0, y0, x1, y1 that the agent stays within. body: half the side of the agent.
    """

    def __init__(self, obstacles: Points, bounds: tuple[float, float, float, float], body: float) -> None:
        require("navigation", "shortest paths")
        from scipy.sparse.csgraph import dijkstra  # slow to import

        grown = np.asarray(obstacles, dtype=np.float64).reshape(-1, 4) + np.array([-body, -body, body, body])
        self._rectangles = grown
        self._bounds = np.array(bounds, dtype=np.float64)
        corners = grown[:, [[0, 1], [0, 3], [2, 1], [2, 3]]].reshape(-1, 2)
        corners = np.unique(corners, axis=0)
        self._corners = corners[self.free(corners)]
        seen = self.sees(self._corners, self._corners)
        lengths = np.linalg.norm(self._corners[:, None] - self._corners[None], axis=2)
        # A corner sees itself, at no distance: 0 is no edge to scipy.
        self._ways, self._before = dijkstra(np.where(seen, lengths, 0.0), directed=False, return_predecessors=True)
        self._fields: dict[tuple[float, float], Field] = {}

    def free(self, points: Points) -> NDArray[np.bool_]:
        """Return (n,) bool: whether the agent can stand at points (n, 2)."""
        points = np.asarray(points, dtype=np.float64).reshape(-1, 1, 2)
        low, high = self._rectangles[None, :, :2] + SLACK, self._rectangles[None, :, 2:] - SLACK
        inside = ((points > low) & (points < high)).all(axis=2).any(axis=1)
        at_home = ((points[:, 0] >= self._bounds[:2]) & (points[:, 0] <= self._bounds[2:])).all(axis=1)
        return np.asarray(~inside & at_home)

    def sees(self, a: Points, b: Points) -> NDArray[np.bool_]:
        """Return (n, m) bool: whether the segment from a (n, 2) to b (m, 2) is free."""
        if not len(self._rectangles):
            return np.ones((len(a), len(b)), dtype=np.bool_)
        rows = max(1, _CHUNK // max(1, len(b) * len(self._rectangles)))
        parts = [~self._crosses(a[start : start + rows], b) for start in range(0, len(a), rows)]
        return np.concatenate(parts) if parts else np.zeros((0, len(b)), dtype=np.bool_)

    def _crosses(self, a: Points, b: Points) -> NDArray[np.bool_]:
        """Return whether segments meet the interior of any rectangle."""
        enter = np.zeros((len(a), len(b), len(self._rectangles)))
        leave = np.ones_like(enter)
        for axis in (0, 1):
            way = (b[None, :, axis] - a[:, None, axis])[..., None]
            still = np.abs(way) < 1e-12
            safe = np.where(still, 1.0, way)
            low = self._rectangles[:, axis] + SLACK - a[:, None, None, axis]
            high = self._rectangles[:, axis + 2] - SLACK - a[:, None, None, axis]
            first, second = low / safe, high / safe
            inside = (low < 0) & (high > 0)
            enter = np.maximum(enter, np.where(still, np.where(inside, -1.0, 2.0), np.minimum(first, second)))
            leave = np.minimum(leave, np.where(still, 2.0, np.maximum(first, second)))
        return np.asarray((enter < leave).any(axis=2))

    def field(self, goal: Position) -> Field:
        """Return the shortest paths to a goal (cached); the distance is inf where there is none."""
        key = (float(goal[0]), float(goal[1]))
        if key not in self._fields:
            point = np.array([key])
            seen = self.sees(self._corners, point)[:, 0] & self.free(point)[0]
            last = np.where(seen, np.linalg.norm(self._corners - point, axis=1), np.inf)
            if not len(last):
                return Field(point, last, np.zeros(0, dtype=np.int64))
            total = self._ways + last[None]
            best = total.argmin(axis=1)
            # Dijkstra starts at the goal, so a predecessor is the next corner towards the goal.
            following = np.where(best == np.arange(len(last)), -1, self._before[best, np.arange(len(last))])
            if len(self._fields) >= 256:
                self._fields.clear()
            self._fields[key] = Field(point, total.min(axis=1), following.astype(np.int64))
        return self._fields[key]

    def distances(self, points: Points, goal: Position) -> NDArray[np.float64]:
        """Return the lengths (n,) of the shortest paths from points (n, 2) to a goal in m, inf where none exists."""
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        field = self.field(goal)
        straight = np.where(self.sees(points, field.goal)[:, 0], np.linalg.norm(points - field.goal, axis=1), np.inf)
        around = self._over_corners(points, field)
        both = np.minimum(straight, around.min(axis=1)) if around.shape[1] else straight
        return np.where(self.free(points) & self.free(field.goal), both, np.inf)

    def _over_corners(self, points: Points, field: Field) -> NDArray[np.float64]:
        lengths = np.linalg.norm(points[:, None] - self._corners[None], axis=2) + field.distance
        return np.where(self.sees(points, self._corners), lengths, np.inf)

    def path(self, start: Position, goal: Position) -> Points:
        """Return the corners (n, 2) of the shortest path including start and goal; (0, 2) if none exists."""
        point, field = np.array([start[:2]], dtype=np.float64), self.field(goal)
        if not np.isfinite(self.distances(point, goal)[0]):
            return np.zeros((0, 2))
        if self.sees(point, field.goal)[0, 0]:
            return np.concatenate([point, field.goal])
        corner = int(self._over_corners(point, field)[0].argmin())
        chain = [point[0]]
        while corner >= 0:
            chain.append(self._corners[corner])
            corner = int(field.following[corner])
        return np.array([*chain, field.goal[0]])

    def slide(self, start: Position, way: Sequence[float]) -> tuple[tuple[float, float], bool]:
        """Return the end of a step and whether it hit an obstacle; after a hit it slides along the obstacle's side."""
        place = np.array(start[:2], dtype=np.float64)
        rest = np.array(way, dtype=np.float64)
        met = False
        for _ in range(3):
            share, axis, side = self._contact(place, rest)
            target = place + rest * share
            if axis is None:
                place = target
                break
            met = True
            target[axis] = side
            place, rest = target, rest * (1 - share)
            rest[axis] = 0.0
            if not rest.any():
                break
        return (float(place[0]), float(place[1])), met

    def _contact(self, place: Points, way: Points) -> tuple[float, int | None, float]:
        """Return the fraction of the step until the first obstacle, the axis across the hit side, and its coordinate.

        A step enters a rectangle while it is between both pairs of sides at once, so starting on a corner does not
        let it slip inside.
        """
        first, axis, side = 1.0, None, 0.0
        count = len(self._rectangles)
        enter, leave, crossed = np.full(count, -math.inf), np.full(count, math.inf), np.zeros(count, dtype=np.int64)
        for along in (0, 1):
            low = self._rectangles[:, along] + SLACK - place[along]
            high = self._rectangles[:, along + 2] - SLACK - place[along]
            if abs(way[along]) < 1e-12:
                leave = np.where((low < 0) & (high > 0), leave, -math.inf)
                continue
            near = np.minimum(low / way[along], high / way[along])
            crossed = np.where(near > enter, along, crossed)
            enter = np.maximum(enter, near)
            leave = np.minimum(leave, np.maximum(low / way[along], high / way[along]))
        hit = (enter < leave) & (enter >= 0) & (enter < 1)
        if hit.any():
            number = int(np.where(hit, enter, math.inf).argmin())
            axis = int(crossed[number])
            side = float(self._rectangles[number, axis if way[axis] > 0 else axis + 2])
            first = min(1.0, max(0.0, float((side - place[axis]) / way[axis])))
        for along in (0, 1):
            if abs(way[along]) < 1e-12:
                continue
            limit = self._bounds[along + 2] if way[along] > 0 else self._bounds[along]
            reach = (limit - place[along]) / way[along]
            if reach < first:
                first, axis, side = max(0.0, float(reach)), along, float(limit)
        return first, axis, side
