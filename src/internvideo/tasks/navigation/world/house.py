"""Generate houses from a seed: rooms of several sizes in a grid, doors that connect them all, landmarks per room."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from internvideo.tasks.navigation.world.scene import (
    COLORS,
    DOOR_WIDTH,
    FLOORS,
    MOTIONS,
    POST_WIDTH,
    SHAPES,
    WALLS,
    Door,
    Landmark,
    Motion,
    Room,
    Scene,
    Shape,
)

WALL_DISTANCE, DOOR_DISTANCE, LANDMARK_DISTANCE, TWIN_DISTANCE = 1.1, 1.5, 1.7, 4.8
"""Smallest distances of a landmark's center from wall centers, doors, other landmarks and its twin, m.

Twins are farther apart than the success radius of 3 m, so going to the wrong twin fails."""


@dataclass(frozen=True)
class HouseSettings:
    """Settings of generating houses.

    Attributes:
        columns, rows: numbers of rooms along x and y. smallest, largest: range of the sides of a room, m.
        landmarks: largest number per room, 2 or more; rooms have 2 to so many, fewer if they do not fit.
        moving: probability that a landmark moves (twins excepted).
        twins: probability that a room has twins, if they fit: two landmarks that differ only in motion, one moving and
            one static.
        more_doors: probability of a door in a wall that needs none (all rooms are connected anyway).
    """

    columns: int = 3
    rows: int = 2
    smallest: float = 5.0
    largest: float = 7.5
    landmarks: int = 4
    moving: float = 0.4
    twins: float = 0.7
    more_doors: float = 0.3

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if self.columns < 1 or self.rows < 1 or self.columns * self.rows < 2:
            raise ValueError(f"{self.columns} x {self.rows} rooms, expected at least two rooms")
        if not 3.0 <= self.smallest <= self.largest:
            raise ValueError(f"rooms of {self.smallest} to {self.largest} m, expected at least 3 m")
        if self.landmarks < 2 or not all(0 <= fraction <= 1 for fraction in (self.moving, self.twins, self.more_doors)):
            raise ValueError("at least two landmarks per room, and fractions from 0 to 1")


def generate_house(name: str, seed: int, settings: HouseSettings | None = None) -> Scene:
    """Generate a house; equal seeds and settings give equal houses."""
    settings = settings or HouseSettings()
    rng = np.random.default_rng([seed, 0x686F7573])
    rooms, size = _sample_rooms(rng, settings)
    doors = _sample_doors(rng, rooms, settings)
    return Scene(
        name=name, size=size, rooms=rooms, doors=doors, landmarks=_sample_landmarks(rng, rooms, doors, settings)
    )


def _sample_rooms(rng: np.random.Generator, settings: HouseSettings) -> tuple[tuple[Room, ...], tuple[float, float]]:
    x = _sample_borders(rng, settings.columns, settings)
    y = _sample_borders(rng, settings.rows, settings)
    floors, paints = list(FLOORS), list(WALLS)
    rooms = [
        Room(
            x0=x[column], y0=y[row], x1=x[column + 1], y1=y[row + 1],
            floor=floors[int(rng.integers(len(floors)))], wall=paints[int(rng.integers(len(paints)))],
            pattern=int(rng.integers(3)),
        )
        for row in range(settings.rows)
        for column in range(settings.columns)
    ]  # fmt: skip
    return tuple(rooms), (x[-1], y[-1])


def _sample_borders(rng: np.random.Generator, count: int, settings: HouseSettings) -> list[float]:
    sides = rng.uniform(settings.smallest, settings.largest, count).round(1)
    return [0.0, *(float(edge) for edge in sides.cumsum().round(1))]


def _sample_doors(rng: np.random.Generator, rooms: tuple[Room, ...], settings: HouseSettings) -> tuple[Door, ...]:
    """Place a door in every wall of a random spanning tree of the rooms, and in some other walls."""
    walls = [
        (first, second)
        for first in range(len(rooms))
        for second in range(first + 1, len(rooms))
        if _share_wall(rooms[first], rooms[second])
    ]
    order = [walls[index] for index in rng.permutation(len(walls))]
    group = list(range(len(rooms)))
    connected: list[tuple[int, int]] = []
    for first, second in order:
        if group[first] != group[second]:
            old_group, new_group = group[second], group[first]
            group = [new_group if index == old_group else index for index in group]
            connected.append((first, second))
        elif rng.random() < settings.more_doors:
            connected.append((first, second))
    doors: list[Door] = []
    for first, second in sorted(connected):
        used_colors = {door.color for door in doors if {first, second} & set(door.rooms)}
        free_colors = [color for color in COLORS if color not in used_colors] or list(COLORS)
        doors.append(_sample_door(rng, rooms, (first, second), free_colors[int(rng.integers(len(free_colors)))]))
    return tuple(doors)


def _share_wall(a: Room, b: Room) -> bool:
    beside = math.isclose(a.x1, b.x0) and math.isclose(a.y0, b.y0) and math.isclose(a.y1, b.y1)
    above = math.isclose(a.y1, b.y0) and math.isclose(a.x0, b.x0) and math.isclose(a.x1, b.x1)
    return beside or above


def _sample_door(rng: np.random.Generator, rooms: tuple[Room, ...], pair: tuple[int, int], color: str) -> Door:
    first, second = rooms[pair[0]], rooms[pair[1]]
    margin = DOOR_WIDTH / 2 + POST_WIDTH + 0.4
    if math.isclose(first.x1, second.x0):
        coordinate = round(float(rng.uniform(first.y0 + margin, first.y1 - margin)), 2)
        return Door(x=first.x1, y=coordinate, along="y", color=color, rooms=pair)
    coordinate = round(float(rng.uniform(first.x0 + margin, first.x1 - margin)), 2)
    return Door(x=coordinate, y=first.y1, along="x", color=color, rooms=pair)


def _sample_landmarks(
    rng: np.random.Generator, rooms: tuple[Room, ...], doors: tuple[Door, ...], settings: HouseSettings
) -> tuple[Landmark, ...]:
    landmarks: list[Landmark] = []
    for room_index, room in enumerate(rooms):
        num_landmarks = int(rng.integers(2, settings.landmarks + 1))
        door_positions = [(door.x, door.y) for door in doors if room_index in door.rooms]
        room_landmarks: list[Landmark] = []
        if rng.random() < settings.twins:
            room_landmarks += _sample_twins(rng, room_index, room, door_positions)
        spots = [(landmark.x, landmark.y) for landmark in room_landmarks]
        while len(room_landmarks) < num_landmarks and (
            spot := _sample_spot(rng, room, door_positions, spots, LANDMARK_DISTANCE)
        ):
            spots.append(spot)
            sampled_motion = MOTIONS[int(rng.integers(len(MOTIONS)))]
            shape, color = _sample_appearance(rng, room_landmarks)
            motion = sampled_motion if rng.random() < settings.moving else None
            room_landmarks.append(_make_landmark(rng, room_index, spot, shape, color, motion, sampled_motion))
        landmarks += room_landmarks
    return tuple(landmarks)


def _sample_twins(
    rng: np.random.Generator, room_index: int, room: Room, door_positions: list[tuple[float, float]]
) -> list[Landmark]:
    """Sample two landmarks of one shape and color, a moving and a static one; none if the room is too small."""
    for _ in range(10):
        first = _sample_spot(rng, room, door_positions, [], LANDMARK_DISTANCE)
        second = first and _sample_spot(rng, room, door_positions, [first], TWIN_DISTANCE)
        if first and second:
            break
    else:
        return []
    motion_of_twin = MOTIONS[int(rng.integers(len(MOTIONS)))]
    shape, color = _sample_appearance(rng, [])
    return [_make_landmark(rng, room_index, spot, shape, color, motion, motion_of_twin)
            for spot, motion in ((first, motion_of_twin), (second, None))]  # fmt: skip


def _sample_spot(
    rng: np.random.Generator, room: Room, door_positions: list[tuple[float, float]], others: list[tuple[float, float]],
    min_distance: float,
) -> tuple[float, float] | None:  # fmt: skip
    """Sample a free position for a landmark; None after 100 failed attempts."""
    for _ in range(100):
        x = round(float(rng.uniform(room.x0 + WALL_DISTANCE, room.x1 - WALL_DISTANCE)), 2)
        y = round(float(rng.uniform(room.y0 + WALL_DISTANCE, room.y1 - WALL_DISTANCE)), 2)
        away_from_doors = all(math.dist((x, y), door) >= DOOR_DISTANCE for door in door_positions)
        if away_from_doors and all(math.dist((x, y), other) >= min_distance for other in others):
            return x, y
    return None


def _sample_appearance(rng: np.random.Generator, others: list[Landmark]) -> tuple[Shape, str]:
    """Sample a combination of shape and color that `others` do not have."""
    used = {(landmark.shape, landmark.color) for landmark in others}
    free = [(shape, color) for shape in SHAPES for color in COLORS if (shape, color) not in used]
    return free[int(rng.integers(len(free)))]


def _make_landmark(
    rng: np.random.Generator, room: int, spot: tuple[float, float], shape: Shape, color: str,
    motion: Motion | None, frozen: Motion,
) -> Landmark:  # fmt: skip
    return Landmark(shape=shape, color=color, x=spot[0], y=spot[1], room=room, motion=motion, frozen=frozen,
                    phase=round(float(rng.random()), 3) % 1)  # fmt: skip
