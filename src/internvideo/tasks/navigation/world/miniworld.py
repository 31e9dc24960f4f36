"""Render the embedded world's houses with MiniWorld's OpenGL renderer (extra `miniworld`): other textures and light.

Distances and movement are those of the embedded world; only the images differ. OpenGL needs no screen, but display
lists are global: there is one renderer per process, which reloads when the house changes.
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
from internvideo.tasks.navigation.world.raycast import EYE, FARTHEST
from internvideo.tasks.navigation.world.scene import (
    CEILING,
    COLOURS,
    DOOR_HEIGHT,
    DOOR_WIDTH,
    ROUND,
    SHAPES,
    WALL,
    Landmark,
    Room,
    Scene,
    walls_of,
)
from internvideo.tasks.navigation.world.world import World

WALL_TEXTURES = ("drywall", "wood_planks", "brick_wall")
FLOOR_TEXTURES = {"wooden": "wood", "grey": "concrete", "brown": "wood_planks", "white": "marble",
                  "beige": "floor_tiles_bw", "dark": "asphalt"}  # fmt: skip
SIDES = 16
"""Corners of the polygon that approximates a circle."""


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

    def observe(self, pose: Pose | None = None, time: int | None = None) -> Observation:
        """Render the panorama at any pose and tick, by default the current ones."""
        at = self.pose if pose is None else pose
        return self._renderer.panorama(self.house.scene, at, self.time if time is None else time)


class _Thing:
    """MiniWorld entity of a landmark, door post or lintel."""

    is_static = False
    radius = 0.0
    height = 0.0

    def __init__(
        self, gl: Any, place: tuple[float, float], half: tuple[float, float], foot: float, top: float, colour: Any,
        landmark: Landmark | None = None,
    ) -> None:  # fmt: skip
        self._gl, self._half, self._foot, self._top = gl, half, foot, top
        self._colour = np.asarray(colour, dtype=np.float64) / 255
        self._landmark = landmark
        self.time = 0
        self.pos = np.array([place[0], 0.0, -place[1]])
        self.dir = 0.0

    def randomize(self, params: object, rng: object) -> None:
        """Do nothing: no domain randomization."""

    def step(self, delta_time: float) -> None:
        """Do nothing: motion depends only on `time`."""

    def render(self) -> None:
        """Draw it with two dark sides, as the embedded world does."""
        gl = self._gl
        angle, lift, light = self._landmark.state(self.time) if self._landmark else (0.0, 0.0, 1.0)
        gl.glDisable(gl.GL_TEXTURE_2D)
        gl.glPushMatrix()
        gl.glTranslatef(*self.pos)
        gl.glRotatef(math.degrees(angle), 0, 1, 0)
        corners = self._corners()
        low, high = self._foot + lift, self._top + lift
        for first, second in zip(corners, [*corners[1:], corners[0]], strict=True):
            self._side(first, second, low, high, light)
        gl.glColor3f(*(self._colour * light))
        gl.glBegin(gl.GL_POLYGON)
        gl.glNormal3f(0, 1, 0)
        for x, z in corners:
            gl.glVertex3f(x, high, z)
        gl.glEnd()
        gl.glPopMatrix()
        gl.glEnable(gl.GL_TEXTURE_2D)

    def _corners(self) -> list[tuple[float, float]]:
        """Corners of its base, counter-clockwise from above, with z pointing backwards."""
        width, depth = self._half
        if self._landmark is not None and self._landmark.shape in ROUND:
            angles = [2 * math.pi * number / SIDES for number in range(SIDES)]
            return [(width * math.cos(angle), -width * math.sin(angle)) for angle in angles]
        return [(width, depth), (width, -depth), (-width, -depth), (-width, depth)]

    def _side(
        self, first: tuple[float, float], second: tuple[float, float], low: float, high: float, light: float
    ) -> None:
        gl = self._gl
        x, z = (first[0] + second[0]) / 2, (first[1] + second[1]) / 2
        length = math.hypot(x, z) or 1.0
        if self._landmark is not None and self._landmark.shape in ROUND:
            dark = math.floor(math.atan2(-z, x) / (math.pi / 2)) % 2 == 0
        else:
            dark = abs(z) > 1e-9
        gl.glColor3f(*(self._colour * light * (0.55 if dark else 1.0)))
        gl.glBegin(gl.GL_QUADS)
        gl.glNormal3f(x / length, 0, z / length)
        for (x, z), y in ((first, low), (second, low), (second, high), (first, high)):
            gl.glVertex3f(x, y, z)
        gl.glEnd()


class _Renderer:
    """One MiniWorld environment that shows one scene after another."""

    def __init__(self, size: int, depth_size: int) -> None:
        self._scene: Scene | None = None
        self._things: list[_Thing] = []
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

    def panorama(self, scene: Scene, pose: Pose, time: int) -> Observation:
        """Render 12 views counter-clockwise from the heading."""
        if scene is not self._scene:
            first, self._scene = self._scene is None, scene
            if first:
                self._world.__init__(domain_rand=False, **self._arguments)
                self._depth_frame = self._frame_buffer(self._depth_size, self._depth_size, 1)
            self._world.reset(seed=0)
        for thing in self._things:
            thing.time = time
        agent = self._world.agent
        agent.pos = np.array([pose.x, 0.0, -pose.y])
        agent.cam_height, agent.cam_fwd_disp, agent.cam_pitch, agent.cam_fov_y = EYE, 0.0, 0.0, 90.0
        rgb = np.empty((VIEWS, self._size, self._size, 3), dtype=np.uint8)
        depth: NDArray[np.float32] = np.empty((VIEWS, self._depth_size, self._depth_size), dtype=np.float32)
        for view in range(VIEWS):
            agent.dir = pose.heading + view * 2 * math.pi / VIEWS
            rgb[view] = self._world.render_obs()
            depth[view] = np.minimum(self._world.render_depth(self._depth_frame)[..., 0] / FARTHEST, 1)
        return Observation(rgb, depth)

    def _build(self, world: Any) -> None:
        """Build rooms with thick walls, doors and colored objects."""
        scene, half = self._scene, WALL / 2
        assert scene is not None
        rooms = [_add_room(world, room, half) for room in scene.rooms]
        for door in scene.doors:
            middle, axis, sign = (door.x, "x", 1) if door.along == "x" else (door.y, "z", -1)
            edges = sorted(sign * (middle + side * DOOR_WIDTH / 2) for side in (-1, 1))
            limits = {f"min_{axis}": edges[0], f"max_{axis}": edges[1]}
            world.connect_rooms(rooms[door.rooms[0]], rooms[door.rooms[1]], max_y=DOOR_HEIGHT, **limits)
        walls = walls_of(scene)
        frames = [(box, colour, 0.0, CEILING) for box, colour in zip(walls.rectangles, walls.colours, strict=True)
                  if colour[0] >= 0]  # fmt: skip
        frames += [(box, colour, DOOR_HEIGHT, CEILING)
                   for box, colour in zip(walls.lintels, walls.lintel_colours, strict=True)]  # fmt: skip
        self._things = [
            _Thing(self._gl, ((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) / 2, (y1 - y0) / 2), foot, top, colour)
            for (x0, y0, x1, y1), colour, foot, top in frames
        ]
        for thing in scene.landmarks:
            width, depth, height = SHAPES[thing.shape]
            self._things.append(
                _Thing(self._gl, (thing.x, thing.y), (width, depth), 0.0, height, COLOURS[thing.colour], thing)
            )
        world.entities += self._things
        x, y = scene.rooms[0].center
        world.agent.pos, world.agent.dir = np.array([x, 0.0, -y]), 0.0
        world.entities.append(world.agent)


def _add_room(world: Any, room: Room, half: float) -> Any:
    return world.add_rect_room(
        min_x=room.x0 + half, max_x=room.x1 - half, min_z=-room.y1 + half, max_z=-room.y0 - half,
        wall_height=CEILING, wall_tex=WALL_TEXTURES[room.pattern], floor_tex=FLOOR_TEXTURES[room.floor],
        ceil_tex="ceiling_tiles",
    )  # fmt: skip
