"""Draw paths through a house with the facts that instructions state about them; every fact is true by construction."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from internvideo.tasks.navigation.world.instructions import Leg, Pass, Route, Side, Stop, Thing, Through
from internvideo.tasks.navigation.world.protocol import Pose, turn_towards, wrapped
from internvideo.tasks.navigation.world.scene import BODY, DOOR_WIDTH, Door, Landmark, Motion, Scene
from internvideo.tasks.navigation.world.world import House

BESIDE = 0.35
"""Clearance between the agent at the goal and the square around its landmark, m."""
PASSED_WITHIN = 1.8
"""A landmark counts as passed when the path comes this close to its center, m."""

AHEAD = 1.5
"""Length of the path's beginning that determines its first direction, m."""


@dataclass(frozen=True)
class TrajectorySettings:
    """Settings of drawing paths.

    Attributes:
        shortest, longest: range of path lengths, m. radius: success radius around the goal, m (R2R: 3).
        passing: probability that a landmark next to the path is mentioned, at most one per room.
        by_motion: fraction of paths that end at an object whose twin differs only in motion, if the house has any.
    """

    shortest: float = 4.0
    longest: float = 20.0
    radius: float = 3.0
    passing: float = 0.6
    by_motion: float = 0.4

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if not 0 < self.shortest < self.longest or self.radius <= 0:
            raise ValueError(f"ways of {self.shortest} to {self.longest} m, radius {self.radius} m")
        if not 0 <= self.passing <= 1 or not 0 <= self.by_motion <= 1:
            raise ValueError("passing and by_motion are fractions from 0 to 1")


@dataclass(frozen=True)
class Trajectory:
    """A path: first pose, goal (x, y), corners (n, 2) of the shortest path, its length in m, and its facts."""

    start: Pose
    goal: tuple[float, float]
    path: NDArray[np.float64]
    geodesic: float
    route: Route


def draw_trajectory(house: House, rng: np.random.Generator, settings: TrajectorySettings) -> Trajectory:
    """Draw a path from a random pose to a landmark in another room.

    Raises:
        ValueError: none was found; the house is too small for these settings.
    """
    scene = house.scene
    pairs = {number: twin for number, thing in enumerate(scene.landmarks) if (twin := _twin(scene, thing)) is not None}
    plain = [number for number in range(len(scene.landmarks)) if number not in pairs]
    by_motion = bool(pairs) and rng.random() < settings.by_motion
    for attempt in range(500):
        # Twins of a small room may lie too close to one another to be a goal.
        choice = list(pairs) if (by_motion and attempt < 200) or not plain else plain
        number = choice[int(rng.integers(len(choice)))]
        drawn = _towards(house, rng, settings, scene.landmarks[number], pairs.get(number))
        if drawn is not None:
            return drawn
    raise ValueError(f"{scene.name}: no way of {settings.shortest} to {settings.longest} m in 500 draws")


def _twin(scene: Scene, thing: Landmark) -> Landmark | None:
    """Find the object in the same room that differs only in motion."""
    same = [other for other in scene.landmarks if other is not thing and other.room == thing.room
            and (other.shape, other.colour) == (thing.shape, thing.colour)]  # fmt: skip
    return same[0] if same else None


def _towards(
    house: House, rng: np.random.Generator, settings: TrajectorySettings, thing: Landmark, twin: Landmark | None
) -> Trajectory | None:
    scene = house.scene
    x, y = rng.uniform((0, 0), scene.size)
    start = Pose(round(float(x), 3), round(float(y), 3), round(wrapped(float(rng.uniform(-math.pi, math.pi))), 6))
    if scene.room_at(start.x, start.y) == thing.room or not house.ground.free(np.array([[start.x, start.y]]))[0]:
        return None
    goal, geodesic = _end(house, start, thing)
    if not settings.shortest <= geodesic <= settings.longest:
        return None
    if twin is not None and _end(house, Pose(*goal, 0.0), twin)[1] <= settings.radius:
        return None
    path = house.ground.path((start.x, start.y), goal)
    doors = sorted(_crossed(scene, path), key=lambda entry: entry[0])
    if not doors:
        return None
    marks: list[tuple[float, Leg]] = [(at, Through(door.colour)) for at, door in doors]
    marks += _passed(scene, path, thing, rng, settings.passing)
    legs = [leg for _, leg in sorted(marks, key=lambda mark: mark[0])]
    legs[0] = replace(legs[0], turn=_side(start, path))
    spoken: Motion | Literal["still", ""] = "" if twin is None else (thing.motion or "still")
    return Trajectory(start, goal, path, geodesic, (*legs, Stop(Thing(thing.shape, thing.colour, spoken))))


def _end(house: House, start: Pose, thing: Landmark) -> tuple[tuple[float, float], float]:
    """Find the free position next to an object that is nearest to the start, and its distance."""
    angles = np.arange(16) * (math.pi / 8)
    # Around the thing's square, not on a circle: corners stick out.
    beside = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    beside /= np.abs(beside).max(axis=1, keepdims=True)
    places = (np.array([thing.x, thing.y]) + beside * (thing.reach + BODY + BESIDE)).round(3)
    lengths = house.ground.distances(places, (start.x, start.y))
    best = int(lengths.argmin())
    return (float(places[best, 0]), float(places[best, 1])), float(lengths[best])


def _crossed(scene: Scene, path: NDArray[np.float64]) -> list[tuple[float, Door]]:
    """List the doors on a path with their distance from the start, m."""
    found: list[tuple[float, Door]] = []
    walked = 0.0
    for first, second in pairwise(path):
        length = float(np.linalg.norm(second - first))
        for door in scene.doors:
            axis, fixed, middle = (0, door.x, door.y) if door.along == "y" else (1, door.y, door.x)
            # Half open, so that a corner in the middle of a door counts once.
            if not min(first[axis], second[axis]) <= fixed < max(first[axis], second[axis]):
                continue
            share = (fixed - first[axis]) / (second[axis] - first[axis])
            if abs(first[1 - axis] + share * (second[1 - axis] - first[1 - axis]) - middle) <= DOOR_WIDTH / 2:
                found.append((walked + share * length, door))
        walked += length
    return found


def _passed(
    scene: Scene, path: NDArray[np.float64], goal: Landmark, rng: np.random.Generator, chance: float
) -> list[tuple[float, Leg]]:
    """Draw mentioned landmarks next to the path, at most one per room, with their distance from the start, m."""
    walked = _distances_along(path)
    at = np.linspace(0, walked[-1], max(2, round(walked[-1] / 0.05)))
    points = np.stack([np.interp(at, walked, path[:, axis]) for axis in (0, 1)], axis=1)
    rooms = np.array([-1 if (room := scene.room_at(*point)) is None else room for point in points])
    best: dict[int, tuple[float, float, Landmark]] = {}
    for thing in scene.landmarks:
        here = np.nonzero(rooms == thing.room)[0]
        same = (thing.room, thing.shape, thing.colour) == (goal.room, goal.shape, goal.colour)
        if same or not len(here) or _twin(scene, thing) is not None:
            continue
        away = np.linalg.norm(points[here] - (thing.x, thing.y), axis=1)
        nearest = here[int(away.argmin())]
        # Landmarks at the start or end are not passed.
        mark = (float(away.min()), float(at[nearest]), thing)
        if mark[0] <= PASSED_WITHIN and 0.5 < mark[1] < walked[-1] - 0.5:
            best[thing.room] = min(best.get(thing.room, mark), mark, key=lambda entry: entry[0])
    return [
        (when, Pass(Thing(thing.shape, thing.colour)))
        for _, (_, when, thing) in sorted(best.items())
        if rng.random() < chance
    ]


def _distances_along(path: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance (n,) of each corner of a path (n, 2) from its start, m."""
    return np.concatenate([[0.0], np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()])


def _side(start: Pose, path: NDArray[np.float64]) -> Side:
    """Return the first turn as text, if the path starts more than 45 degrees off the heading."""
    walked = _distances_along(path)
    x, y = (float(np.interp(AHEAD, walked, path[:, axis])) for axis in (0, 1))
    angle = math.degrees(turn_towards(start, (x, y)))
    if abs(angle) <= 45:
        return ""
    if abs(angle) >= 135:
        return "around"
    return "left" if angle > 0 else "right"
