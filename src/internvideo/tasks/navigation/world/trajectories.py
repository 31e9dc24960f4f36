"""Sample paths through a house with their routes: what an instruction says about a path is true by construction."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from internvideo.tasks.navigation.world.instructions import LandmarkPhrase, Leg, Pass, Route, Side, Stop, Through
from internvideo.tasks.navigation.world.protocol import Pose, turn_towards, wrap_angle
from internvideo.tasks.navigation.world.scene import BODY, DOOR_WIDTH, Door, Landmark, Motion, Scene
from internvideo.tasks.navigation.world.world import House

GOAL_CLEARANCE = 0.35
"""Clearance between the agent at the goal and the square around the goal's landmark, m."""
PASSED_WITHIN = 1.8
"""A landmark counts as passed when the path comes this close to its center, m."""

START_LENGTH = 1.5
"""Length of the beginning of a path that determines the first turn, m."""


@dataclass(frozen=True)
class TrajectorySettings:
    """Settings of drawing paths.

    Attributes:
        shortest, longest: range of path lengths, m. radius: success radius around the goal, m (R2R: 3).
        passing: probability that a landmark next to the path is mentioned, at most one per room.
        by_motion: fraction of paths that end at a landmark with a twin, if the house has twins.
    """

    shortest: float = 4.0
    longest: float = 20.0
    radius: float = 3.0
    passing: float = 0.6
    by_motion: float = 0.4

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if not 0 < self.shortest < self.longest or self.radius <= 0:
            raise ValueError(f"paths of {self.shortest} to {self.longest} m, radius {self.radius} m")
        if not 0 <= self.passing <= 1 or not 0 <= self.by_motion <= 1:
            raise ValueError("passing and by_motion are fractions from 0 to 1")


@dataclass(frozen=True)
class Trajectory:
    """A path: first pose, goal (x, y), corners (n, 2) of the shortest path, its length in m, and its route."""

    start: Pose
    goal: tuple[float, float]
    path: NDArray[np.float64]
    geodesic: float
    route: Route


def sample_trajectory(house: House, rng: np.random.Generator, settings: TrajectorySettings) -> Trajectory:
    """Sample a path from a random pose to a landmark in another room.

    Raises:
        ValueError: no path was found; the house is too small for these settings.
    """
    scene = house.scene
    twins = {
        index: twin
        for index, landmark in enumerate(scene.landmarks)
        if (twin := _find_twin(scene, landmark)) is not None
    }
    without_twin = [index for index in range(len(scene.landmarks)) if index not in twins]
    by_motion = bool(twins) and rng.random() < settings.by_motion
    for attempt in range(500):
        # Twins of a small room may lie too close to one another to be a goal.
        indices = list(twins) if (by_motion and attempt < 200) or not without_twin else without_twin
        index = indices[int(rng.integers(len(indices)))]
        trajectory = _sample_path_to(house, rng, settings, scene.landmarks[index], twins.get(index))
        if trajectory is not None:
            return trajectory
    raise ValueError(f"{scene.name}: no path of {settings.shortest} to {settings.longest} m in 500 draws")


def _find_twin(scene: Scene, landmark: Landmark) -> Landmark | None:
    """Return the landmark of the same room that differs only in motion; None without one."""
    twins = [other for other in scene.landmarks if other is not landmark and other.room == landmark.room
            and (other.shape, other.color) == (landmark.shape, landmark.color)]  # fmt: skip
    return twins[0] if twins else None


def _sample_path_to(
    house: House, rng: np.random.Generator, settings: TrajectorySettings, landmark: Landmark, twin: Landmark | None
) -> Trajectory | None:
    scene = house.scene
    x, y = rng.uniform((0, 0), scene.size)
    start = Pose(round(float(x), 3), round(float(y), 3), round(wrap_angle(float(rng.uniform(-math.pi, math.pi))), 6))
    if scene.room_at(start.x, start.y) == landmark.room or not house.ground.free(np.array([[start.x, start.y]]))[0]:
        return None
    goal, geodesic = _nearest_end(house, start, landmark)
    if not settings.shortest <= geodesic <= settings.longest:
        return None
    if twin is not None and _nearest_end(house, Pose(*goal, 0.0), twin)[1] <= settings.radius:
        return None
    path = house.ground.path((start.x, start.y), goal)
    doors = sorted(_doors_on_path(scene, path), key=lambda entry: entry[0])
    if not doors:
        return None
    located_legs: list[tuple[float, Leg]] = [(distance, Through(door.color)) for distance, door in doors]
    located_legs += _sample_passed_landmarks(scene, path, landmark, rng, settings.passing)
    legs = [leg for _, leg in sorted(located_legs, key=lambda located: located[0])]
    legs[0] = replace(legs[0], turn=_first_turn(start, path))
    motion: Motion | Literal["still", ""] = "" if twin is None else (landmark.motion or "still")
    return Trajectory(
        start, goal, path, geodesic, (*legs, Stop(LandmarkPhrase(landmark.shape, landmark.color, motion)))
    )


def _nearest_end(house: House, start: Pose, landmark: Landmark) -> tuple[tuple[float, float], float]:
    """Return the position next to a landmark that is nearest to the start, and its geodesic distance in m."""
    angles = np.arange(16) * (math.pi / 8)
    # On a square around the landmark's square: a circle would come too close to the corners.
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    directions /= np.abs(directions).max(axis=1, keepdims=True)
    positions = (np.array([landmark.x, landmark.y]) + directions * (landmark.half_side + BODY + GOAL_CLEARANCE)).round(
        3
    )
    lengths = house.ground.distances(positions, (start.x, start.y))
    best = int(lengths.argmin())
    return (float(positions[best, 0]), float(positions[best, 1])), float(lengths[best])


def _doors_on_path(scene: Scene, path: NDArray[np.float64]) -> list[tuple[float, Door]]:
    """List the doors on a path, each with the distance along the path from the start, m."""
    doors: list[tuple[float, Door]] = []
    distance = 0.0
    for first, second in pairwise(path):
        length = float(np.linalg.norm(second - first))
        for door in scene.doors:
            axis, door_line, door_center = (0, door.x, door.y) if door.along == "y" else (1, door.y, door.x)
            # Half open, so that a corner in the middle of a door counts once.
            if not min(first[axis], second[axis]) <= door_line < max(first[axis], second[axis]):
                continue
            fraction = (door_line - first[axis]) / (second[axis] - first[axis])
            if abs(first[1 - axis] + fraction * (second[1 - axis] - first[1 - axis]) - door_center) <= DOOR_WIDTH / 2:
                doors.append((distance + fraction * length, door))
        distance += length
    return doors


def _sample_passed_landmarks(
    scene: Scene, path: NDArray[np.float64], goal: Landmark, rng: np.random.Generator, probability: float
) -> list[tuple[float, Leg]]:
    """Sample landmarks next to the path to mention, at most one per room, with the distance along the path, m."""
    corner_distances = _distances_along(path)
    distances = np.linspace(0, corner_distances[-1], max(2, round(corner_distances[-1] / 0.05)))
    points = np.stack([np.interp(distances, corner_distances, path[:, axis]) for axis in (0, 1)], axis=1)
    rooms = np.array([-1 if (room := scene.room_at(*point)) is None else room for point in points])
    best: dict[int, tuple[float, float, Landmark]] = {}
    for landmark in scene.landmarks:
        in_room = np.nonzero(rooms == landmark.room)[0]
        like_goal = (landmark.room, landmark.shape, landmark.color) == (goal.room, goal.shape, goal.color)
        if like_goal or not len(in_room) or _find_twin(scene, landmark) is not None:
            continue
        offsets = np.linalg.norm(points[in_room] - (landmark.x, landmark.y), axis=1)
        nearest = in_room[int(offsets.argmin())]
        # Landmarks at the start or end are not passed.
        candidate = (float(offsets.min()), float(distances[nearest]), landmark)
        if candidate[0] <= PASSED_WITHIN and 0.5 < candidate[1] < corner_distances[-1] - 0.5:
            best[landmark.room] = min(best.get(landmark.room, candidate), candidate, key=lambda entry: entry[0])
    return [
        (distance, Pass(LandmarkPhrase(landmark.shape, landmark.color)))
        for _, (_, distance, landmark) in sorted(best.items())
        if rng.random() < probability
    ]


def _distances_along(path: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance (n,) along a path (n, 2) from the start to each corner, m."""
    return np.concatenate([[0.0], np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()])


def _first_turn(start: Pose, path: NDArray[np.float64]) -> Side:
    """Return the turn at the start of a path; "" if the path starts within 45 degrees of the heading."""
    corner_distances = _distances_along(path)
    x, y = (float(np.interp(START_LENGTH, corner_distances, path[:, axis])) for axis in (0, 1))
    angle = math.degrees(turn_towards(start, (x, y)))
    if abs(angle) <= 45:
        return ""
    if abs(angle) >= 135:
        return "around"
    return "left" if angle > 0 else "right"
