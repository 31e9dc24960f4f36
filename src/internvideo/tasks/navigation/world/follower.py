"""Shortest-path follower: convert the shortest path to a goal into actions, which proves that the goal is reachable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internvideo.tasks.navigation.world.free_space import FreeSpace
from internvideo.tasks.navigation.world.protocol import STEP, Pose, Position, turn_towards, wrap_angle

STOP, FORWARD, LEFT, RIGHT = 0, 1, 2, 3
"""The actions of R2R-CE's files."""
ACTION_TURN = math.radians(15)
"""Angle of an action LEFT or RIGHT, radians."""
STOP_WITHIN = 0.2
"""Distance from the goal at which the follower stops, m."""
_MAX_ACTIONS = 1000
_PROGRESS = 0.01
"""Smallest progress of a step towards the goal, and smallest distance from visited positions, m."""


@dataclass(frozen=True)
class ReferenceWalk:
    """Actions, ending with STOP; and locations (n + 1, 2): the start and the position after each of n forward steps."""

    actions: tuple[int, ...]
    locations: NDArray[np.float64]


def follow(ground: FreeSpace, start: Pose, goal: Position) -> ReferenceWalk:
    """Follow the shortest path in steps of 0.25 m and turns of 15 degrees.

    Raises:
        ValueError: there is no path, or the follower is stuck.
    """
    pose, remaining = start, math.inf
    actions: list[int] = []
    positions = [(start.x, start.y)]
    while math.dist((pose.x, pose.y), goal[:2]) > STOP_WITHIN or not ground.sees(*_end_points(pose, goal))[0, 0]:
        if len(actions) > _MAX_ACTIONS:
            raise ValueError(f"goal not reached from {start}: {goal}")
        turns = round(turn_towards(pose, _next_corner(ground, pose, goal)) / ACTION_TURN)
        new_pose = _move(ground, pose, turns)
        new_remaining = float(ground.distances(np.array([[new_pose.x, new_pose.y]]), goal)[0])
        if new_remaining > remaining - _PROGRESS:  # quantized steps and turns can oscillate at a corner
            turns, new_pose, new_remaining = _best_move(ground, pose, goal, positions)
        actions += [LEFT if turns > 0 else RIGHT] * abs(turns) + [FORWARD]
        pose, remaining = new_pose, min(remaining, new_remaining)
        positions.append((pose.x, pose.y))
    return ReferenceWalk((*actions, STOP), np.array(positions))


def _move(ground: FreeSpace, pose: Pose, turns: int) -> Pose:
    """Return the pose after `turns` turns of 15 degrees and one step."""
    heading = wrap_angle(pose.heading + turns * ACTION_TURN)
    (x, y), _ = ground.slide((pose.x, pose.y), (STEP * math.cos(heading), STEP * math.sin(heading)))
    return Pose(x, y, heading, pose.height)


def _best_move(
    ground: FreeSpace, pose: Pose, goal: Position, visited: Sequence[tuple[float, float]]
) -> tuple[int, Pose, float]:
    """Find the turn before a forward step to an unvisited position nearest to the goal: (turns, pose, remaining m)."""
    half = round(math.pi / ACTION_TURN)
    moves = [(turns, _move(ground, pose, turns)) for turns in sorted(range(1 - half, half + 1), key=abs)]
    ends = np.array([(new_pose.x, new_pose.y) for _, new_pose in moves])
    is_new = np.linalg.norm(ends[:, None] - np.array(visited), axis=2).min(axis=1) > _PROGRESS
    meters = np.where(is_new, ground.distances(ends, goal), np.inf)
    best = int(meters.argmin())
    if not np.isfinite(meters[best]):
        raise ValueError(f"stuck at {pose}, goal {goal}")
    return *moves[best], float(meters[best])


def _end_points(pose: Pose, goal: Position) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([[pose.x, pose.y]]), np.array([goal[:2]], dtype=np.float64)


def _next_corner(ground: FreeSpace, pose: Pose, goal: Position) -> Position:
    """Return the next corner of the path that differs from the agent's position."""
    path = ground.path((pose.x, pose.y), goal)
    if not len(path):
        raise ValueError(f"no path from {pose} to {goal}")
    ahead = [corner for corner in path[1:] if math.dist((pose.x, pose.y), corner) > 0.02]
    target = ahead[0] if ahead else path[-1]
    return float(target[0]), float(target[1])
