"""Render RGB and depth views of a house by ray casting in NumPy, deterministically.

A view is a level pinhole camera. The ray of image column u (-1 left to 1 right) has the direction forward + u * right,
so ray parameters are depths along the view's axis; v (1 top to -1 bottom) is the slope of an image row. Walls reach
from floor to ceiling, so one wall hit per column suffices. Landmarks and lintels are composited per pixel.
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
    COLORS,
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
MAX_DEPTH = 10.0
"""Meters of depth 1.0."""
CELL = 0.05
"""Side of a cell of the rasterized floor plan, m."""
DARKENING = 0.045
"""Fraction of brightness lost per meter."""

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


class _Solids(NamedTuple):
    """n objects other than walls: boxes and upright cylinders.

    Attributes:
        center: (n, 2), m. half_sides: (n, 2), m; for a cylinder, the radius twice. angle: (n,), radians.
        bottom, top: (n,) heights, m. brightness: (n,), 0..1. color: (n, 3), 0..255. is_round: (n,), cylinders.
    """

    center: Floats
    half_sides: Floats
    angle: Floats
    bottom: Floats
    top: Floats
    brightness: Floats
    color: Floats
    is_round: Bools


class _Canvas(NamedTuple):
    """Image buffers: color (columns, rows, 3) and depth (columns, rows)."""

    color: Floats
    depth: Floats


class Camera:
    """Renderer of one scene; the floor plan is rasterized once at construction.

    Args:
        scene: house. walls: of the house (`build_walls`).
    """

    def __init__(self, scene: Scene, walls: Walls) -> None:
        self._scene = scene
        self._walls = walls.rectangles.astype(np.float32)
        self._post_colors = walls.colors
        self._lintels = _lintels(walls)
        self._floor, self._wall_color, self._pattern = _rasterize_floor_plan(scene)

    def panorama(self, pose: Pose, tick: int, size: int, depth_size: int | None = None) -> Observation:
        """Render 12 square views of `size` pixels counter-clockwise from the heading; depth has `depth_size`."""
        headings = pose.heading + np.arange(VIEWS) * (2 * math.pi / VIEWS)
        rgb, depth = self.views(pose, headings, tick, size)
        if depth_size is not None and depth_size != size:
            _, depth = self.views(pose, headings, tick, depth_size)
        return Observation(rgb, depth)

    def views(self, pose: Pose, headings: Floats, tick: int, size: int) -> tuple[NDArray[np.uint8], Floats]:
        """Render 90-degree views in n directions: (n, size, size, 3) uint8, depth (n, size, size) float32 in 0..1."""
        u, v = _image_grid(size)
        forward = np.stack([np.cos(headings), np.sin(headings)], axis=1)
        right = np.stack([forward[:, 1], -forward[:, 0]], axis=1)
        rays = (forward[:, None] + u[None, :, None] * right[:, None]).reshape(-1, 2).astype(np.float32)
        position = np.array([pose.x, pose.y], dtype=np.float32)
        canvas = self._render_room(position, rays, v)
        self._render_solids(canvas, position, rays, v, tick)
        shade = np.maximum(1 - DARKENING * canvas.depth, 0.25)
        pixels = np.clip(canvas.color * shade[..., None], 0, 255).astype(np.uint8)
        num_views = len(headings)
        rgb = np.ascontiguousarray(pixels.reshape(num_views, size, size, 3).transpose(0, 2, 1, 3))
        depth = np.minimum(canvas.depth / MAX_DEPTH, 1).reshape(num_views, size, size).transpose(0, 2, 1)
        return rgb, np.ascontiguousarray(depth, dtype=np.float32)

    def _render_room(self, position: Floats, rays: Floats, v: Floats) -> _Canvas:
        """Render walls, floor and ceiling of all columns: rays (columns, 2), row slopes v (rows,)."""
        low, high = self._walls[:, :2] - position, self._walls[:, 2:] - position
        wall_depths, _, faces_x_all = _intersect_rectangles(low, high, rays)
        nearest = wall_depths.argmin(axis=0)
        columns = np.arange(len(rays))
        wall_depth = wall_depths[nearest, columns]
        faces_x = faces_x_all[nearest, columns]
        floor_depth, ceiling_depth = -EYE / np.minimum(v, -1e-6), (CEILING - EYE) / np.maximum(v, 1e-6)
        flat_depth = np.where(v < 0, floor_depth, ceiling_depth).astype(np.float32)
        depth = np.minimum(wall_depth[:, None], flat_depth[None])
        color = self._shade_walls(position, rays, wall_depth, nearest, faces_x, v)
        is_flat = flat_depth[None] < wall_depth[:, None]
        is_floor, is_ceiling = is_flat & (v < 0), is_flat & (v > 0)
        column, row = np.nonzero(is_floor)
        points = position + rays[column] * flat_depth[row, None]
        color[is_floor] = self._sample(self._floor, points)
        color[is_ceiling] = 232.0
        return _Canvas(color, depth)

    def _shade_walls(
        self,
        position: Floats,
        rays: Floats,
        wall_depth: Floats,
        wall_index: NDArray[np.intp],
        faces_x: Bools,
        v: Floats,
    ) -> Floats:
        """Compute wall colors (columns, rows, 3): color and pattern of the room in front; walls along x are darker."""
        to_wall = rays * np.minimum(wall_depth, 1e3)[:, None]
        points_in_front = position + to_wall * np.float32(0.999) - rays * np.float32(0.02)
        color = self._sample(self._wall_color, points_in_front)
        pattern = self._sample(self._pattern, points_in_front)
        post_color = self._post_colors[wall_index]
        is_post = post_color[:, :1] >= 0
        color = np.where(is_post, post_color, color) * np.where(faces_x, 1.0, 0.86).astype(np.float32)[:, None]
        points = position + to_wall
        along = np.where(faces_x, points[:, 1], points[:, 0])
        height = EYE + v[None] * np.minimum(wall_depth, 1e3)[:, None]
        stripes = np.where(np.floor(along / 0.6).astype(np.int32) % 2 == 0, 1.0, 0.85)[:, None]
        bricks = np.where(np.floor(height / 0.5 + 0.01).astype(np.int32) % 2 == 0, 1.0, 0.85)
        dado = np.where(height < 0.9, 0.78, 1.0)
        pattern = np.where(is_post[:, 0], 3, pattern)[:, None]
        is_pattern = [pattern == index for index in range(3)]
        brightness = np.select(is_pattern, [dado, stripes, bricks], 1.0).astype(np.float32)
        shaded: Floats = color[:, None, :] * brightness[..., None]
        return shaded

    def _sample(self, image: NDArray[np.generic], points: Floats) -> NDArray[np.float32]:
        cells = np.clip((points / CELL).astype(np.int32), 0, (image.shape[0] - 1, image.shape[1] - 1))
        values: NDArray[np.float32] = image[cells[:, 0], cells[:, 1]]  # type: ignore[assignment]  # of the image's type
        return values

    def _render_solids(self, canvas: _Canvas, position: Floats, rays: Floats, v: Floats, tick: int) -> None:
        pairs = zip(_landmarks(self._scene, tick), self._lintels, strict=True)
        solids = _Solids(*(np.concatenate(pair) for pair in pairs))
        cos, sin = np.cos(solids.angle), np.sin(solids.angle)
        offset = solids.center - position
        local_center = np.stack(
            [cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0]], axis=1
        )
        cos, sin = cos[:, None], sin[:, None]
        local_rays = np.stack([cos * rays[:, 0] + sin * rays[:, 1], cos * rays[:, 1] - sin * rays[:, 0]], axis=-1)
        low, high = local_center - solids.half_sides, local_center + solids.half_sides
        near, far, faces_x = _intersect_rectangles(low, high, local_rays)
        round_near, round_far = _intersect_circles(local_center, solids.half_sides[:, 0], local_rays)
        near = np.where(solids.is_round[:, None], round_near, near)
        far = np.where(solids.is_round[:, None], round_far, far)
        visible = np.isfinite(near) & (near < canvas.depth.max(axis=1))
        for index in np.nonzero(visible.any(axis=1))[0].tolist():
            columns = np.nonzero(visible[index])[0]
            entries, exits = near[index, columns], far[index, columns]
            brightness = _side_brightness(
                solids.is_round[index],
                local_center[index],
                local_rays[index, columns],
                entries,
                faces_x[index, columns],
            )
            _composite(canvas, columns, entries, exits, v, solids, index, brightness)


def _composite(
    canvas: _Canvas, columns: NDArray[np.intp], near: Floats, far: Floats, v: Floats, solids: _Solids, index: int,
    brightness: Floats,
) -> None:  # fmt: skip
    """Draw the side of one solid, and its top or bottom if visible, where it is nearer than the canvas."""
    bottom, top = float(solids.bottom[index]), float(solids.top[index])
    slopes = v[None]
    height = EYE + slopes * near[:, None]
    is_side = (height >= bottom) & (height <= top)
    depth = np.where(is_side, near[:, None], np.float32(np.inf))
    is_cap = np.zeros_like(is_side)
    cap_height = top if top < EYE else bottom if bottom > EYE else None
    if cap_height is not None:
        safe_slopes = np.where(np.abs(slopes) < 1e-6, np.float32(1e-6), slopes)
        cap_depth = ((cap_height - EYE) / safe_slopes).astype(np.float32)
        is_cap = ~is_side & (cap_depth >= near[:, None]) & (cap_depth <= far[:, None])
        depth = np.where(is_cap, cap_depth, depth)
    is_nearer = depth < canvas.depth[columns]
    color = solids.color[index] * solids.brightness[index]
    shade = np.where(is_cap, np.float32(0.9), brightness[:, None])[is_nearer][:, None] * color
    column, row = np.nonzero(is_nearer)
    canvas.color[columns[column], row] = shade
    canvas.depth[columns[column], row] = depth[is_nearer]


def _side_brightness(is_round: bool, center: Floats, rays: Floats, near: Floats, faces_x: Bools) -> Floats:
    """Return the brightness where each ray hits a solid: two sides of a box, two quadrants of a cylinder are dark."""
    if not is_round:
        return np.where(faces_x, np.float32(1.0), np.float32(0.55))
    point = rays * near[:, None] - center
    angle = np.arctan2(point[:, 1], point[:, 0])
    is_dark = np.floor(angle / (math.pi / 2)).astype(np.int32) % 2 == 0
    return np.where(is_dark, np.float32(0.55), np.float32(1.0))


def _intersect_rectangles(low: Floats, high: Floats, rays: Floats) -> tuple[Floats, Floats, Bools]:
    """Intersect rays from the origin, (columns, 2) or (n, columns, 2), with n rectangles from low to high (n, 2).

    Returns (n, columns) depths of entry (inf for a miss) and exit, and whether the entered side is across x.
    """
    safe_rays = np.where(np.abs(rays) < 1e-7, np.float32(1e-7), rays)
    rays = safe_rays if rays.ndim == 3 else safe_rays[None]
    with np.errstate(over="ignore"):
        x1, x2 = low[:, :1] / rays[..., 0], high[:, :1] / rays[..., 0]
        y1, y2 = low[:, 1:] / rays[..., 1], high[:, 1:] / rays[..., 1]
    enter_x, enter_y = np.minimum(x1, x2), np.minimum(y1, y2)
    near = np.maximum(enter_x, enter_y)
    far = np.minimum(np.maximum(x1, x2), np.maximum(y1, y2))
    missed = (near >= far) | (near <= 1e-4)
    faces_x = enter_x >= enter_y
    return np.where(missed, np.float32(np.inf), near), far, faces_x


def _intersect_circles(center: Floats, radius: Floats, rays: Floats) -> tuple[Floats, Floats]:
    """Intersect rays (n, columns, 2) from the origin with n circles: depths of entry (inf for a miss) and exit."""
    x, y = rays[..., 0], rays[..., 1]
    square = x * x + y * y
    along_ray = x * center[:, :1] + y * center[:, 1:]
    discriminant = along_ray**2 - square * ((center**2).sum(axis=1) - radius**2)[:, None]
    root = np.sqrt(np.maximum(discriminant, 0))
    near, far = (along_ray - root) / square, (along_ray + root) / square
    return np.where((discriminant <= 0) | (near <= 1e-4), np.float32(np.inf), near), far


@lru_cache(maxsize=16)
def _image_grid(size: int) -> tuple[Floats, Floats]:
    """Return u of the columns (-1 left to 1 right) and v of the rows (1 top to -1 bottom) at pixel centers."""
    centers = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    return centers, -centers


def _landmarks(scene: Scene, tick: int) -> _Solids:
    landmarks = scene.landmarks
    states = np.array([landmark.state(tick) for landmark in landmarks], dtype=np.float32).reshape(-1, 3)
    sizes = np.array([SHAPES[landmark.shape] for landmark in landmarks], dtype=np.float32).reshape(-1, 3)
    return _Solids(
        np.array([(landmark.x, landmark.y) for landmark in landmarks], dtype=np.float32).reshape(-1, 2),
        sizes[:, :2],
        states[:, 0],
        states[:, 1],
        states[:, 1] + sizes[:, 2],
        states[:, 2],
        np.array([COLORS[landmark.color] for landmark in landmarks], dtype=np.float32).reshape(-1, 3),
        np.array([landmark.shape in ROUND for landmark in landmarks], dtype=np.bool_),
    )


def _lintels(walls: Walls) -> _Solids:
    boxes = walls.lintels.astype(np.float32)
    num_lintels = len(boxes)
    return _Solids(
        (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2, np.zeros(num_lintels, np.float32),
        np.full(num_lintels, DOOR_HEIGHT, np.float32), np.full(num_lintels, CEILING, np.float32),
        np.ones(num_lintels, np.float32),
        walls.lintel_colors, np.zeros(num_lintels, np.bool_),
    )  # fmt: skip


def _rasterize_floor_plan(scene: Scene) -> tuple[Floats, Floats, NDArray[np.int32]]:
    """Rasterize the floor plan in cells of 5 cm: floor color, wall color and wall pattern index of the room."""
    shape = tuple(math.ceil(side / CELL) + 1 for side in scene.size)
    floor = np.full((*shape, 3), 110, dtype=np.float32)
    wall_color = np.full((*shape, 3), 180, dtype=np.float32)
    pattern = np.zeros(shape, dtype=np.int32)
    for room in scene.rooms:
        cells = tuple(
            slice(round(low / CELL), round(high / CELL) + 1) for low, high in ((room.x0, room.x1), (room.y0, room.y1))
        )
        floor[cells] = FLOORS[room.floor]
        wall_color[cells] = WALLS[room.wall]
        pattern[cells] = room.pattern
    x, y = (np.arange(side) * CELL for side in shape)
    tiles = (np.floor(x / 0.5)[:, None] + np.floor(y / 0.5)[None]) % 2
    floor *= np.where(tiles == 0, 1.0, 0.88).astype(np.float32)[..., None]
    return floor, wall_color, pattern
