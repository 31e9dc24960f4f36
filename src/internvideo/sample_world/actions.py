"""Define the action classes of the sample world as motions of an object over the frames of a clip.

A motion is a function of the progress u (0 at the start, 1 at the end) that writes fields of a `Track`. The second
action of a time-reversed pair is the first one with u replaced by 1 - u and the same random numbers: a clip of one
class played backwards is a clip of the other, and no single frame distinguishes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Track:
    """State of one object per frame; every field is (T,) float64.

    x, y: center in frame sides (y downwards). scale: factor of the radius. angle: radians, clockwise on screen.
    alpha: opacity. tint: 1 for the object's color, 0 for grey. mouth: angle of the cut-out wedge in radians. tank: 1 if
    the object is drawn as a vessel filled up to `level` (0..1). split: distance between its two halves in sides, along
    the direction `axis` in radians. squash: height divided by width. ball_x, ball_y, ball: center and opacity of the
    ball of a collision.
    """

    x: Array
    y: Array
    scale: Array
    angle: Array
    alpha: Array
    tint: Array
    mouth: Array
    tank: Array
    level: Array
    split: Array
    axis: Array
    squash: Array
    ball_x: Array
    ball_y: Array
    ball: Array

    @classmethod
    def at_rest(cls, frames: int) -> Track:
        """Return the track of an object that rests in the center of the frame."""
        values = {field.name: 0.0 for field in fields(cls)}
        values.update(x=0.5, y=0.5, scale=1.0, alpha=1.0, tint=1.0, squash=1.0)
        return cls(**{name: np.full(frames, value) for name, value in values.items()})

    def part(self, frames: slice) -> Track:
        """Return a view of a range of frames: writing to it changes this track."""
        return Track(**{field.name: getattr(self, field.name)[frames] for field in fields(self)})


@dataclass(frozen=True)
class Cell:
    """Region of an actor, in frame sides: its center (x, y), a factor `reach` of its motions (1: the whole frame).

    `radius` is the radius of the actor.
    """

    x: float = 0.5
    y: float = 0.5
    reach: float = 1.0
    radius: float = 0.15


Motion = Callable[[Track, Array, Rng, Cell], None]


def _line(track: Track, u: Array, rng: Rng, cell: Cell, dx: float, dy: float) -> None:
    travel = rng.uniform(0.45, 0.62) * cell.reach
    middle = rng.uniform(-0.07, 0.07, 2) * cell.reach
    across = rng.uniform(-0.15, 0.15) * cell.reach
    length = max(abs(dx), abs(dy))
    track.x[:] = cell.x + middle[0] + across * (dx == 0) + travel * dx / length * (u - 0.5)
    track.y[:] = cell.y + middle[1] + across * (dy == 0) + travel * dy / length * (u - 0.5)


def _grow(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    track.scale[:] = rng.uniform(0.9, 1.1) * rng.uniform(2.0, 2.6) ** (u - 0.5)


def _turn(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    # Less than a half turn: over 8 sampled frames a square turns by well under 45 degrees per step (no aliasing).
    track.angle[:] = rng.uniform(0, 2 * np.pi) + rng.uniform(1.8, 2.9) * (u - 0.5)


def _open(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    shut, wide = rng.uniform(0.0, 0.25), rng.uniform(1.8, 2.5)
    track.mouth[:] = shut + (wide - shut) * u


def _appear(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    low, high = rng.uniform(0.0, 0.12), rng.uniform(0.88, 1.0)
    track.alpha[:] = low + (high - low) * u


def _fill(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    low, high = rng.uniform(0.05, 0.2), rng.uniform(0.8, 0.95)
    track.tank[:] = 1.0
    track.level[:] = low + (high - low) * u


def _split(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    widest = rng.uniform(1.5, 2.1) * cell.radius
    track.axis[:] = rng.uniform(0, np.pi)
    track.split[:] = widest * u


def _colour(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    low, high = rng.uniform(0.0, 0.1), rng.uniform(0.9, 1.0)
    track.tint[:] = low + (high - low) * u


def _circle(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    radius, middle = rng.uniform(0.19, 0.25) * cell.reach, rng.uniform(-0.06, 0.06, 2) * cell.reach
    # The middle of the track has a uniform phase, so that both directions have the same distribution of positions.
    phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * rng.uniform(0.7, 0.95) * (u - 0.5)
    track.x[:] = cell.x + middle[0] + radius * np.cos(phase)
    track.y[:] = cell.y + middle[1] + radius * np.sin(phase)


def _hit(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    side = 1.0 if rng.random() < 0.5 else -1.0
    tilt = rng.uniform(-0.25, 0.25)
    moment = rng.uniform(0.42, 0.58)
    run, flight = rng.uniform(0.28, 0.36, 2) * cell.reach
    meeting = np.array([cell.x, cell.y]) + rng.uniform(-0.06, 0.06, 2) * cell.reach
    along = np.array([side * np.cos(tilt), np.sin(tilt)])
    gap = 0.5 * (cell.radius + BALL_RADIUS * cell.reach) * 1.8
    actor = -gap - run * np.clip(1 - u / moment, 0, 1)
    ball = gap + flight * np.clip((u - moment) / (1 - moment), 0, 1)
    track.x[:], track.y[:] = meeting[0] + along[0] * actor, meeting[1] + along[1] * actor
    track.ball_x[:], track.ball_y[:] = meeting[0] + along[0] * ball, meeting[1] + along[1] * ball
    track.ball[:] = 1.0


def _bounce(track: Track, u: Array, rng: Rng, cell: Cell, times: int) -> None:
    top, height = rng.uniform(-0.3, -0.22) * cell.reach, rng.uniform(0.46, 0.56) * cell.reach
    drift = rng.uniform(-0.15, 0.15) * cell.reach
    fallen = 1 - np.abs(2 * np.mod(u * times, 1.0) - 1)  # 0 at the top, 1 on the floor
    track.x[:] = cell.x + rng.uniform(-0.12, 0.12) * cell.reach + drift * (u - 0.5)
    track.y[:] = cell.y + top + height * fallen**2


def _shake(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    waves, size, phase = rng.uniform(3.0, 4.0), rng.uniform(0.06, 0.08), rng.uniform(0, 2 * np.pi)
    moving = (u > 0) & (u < 1)
    track.x[:] += size * moving * np.sin(2 * np.pi * waves * (u - 0.5) + phase)


def _blink(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    waves, phase = rng.uniform(2.5, 3.5), rng.uniform(0, 2 * np.pi)
    off = (u > 0) & (u < 1) & (np.sin(2 * np.pi * waves * (u - 0.5) + phase) < 0)
    track.alpha[:] = np.where(off, 0.05, 1.0)


def _still(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    pass


def _zigzag(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    way = 1.0 if rng.random() < 0.5 else -1.0
    _line(track, u, rng, cell, way, 0)
    waves, size, phase = rng.uniform(1.8, 2.4), rng.uniform(0.16, 0.2) * cell.reach, rng.uniform(0, 1)
    track.y[:] += size * (4 * np.abs(np.mod(waves * (u - 0.5) + phase, 1.0) - 0.5) - 1)


def _swing(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    waves, size, phase = rng.uniform(1.6, 2.2), rng.uniform(0.9, 1.2), rng.uniform(0, 2 * np.pi)
    track.angle[:] += size * np.sin(2 * np.pi * waves * (u - 0.5) + phase)


def _pulse(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    waves, phase = rng.uniform(1.6, 2.2), rng.uniform(0, 2 * np.pi)
    track.scale[:] = 1.0 + rng.uniform(0.35, 0.45) * np.sin(2 * np.pi * waves * (u - 0.5) + phase)


def _stretch(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
    track.angle[:] = rng.uniform(-0.2, 0.2)
    track.squash[:] = rng.uniform(2.6, 3.4) ** (u - 0.5)


def _both(first: Motion, second: Motion) -> Motion:
    def motion(track: Track, u: Array, rng: Rng, cell: Cell) -> None:
        first(track, u, rng, cell)
        second(track, u, rng, cell)

    return motion


_sideways, _upwards, _up_right = partial(_line, dx=1, dy=0), partial(_line, dx=0, dy=-1), partial(_line, dx=1, dy=-1)

BALL_RADIUS = 0.085


@dataclass(frozen=True)
class Action:
    """One class of motions.

    Attributes:
        motion: writes the fields of a track. backwards: `motion` gets 1 - u instead of u.
        channel: property that the action changes; actions of compatible channels can run at the same time.
        reverse: class of the clips played backwards, None without one.
    """

    name: str
    motion: Motion
    backwards: bool = False
    channel: str = "place"
    reverse: str | None = None


def _pair(forward: str, backward: str, motion: Motion, channel: str = "place") -> tuple[Action, Action]:
    return Action(forward, motion, False, channel, backward), Action(backward, motion, True, channel, forward)


_TRAINED: tuple[Action, ...] = (
    *_pair("moving left to right", "moving right to left", _sideways),
    *_pair("moving up", "moving down", _upwards),
    *_pair("growing", "shrinking", _grow, "size"),
    *_pair("turning clockwise", "turning anticlockwise", _turn, "angle"),
    *_pair("opening", "closing", _open, "look"),
    *_pair("appearing", "vanishing", _appear, "look"),
    *_pair("filling up", "draining", _fill, "look"),
    *_pair("splitting in two", "merging into one", _split, "look"),
    *_pair("hitting the ball", "being hit by the ball", _hit),
    *_pair("gaining colour", "losing colour", _colour, "look"),
    *_pair("circling clockwise", "circling anticlockwise", _circle),
    Action("bouncing once", partial(_bounce, times=1)),
    Action("bouncing twice", partial(_bounce, times=2)),
    Action("shaking", _shake),
    Action("blinking", _blink, channel="look"),
    Action("standing still", _still, channel="still"),
    Action("zigzagging", _zigzag),
)
_NEVER_TRAINED: tuple[Action, ...] = (
    *_pair("moving up and to the right", "moving down and to the left", _up_right),
    *_pair("growing and turning clockwise", "shrinking and turning anticlockwise", _both(_grow, _turn), "size"),
    *_pair("opening and moving up", "closing and moving down", _both(_open, _upwards)),
    *_pair(
        "gaining colour and moving left to right", "losing colour and moving right to left", _both(_colour, _sideways)
    ),
)
_FAR: tuple[Action, ...] = (
    *_pair("stretching", "flattening", _stretch, "size"),
    Action("swinging", _swing, channel="angle"),
    Action("pulsing", _pulse, channel="size"),
)

CATALOGUE: Mapping[str, Action] = MappingProxyType(
    {action.name: action for action in (*_TRAINED, *_NEVER_TRAINED, *_FAR)}
)
"""Every action by name, trained ones first."""
ACTIONS: tuple[str, ...] = tuple(action.name for action in _TRAINED)
"""The trained classes in the order of their indices."""
HELD_OUT_CLASSES: tuple[str, ...] = tuple(action.name for action in _NEVER_TRAINED)
"""Classes without training clips: two trained actions at once, named with words of the training captions. Used for
zero-shot tests, and as the near unknown classes of the open set."""
FAR_CLASSES: tuple[str, ...] = tuple(action.name for action in _FAR)
"""Classes of motions that no training clip contains, alone or combined: the far unknown classes of the open set."""
REVERSE_OF: Mapping[str, str] = MappingProxyType(
    {action.name: action.reverse for action in CATALOGUE.values() if action.reverse is not None}
)
"""Class -> class of its clips played backwards, for the time-reversed pairs of trained and held-out classes."""
TIME_DIRECTED: frozenset[str] = frozenset(name for name in ACTIONS if name in REVERSE_OF)
"""The trained classes whose clips belong to another class when played backwards."""


def reverse_class(index: int, classes: tuple[str, ...] = ACTIONS) -> int | None:
    """Return the class index of clips of class `index` played backwards; None if it has no reverse among `classes`."""
    reverse = REVERSE_OF.get(classes[index])
    return classes.index(reverse) if reverse in classes else None


@dataclass(frozen=True)
class Part:
    """Simultaneous actions of one actor from frame `start` to frame `stop` (inclusive)."""

    actions: tuple[str, ...]
    start: int
    stop: int


def track_of(parts: tuple[Part, ...], frames: int, cell: Cell, seed: tuple[int, ...]) -> Track:
    """Compute the track of an actor over `frames` frames from its parts (ordered, not overlapping).

    Between two parts the actor rests. In the first half of the pause it keeps the final state of the earlier part, in
    the second half it has the initial state of the later part.
    """
    track = Track.at_rest(frames)
    starts = [0, *((before.stop + after.start + 1) // 2 for before, after in pairwise(parts)), frames]
    for index, part in enumerate(parts):
        span = slice(starts[index], starts[index + 1])
        rng = np.random.default_rng((*seed, index))
        view, time = track.part(span), np.arange(span.start, span.stop, dtype=np.float64)
        u = np.clip((time - part.start) / max(part.stop - part.start, 1), 0.0, 1.0)
        view.x[:] = cell.x + rng.uniform(-0.16, 0.16) * cell.reach
        view.y[:] = cell.y + rng.uniform(-0.16, 0.16) * cell.reach
        view.angle[:] = rng.uniform(-0.5, 0.5)
        for name in part.actions:
            action = CATALOGUE[name]
            action.motion(view, 1.0 - u if action.backwards else u, rng, cell)
    return track
