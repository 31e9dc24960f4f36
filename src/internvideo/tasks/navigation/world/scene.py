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
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from internvideo.datasets.reading import read_json
from internvideo.errors import ManifestError
from internvideo.storage import write_text

WALL = 0.16
"""Thickness of walls, m. Walls stand centered on the borders of rooms."""
CEILING = 2.6
"""Height of the ceiling, m."""
DOOR_WIDTH, DOOR_HEIGHT, POST_WIDTH = 1.1, 2.1, 0.14
"""Clear width and height of a door, and width of each of the two posts of a door's frame, m."""
BODY = 0.15
"""Half the side of the agent's square footprint, m."""

COLORS: dict[str, tuple[int, int, int]] = {
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
"""Half the width, half the depth and the full height, m; for round shapes, half the width is the radius."""
ROUND: tuple[Shape, ...] = ("pillar", "barrel")
SPIN = math.radians(25)
"""Angular speed of spinning landmarks, radians per tick."""
BOUNCE_TICKS, BOUNCE_HEIGHT = 8, 0.5
"""Duration in ticks and height in m of a jump of bouncing landmarks."""
FLASH_TICKS, DIM = 4, 0.4
"""Period in ticks of flashing landmarks, and their brightness in the second half of the period."""


_Color = Annotated[str, Field(validation_alias=AliasChoices("color", "colour"), serialization_alias="colour")]
_Phase = Annotated[
    float, Field(ge=0, lt=1, validation_alias=AliasChoices("phase", "moment"), serialization_alias="moment")
]
"""Types of fields that scene files store as "colour" and "moment"."""


class _SceneModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Room(_SceneModel):
    """A rectangle from (x0, y0) to (x1, y1), measured between wall centers, with floor and wall colors."""

    x0: float
    y0: float
    x1: float
    y1: float
    floor: str
    wall: str
    pattern: Annotated[int, Field(ge=0, le=2)] = 0

    def contains(self, x: float, y: float) -> bool:
        """Return whether a point lies in the room."""
        return self.x0 <= x <= self.x1 and self.y0 <= y <= self.y1

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) of the center."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2


class Door(_SceneModel):
    """A gap around (x, y) in the wall between two rooms, given by index; the wall is parallel to the axis `along`."""

    x: float
    y: float
    along: Literal["x", "y"]
    color: _Color
    rooms: tuple[int, int]


class Landmark(_SceneModel):
    """An object in the room of index `room`.

    A moving landmark starts its `motion` at `phase`, 0..1 of a period. A static one (`motion` None) always looks like
    the motion `frozen` at `phase`.
    """

    shape: Shape
    color: _Color
    x: float
    y: float
    room: int
    motion: Motion | None = None
    frozen: Motion = "spinning"
    phase: _Phase = 0.0

    @property
    def half_side(self) -> float:
        """Half the side of a square that contains the landmark at any rotation, m."""
        width, depth, _ = SHAPES[self.shape]
        return width if self.shape in ROUND else math.hypot(width, depth)

    def state(self, tick: int) -> tuple[float, float, float]:
        """Return the angle in radians, the height of the bottom in m, and the brightness (0..1) at a tick."""
        tick = tick if self.motion else 0
        motion = self.motion or self.frozen
        angle, height, brightness = 0.0, 0.0, 1.0
        if motion == "spinning":
            angle = self.phase * 2 * math.pi + tick * SPIN
        elif motion == "bouncing":
            height = BOUNCE_HEIGHT * abs(math.sin(math.pi * (self.phase + tick / BOUNCE_TICKS)))
        elif (self.phase + tick / FLASH_TICKS) % 1 >= 0.5:
            brightness = DIM
        return angle, height, brightness


class Scene(_SceneModel):
    """A house. Rooms do not overlap; together they fill the rectangle from (0, 0) to `size`."""

    name: Annotated[str, Field(pattern=r"^[\w./-]+$")]
    size: tuple[float, float]
    rooms: Annotated[tuple[Room, ...], Field(min_length=1)]
    doors: tuple[Door, ...] = ()
    landmarks: tuple[Landmark, ...] = ()

    def room_at(self, x: float, y: float) -> int | None:
        """Return the index of the room that contains a point, None outside."""
        return next((index for index, room in enumerate(self.rooms) if room.contains(x, y)), None)


@dataclass(frozen=True)
class Walls:
    """Walls and door posts as n rectangles on the floor plan; touching rectangles overlap, so there are no seams.

    Attributes:
        rectangles: (n, 4) float64 x0, y0, x1, y1.
        colors: (n, 3) float32, 0..255 for door posts; -1 for walls, whose sides have the colors of their rooms.
        lintels: (m, 4) rectangles above doors. lintel_colors: (m, 3).
    """

    rectangles: NDArray[np.float64]
    colors: NDArray[np.float32]
    lintels: NDArray[np.float64]
    lintel_colors: NDArray[np.float32]


def build_walls(scene: Scene) -> Walls:
    """Build walls on all room borders with gaps at doors, and the posts and lintels of the doors."""
    half = WALL / 2
    wall_rectangles: set[tuple[float, float, float, float]] = set()
    posts: list[tuple[float, float, float, float]] = []
    lintels: list[tuple[float, float, float, float]] = []
    for room in scene.rooms:
        for along, line, start, end in (
            ("x", room.y0, room.x0, room.x1), ("x", room.y1, room.x0, room.x1),
            ("y", room.x0, room.y0, room.y1), ("y", room.x1, room.y0, room.y1),
        ):  # fmt: skip
            segments = [(start - half, end + half)]
            for door in scene.doors:
                door_center, door_line = (door.x, door.y) if along == "x" else (door.y, door.x)
                if door.along != along or abs(door_line - line) > 1e-6 or not start < door_center < end:
                    continue
                left, right = door_center - DOOR_WIDTH / 2, door_center + DOOR_WIDTH / 2
                # Walls end inside the posts: touching rectangles would leave a seam.
                segments = [
                    segment
                    for low, high in segments
                    for segment in (
                        (low, min(high, left - POST_WIDTH / 2)),
                        (max(low, right + POST_WIDTH / 2), high),
                    )
                    if segment[0] < segment[1]
                ]
            wall_rectangles |= {_rectangle(along, line, *segment, half) for segment in segments}
    for door in scene.doors:
        door_center, line = (door.x, door.y) if door.along == "x" else (door.y, door.x)
        left, right = door_center - DOOR_WIDTH / 2, door_center + DOOR_WIDTH / 2
        posts += [_rectangle(door.along, line, left - POST_WIDTH, left, half + 0.03)]
        posts += [_rectangle(door.along, line, right, right + POST_WIDTH, half + 0.03)]
        lintels.append(_rectangle(door.along, line, left - POST_WIDTH, right + POST_WIDTH, half + 0.03))
    door_colors = np.array([COLORS[door.color] for door in scene.doors], dtype=np.float32).reshape(-1, 3)
    wall_colors = np.full((len(wall_rectangles), 3), -1, dtype=np.float32)
    return Walls(
        np.array([*sorted(wall_rectangles), *posts], dtype=np.float64).reshape(-1, 4),
        np.concatenate([wall_colors, np.repeat(door_colors, 2, axis=0)]),
        np.array(lintels, dtype=np.float64).reshape(-1, 4),
        door_colors,
    )


def _rectangle(along: str, line: float, start: float, end: float, half: float) -> tuple[float, float, float, float]:
    if along == "x":
        return (start, line - half, end, line + half)
    return (line - half, start, line + half, end)


def footprints(scene: Scene, walls: Walls) -> NDArray[np.float64]:
    """Return the obstacle rectangles (n, 4): walls, posts and the squares around landmarks."""
    boxes = [(landmark.x, landmark.y, landmark.half_side) for landmark in scene.landmarks]
    squares = [(x - half, y - half, x + half, y + half) for x, y, half in boxes]
    return np.concatenate([walls.rectangles, np.array(squares, dtype=np.float64).reshape(-1, 4)])


def read_scene(path: Path) -> Scene:
    """Read a scene's JSON file.

    Raises:
        ManifestError: the file is unreadable, not a scene, or has an unknown color, an unknown room or an empty room.
    """
    scene = read_json(path, Scene)
    for index, landmark in enumerate(scene.landmarks):
        if landmark.color not in COLORS or landmark.room >= len(scene.rooms) or landmark.room < 0:
            raise ManifestError(path, f"landmarks.{index}: {landmark.color}, room {landmark.room}", ", ".join(COLORS))
    for index, door in enumerate(scene.doors):
        if door.color not in COLORS or not all(0 <= room < len(scene.rooms) for room in door.rooms):
            raise ManifestError(path, f"doors.{index}: {door.color}, rooms {door.rooms}", ", ".join(COLORS))
    for index, room in enumerate(scene.rooms):
        if room.floor not in FLOORS or room.wall not in WALLS or room.x1 <= room.x0 or room.y1 <= room.y0:
            raise ManifestError(path, f"rooms.{index}: {room.floor} floor, {room.wall} walls, or an empty rectangle",
                                f"floors {', '.join(FLOORS)}; walls {', '.join(WALLS)}")  # fmt: skip
    return scene


def write_scene(path: Path, scene: Scene) -> None:
    """Write a scene's JSON file. Raises RunError."""
    write_text(path, scene.model_dump_json(indent=1, by_alias=True) + "\n")
