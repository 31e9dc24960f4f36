"""Plan the reaching clips of the sample world: a hand reaches for one of several objects, touches it, and changes it.

Two white hands in first-person view and two or three objects. One hand starts at an edge of the frame and reaches for
an object on a slightly curved minimum-jerk path. After the contact the object is pushed and changes in one of four
ways; another object may move or turn without contact. A clip depends only on (seed of the world, number). Positions
and lengths are in frame sides, times in frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from internvideo.sample_world.actions import Cell, Track
from internvideo.sample_world.backgrounds import PLACES
from internvideo.sample_world.scene import COLORS, SHAPES, TEXTURES, Actor, Look, Scene

Floats = NDArray[np.float64]
Rng = np.random.Generator

DIRECTIONS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"push right": (1.0, 0.0), "push left": (-1.0, 0.0), "push up": (0.0, -1.0), "press down": (0.0, 1.0)}
)
"""Verb -> direction (x, y) in which the hand arrives and the object is pushed."""
VERBS: tuple[str, ...] = tuple(DIRECTIONS)
NOUNS: tuple[str, ...] = SHAPES
CHANGES: tuple[str, ...] = ("losing colour", "opening", "shrinking", "fading")
HANDS: tuple[str, ...] = ("left_hand", "right_hand")
_HAND = (Look("cross", "white", "plain", 0.085), Look("star", "white", "plain", 0.085))
_HANDS_OF: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"push right": (0,), "push left": (1,), "push up": (0, 1), "press down": (0, 1)}
)
_SPOTS = ((0.34, 0.35), (0.66, 0.35), (0.34, 0.65), (0.66, 0.65))
_SEED_STREAM = 7  # second part of the seeds; no split of clips.py has this number


@dataclass(frozen=True)
class Reach:
    """A planned clip.

    Attributes:
        scene: its first actors are the objects, its last two the left and the right hand.
        target: index of the touched object. verb, change: an item of VERBS and of CHANGES.
        hand: index of the hand that touches it. contact: frame of the contact.
    """

    name: str
    scene: Scene
    target: int
    hand: int
    verb: str
    change: str
    contact: int

    @property
    def objects(self) -> int:
        """Number of objects."""
        return len(self.scene.actors) - len(HANDS)


def minimum_jerk(u: Floats) -> Floats:
    """Return the fraction of the path covered after the fraction `u` of the time by a minimum-jerk movement."""
    u = np.clip(u, 0.0, 1.0)
    result: Floats = u**3 * (10 - 15 * u + 6 * u**2)
    return result


def plan_reach(seed: int, number: int, *, side: int, fps: int, difficulty: float) -> Reach:
    """Plan clip `number`: 5 s, with the contact at 3.3 to 3.7 s; `side` is that of the frames in pixels."""
    key = (seed, _SEED_STREAM, number)
    rng = np.random.default_rng(key)
    frames = 5 * fps
    contact = round((3.5 + rng.uniform(-0.2, 0.2)) * fps)
    num_objects = int(rng.integers(2, 4))
    positions = np.asarray(_SPOTS)[rng.permutation(len(_SPOTS))[:num_objects]] + rng.uniform(
        -0.05, 0.05, (num_objects, 2)
    )
    options = [
        (k, verb)
        for k in range(num_objects)
        for verb in VERBS
        if _is_reachable(positions, k, np.asarray(DIRECTIONS[verb]))
    ]
    target, verb = options[int(rng.integers(len(options)))]
    hand = int(rng.choice(_HANDS_OF[verb]))
    change = CHANGES[int(rng.integers(len(CHANGES)))]
    shapes, colours = rng.permutation(len(SHAPES))[:num_objects], rng.permutation(len(COLORS))[:num_objects]
    looks = [
        Look(SHAPES[shape], tuple(COLORS)[colour], TEXTURES[int(rng.integers(len(TEXTURES)))], rng.uniform(0.085, 0.1))
        for shape, colour in zip(shapes, colours, strict=True)
    ]
    tracks = [_resting_object(frames, position, rng) for position in positions]
    push = np.asarray(DIRECTIONS[verb]) * rng.uniform(0.05, 0.08)
    time = np.arange(frames, dtype=np.float64)
    pushed = minimum_jerk((time - contact) / (0.5 * fps))[:, None] * push
    tracks[target].x[:] += pushed[:, 0]
    tracks[target].y[:] += pushed[:, 1]
    _apply_change(tracks[target], change, minimum_jerk((time - contact) / (0.7 * fps)))
    decoy = int((target + 1 + rng.integers(num_objects - 1)) % num_objects)
    _move_decoy(tracks[decoy], minimum_jerk((time - contact + rng.uniform(0, 0.5) * fps) / fps), rng)
    touch_point = positions[target] - np.asarray(DIRECTIONS[verb]) * (looks[target].radius + _HAND[hand].radius) * 0.85
    hands = [_resting_hand(frames, index, fps, rng) for index in range(2)]
    hands[hand] = _reaching_hand(
        frames, positions[target], touch_point, np.asarray(DIRECTIONS[verb]), contact, fps, rng
    )
    hands[hand].x[:] += pushed[:, 0]
    hands[hand].y[:] += pushed[:, 1]
    actors = [Actor(look, (), Cell(), track) for look, track in zip([*looks, *_HAND], [*tracks, *hands], strict=True)]
    scene = Scene(side, frames, PLACES[int(rng.integers(len(PLACES)))], difficulty, tuple(actors), key)
    return Reach(f"reach_{number:05d}", scene, target, hand, verb, change, contact)


def _is_reachable(places: Floats, target: int, step: Floats) -> bool:
    """Return whether the target is in the far half of the frame and no other object is in the hand's way."""
    offset = places[target] - np.delete(places, target, axis=0)
    if (places[target] - 0.5) @ step < 0:
        return False
    along, across = offset @ step, np.abs(offset @ step[::-1])
    return not bool(np.any((along > 0) & (across < 0.2)))


def _resting_object(frames: int, place: Floats, rng: Rng) -> Track:
    track = Track.at_rest(frames)
    track.x[:], track.y[:] = place
    track.angle[:] = rng.uniform(-0.5, 0.5)
    return track


def _apply_change(track: Track, change: str, u: Floats) -> None:
    if change == "losing colour":
        track.tint[:] = 1 - u
    elif change == "opening":
        track.mouth[:] = 2.2 * u
    elif change == "shrinking":
        track.scale[:] = 1 - 0.45 * u
    else:
        track.alpha[:] = 1 - 0.65 * u


def _move_decoy(track: Track, u: Floats, rng: Rng) -> None:
    """Move an object without contact: not at all, by a rotation or by a translation."""
    kind, turn, slide = rng.integers(3), rng.uniform(0.8, 1.6) * rng.choice((-1, 1)), rng.uniform(-0.06, 0.06, 2)
    if kind == 1:
        track.angle[:] += turn * u
    elif kind == 2:
        track.x[:] += slide[0] * u
        track.y[:] += slide[1] * u


def _resting_hand(frames: int, hand: int, fps: int, rng: Rng) -> Track:
    """Return the track of the other hand: near its corner, invisible in three of ten clips."""
    track, phase, waves = Track.at_rest(frames), rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.2, 0.5, 2)
    time = np.arange(frames) / fps
    track.x[:] = (0.13, 0.87)[hand] + rng.uniform(-0.03, 0.03) + 0.03 * np.sin(2 * np.pi * waves[0] * time + phase[0])
    track.y[:] = 0.87 + rng.uniform(-0.03, 0.03) + 0.03 * np.sin(2 * np.pi * waves[1] * time + phase[1])
    track.alpha[:] = float(rng.random() >= 0.3)
    return track


def _reaching_hand(frames: int, place: Floats, touch: Floats, step: Floats, contact: int, fps: int, rng: Rng) -> Track:
    """Return the hand's track: from an edge to the point `touch` in 2 to 3 s, and back from 0.6 s after the contact."""
    track, time = Track.at_rest(frames), np.arange(frames, dtype=np.float64)
    offset = rng.uniform(-0.12, 0.12)
    start = np.where(step != 0, np.where(step > 0, 0.08, 0.92), place + offset)
    duration, bend = rng.uniform(2.0, 3.0) * fps, rng.uniform(-0.05, 0.05)
    u = np.clip((time - contact + duration) / duration, 0, 1)
    path = (
        start
        + (touch - start) * minimum_jerk(u)[:, None]
        + np.sin(np.pi * minimum_jerk(u))[:, None] * bend * step[::-1]
    )
    retreat = minimum_jerk((time - contact - 0.6 * fps) / (0.9 * fps))[:, None] * rng.uniform(0.4, 0.7)
    path = path + (start - touch) * retreat
    track.x[:], track.y[:] = path[:, 0], path[:, 1]
    return track
