"""Render the scenes of the sample world: textured objects over backgrounds, with camera shake, noise and occlusion.

Objects are drawn as distance masks on a window around them, for all frames at once, with edges anti-aliased over one
pixel. Lengths are in frame sides (frames are square), y points downwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from internvideo.sample_world.actions import BALL_RADIUS, Cell, Part, Track, track_of
from internvideo.sample_world.backgrounds import draw_background

Image = NDArray[np.float32]
Frames = NDArray[np.uint8]

# Objects are brighter than the backgrounds: a small transformer without pretraining learns to find a bright patch long
# before a colored one (40 % against 6 % top-1 after 12 epochs).
COLORS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "red": (1.00, 0.30, 0.26),
        "orange": (1.00, 0.62, 0.15),
        "yellow": (1.00, 0.95, 0.25),
        "green": (0.30, 0.92, 0.35),
        "cyan": (0.25, 0.95, 1.00),
        "blue": (0.36, 0.55, 1.00),
        "purple": (0.76, 0.46, 1.00),
        "pink": (1.00, 0.66, 0.86),
    }
)
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "cross", "oval", "drop")
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checkered", "ringed")
_SHAKE = 0.025  # maximum offset of the camera, in sides
_RIM = 0.13  # width of an object's dark rim, in radii


@dataclass(frozen=True)
class Look:
    """The appearance of an object; `radius` in frame sides."""

    shape: str
    colour: str
    texture: str
    radius: float


@dataclass(frozen=True)
class Actor:
    """An object with its actions and its region; a `track` gives its state per frame instead."""

    look: Look
    parts: tuple[Part, ...]
    cell: Cell
    track: Track | None = None


@dataclass(frozen=True)
class Scene:
    """The content of a clip. `difficulty` (0..1) scales shake, light, noise, distractors, occluder and background."""

    side: int
    frames: int
    place: str
    difficulty: float
    actors: tuple[Actor, ...]
    seed: tuple[int, ...]


@cache
def _outline(shape: str) -> NDArray[np.float32]:
    """Return the radius of a shape at 1024 polar angles from -pi; all shapes have the area of a disc of radius 0.85."""
    turn = np.linspace(0, 2 * np.pi, 4096, endpoint=False)
    up = np.array([-np.pi / 2 + k * np.pi / 5 for k in range(10)])
    corners = {
        "square": np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float),
        "triangle": np.array([[np.cos(a), np.sin(a)] for a in -np.pi / 2 + np.arange(3) * 2 * np.pi / 3]),
        "star": np.array([[np.cos(a), np.sin(a)] for a in up]) * np.array([1.0, 0.45] * 5)[:, None],
        "cross": np.array(
            [[-1, -3], [1, -3], [1, -1], [3, -1], [3, 1], [1, 1], [1, 3], [-1, 3], [-1, 1], [-3, 1], [-3, -1],
             [-1, -1]], float,
        ),
    }  # fmt: skip
    if shape in corners:
        points = corners[shape]
        steps = np.linspace(0, 1, 400, endpoint=False)[:, None]
        edges = zip(points, np.roll(points, -1, axis=0), strict=True)
        curve = np.concatenate([a * (1 - steps) + b * steps for a, b in edges])
    elif shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        curve = np.stack([x, -(y + 2.0)], axis=1)
    elif shape == "drop":
        curve = np.stack([np.sin(turn) * np.sin(turn / 2) ** 1.5, -np.cos(turn) - 0.25], axis=1)
    else:
        curve = np.stack([np.cos(turn), np.sin(turn) * (0.55 if shape == "oval" else 1.0)], axis=1)
    angle, radius = np.arctan2(curve[:, 1], curve[:, 0]), np.hypot(curve[:, 0], curve[:, 1])
    order = np.argsort(angle)
    grid = np.linspace(-np.pi, np.pi, 1024, endpoint=False)
    table = np.interp(grid, angle[order], radius[order], period=2 * np.pi)
    return np.asarray(table * (0.85 / np.sqrt(np.mean(table**2))), dtype=np.float32)


def _pattern(texture: str, x: Image, y: Image) -> Image:
    """Return the brightness 0..1 of a texture at local coordinates (in radii), with soft edges."""
    if texture == "striped":
        wave = np.sin(x * 8.0 + 0.6)
    elif texture == "dotted":
        wave = np.sin(x * 7.0 + 0.7) + np.sin(y * 7.0 + 0.7) - 0.6
    elif texture == "checkered":
        wave = np.sin(x * 5.5 + 0.4) * np.sin(y * 5.5 + 0.4) * 2.0
    elif texture == "ringed":
        wave = np.sin(np.hypot(x, y) * 11.0)
    else:
        return np.ones_like(x)
    return np.asarray(np.clip(0.5 + 1.5 * wave, 0, 1), dtype=np.float32)


@dataclass(frozen=True)
class _Sprite:
    """A drawn object: window corner (T, 2) in pixels (row, column), color (T, w, w, 3) 0..1, opacity (T, w, w)."""

    corner: NDArray[np.int64]
    colour: Image
    opacity: Image


def _draw_sprite(look: Look, track: Track, side: int, shift: NDArray[np.float64], half: int) -> _Sprite:
    """Draw an object along its track; `half` -1 or 1 draws one half of a splitting object, 0 all of it."""
    x = track.x + shift[:, 0] + 0.5 * half * track.split * np.cos(track.axis)
    y = track.y + shift[:, 1] + 0.5 * half * track.split * np.sin(track.axis)
    radius = np.maximum(look.radius * track.scale, 1e-3)
    stretch = np.sqrt(track.squash)
    width = int(np.ceil(2.9 * float(np.max(radius * np.maximum(stretch, 1 / stretch))) * side)) + 3
    column = np.floor(x * side - width / 2).astype(np.int64)
    row = np.floor(y * side - width / 2).astype(np.int64)
    steps = np.arange(width, dtype=np.float32) + 0.5

    def frame(values: NDArray[np.float64]) -> Image:
        return values.astype(np.float32)[:, None, None]

    dx = ((column[:, None] + steps) / side - x[:, None]).astype(np.float32)[:, None, :]
    dy = ((row[:, None] + steps) / side - y[:, None]).astype(np.float32)[:, :, None]
    cos, sin = frame(np.cos(track.angle) / radius), frame(np.sin(track.angle) / radius)
    lx = np.asarray((cos * dx + sin * dy) * frame(stretch), dtype=np.float32)
    ly = np.asarray((cos * dy - sin * dx) / frame(stretch), dtype=np.float32)
    distance, bearing = np.hypot(lx, ly), np.arctan2(ly, lx)
    cell = ((bearing + np.pi) * (1024 / (2 * np.pi))).astype(np.int64) % 1024
    inside = _outline(look.shape)[cell] - distance  # in radii, positive inside
    if np.any(track.mouth > 0):
        wedge = np.abs(bearing) - frame(track.mouth / 2)
        inside = np.where(frame(track.mouth) > 0, np.minimum(inside, wedge * distance), inside)
    if half:
        cut = half * (dx * frame(np.cos(track.axis)) + dy * frame(np.sin(track.axis)))
        inside = np.minimum(inside, cut / frame(radius))
    soft = frame(radius * side)
    opacity = np.clip(inside * soft + 0.5, 0, 1) * frame(track.alpha)

    color = np.asarray(COLORS.get(look.colour, (0.96, 0.96, 0.94)), dtype=np.float32)
    tint = frame(track.tint)[..., None]
    base = color * tint + np.float32(0.45) * (1 - tint)
    shade = 0.66 + 0.34 * _pattern(look.texture, lx, ly)
    colour = base * shade[..., None]
    if np.any(track.tank > 0):
        surface = frame(0.85 - 1.7 * track.level) * frame(radius)  # height of the liquid below the center, in sides
        empty = np.clip((surface - dy) * side + 0.5, 0, 1) * frame(track.tank)
        colour = colour * (1 - empty[..., None]) + (0.1 + 0.25 * base) * empty[..., None]
    # Every object has a white mark off its center, so that the rotation of a circle is visible.
    mark = np.clip((0.28 - np.hypot(lx + 0.4, ly + 0.08)) * soft + 0.5, 0, 1)[..., None]
    colour = colour * (1 - mark) + mark
    rim = np.clip((_RIM - inside) * soft + 0.5, 0, 1)[..., None]
    colour = colour * (1 - rim) + (0.12 + 0.25 * base) * rim * 0.6
    return _Sprite(np.stack([row, column], axis=1), colour, opacity)


def _draw_sprites(actor: Actor, track: Track, side: int, shift: NDArray[np.float64]) -> list[_Sprite]:
    if np.any(track.split > 0):
        return [_draw_sprite(actor.look, track, side, shift, half) for half in (-1, 1)]
    return [_draw_sprite(actor.look, track, side, shift, 0)]


def _paste(canvas: Image, sprite: _Sprite) -> None:
    side, width = canvas.shape[1], sprite.opacity.shape[1]
    for t, (row, column) in enumerate(sprite.corner):
        top, left, bottom, right = max(row, 0), max(column, 0), min(row + width, side), min(column + width, side)
        if top >= bottom or left >= right:
            continue
        window = (slice(top - row, bottom - row), slice(left - column, right - column))
        opacity = sprite.opacity[t][window][..., None]
        target = canvas[t, top:bottom, left:right]
        target += opacity * (sprite.colour[t][window] - target)


def _visible_boxes(sprites: list[_Sprite], side: int) -> NDArray[np.float64]:
    """Return the boxes (T, 4) x1, y1, x2, y2 in 0..1 of the visible pixels; NaN if fewer than 2 rows or columns are."""
    boxes = np.full((len(sprites[0].corner), 4), np.nan)
    for sprite in sprites:
        width = sprite.opacity.shape[1]
        visible = sprite.opacity > 0.25
        for t, (row, column) in enumerate(sprite.corner):
            rows = np.flatnonzero(visible[t].any(axis=1)) + row
            columns = np.flatnonzero(visible[t].any(axis=0)) + column
            rows, columns = rows[(rows >= 0) & (rows < side)], columns[(columns >= 0) & (columns < side)]
            if width and len(rows) > 1 and len(columns) > 1:
                box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / side
                boxes[t, :2] = np.fmin(boxes[t, :2], box[:2])
                boxes[t, 2:] = np.fmax(boxes[t, 2:], box[2:])
    return boxes


def _sample_camera_shake(scene: Scene, rng: np.random.Generator) -> NDArray[np.float64]:
    """Sample the camera offset (T, 2) x, y in sides: smooth noise with the same statistics in both time directions."""
    max_offset = _SHAKE * scene.difficulty
    kernel = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / np.sqrt(19.0)
    noise = rng.standard_normal((scene.frames + 4, 2))
    smooth = np.stack([np.convolve(noise[:, axis], kernel, mode="valid") for axis in range(2)], axis=1)
    return np.clip(smooth * 0.5 * max_offset, -max_offset, max_offset)


def _draw_background(scene: Scene, shift: NDArray[np.float64], rng: np.random.Generator) -> Image:
    """Draw the background (T, S, S, 3) shifted by the camera offset, with bilinear interpolation."""
    side, margin = scene.side, int(np.ceil(_SHAKE * scene.side)) + 2
    place = draw_background(scene.place, side, margin, scene.difficulty, rng)
    canvas = np.empty((scene.frames, side, side, 3), dtype=np.float32)
    if scene.difficulty == 0:
        canvas[:] = place[margin : margin + side, margin : margin + side]
        return canvas
    for t, (dx, dy) in enumerate(margin - shift * side):
        row, column = int(np.floor(dy)), int(np.floor(dx))
        fy, fx = np.float32(dy - row), np.float32(dx - column)
        rows = place[row : row + side + 1, column : column + side + 1]
        across = rows[:, :-1] + fx * (rows[:, 1:] - rows[:, :-1])
        canvas[t] = across[:-1] + fy * (across[1:] - across[:-1])
    return canvas


def _draw_distractors(scene: Scene, shift: NDArray[np.float64], rng: np.random.Generator) -> list[_Sprite]:
    """Draw small grey objects that rest or drift in a random direction."""
    sprites = []
    for _ in range(rng.binomial(4, 0.7 * scene.difficulty)):
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        track = Track.at_rest(scene.frames)
        time = np.linspace(-0.5, 0.5, scene.frames) * min(1.0, 24 / scene.frames)
        drift, size = rng.uniform(-0.25, 0.25, 2) * rng.integers(0, 2), rng.uniform(0.035, 0.06)
        track.x[:], track.y[:] = rng.uniform(0, 1) + drift[0] * time, rng.uniform(0, 1) + drift[1] * time
        track.angle[:], track.tint[:] = rng.uniform(0, 6.28), 0.0
        sprites.append(_draw_sprite(Look(shape, "grey", "plain", size), track, scene.side, shift, 0))
    return sprites


def _draw_occluder(canvas: Image, scene: Scene, shift: NDArray[np.float64], rng: np.random.Generator) -> None:
    """Draw a vertical or horizontal bar in front of everything, at a random position."""
    is_vertical, center, width = rng.random() < 0.5, rng.uniform(0.15, 0.85), rng.uniform(0.04, 0.09)
    colour = rng.uniform(0.1, 0.3, 3).astype(np.float32)
    if rng.random() >= 0.6 * scene.difficulty:
        return
    steps = (np.arange(scene.side) + 0.5) / scene.side
    distance = np.abs(steps - center - shift[:, [0 if is_vertical else 1]])
    weight = np.clip((width / 2 - distance) * scene.side + 0.5, 0, 1).astype(np.float32)
    band = slice(*(np.flatnonzero(weight.any(axis=0))[[0, -1]] + (0, 1)))
    target = canvas[:, :, band] if is_vertical else canvas[:, band]
    weight = weight[:, None, band, None] if is_vertical else weight[:, band, None, None]
    target += weight * (colour - target)


def _sample_light(scene: Scene, rng: np.random.Generator) -> Image:
    """Return slowly varying factors of brightness and tint for rows of pixels, (T, 1, 3 S)."""
    waves, phase = rng.uniform(0.3, 1.2) * max(1.0, scene.frames / 24), rng.uniform(0, 2 * np.pi)
    time = np.linspace(-0.5, 0.5, scene.frames)
    swell = 0.18 * np.sin(2 * np.pi * waves * time + phase)
    level = rng.uniform(-0.15, 0.15) + swell[:, None] + rng.uniform(-0.06, 0.06, 3)
    return np.tile((1 + scene.difficulty * level).astype(np.float32), scene.side)[:, None, :]


def _sample_noise(shape: tuple[int, ...], deviation: float, rng: np.random.Generator) -> Image:
    """Sample sensor noise as the sum of two uniform 4-bit numbers: nearly normal, and much faster to sample."""
    dots = np.frombuffer(rng.bytes(int(np.prod(shape))), dtype=np.uint8)
    values: Image = ((np.arange(256) % 16 + np.arange(256) // 16 - 15) * (deviation / np.sqrt(42.5))).astype(np.float32)
    return np.asarray(values[dots].reshape(shape))


def _random_generators(scene: Scene) -> list[np.random.Generator]:
    return [np.random.default_rng((*scene.seed, 1000 + k)) for k in range(6)]


def _actor_sprites(scene: Scene, shift: NDArray[np.float64]) -> Iterator[tuple[list[_Sprite], NDArray[np.float64]]]:
    """Yield the sprites of each actor, its ball included, and the boxes (T, 4) of the actor without the ball."""
    for index, actor in enumerate(scene.actors):
        track = actor.track or track_of(actor.parts, scene.frames, actor.cell, (*scene.seed, index))
        sprites = _draw_sprites(actor, track, scene.side, shift)
        boxes = _visible_boxes(sprites, scene.side)
        if np.any(track.ball > 0):
            ball = Track.at_rest(scene.frames)
            ball.x[:], ball.y[:], ball.alpha[:] = track.ball_x, track.ball_y, track.ball
            look = Look("circle", "white", "plain", BALL_RADIUS * actor.cell.reach)
            sprites = [_draw_sprite(look, ball, scene.side, shift, 0), *sprites]
        yield sprites, boxes


def actor_boxes(scene: Scene) -> NDArray[np.float64]:
    """Return the boxes of `render` without drawing the frames."""
    boxes = [actor for _, actor in _actor_sprites(scene, _sample_camera_shake(scene, _random_generators(scene)[0]))]
    return np.stack(boxes, axis=1) if boxes else np.empty((scene.frames, 0, 4))


def render(scene: Scene) -> tuple[Frames, NDArray[np.float64]]:
    """Render a scene.

    Returns:
        frames (T, S, S, 3) uint8 RGB, and the actors' boxes (T, A, 4) float64: x1, y1, x2, y2 in 0..1 of the drawn
        pixels (before the occluder), NaN where an actor is not visible.
    """
    streams = _random_generators(scene)
    shift = _sample_camera_shake(scene, streams[0])
    canvas = _draw_background(scene, shift, streams[1])
    for sprite in _draw_distractors(scene, shift, streams[2]):
        _paste(canvas, sprite)
    boxes = np.full((scene.frames, len(scene.actors), 4), np.nan)
    for index, (sprites, actor_box) in enumerate(_actor_sprites(scene, shift)):
        for sprite in sprites:
            _paste(canvas, sprite)
        boxes[:, index] = actor_box
    if scene.difficulty > 0:
        _draw_occluder(canvas, scene, shift, streams[3])
        rows = canvas.reshape(scene.frames, scene.side, -1)  # long inner axes: several times faster than (..., 3)
        rows *= _sample_light(scene, streams[4])
        rows += _sample_noise(rows.shape, 0.03 * scene.difficulty, streams[5])
    np.clip(canvas, 0, 1, out=canvas)
    canvas *= 255
    canvas += 0.5
    return canvas.astype(np.uint8), boxes
