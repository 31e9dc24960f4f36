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


class DistanceField(NamedTuple):
    """Shortest paths to one goal.

    Attributes:
        goal: (1, 2). distance: (c,) of each corner from the goal, m.
        next_corner: (c,) index of the next corner on the path from each corner, -1 for the goal itself.
    """

    goal: Points
    distance: NDArray[np.float64]
    next_corner: NDArray[np.int64]


class FreeSpace:
    """The free floor among rectangles.

    Args:
        obstacles: (n, 4) x0, y0, x1, y1 in meters. Adjacent ones must overlap: the agent can pass between obstacles
            that only touch.
        bounds: x0, y0, x1, y1 of the area that the agent cannot leave. body: half the side of the agent, m.
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
        self._corner_distances, self._predecessors = dijkstra(
            np.where(seen, lengths, 0.0), directed=False, return_predecessors=True
        )
        self._fields: dict[tuple[float, float], DistanceField] = {}

    def free(self, points: Points) -> NDArray[np.bool_]:
        """Return (n,) bool: whether the agent can stand at points (n, 2)."""
        points = np.asarray(points, dtype=np.float64).reshape(-1, 1, 2)
        low, high = self._rectangles[None, :, :2] + SLACK, self._rectangles[None, :, 2:] - SLACK
        in_obstacle = ((points > low) & (points < high)).all(axis=2).any(axis=1)
        in_bounds = ((points[:, 0] >= self._bounds[:2]) & (points[:, 0] <= self._bounds[2:])).all(axis=1)
        return np.asarray(~in_obstacle & in_bounds)

    def sees(self, a: Points, b: Points) -> NDArray[np.bool_]:
        """Return (n, m) bool: whether the segment from a (n, 2) to b (m, 2) is free."""
        if not len(self._rectangles):
            return np.ones((len(a), len(b)), dtype=np.bool_)
        rows = max(1, _CHUNK // max(1, len(b) * len(self._rectangles)))
        chunks = [~self._crosses(a[start : start + rows], b) for start in range(0, len(a), rows)]
        return np.concatenate(chunks) if chunks else np.zeros((0, len(b)), dtype=np.bool_)

    def _crosses(self, a: Points, b: Points) -> NDArray[np.bool_]:
        """Return whether segments meet the interior of any rectangle."""
        enter = np.zeros((len(a), len(b), len(self._rectangles)))
        leave = np.ones_like(enter)
        for axis in (0, 1):
            delta = (b[None, :, axis] - a[:, None, axis])[..., None]
            is_parallel = np.abs(delta) < 1e-12
            safe_delta = np.where(is_parallel, 1.0, delta)
            low = self._rectangles[:, axis] + SLACK - a[:, None, None, axis]
            high = self._rectangles[:, axis + 2] - SLACK - a[:, None, None, axis]
            first, second = low / safe_delta, high / safe_delta
            inside = (low < 0) & (high > 0)
            enter = np.maximum(enter, np.where(is_parallel, np.where(inside, -1.0, 2.0), np.minimum(first, second)))
            leave = np.minimum(leave, np.where(is_parallel, 2.0, np.maximum(first, second)))
        return np.asarray((enter < leave).any(axis=2))

    def field(self, goal: Position) -> DistanceField:
        """Return the shortest paths to a goal (cached); the distance is inf where there is none."""
        key = (float(goal[0]), float(goal[1]))
        if key not in self._fields:
            point = np.array([key])
            seen = self.sees(self._corners, point)[:, 0] & self.free(point)[0]
            last = np.where(seen, np.linalg.norm(self._corners - point, axis=1), np.inf)
            if not len(last):
                return DistanceField(point, last, np.zeros(0, dtype=np.int64))
            total = self._corner_distances + last[None]
            best = total.argmin(axis=1)
            # Dijkstra starts at the goal, so a predecessor is the next corner towards the goal.
            next_corner = np.where(best == np.arange(len(last)), -1, self._predecessors[best, np.arange(len(last))])
            if len(self._fields) >= 256:
                self._fields.clear()
            self._fields[key] = DistanceField(point, total.min(axis=1), next_corner.astype(np.int64))
        return self._fields[key]

    def distances(self, points: Points, goal: Position) -> NDArray[np.float64]:
        """Return the lengths (n,) of the shortest paths from points (n, 2) to a goal in m, inf where none exists."""
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        field = self.field(goal)
        straight = np.where(self.sees(points, field.goal)[:, 0], np.linalg.norm(points - field.goal, axis=1), np.inf)
        around = self._over_corners(points, field)
        both = np.minimum(straight, around.min(axis=1)) if around.shape[1] else straight
        return np.where(self.free(points) & self.free(field.goal), both, np.inf)

    def _over_corners(self, points: Points, field: DistanceField) -> NDArray[np.float64]:
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
            corner = int(field.next_corner[corner])
        return np.array([*chain, field.goal[0]])

    def slide(self, start: Position, move: Sequence[float]) -> tuple[tuple[float, float], bool]:
        """Return the end of a move (dx, dy) in m and whether it hit an obstacle; a hit slides along the obstacle."""
        position = np.array(start[:2], dtype=np.float64)
        remaining = np.array(move, dtype=np.float64)
        has_hit = False
        for _ in range(3):
            fraction, axis, coordinate = self._contact(position, remaining)
            target = position + remaining * fraction
            if axis is None:
                position = target
                break
            has_hit = True
            target[axis] = coordinate
            position, remaining = target, remaining * (1 - fraction)
            remaining[axis] = 0.0
            if not remaining.any():
                break
        return (float(position[0]), float(position[1])), has_hit

    def _contact(self, position: Points, move: Points) -> tuple[float, int | None, float]:
        """Return the fraction of the move before the first hit, the axis across the hit side, and its coordinate.

        A move enters a rectangle when it is between both pairs of its sides, so a move that starts on a corner cannot
        slip inside. Without a hit: (1, None, 0).
        """
        fraction, axis, coordinate = 1.0, None, 0.0
        num_rectangles = len(self._rectangles)
        enter, leave, crossed = (
            np.full(num_rectangles, -math.inf),
            np.full(num_rectangles, math.inf),
            np.zeros(num_rectangles, dtype=np.int64),
        )
        for along in (0, 1):
            low = self._rectangles[:, along] + SLACK - position[along]
            high = self._rectangles[:, along + 2] - SLACK - position[along]
            if abs(move[along]) < 1e-12:
                leave = np.where((low < 0) & (high > 0), leave, -math.inf)
                continue
            near = np.minimum(low / move[along], high / move[along])
            crossed = np.where(near > enter, along, crossed)
            enter = np.maximum(enter, near)
            leave = np.minimum(leave, np.maximum(low / move[along], high / move[along]))
        hit = (enter < leave) & (enter >= 0) & (enter < 1)
        if hit.any():
            rectangle = int(np.where(hit, enter, math.inf).argmin())
            axis = int(crossed[rectangle])
            coordinate = float(self._rectangles[rectangle, axis if move[axis] > 0 else axis + 2])
            fraction = min(1.0, max(0.0, float((coordinate - position[axis]) / move[axis])))
        for along in (0, 1):
            if abs(move[along]) < 1e-12:
                continue
            limit = self._bounds[along + 2] if move[along] > 0 else self._bounds[along]
            bound_fraction = (limit - position[along]) / move[along]
            if bound_fraction < fraction:
                fraction, axis, coordinate = max(0.0, float(bound_fraction)), along, float(limit)
        return fraction, axis, coordinate
