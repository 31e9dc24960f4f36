"""What an agent that follows instructions needs of any world: poses, panoramas, walks, episodes.

Source: Visual-Language-Navigation.

Axes: x and y lie in the floor, heights grow upwards, everything in meters. Headings are radians: 0 looks along +x, and
they grow counter-clockwise seen from above (pi/2 looks along +y). A positive turn is a turn to the left. View k of a
panorama looks at heading + k * 30 degrees, so view 0 is ahead, 3 left, 6 behind and 9 right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

VIEWS = 12
"""Views of a panorama, 30 degrees apart."""
STEP = 0.25
"""Metres of a step forward."""
TURN_UNIT = math.radians(45)
"""A turn is seen in pieces of at most this."""

Position = tuple[float, ...]
"""(x, y), or (x, y, height) in houses of several floors; worlds of one floor pass over the height."""


@dataclass(frozen=True)
class Pose:
    """Where somebody stands and looks to: x, y (m), heading (radians, any value), height of the feet (m)."""

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
    """A panorama.

    Attributes:
        rgb: (12, S, S, 3) uint8.
        depth: (12, S', S') float32, distance along the view's axis as a share 0..1 of the largest (10 m); nothing
            within it is 1.
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]


@dataclass(frozen=True)
class Episode:
    """An instruction, where it starts and where it ends.

    Attributes:
        id: unique within its split. scene: name of the world, as its file tells it. split: train, val_seen, ...
        start: first pose. goal: None where it is kept secret (test). radius: meters from the goal that count as there.
        instruction: the sentence or sentences. trajectory: episodes of one trajectory are paraphrases.
        path: (n, 2) or (n, 3) positions of the reference path, densest form that is known; (0, 2) where none is.
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
    """What a step led through.

    Attributes:
        poses: every intermediate pose, the last one the new pose: turns in pieces of at most 45 degrees, then each
            0.25 m. Empty where nothing was asked for. A step that is blocked stands still but counts as a pose.
        times: the world's clock at each of them; it ticks once a pose, from 0 at reset.
        collided: whether any step forward was blocked or slid along something.
    """

    poses: tuple[Pose, ...]
    times: tuple[int, ...]
    collided: bool


class NavEnv(Protocol):
    """A world to walk in."""

    @property
    def pose(self) -> Pose:
        """Where the agent is now."""

    @property
    def time(self) -> int:
        """Ticks since reset: one for each pose walked through. Moving things depend on it."""

    def reset(self, episode: Episode) -> Pose:
        """Go to the start of an episode, loading its scene where needed; the clock is 0."""

    def observe(self, pose: Pose | None = None, time: int | None = None) -> Observation:
        """The panorama at any pose and tick (by default the present ones). Nothing changes."""

    def step(self, turn: float, distance: float) -> Walk:
        """Turn by `turn` radians (the shorter way), then floor(distance / 0.25) steps of 0.25 m; sliding allowed."""

    def place(self, pose: Pose, time: int) -> None:
        """Be at a pose at a tick of this scene: back where one was before trying a step, say."""

    def geodesic(self, a: Position, b: Position) -> float:
        """Metres of the shortest way; inf where there is none."""

    def free(self, position: Position) -> bool:
        """Whether the agent can stand there."""


def wrapped(angle: float) -> float:
    """The same direction in (-pi, pi]."""
    turn = math.remainder(angle, 2 * math.pi)
    return math.pi if turn == -math.pi else turn


def turn_pieces(turn: float) -> tuple[float, ...]:
    """Turns of at most 45 degrees that make up `turn` by the shorter way: whole ones, then a rest."""
    left = wrapped(turn)
    whole = math.floor(abs(left) / TURN_UNIT + 1e-9)
    sign = math.copysign(1.0, left)
    rest = abs(left) - whole * TURN_UNIT
    return (sign * TURN_UNIT,) * whole + ((sign * rest,) if rest > 1e-9 else ())


def steps_forward(distance: float) -> int:
    """Whole steps of 0.25 m in a distance; 0.75 are three, whatever its last binary digit."""
    return max(0, math.floor(distance / STEP + 1e-9))


def turn_towards(pose: Pose, target: Position) -> float:
    """The turn in (-pi, pi] after which a pose looks at a target."""
    return wrapped(math.atan2(target[1] - pose.y, target[0] - pose.x) - pose.heading)
