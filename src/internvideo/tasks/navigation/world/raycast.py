"""Render RGB and depth views of a house by ray casting in NumPy, deterministically.

A view is a level pinhole camera. The ray of a column has the direction forward + u * right, u from -1 to 1, so ray
parameters are depths along the view's axis. Walls reach from floor to ceiling, so one hit per column suffices.
Landmarks and lintels are composited over them per pixel.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from internvideo.tasks.navigation.world.protocol import VIEWS, Observation, Pose
from internvideo.tasks.navigation.world.scene import (
    CEILING,
    COLOURS,
    DOOR_HEIGHT,
    FLOORS,
    ROUND,
    SHAPES,
    WALLS,
    Scene,
    Walls,
)

EYE = 1.25
"""Height of the camera, m."""
FARTHEST = 10.0
"""Depth 1.0 in m."""
CELL = 0.05
"""Side of a texel of the floor, m."""
FADE = 0.045
"""Fraction of brightness lost per meter."""

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


class _Solids(NamedTuple):
    """n objects other than walls: center (n, 2), half sides (n, 2), turn, foot, top, light (n,), color (n, 3)."""

    middle: Floats
    half: Floats
    turn: Floats
    foot: Floats
    top: Floats
    light: Floats
    colour: Floats
    is_round: Bools


class _Canvas(NamedTuple):
    """Image buffers: color (columns, rows, 3) and depth (columns, rows)."""

    colour: Floats
    depth: Floats


class Camera:
    """Renderer of one scene; static textures are painted once at construction.

    Args:
        scene: the house. walls: its walls (`walls_of`).
    """

    def __init__(self, scene: Scene, walls: Walls) -> None:
        self._scene = scene
        self._walls = walls.rectangles.astype(np.float32)
        self._posts = walls.colours
        self._lintels = _lintels(walls)
        self._floor, self._paint, self._pattern = _painted(scene)

    def panorama(self, pose: Pose, time: int, size: int, depth_size: int | None = None) -> Observation:
        """Render 12 square views of `size` pixels counter-clockwise from the heading; depth has `depth_size`."""
        headings = pose.heading + np.arange(VIEWS) * (2 * math.pi / VIEWS)
        rgb, depth = self.views(pose, headings, time, size)
        if depth_size is not None and depth_size != size:
            _, depth = self.views(pose, headings, time, depth_size)
        return Observation(rgb, depth)

    def views(self, pose: Pose, headings: Floats, time: int, size: int) -> tuple[NDArray[np.uint8], Floats]:
        """Render 90-degree views in n directions: (n, size, size, 3) uint8, depth (n, size, size) float32 in 0..1."""
        u, v = _grid(size)
        forward = np.stack([np.cos(headings), np.sin(headings)], axis=1)
        right = np.stack([forward[:, 1], -forward[:, 0]], axis=1)
        rays = (forward[:, None] + u[None, :, None] * right[:, None]).reshape(-1, 2).astype(np.float32)
        place = np.array([pose.x, pose.y], dtype=np.float32)
        canvas = self._room(place, rays, v)
        self._things(canvas, place, rays, v, time)
        shade = np.maximum(1 - FADE * canvas.depth, 0.25)
        picture = np.clip(canvas.colour * shade[..., None], 0, 255).astype(np.uint8)
        count = len(headings)
        rgb = np.ascontiguousarray(picture.reshape(count, size, size, 3).transpose(0, 2, 1, 3))
        depth = np.minimum(canvas.depth / FARTHEST, 1).reshape(count, size, size).transpose(0, 2, 1)
        return rgb, np.ascontiguousarray(depth, dtype=np.float32)

    def _room(self, place: Floats, rays: Floats, v: Floats) -> _Canvas:
        """Render walls, floor and ceiling."""
        near, _, axis = _slabs(self._walls[:, :2] - place, self._walls[:, 2:] - place, rays)
        hit = near.argmin(axis=0)
        columns = np.arange(len(rays))
        wall = near[hit, columns]
        across = axis[hit, columns]
        flat = np.where(v < 0, -EYE / np.minimum(v, -1e-6), (CEILING - EYE) / np.maximum(v, 1e-6)).astype(np.float32)
        depth = np.minimum(wall[:, None], flat[None])
        colour = self._walls_seen(place, rays, wall, hit, across, v)
        low, high = (flat[None] < wall[:, None]) & (v < 0), (flat[None] < wall[:, None]) & (v > 0)
        column, row = np.nonzero(low)
        spots = place + rays[column] * flat[row, None]
        colour[low] = self._look_up(self._floor, spots)
        colour[high] = 232.0
        return _Canvas(colour, depth)

    def _walls_seen(
        self, place: Floats, rays: Floats, wall: Floats, hit: NDArray[np.intp], across: Bools, v: Floats
    ) -> Floats:
        """Shade walls (columns, rows, 3): color and pattern of the room in front, darker for walls along x."""
        before = place + rays * np.minimum(wall, 1e3)[:, None] * np.float32(0.999) - rays * np.float32(0.02)
        paint = self._look_up(self._paint, before)
        pattern = self._look_up(self._pattern, before)
        post = self._posts[hit]
        own = post[:, :1] >= 0
        paint = np.where(own, post, paint) * np.where(across, 1.0, 0.86).astype(np.float32)[:, None]
        spot = place + rays * np.minimum(wall, 1e3)[:, None]
        along = np.where(across, spot[:, 1], spot[:, 0])
        up = EYE + v[None] * np.minimum(wall, 1e3)[:, None]
        stripes = np.where(np.floor(along / 0.6).astype(np.int32) % 2 == 0, 1.0, 0.85)[:, None]
        bricks = np.where(np.floor(up / 0.5 + 0.01).astype(np.int32) % 2 == 0, 1.0, 0.85)
        dado = np.where(up < 0.9, 0.78, 1.0)
        kind = np.where(own[:, 0], 3, pattern)[:, None]
        tone = np.select([kind == 0, kind == 1, kind == 2], [dado, stripes, bricks], 1.0).astype(np.float32)
        shaded: Floats = paint[:, None, :] * tone[..., None]
        return shaded

    def _look_up(self, image: NDArray[np.generic], spots: Floats) -> NDArray[np.float32]:
        cells = np.clip((spots / CELL).astype(np.int32), 0, (image.shape[0] - 1, image.shape[1] - 1))
        found: NDArray[np.float32] = image[cells[:, 0], cells[:, 1]]  # type: ignore[assignment]  # of the image's type
        return found

    def _things(self, canvas: _Canvas, place: Floats, rays: Floats, v: Floats, time: int) -> None:
        pairs = zip(_landmarks(self._scene, time), self._lintels, strict=True)
        solids = _Solids(*(np.concatenate(pair) for pair in pairs))
        cos, sin = np.cos(solids.turn), np.sin(solids.turn)
        away = solids.middle - place
        local = np.stack([cos * away[:, 0] + sin * away[:, 1], cos * away[:, 1] - sin * away[:, 0]], axis=1)
        cos, sin = cos[:, None], sin[:, None]
        turned = np.stack([cos * rays[:, 0] + sin * rays[:, 1], cos * rays[:, 1] - sin * rays[:, 0]], axis=-1)
        near, far, axis = _slabs(local - solids.half, local + solids.half, turned)
        round_near, round_far = _circles(local, solids.half[:, 0], turned)
        near = np.where(solids.is_round[:, None], round_near, near)
        far = np.where(solids.is_round[:, None], round_far, far)
        visible = np.isfinite(near) & (near < canvas.depth.max(axis=1))
        for number in np.nonzero(visible.any(axis=1))[0].tolist():
            columns = np.nonzero(visible[number])[0]
            first, last = near[number, columns], far[number, columns]
            tone = _tones(solids, number, local[number], turned[number, columns], first, axis[number, columns])
            _lay(canvas, columns, first, last, v, solids, number, tone)


def _lay(
    canvas: _Canvas, columns: NDArray[np.intp], near: Floats, far: Floats, v: Floats, solids: _Solids, number: int,
    tone: Floats,
) -> None:  # fmt: skip
    """Composite one solid's side and its top or bottom over farther pixels."""
    foot, top = float(solids.foot[number]), float(solids.top[number])
    rows = v[None]
    up = EYE + rows * near[:, None]
    side = (up >= foot) & (up <= top)
    depth = np.where(side, near[:, None], np.float32(np.inf))
    lid = np.zeros_like(side)
    level = top if top < EYE else foot if foot > EYE else None
    if level is not None:
        safe = np.where(np.abs(rows) < 1e-6, np.float32(1e-6), rows)
        reach = ((level - EYE) / safe).astype(np.float32)
        lid = ~side & (reach >= near[:, None]) & (reach <= far[:, None])
        depth = np.where(lid, reach, depth)
    before = depth < canvas.depth[columns]
    colour = solids.colour[number] * solids.light[number]
    shade = np.where(lid, np.float32(0.9), tone[:, None])[before][:, None] * colour
    column, row = np.nonzero(before)
    canvas.colour[columns[column], row] = shade
    canvas.depth[columns[column], row] = depth[before]


def _tones(solids: _Solids, number: int, local: Floats, rays: Floats, near: Floats, axis: Bools) -> Floats:
    """Return the brightness of each hit: two sides of a box and two quadrants of a cylinder are dark."""
    if not solids.is_round[number]:
        return np.where(axis, np.float32(1.0), np.float32(0.55))
    spot = rays * near[:, None] - local
    angle = np.arctan2(spot[:, 1], spot[:, 0])
    dark = np.floor(angle / (math.pi / 2)).astype(np.int32) % 2 == 0
    return np.where(dark, np.float32(0.55), np.float32(1.0))


def _slabs(low: Floats, high: Floats, rays: Floats) -> tuple[Floats, Floats, Bools]:
    """Intersect rays from the origin, (columns, 2) or (n, columns, 2), with n rectangles (n, 2), (n, 2).

    Returns (n, columns) entry and exit, inf for a miss, and whether the entered side faces x.
    """
    safe = np.where(np.abs(rays) < 1e-7, np.float32(1e-7), rays)
    rays = safe if rays.ndim == 3 else safe[None]
    with np.errstate(over="ignore"):
        x1, x2 = low[:, :1] / rays[..., 0], high[:, :1] / rays[..., 0]
        y1, y2 = low[:, 1:] / rays[..., 1], high[:, 1:] / rays[..., 1]
    enter_x, enter_y = np.minimum(x1, x2), np.minimum(y1, y2)
    near = np.maximum(enter_x, enter_y)
    far = np.minimum(np.maximum(x1, x2), np.maximum(y1, y2))
    missed = (near >= far) | (near <= 1e-4)
    axis = enter_x >= enter_y
    return np.where(missed, np.float32(np.inf), near), far, axis


def _circles(middle: Floats, radius: Floats, rays: Floats) -> tuple[Floats, Floats]:
    """Intersect rays (n, columns, 2) from the origin with n circles: entry and exit."""
    x, y = rays[..., 0], rays[..., 1]
    square = x * x + y * y
    along = x * middle[:, :1] + y * middle[:, 1:]
    rest = along**2 - square * ((middle**2).sum(axis=1) - radius**2)[:, None]
    root = np.sqrt(np.maximum(rest, 0))
    near, far = (along - root) / square, (along + root) / square
    return np.where((rest <= 0) | (near <= 1e-4), np.float32(np.inf), near), far


@lru_cache(maxsize=16)
def _grid(size: int) -> tuple[Floats, Floats]:
    """Return u of columns (left to right) and v of rows (top to bottom) at pixel centers, -1..1."""
    middles = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    return middles, -middles


def _landmarks(scene: Scene, time: int) -> _Solids:
    things = scene.landmarks
    states = np.array([thing.state(time) for thing in things], dtype=np.float32).reshape(-1, 3)
    sizes = np.array([SHAPES[thing.shape] for thing in things], dtype=np.float32).reshape(-1, 3)
    return _Solids(
        np.array([(thing.x, thing.y) for thing in things], dtype=np.float32).reshape(-1, 2),
        sizes[:, :2],
        states[:, 0],
        states[:, 1],
        states[:, 1] + sizes[:, 2],
        states[:, 2],
        np.array([COLOURS[thing.colour] for thing in things], dtype=np.float32).reshape(-1, 3),
        np.array([thing.shape in ROUND for thing in things], dtype=np.bool_),
    )


def _lintels(walls: Walls) -> _Solids:
    boxes = walls.lintels.astype(np.float32)
    count = len(boxes)
    return _Solids(
        (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2, np.zeros(count, np.float32),
        np.full(count, DOOR_HEIGHT, np.float32), np.full(count, CEILING, np.float32), np.ones(count, np.float32),
        walls.lintel_colours, np.zeros(count, np.bool_),
    )  # fmt: skip


def _painted(scene: Scene) -> tuple[Floats, Floats, NDArray[np.int32]]:
    """Rasterize floor color, wall color and wall pattern index over the floor plan, in cells of 5 cm."""
    shape = tuple(math.ceil(side / CELL) + 1 for side in scene.size)
    floor = np.full((*shape, 3), 110, dtype=np.float32)
    paint = np.full((*shape, 3), 180, dtype=np.float32)
    pattern = np.zeros(shape, dtype=np.int32)
    for room in scene.rooms:
        cells = tuple(
            slice(round(low / CELL), round(high / CELL) + 1) for low, high in ((room.x0, room.x1), (room.y0, room.y1))
        )
        floor[cells] = FLOORS[room.floor]
        paint[cells] = WALLS[room.wall]
        pattern[cells] = room.pattern
    x, y = (np.arange(side) * CELL for side in shape)
    tiles = (np.floor(x / 0.5)[:, None] + np.floor(y / 0.5)[None]) % 2
    floor *= np.where(tiles == 0, 1.0, 0.88).astype(np.float32)[..., None]
    return floor, paint, pattern
