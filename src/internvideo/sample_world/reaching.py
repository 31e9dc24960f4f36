"""Plan the reaching clips of the sample world: a hand goes for one of a few objects, touches it, and changes it.

Two hands (white, seen as a person sees their own) and two or three objects on a table. One hand starts at an edge of
the frame and reaches for an object along a slightly bent way, slowly first and last, as arms do. From the contact on
the object is pushed on and changes in one of four ways; another may move or turn without being touched. Everything
follows from (seed of the world, number). Positions and lengths are in frame sides, times in frames.
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

STEPS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"push right": (1.0, 0.0), "push left": (-1.0, 0.0), "push up": (0.0, -1.0), "press down": (0.0, 1.0)}
)
"""Verb -> the direction in which the hand comes and the object goes on."""
VERBS: tuple[str, ...] = tuple(STEPS)
NOUNS: tuple[str, ...] = SHAPES
CHANGES: tuple[str, ...] = ("losing colour", "opening", "shrinking", "fading")
HANDS: tuple[str, ...] = ("left_hand", "right_hand")
_HAND = (Look("cross", "white", "plain", 0.085), Look("star", "white", "plain", 0.085))
_HANDS_OF: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"push right": (0,), "push left": (1,), "push up": (0, 1), "press down": (0, 1)}
)
_SPOTS = ((0.34, 0.35), (0.66, 0.35), (0.34, 0.65), (0.66, 0.65))
_KEY = 7  # of the seeds: no other split has this number


@dataclass(frozen=True)
class Reach:
    """A planned clip.

    Attributes:
        scene: its first actors are the objects, its last two the left and the right hand.
        target: index of the object that is touched; verb, change: what is done to it.
        hand: 0 or 1, which hand it is. contact: frame in which they meet.
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


def progress(u: Floats) -> Floats:
    """Share of the way after a share `u` of the time, of a movement that starts and ends at rest (minimum jerk)."""
    u = np.clip(u, 0.0, 1.0)
    result: Floats = u**3 * (10 - 15 * u + 6 * u**2)
    return result


def plan_reach(seed: int, number: int, *, side: int, fps: int, difficulty: float) -> Reach:
    """Plan clip `number`: the contact is 3.5 s after the start, give or take 0.2 s, and 1.5 s before the end."""
    key = (seed, _KEY, number)
    rng = np.random.default_rng(key)
    frames = 5 * fps
    contact = round((3.5 + rng.uniform(-0.2, 0.2)) * fps)
    count = int(rng.integers(2, 4))
    places = np.asarray(_SPOTS)[rng.permutation(len(_SPOTS))[:count]] + rng.uniform(-0.05, 0.05, (count, 2))
    options = [(k, verb) for k in range(count) for verb in VERBS if _free(places, k, np.asarray(STEPS[verb]))]
    target, verb = options[int(rng.integers(len(options)))]
    hand = int(rng.choice(_HANDS_OF[verb]))
    change = CHANGES[int(rng.integers(len(CHANGES)))]
    shapes, colours = rng.permutation(len(SHAPES))[:count], rng.permutation(len(COLORS))[:count]
    looks = [
        Look(SHAPES[shape], tuple(COLORS)[colour], TEXTURES[int(rng.integers(len(TEXTURES)))], rng.uniform(0.085, 0.1))
        for shape, colour in zip(shapes, colours, strict=True)
    ]
    tracks = [_standing(frames, place, rng) for place in places]
    push = np.asarray(STEPS[verb]) * rng.uniform(0.05, 0.08)
    time = np.arange(frames, dtype=np.float64)
    pushed = progress((time - contact) / (0.5 * fps))[:, None] * push
    tracks[target].x[:] += pushed[:, 0]
    tracks[target].y[:] += pushed[:, 1]
    _change(tracks[target], change, progress((time - contact) / (0.7 * fps)))
    decoy = int((target + 1 + rng.integers(count - 1)) % count)
    _decoy(tracks[decoy], progress((time - contact + rng.uniform(0, 0.5) * fps) / fps), rng)
    touch = places[target] - np.asarray(STEPS[verb]) * (looks[target].radius + _HAND[hand].radius) * 0.85
    hands = [_resting(frames, index, fps, rng) for index in range(2)]
    hands[hand] = _reaching(frames, places[target], touch, np.asarray(STEPS[verb]), contact, fps, rng)
    hands[hand].x[:] += pushed[:, 0]
    hands[hand].y[:] += pushed[:, 1]
    actors = [Actor(look, (), Cell(), track) for look, track in zip([*looks, *_HAND], [*tracks, *hands], strict=True)]
    scene = Scene(side, frames, PLACES[int(rng.integers(len(PLACES)))], difficulty, tuple(actors), key)
    return Reach(f"reach_{number:05d}", scene, target, hand, verb, change, contact)


def _free(places: Floats, target: int, step: Floats) -> bool:
    """Whether the target stands in the far half of the frame and no other object in the way."""
    offset = places[target] - np.delete(places, target, axis=0)
    if (places[target] - 0.5) @ step < 0:
        return False
    along, across = offset @ step, np.abs(offset @ step[::-1])
    return not bool(np.any((along > 0) & (across < 0.2)))


def _standing(frames: int, place: Floats, rng: Rng) -> Track:
    track = Track.at_rest(frames)
    track.x[:], track.y[:] = place
    track.angle[:] = rng.uniform(-0.5, 0.5)
    return track


def _change(track: Track, change: str, u: Floats) -> None:
    if change == "losing colour":
        track.tint[:] = 1 - u
    elif change == "opening":
        track.mouth[:] = 2.2 * u
    elif change == "shrinking":
        track.scale[:] = 1 - 0.45 * u
    else:
        track.alpha[:] = 1 - 0.65 * u


def _decoy(track: Track, u: Floats, rng: Rng) -> None:
    """A movement of an object that nobody touches: nothing, a turn or a slide."""
    kind, turn, slide = rng.integers(3), rng.uniform(0.8, 1.6) * rng.choice((-1, 1)), rng.uniform(-0.06, 0.06, 2)
    if kind == 1:
        track.angle[:] += turn * u
    elif kind == 2:
        track.x[:] += slide[0] * u
        track.y[:] += slide[1] * u


def _resting(frames: int, hand: int, fps: int, rng: Rng) -> Track:
    """The other hand, near its corner, not to be seen in three of ten clips."""
    track, phase, waves = Track.at_rest(frames), rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.2, 0.5, 2)
    time = np.arange(frames) / fps
    track.x[:] = (0.13, 0.87)[hand] + rng.uniform(-0.03, 0.03) + 0.03 * np.sin(2 * np.pi * waves[0] * time + phase[0])
    track.y[:] = 0.87 + rng.uniform(-0.03, 0.03) + 0.03 * np.sin(2 * np.pi * waves[1] * time + phase[1])
    track.alpha[:] = float(rng.random() >= 0.3)
    return track


def _reaching(frames: int, place: Floats, touch: Floats, step: Floats, contact: int, fps: int, rng: Rng) -> Track:
    """From an edge of the frame to the point of touch in 2 to 3 s; half a second after the contact it goes back."""
    track, time = Track.at_rest(frames), np.arange(frames, dtype=np.float64)
    aside = rng.uniform(-0.12, 0.12)
    start = np.where(step != 0, np.where(step > 0, 0.08, 0.92), place + aside)
    duration, bend = rng.uniform(2.0, 3.0) * fps, rng.uniform(-0.05, 0.05)
    u = np.clip((time - contact + duration) / duration, 0, 1)
    way = start + (touch - start) * progress(u)[:, None] + np.sin(np.pi * progress(u))[:, None] * bend * step[::-1]
    back = progress((time - contact - 0.6 * fps) / (0.9 * fps))[:, None] * rng.uniform(0.4, 0.7)
    way = way + (start - touch) * back
    track.x[:], track.y[:] = way[:, 0], way[:, 1]
    return track
