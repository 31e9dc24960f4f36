"""Generate houses from a seed: rooms of several sizes in a grid, doors that connect them all, landmarks per room."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from internvideo.tasks.navigation.world.scene import (
    COLOURS,
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

FROM_WALL, FROM_DOOR, APART, TWINS_APART = 1.1, 1.5, 1.7, 4.8
"""Smallest distances of a landmark's center from wall centers, doors, other landmarks and its twin, m.

Twins are farther apart than the success radius of 3 m, so going to the wrong one fails."""


@dataclass(frozen=True)
class HouseSettings:
    """Settings of generating houses.

    Attributes:
        columns, rows: grid of rooms. smallest, largest: sides of a room, m.
        landmarks: largest number per room (at least two). moving: fraction of landmarks that move.
        twins: fraction of rooms with two landmarks that differ only in motion: one moves, one is static.
        more_doors: fraction of the walls between rooms with a door beyond those needed to connect all rooms.
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
            raise ValueError(f"{self.columns} x {self.rows} rooms, must be at least two")
        if not 3.0 <= self.smallest <= self.largest:
            raise ValueError(f"rooms of {self.smallest} to {self.largest} m, must be at least 3 m")
        if self.landmarks < 2 or not all(0 <= share <= 1 for share in (self.moving, self.twins, self.more_doors)):
            raise ValueError("at least two landmarks per room, and fractions from 0 to 1")


def draw_house(name: str, seed: int, settings: HouseSettings | None = None) -> Scene:
    """Generate the house of a seed; the same seed and settings give the same house."""
    settings = settings or HouseSettings()
    rng = np.random.default_rng([seed, 0x686F7573])
    rooms, size = _rooms(rng, settings)
    doors = _doors(rng, rooms, settings)
    return Scene(name=name, size=size, rooms=rooms, doors=doors, landmarks=_landmarks(rng, rooms, doors, settings))


def _rooms(rng: np.random.Generator, settings: HouseSettings) -> tuple[tuple[Room, ...], tuple[float, float]]:
    x = _borders(rng, settings.columns, settings)
    y = _borders(rng, settings.rows, settings)
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


def _borders(rng: np.random.Generator, count: int, settings: HouseSettings) -> list[float]:
    sides = rng.uniform(settings.smallest, settings.largest, count).round(1)
    return [0.0, *(float(edge) for edge in sides.cumsum().round(1))]


def _doors(rng: np.random.Generator, rooms: tuple[Room, ...], settings: HouseSettings) -> tuple[Door, ...]:
    """Place a door in every wall of a random spanning tree of the rooms, and in some other walls."""
    walls = [
        (first, second)
        for first in range(len(rooms))
        for second in range(first + 1, len(rooms))
        if _shared(rooms[first], rooms[second])
    ]
    order = [walls[number] for number in rng.permutation(len(walls))]
    group = list(range(len(rooms)))
    joined: list[tuple[int, int]] = []
    for first, second in order:
        if group[first] != group[second]:
            old, new = group[second], group[first]
            group = [new if number == old else number for number in group]
            joined.append((first, second))
        elif rng.random() < settings.more_doors:
            joined.append((first, second))
    doors: list[Door] = []
    for first, second in sorted(joined):
        taken = {door.colour for door in doors if {first, second} & set(door.rooms)}
        colours = [colour for colour in COLOURS if colour not in taken] or list(COLOURS)
        doors.append(_door(rng, rooms, (first, second), colours[int(rng.integers(len(colours)))]))
    return tuple(doors)


def _shared(a: Room, b: Room) -> bool:
    beside = math.isclose(a.x1, b.x0) and math.isclose(a.y0, b.y0) and math.isclose(a.y1, b.y1)
    above = math.isclose(a.y1, b.y0) and math.isclose(a.x0, b.x0) and math.isclose(a.x1, b.x1)
    return beside or above


def _door(rng: np.random.Generator, rooms: tuple[Room, ...], pair: tuple[int, int], colour: str) -> Door:
    first, second = rooms[pair[0]], rooms[pair[1]]
    margin = DOOR_WIDTH / 2 + POST_WIDTH + 0.4
    if math.isclose(first.x1, second.x0):
        at = round(float(rng.uniform(first.y0 + margin, first.y1 - margin)), 2)
        return Door(x=first.x1, y=at, along="y", colour=colour, rooms=pair)
    at = round(float(rng.uniform(first.x0 + margin, first.x1 - margin)), 2)
    return Door(x=at, y=first.y1, along="x", colour=colour, rooms=pair)


def _landmarks(
    rng: np.random.Generator, rooms: tuple[Room, ...], doors: tuple[Door, ...], settings: HouseSettings
) -> tuple[Landmark, ...]:
    made: list[Landmark] = []
    for number, room in enumerate(rooms):
        wanted = int(rng.integers(2, settings.landmarks + 1))
        gaps = [(door.x, door.y) for door in doors if number in door.rooms]
        here: list[Landmark] = []
        if rng.random() < settings.twins:
            here += _twins(rng, number, room, gaps)
        spots = [(thing.x, thing.y) for thing in here]
        while len(here) < wanted and (spot := _spot(rng, room, gaps, spots, APART)):
            spots.append(spot)
            kind = MOTIONS[int(rng.integers(len(MOTIONS)))]
            shape, colour = _look(rng, here)
            motion = kind if rng.random() < settings.moving else None
            here.append(_landmark(rng, number, spot, shape, colour, motion, kind))
        made += here
    return tuple(made)


def _twins(rng: np.random.Generator, number: int, room: Room, gaps: list[tuple[float, float]]) -> list[Landmark]:
    """Make a moving landmark and a static one of the same look; none if the room is too small."""
    for _ in range(10):
        first = _spot(rng, room, gaps, [], APART)
        second = first and _spot(rng, room, gaps, [first], TWINS_APART)
        if first and second:
            break
    else:
        return []
    kind = MOTIONS[int(rng.integers(len(MOTIONS)))]
    shape, colour = _look(rng, [])
    return [_landmark(rng, number, spot, shape, colour, motion, kind)
            for spot, motion in ((first, kind), (second, None))]  # fmt: skip


def _spot(
    rng: np.random.Generator, room: Room, gaps: list[tuple[float, float]], others: list[tuple[float, float]],
    apart: float,
) -> tuple[float, float] | None:  # fmt: skip
    """Find a free position for a landmark; None if none was found."""
    for _ in range(100):
        x = round(float(rng.uniform(room.x0 + FROM_WALL, room.x1 - FROM_WALL)), 2)
        y = round(float(rng.uniform(room.y0 + FROM_WALL, room.y1 - FROM_WALL)), 2)
        clear = all(math.dist((x, y), gap) >= FROM_DOOR for gap in gaps)
        if clear and all(math.dist((x, y), other) >= apart for other in others):
            return x, y
    return None


def _look(rng: np.random.Generator, others: list[Landmark]) -> tuple[Shape, str]:
    """Draw a combination of shape and color that is unique in the room."""
    taken = {(thing.shape, thing.colour) for thing in others}
    free = [(shape, colour) for shape in SHAPES for colour in COLOURS if (shape, colour) not in taken]
    return free[int(rng.integers(len(free)))]


def _landmark(
    rng: np.random.Generator, room: int, spot: tuple[float, float], shape: Shape, colour: str,
    motion: Motion | None, kind: Motion,
) -> Landmark:  # fmt: skip
    moment = round(float(rng.random()), 3) % 1
    return Landmark(shape=shape, colour=colour, x=spot[0], y=spot[1], room=room, motion=motion, frozen=kind,
                    moment=moment)  # fmt: skip
