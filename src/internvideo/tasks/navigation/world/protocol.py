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
"""Views of a panorama, 30 degrees apart."""
STEP = 0.25
"""Length of a forward step, m."""
TURN_UNIT = math.radians(45)
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
        depth: (12, S', S') float32, distance along the view's axis divided by the largest (10 m), clipped to 0..1.
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]


@dataclass(frozen=True)
class Episode:
    """An instruction with its start and goal.

    Attributes:
        id: unique within its split. scene: name of the world, as its file tells it. split: train, val_seen, ...
        start: first pose. goal: None where it is withheld (test). radius: success radius around the goal, m.
        instruction: the sentence or sentences. trajectory: episodes of one trajectory are paraphrases.
        path: (n, 2) or (n, 3) positions of the reference path, as dense as available; (0, 2) if unknown.
        geodesic: meters from start to goal around obstacles; None where unknown.
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
    """The poses that a step passed through.

    Attributes:
        poses: one per turn of at most 45 degrees, then one per 0.25 m; the last is the new pose. Empty for a step of
            zero turn and length. A blocked step repeats the pose.
        times: the world's clock at each pose; it starts at 0 at reset and ticks once per pose.
        collided: whether any step forward was blocked or slid along something.
    """

    poses: tuple[Pose, ...]
    times: tuple[int, ...]
    collided: bool


class NavEnv(ABC):
    """A world that an agent walks in: pose, clock and movement; a subclass renders, measures and makes one step."""

    def __init__(self) -> None:
        self.pose = Pose(0.0, 0.0, 0.0)
        self.time = 0  # ticks since reset, one per pose; determines where moving objects are

    @abstractmethod
    def reset(self, episode: Episode) -> Pose:
        """Go to the start of an episode, load its scene if needed and set the clock to 0."""

    @abstractmethod
    def observe(self, pose: Pose | None = None, time: int | None = None) -> Observation:
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

    def place(self, pose: Pose, time: int) -> None:
        """Set pose and tick, for instance to undo a trial step."""
        self.pose, self.time = pose, time

    def step(self, turn: float, distance: float) -> Walk:
        """Turn by `turn` radians (the shorter way), then floor(distance / 0.25) steps of 0.25 m; sliding allowed."""
        poses: list[Pose] = []
        pose, collided = self.pose, False
        for piece in turn_pieces(turn):
            pose = replace(pose, heading=wrapped(pose.heading + piece))
            poses.append(pose)
        for _ in range(steps_forward(distance)):
            pose, hit = self._forward(pose)
            poses.append(pose)
            collided |= hit
        first = self.time + 1
        self.place(pose, self.time + len(poses))
        return Walk(tuple(poses), tuple(range(first, first + len(poses))), collided)


def wrapped(angle: float) -> float:
    """Wrap an angle to (-pi, pi]."""
    turn = math.remainder(angle, 2 * math.pi)
    return math.pi if turn == -math.pi else turn


def turn_pieces(turn: float) -> tuple[float, ...]:
    """Split `turn`, taken the shorter way, into turns of 45 degrees and a remainder."""
    left = wrapped(turn)
    whole = math.floor(abs(left) / TURN_UNIT + 1e-9)
    sign = math.copysign(1.0, left)
    rest = abs(left) - whole * TURN_UNIT
    return (sign * TURN_UNIT,) * whole + ((sign * rest,) if rest > 1e-9 else ())


def steps_forward(distance: float) -> int:
    """Count the whole steps of 0.25 m in a distance, robust to rounding (0.75 m gives 3)."""
    return max(0, math.floor(distance / STEP + 1e-9))


def turn_towards(pose: Pose, target: Position) -> float:
    """Return the turn in (-pi, pi] that makes a pose face a target."""
    return wrapped(math.atan2(target[1] - pose.y, target[0] - pose.x) - pose.heading)
