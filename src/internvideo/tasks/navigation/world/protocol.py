"""Interface between an instruction-following agent and a world: poses, panoramas, steps, episodes.

Source: Visual-Language-Navigation.

Axes: x and y lie in the floor, heights grow upwards, everything in meters. Headings are radians: 0 looks along +x, and
they grow counter-clockwise seen from above (pi/2 looks along +y). A positive turn is a turn to the left. View k of a
panorama faces heading + k * 30 degrees: view 0 is ahead, 3 left, 6 behind, 9 right.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

VIEWS = 12
"""Number of views of a panorama, 30 degrees apart."""
STEP = 0.25
"""Length of a forward step, m."""
MAX_TURN = math.radians(45)
"""Largest turn between two recorded poses, radians."""

Position = tuple[float, ...]
"""(x, y), or (x, y, height) in houses of several floors; worlds of one floor ignore the height."""


@dataclass(frozen=True)
class Pose:
    """Position and heading of the agent: x, y (m), heading (radians, any value), height of the feet (m)."""

    x: float
    y: float
    heading: float
    height: float = 0.0

    @property
    def position(self) -> Position:
        """(x, y, height)."""
        return (self.x, self.y, self.height)


@dataclass(frozen=True)
class Observation:
    """A panorama of 12 views.

    Attributes:
        rgb: (12, S, S, 3) uint8.
        depth: (12, S', S') float32, distance along the view's axis divided by 10 m, clipped to 0..1.
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]


@dataclass(frozen=True)
class Episode:
    """An instruction with its start and goal.

    Attributes:
        id: unique within its split. scene: name of the scene, as in the episodes file. split: train, val_seen, ...
        start: first pose. goal: None in test splits without public goals. radius: success radius around the goal, m.
        instruction: one or more sentences. trajectory: id shared by the episodes that are paraphrases of one another.
        path: (n, 2) or (n, 3) positions of the reference path, as dense as available; (0, 2) if unknown.
        geodesic: length of the shortest path from start to goal in m; None if unknown.
    """

    id: str
    scene: str
    split: str
    start: Pose
    goal: Position | None
    radius: float
    instruction: str
    trajectory: str
    path: NDArray[np.float64]
    geodesic: float | None


@dataclass(frozen=True)
class Walk:
    """The poses of one turn and move (`NavEnv.step`).

    Attributes:
        poses: one per turn of at most 45 degrees, then one per 0.25 m; the last is the new pose. Empty for a turn of
            zero and less than 0.25 m. A blocked forward step repeats the pose.
        ticks: time of the world at each pose. It is 0 at reset and grows by 1 per pose.
        collided: whether any forward step was blocked or slid along an obstacle.
    """

    poses: tuple[Pose, ...]
    ticks: tuple[int, ...]
    collided: bool


class NavEnv(ABC):
    """A world with an agent: its pose, time and movement. Subclasses render, measure and compute forward steps."""

    def __init__(self) -> None:
        self.pose = Pose(0.0, 0.0, 0.0)
        self.tick = 0  # number of poses since reset; the phase of moving objects depends on it

    @abstractmethod
    def reset(self, episode: Episode) -> Pose:
        """Go to the start of an episode, load its scene if needed and set the tick to 0."""

    @abstractmethod
    def observe(self, pose: Pose | None = None, tick: int | None = None) -> Observation:
        """Render the panorama at any pose and tick (default: the current ones) without changing the state."""

    @abstractmethod
    def geodesic(self, a: Position, b: Position) -> float:
        """Return the length of the shortest path, m; inf if there is none."""

    @abstractmethod
    def free(self, position: Position) -> bool:
        """Return whether the agent can stand at a position."""

    @abstractmethod
    def _forward(self, pose: Pose) -> tuple[Pose, bool]:
        """Return the pose after a step of 0.25 m, and whether it hit an obstacle."""

    def set_state(self, pose: Pose, tick: int) -> None:
        """Set pose and tick, for instance to undo a trial step."""
        self.pose, self.tick = pose, tick

    def step(self, turn: float, meters: float) -> Walk:
        """Turn by `turn` radians (the shorter way), then make floor(meters / 0.25) forward steps, sliding allowed."""
        poses: list[Pose] = []
        pose, collided = self.pose, False
        for angle in split_turn(turn):
            pose = replace(pose, heading=wrap_angle(pose.heading + angle))
            poses.append(pose)
        for _ in range(num_forward_steps(meters)):
            pose, hit = self._forward(pose)
            poses.append(pose)
            collided |= hit
        first = self.tick + 1
        self.set_state(pose, self.tick + len(poses))
        return Walk(tuple(poses), tuple(range(first, first + len(poses))), collided)


def wrap_angle(angle: float) -> float:
    """Wrap an angle to (-pi, pi]."""
    turn = math.remainder(angle, 2 * math.pi)
    return math.pi if turn == -math.pi else turn


def split_turn(turn: float) -> tuple[float, ...]:
    """Split `turn`, taken the shorter way, into turns of 45 degrees and a remainder."""
    angle = wrap_angle(turn)
    num_max_turns = math.floor(abs(angle) / MAX_TURN + 1e-9)
    sign = math.copysign(1.0, angle)
    remainder = abs(angle) - num_max_turns * MAX_TURN
    return (sign * MAX_TURN,) * num_max_turns + ((sign * remainder,) if remainder > 1e-9 else ())


def num_forward_steps(meters: float) -> int:
    """Return the number of steps of 0.25 m in a distance, robust to rounding (0.75 m gives 3)."""
    return max(0, math.floor(meters / STEP + 1e-9))


def turn_towards(pose: Pose, target: Position) -> float:
    """Return the turn in (-pi, pi] that makes a pose face a target."""
    return wrap_angle(math.atan2(target[1] - pose.y, target[0] - pose.x) - pose.heading)
