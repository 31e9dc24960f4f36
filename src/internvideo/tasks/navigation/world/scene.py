"""Data model of a house: rooms in a grid, doors with colored frames, moving and static landmarks.

A static landmark is frozen at a random phase of some motion, so motion is visible only in successive frames, never in
a single one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from internvideo.datasets.reading import read_json
from internvideo.errors import ManifestError
from internvideo.storage import write_text

WALL = 0.16
"""Thickness of walls, m. Walls stand centered on the borders of rooms."""
CEILING = 2.6
DOOR_WIDTH, DOOR_HEIGHT, POST_WIDTH = 1.1, 2.1, 0.14
"""Clear width and height of a door and the width of its frame's posts, m."""
BODY = 0.15
"""Half the side of the agent's square footprint, m."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 85, 220),
    "yellow": (240, 205, 40),
    "orange": (240, 130, 25),
    "purple": (140, 55, 185),
    "pink": (245, 120, 180),
    "cyan": (50, 200, 215),
}
FLOORS: dict[str, tuple[int, int, int]] = {
    "wooden": (150, 110, 72), "grey": (128, 128, 128), "brown": (96, 70, 56), "white": (205, 203, 196),
    "beige": (190, 170, 135), "dark": (62, 62, 70),
}  # fmt: skip
WALLS: dict[str, tuple[int, int, int]] = {
    "ivory": (222, 214, 192), "sage": (168, 180, 158), "slate": (140, 150, 166), "rose": (196, 164, 158),
    "sand": (200, 184, 148), "mist": (188, 196, 204),
}  # fmt: skip

Motion = Literal["spinning", "bouncing", "flashing"]
MOTIONS: tuple[Motion, ...] = ("spinning", "bouncing", "flashing")
Shape = Literal["pillar", "box", "barrel", "screen"]
SHAPES: dict[Shape, tuple[float, float, float]] = {
    "pillar": (0.25, 0.25, 2.1), "box": (0.42, 0.42, 0.95), "barrel": (0.38, 0.38, 1.0), "screen": (0.58, 0.10, 1.6),
}  # fmt: skip
"""Half width, half depth and height, m; pillars and barrels are round."""
ROUND: tuple[Shape, ...] = ("pillar", "barrel")
SPIN, BOUNCE_TICKS, BOUNCE, FLASH_TICKS, DIM = math.radians(25), 8, 0.5, 4, 0.4
"""Spin, radians per tick; jump duration in ticks and height in m; flash period in ticks (half dim) and dimming."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Room(_Data):
    """A rectangle from (x0, y0) to (x1, y1), measured between wall centers, with floor and wall colors."""

    x0: float
    y0: float
    x1: float
    y1: float
    floor: str
    wall: str
    pattern: Annotated[int, Field(ge=0, le=2)] = 0

    def holds(self, x: float, y: float) -> bool:
        """Return whether a point lies in the room."""
        return self.x0 <= x <= self.x1 and self.y0 <= y <= self.y1

    @property
    def center(self) -> tuple[float, float]:
        """Its middle."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2


class Door(_Data):
    """A gap around (x, y) in the wall between two rooms; `along` is the axis in which the wall runs."""

    x: float
    y: float
    along: Literal["x", "y"]
    colour: str
    rooms: tuple[int, int]


class Landmark(_Data):
    """An object in a room. `moment` (0..1) is the phase at which its motion starts, or is frozen if `motion` is None.

    `frozen` names the motion whose phase a static object shows.
    """

    shape: Shape
    colour: str
    x: float
    y: float
    room: int
    motion: Motion | None = None
    frozen: Motion = "spinning"
    moment: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def reach(self) -> float:
        """Half the side of the square that covers it at any rotation, m."""
        width, depth, _ = SHAPES[self.shape]
        return width if self.shape in ROUND else math.hypot(width, depth)

    def state(self, time: int) -> tuple[float, float, float]:
        """Return (angle in radians, height of its foot in m, brightness) at a tick."""
        ticks = time if self.motion else 0
        kind = self.motion or self.frozen
        angle, lift, light = 0.0, 0.0, 1.0
        if kind == "spinning":
            angle = self.moment * 2 * math.pi + ticks * SPIN
        elif kind == "bouncing":
            lift = BOUNCE * abs(math.sin(math.pi * (self.moment + ticks / BOUNCE_TICKS)))
        elif (self.moment + ticks / FLASH_TICKS) % 1 >= 0.5:
            light = DIM
        return angle, lift, light


class Scene(_Data):
    """A house. Rooms do not overlap; together they fill the rectangle from (0, 0) to `size`."""

    name: Annotated[str, Field(pattern=r"^[\w./-]+$")]
    size: tuple[float, float]
    rooms: Annotated[tuple[Room, ...], Field(min_length=1)]
    doors: tuple[Door, ...] = ()
    landmarks: tuple[Landmark, ...] = ()

    def room_at(self, x: float, y: float) -> int | None:
        """Return the index of the room that contains a point, None outside."""
        return next((number for number, room in enumerate(self.rooms) if room.holds(x, y)), None)


@dataclass(frozen=True)
class Walls:
    """Walls and door posts as n rectangles; rectangles of one wall overlap where they meet.

    Attributes:
        rectangles: (n, 4) float64 x0, y0, x1, y1.
        colours: (n, 3) float32 of a door's posts; -1 means the color of the room in front.
        lintels: (m, 4) rectangles above doors. lintel_colours: (m, 3).
    """

    rectangles: NDArray[np.float64]
    colours: NDArray[np.float32]
    lintels: NDArray[np.float64]
    lintel_colours: NDArray[np.float32]


def walls_of(scene: Scene) -> Walls:
    """Build walls on all room borders, with gaps at doors, posts and lintels."""
    half = WALL / 2
    plain: set[tuple[float, float, float, float]] = set()
    posts: list[tuple[float, float, float, float]] = []
    lintels: list[tuple[float, float, float, float]] = []
    for room in scene.rooms:
        for along, fixed, start, end in (
            ("x", room.y0, room.x0, room.x1), ("x", room.y1, room.x0, room.x1),
            ("y", room.x0, room.y0, room.y1), ("y", room.x1, room.y0, room.y1),
        ):  # fmt: skip
            pieces = [(start - half, end + half)]
            for door in scene.doors:
                middle, across = (door.x, door.y) if along == "x" else (door.y, door.x)
                if door.along != along or abs(across - fixed) > 1e-6 or not start < middle < end:
                    continue
                left, right = middle - DOOR_WIDTH / 2, middle + DOOR_WIDTH / 2
                # Walls end inside the posts: touching rectangles would leave a seam.
                pieces = [
                    piece
                    for low, high in pieces
                    for piece in (
                        (low, min(high, left - POST_WIDTH / 2)),
                        (max(low, right + POST_WIDTH / 2), high),
                    )
                    if piece[0] < piece[1]
                ]
            plain |= {_rectangle(along, fixed, *piece, half) for piece in pieces}
    for door in scene.doors:
        middle, fixed = (door.x, door.y) if door.along == "x" else (door.y, door.x)
        left, right = middle - DOOR_WIDTH / 2, middle + DOOR_WIDTH / 2
        posts += [_rectangle(door.along, fixed, left - POST_WIDTH, left, half + 0.03)]
        posts += [_rectangle(door.along, fixed, right, right + POST_WIDTH, half + 0.03)]
        lintels.append(_rectangle(door.along, fixed, left - POST_WIDTH, right + POST_WIDTH, half + 0.03))
    painted = np.array([COLOURS[door.colour] for door in scene.doors], dtype=np.float32).reshape(-1, 3)
    unpainted = np.full((len(plain), 3), -1, dtype=np.float32)
    return Walls(
        np.array([*sorted(plain), *posts], dtype=np.float64).reshape(-1, 4),
        np.concatenate([unpainted, np.repeat(painted, 2, axis=0)]),
        np.array(lintels, dtype=np.float64).reshape(-1, 4),
        painted,
    )


def _rectangle(along: str, fixed: float, start: float, end: float, half: float) -> tuple[float, float, float, float]:
    if along == "x":
        return (start, fixed - half, end, fixed + half)
    return (fixed - half, start, fixed + half, end)


def footprints(scene: Scene, walls: Walls) -> NDArray[np.float64]:
    """Return the obstacle rectangles (n, 4): walls, posts and the squares around landmarks."""
    squares = [(thing.x - thing.reach, thing.y - thing.reach, thing.x + thing.reach, thing.y + thing.reach)
               for thing in scene.landmarks]  # fmt: skip
    return np.concatenate([walls.rectangles, np.array(squares, dtype=np.float64).reshape(-1, 4)])


def read_scene(path: Path) -> Scene:
    """Read a scene's JSON file.

    Raises:
        ManifestError: unreadable, not a scene, an unknown color, or an object in a room that does not exist.
    """
    scene = read_json(path, Scene)
    for number, thing in enumerate(scene.landmarks):
        if thing.colour not in COLOURS or thing.room >= len(scene.rooms) or thing.room < 0:
            raise ManifestError(path, f"landmarks.{number}: {thing.colour}, room {thing.room}", ", ".join(COLOURS))
    for number, door in enumerate(scene.doors):
        if door.colour not in COLOURS or not all(0 <= room < len(scene.rooms) for room in door.rooms):
            raise ManifestError(path, f"doors.{number}: {door.colour}, rooms {door.rooms}", ", ".join(COLOURS))
    for number, room in enumerate(scene.rooms):
        if room.floor not in FLOORS or room.wall not in WALLS or room.x1 <= room.x0 or room.y1 <= room.y0:
            raise ManifestError(path, f"rooms.{number}: {room.floor} floor, {room.wall} walls, or an empty rectangle",
                                f"floors {', '.join(FLOORS)}; walls {', '.join(WALLS)}")  # fmt: skip
    return scene


def write_scene(path: Path, scene: Scene) -> None:
    """Write a scene's JSON file. Raises RunError."""
    write_text(path, scene.model_dump_json(indent=1) + "\n")
