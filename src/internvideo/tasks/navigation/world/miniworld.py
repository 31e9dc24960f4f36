"""Render the embedded world's houses with MiniWorld's OpenGL renderer (extra `miniworld`).

Distances and movement are those of the embedded world; textures and lighting differ. OpenGL needs no screen, but its
display lists are global, so a process can have only one renderer, which reloads when the house changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RunError
from internvideo.tasks.navigation.world.protocol import VIEWS, Observation, Pose
from internvideo.tasks.navigation.world.raycast import EYE, MAX_DEPTH
from internvideo.tasks.navigation.world.scene import (
    CEILING,
    COLORS,
    DOOR_HEIGHT,
    DOOR_WIDTH,
    ROUND,
    SHAPES,
    WALL,
    Landmark,
    Room,
    Scene,
    build_walls,
)
from internvideo.tasks.navigation.world.world import World

WALL_TEXTURES = ("drywall", "wood_planks", "brick_wall")
FLOOR_TEXTURES = {"wooden": "wood", "grey": "concrete", "brown": "wood_planks", "white": "marble",
                  "beige": "floor_tiles_bw", "dark": "asphalt"}  # fmt: skip
NUM_CORNERS = 16
"""Number of corners of the polygon that approximates a circle."""


class MiniWorld(World):
    """A `NavEnv`: the embedded world seen by MiniWorld.

    Args:
        scenes, size, depth_size: see `World`.

    Raises:
        RunError: MiniWorld or OpenGL is not available.
    """

    def __init__(self, scenes: Mapping[str, Scene] | Path, size: int = 32, depth_size: int | None = None) -> None:
        super().__init__(scenes, size, depth_size)
        self._renderer = _Renderer(size, depth_size or size)

    def observe(self, pose: Pose | None = None, tick: int | None = None) -> Observation:
        """Render the panorama at any pose and tick, by default the current ones."""
        tick = self.tick if tick is None else tick
        return self._renderer.panorama(self.house.scene, pose or self.pose, tick)


class _Entity:
    """MiniWorld entity of a landmark, door post or lintel."""

    is_static = False
    radius = 0.0
    height = 0.0

    def __init__(
        self, gl: Any, position: tuple[float, float], half_sides: tuple[float, float], bottom: float, top: float,
        color: Any, landmark: Landmark | None = None,
    ) -> None:  # fmt: skip
        self._gl, self._half_sides, self._bottom, self._top = gl, half_sides, bottom, top
        self._color = np.asarray(color, dtype=np.float64) / 255
        self._landmark = landmark
        self.tick = 0
        self.pos = np.array([position[0], 0.0, -position[1]])
        self.dir = 0.0

    def randomize(self, params: object, rng: object) -> None:
        """Do nothing: no domain randomization."""

    def step(self, delta_time: float) -> None:
        """Do nothing: motion depends only on `tick`."""

    def render(self) -> None:
        """Draw the object with two dark sides, as the embedded world does."""
        gl = self._gl
        angle, height, brightness = self._landmark.state(self.tick) if self._landmark else (0.0, 0.0, 1.0)
        gl.glDisable(gl.GL_TEXTURE_2D)
        gl.glPushMatrix()
        gl.glTranslatef(*self.pos)
        gl.glRotatef(math.degrees(angle), 0, 1, 0)
        corners = self._corners()
        bottom, top = self._bottom + height, self._top + height
        for first, second in zip(corners, [*corners[1:], corners[0]], strict=True):
            self._side(first, second, bottom, top, brightness)
        gl.glColor3f(*(self._color * brightness))
        gl.glBegin(gl.GL_POLYGON)
        gl.glNormal3f(0, 1, 0)
        for x, z in corners:
            gl.glVertex3f(x, top, z)
        gl.glEnd()
        gl.glPopMatrix()
        gl.glEnable(gl.GL_TEXTURE_2D)

    def _corners(self) -> list[tuple[float, float]]:
        """Return the corners (x, z) of the base, counter-clockwise from above, with z pointing backwards."""
        width, depth = self._half_sides
        if self._landmark is not None and self._landmark.shape in ROUND:
            angles = [2 * math.pi * index / NUM_CORNERS for index in range(NUM_CORNERS)]
            return [(width * math.cos(angle), -width * math.sin(angle)) for angle in angles]
        return [(width, depth), (width, -depth), (-width, -depth), (-width, depth)]

    def _side(
        self, first: tuple[float, float], second: tuple[float, float], low: float, high: float, brightness: float
    ) -> None:
        gl = self._gl
        x, z = (first[0] + second[0]) / 2, (first[1] + second[1]) / 2
        length = math.hypot(x, z) or 1.0
        if self._landmark is not None and self._landmark.shape in ROUND:
            dark = math.floor(math.atan2(-z, x) / (math.pi / 2)) % 2 == 0
        else:
            dark = abs(z) > 1e-9
        gl.glColor3f(*(self._color * brightness * (0.55 if dark else 1.0)))
        gl.glBegin(gl.GL_QUADS)
        gl.glNormal3f(x / length, 0, z / length)
        for (x, z), y in ((first, low), (second, low), (second, high), (first, high)):
            gl.glVertex3f(x, y, z)
        gl.glEnd()


class _Renderer:
    """One MiniWorld environment, rebuilt whenever the scene changes."""

    def __init__(self, size: int, depth_size: int) -> None:
        self._scene: Scene | None = None
        self._entities: list[_Entity] = []
        try:
            import pyglet

            pyglet.options["headless"] = True
            from miniworld.miniworld import MiniWorldEnv
            from miniworld.opengl import FrameBuffer
            from pyglet import gl
        except Exception as error:  # a missing package, or any failure of OpenGL
            raise RunError(
                "miniworld", f"cannot be used here: {' '.join(str(error).split())[:120] or type(error).__name__}", "",
                "pip install 'internvideo[miniworld]'; on Debian also libegl1 libgl1 libgl1-mesa-dri libglu1-mesa",
            ) from None  # fmt: skip
        self._gl = gl
        environment: Any = type("House", (MiniWorldEnv,), {"_gen_world": lambda world: self._build(world)})
        self._world: Any = object.__new__(environment)
        self._arguments = {"obs_width": size, "obs_height": size, "window_width": size, "window_height": size}
        self._depth_size, self._size = depth_size, size
        self._frame_buffer = FrameBuffer
        self._depth_frame: Any = None

    def panorama(self, scene: Scene, pose: Pose, tick: int) -> Observation:
        """Render 12 views counter-clockwise from the heading."""
        if scene is not self._scene:
            first, self._scene = self._scene is None, scene
            if first:
                self._world.__init__(domain_rand=False, **self._arguments)
                self._depth_frame = self._frame_buffer(self._depth_size, self._depth_size, 1)
            self._world.reset(seed=0)
        for entity in self._entities:
            entity.tick = tick
        agent = self._world.agent
        agent.pos = np.array([pose.x, 0.0, -pose.y])
        agent.cam_height, agent.cam_fwd_disp, agent.cam_pitch, agent.cam_fov_y = EYE, 0.0, 0.0, 90.0
        rgb = np.empty((VIEWS, self._size, self._size, 3), dtype=np.uint8)
        depth: NDArray[np.float32] = np.empty((VIEWS, self._depth_size, self._depth_size), dtype=np.float32)
        for view in range(VIEWS):
            agent.dir = pose.heading + view * 2 * math.pi / VIEWS
            rgb[view] = self._world.render_obs()
            depth[view] = np.minimum(self._world.render_depth(self._depth_frame)[..., 0] / MAX_DEPTH, 1)
        return Observation(rgb, depth)

    def _build(self, world: Any) -> None:
        """Build rooms with thick walls, doors and colored objects."""
        scene, half_wall = self._scene, WALL / 2
        assert scene is not None
        rooms = [_add_room(world, room, half_wall) for room in scene.rooms]
        for door in scene.doors:
            center, axis, sign = (door.x, "x", 1) if door.along == "x" else (door.y, "z", -1)
            edges = sorted(sign * (center + side * DOOR_WIDTH / 2) for side in (-1, 1))
            limits = {f"min_{axis}": edges[0], f"max_{axis}": edges[1]}
            world.connect_rooms(rooms[door.rooms[0]], rooms[door.rooms[1]], max_y=DOOR_HEIGHT, **limits)
        walls = build_walls(scene)
        solids = [(box, color, 0.0, CEILING) for box, color in zip(walls.rectangles, walls.colors, strict=True)
                  if color[0] >= 0]  # fmt: skip
        solids += [(box, color, DOOR_HEIGHT, CEILING)
                   for box, color in zip(walls.lintels, walls.lintel_colors, strict=True)]  # fmt: skip
        self._entities = [
            _Entity(self._gl, ((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) / 2, (y1 - y0) / 2), bottom, top, color)
            for (x0, y0, x1, y1), color, bottom, top in solids
        ]
        for landmark in scene.landmarks:
            width, depth, height = SHAPES[landmark.shape]
            self._entities.append(
                _Entity(
                    self._gl, (landmark.x, landmark.y), (width, depth), 0.0, height, COLORS[landmark.color], landmark
                )
            )  # fmt: skip
        world.entities += self._entities
        x, y = scene.rooms[0].center
        world.agent.pos, world.agent.dir = np.array([x, 0.0, -y]), 0.0
        world.entities.append(world.agent)


def _add_room(world: Any, room: Room, half_wall: float) -> Any:
    return world.add_rect_room(
        min_x=room.x0 + half_wall, max_x=room.x1 - half_wall, min_z=-room.y1 + half_wall, max_z=-room.y0 - half_wall,
        wall_height=CEILING, wall_tex=WALL_TEXTURES[room.pattern], floor_tex=FLOOR_TEXTURES[room.floor],
        ceil_tex="ceiling_tiles",
    )  # fmt: skip
