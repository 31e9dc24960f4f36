"""Shortest-path follower: turns the shortest path into actions, the ground truth that each goal is reachable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internvideo.tasks.navigation.world.free_space import FreeSpace
from internvideo.tasks.navigation.world.protocol import STEP, Pose, Position, turn_towards, wrapped

STOP, FORWARD, LEFT, RIGHT = 0, 1, 2, 3
"""The actions of R2R-CE's files."""
ACTION_TURN = math.radians(15)
NEAR = 0.2
"""Distance from the goal at which the follower stops, m."""
_MOST = 1000
_PROGRESS = 0.01
"""Smallest progress of a step towards the goal, and smallest distance from visited positions, m."""


@dataclass(frozen=True)
class Followed:
    """A followed path: actions ending with 0; locations (n + 1, 2), the start and the position after each step."""

    actions: tuple[int, ...]
    locations: NDArray[np.float64]


def follow(ground: FreeSpace, start: Pose, goal: Position) -> Followed:
    """Follow the shortest path in steps of 0.25 m and turns of 15 degrees.

    Raises:
        ValueError: there is no path, or the follower is stuck.
    """
    pose, left = start, math.inf
    actions: list[int] = []
    places = [(start.x, start.y)]
    while math.dist((pose.x, pose.y), goal[:2]) > NEAR or not ground.sees(*_ends(pose, goal))[0, 0]:
        if len(actions) > _MOST:
            raise ValueError(f"no end of the way from {start} to {goal}")
        turns = round(turn_towards(pose, _next(ground, pose, goal)) / ACTION_TURN)
        moved = _moved(ground, pose, turns)
        now = float(ground.distances(np.array([[moved.x, moved.y]]), goal)[0])
        if now > left - _PROGRESS:  # quantized steps and turns can oscillate at a corner forever
            turns, moved, now = _nearest(ground, pose, goal, places)
        actions += [LEFT if turns > 0 else RIGHT] * abs(turns) + [FORWARD]
        pose, left = moved, min(left, now)
        places.append((pose.x, pose.y))
    return Followed((*actions, STOP), np.array(places))


def _moved(ground: FreeSpace, pose: Pose, turns: int) -> Pose:
    """Return the pose after `turns` turns of 15 degrees and one step."""
    heading = wrapped(pose.heading + turns * ACTION_TURN)
    (x, y), _ = ground.slide((pose.x, pose.y), (STEP * math.cos(heading), STEP * math.sin(heading)))
    return Pose(x, y, heading, pose.height)


def _nearest(
    ground: FreeSpace, pose: Pose, goal: Position, been: Sequence[tuple[float, float]]
) -> tuple[int, Pose, float]:
    """Find the turn whose step reaches a new position nearest to the goal: (turns, pose, remaining m)."""
    half = round(math.pi / ACTION_TURN)
    tried = [(turns, _moved(ground, pose, turns)) for turns in sorted(range(1 - half, half + 1), key=abs)]
    ends = np.array([(moved.x, moved.y) for _, moved in tried])
    new = np.linalg.norm(ends[:, None] - np.array(been), axis=2).min(axis=1) > _PROGRESS
    meters = np.where(new, ground.distances(ends, goal), np.inf)
    best = int(meters.argmin())
    if not np.isfinite(meters[best]):
        raise ValueError(f"stuck at {pose} on the way to {goal}")
    return *tried[best], float(meters[best])


def _ends(pose: Pose, goal: Position) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([[pose.x, pose.y]]), np.array([goal[:2]], dtype=np.float64)


def _next(ground: FreeSpace, pose: Pose, goal: Position) -> Position:
    """Return the next corner of the path that differs from the agent's position."""
    way = ground.path((pose.x, pose.y), goal)
    if not len(way):
        raise ValueError(f"no way from {pose} to {goal}")
    ahead = [corner for corner in way[1:] if math.dist((pose.x, pose.y), corner) > 0.02]
    target = ahead[0] if ahead else way[-1]
    return float(target[0]), float(target[1])
