"""Render short random walks through the embedded world, with perception targets at their ends.

Waypoint targets come from rays over the free floor: the directions with the longest free rays, well apart.
Shapes: T frames of a direction, 12 views, S side, A = 120 clockwise angles, R = 12 distances of 0.25 m.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo.tasks.navigation.world.protocol import STEP, VIEWS, Episode, Pose, turn_towards
from internvideo.tasks.navigation.world.scene import BODY, COLOURS, MOTIONS, SHAPES
from internvideo.tasks.navigation.world.world import World

THINGS = (*((shape, colour) for shape in SHAPES for colour in COLOURS), *(("door", colour) for colour in COLOURS))
"""Object kinds that the image tower learns to recognize."""
ANGLES, DISTANCES = 120, 12
FARTHEST = 6.0
"""Length of rays, m."""
PLACES = 5
APART = 10
"""Smallest number of angle bins between two waypoints."""
MIDDLE = math.radians(20)
"""Largest angle from a view's axis at which an object counts as centered."""
NEAR_ENOUGH = {"thing": 8.0, "motion": 5.0}
"""Largest distance at which an object is a target, m."""

Floats = NDArray[np.float64]


def open_lengths(world: World, pose: Pose) -> Floats:
    """Return the free length (120,) of each direction in m, clockwise from straight ahead."""
    angles = pose.heading - np.arange(ANGLES) * (2 * math.pi / ANGLES)
    steps = np.arange(1, round(FARTHEST / (STEP / 2)) + 1) * (STEP / 2)
    way = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.array([pose.x, pose.y]) + way[:, None] * steps[None, :, None]
    free = world.house.ground.free(points.reshape(-1, 2)).reshape(ANGLES, -1)
    count: Floats = np.cumprod(free, axis=1).sum(axis=1) * (STEP / 2)
    return count


def open_places(lengths: Floats) -> list[tuple[int, int]]:
    """Choose (angle, distance) bins of at most five waypoints: the longest free directions, 30 degrees apart.

    A direction's free length is the minimum over five neighboring bins, which keeps waypoints away from walls.
    """
    around = np.stack([np.roll(lengths, shift) for shift in range(-2, 3)]).min(axis=0)
    remaining = around.copy()
    places: list[tuple[int, int]] = []
    while len(places) < PLACES and remaining.max() >= 2 * STEP:
        angle = _middle_of_best(remaining)
        places.append((angle, min(DISTANCES, int(around[angle] / STEP)) - 1))
        remaining[_bins_from(angle) <= APART] = 0
    return places


def _bins_from(angle: int) -> NDArray[np.int64]:
    """Return the circular distance (120,) of every angle bin from one."""
    offset = np.abs(np.arange(ANGLES) - angle)
    result: NDArray[np.int64] = np.minimum(offset, ANGLES - offset)
    return result


def _middle_of_best(values: Floats) -> int:
    """Return the middle of the circular run of (nearly) maximal values around the first maximum."""
    best = values >= values.max() - STEP / 4
    start = int(values.argmax())
    low = high = 0
    while high - low < ANGLES - 1 and best[(start + high + 1) % ANGLES]:
        high += 1
    while high - low < ANGLES - 1 and best[(start + low - 1) % ANGLES]:
        low -= 1
    return (start + (low + high) // 2) % ANGLES


def heat_map(places: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    """Return the target (120, 12) float32: a Gaussian per waypoint, sum 1; uniform without waypoints."""
    heat = np.full((ANGLES, DISTANCES), 1e-6)
    for angle, distance in places:
        off_angle, off_distance = _bins_from(angle)[:, None] / 2.0, (np.arange(DISTANCES) - distance) / 0.7
        heat += np.exp(-0.5 * off_angle**2 - 0.5 * off_distance**2)
    result: NDArray[np.float32] = (heat / heat.sum()).astype(np.float32)
    return result


def in_views(world: World, pose: Pose) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Label the object centered in each view: kinds (12, K) and motions (12, M), multi-hot."""
    things, motions = np.zeros((VIEWS, len(THINGS)), np.float32), np.zeros((VIEWS, len(MOTIONS)), np.float32)
    scene, here = world.house.scene, np.array([[pose.x, pose.y]])
    marks = [(mark.x, mark.y, mark.reach + BODY + 0.05, THINGS.index((mark.shape, mark.colour)), mark.motion)
             for mark in scene.landmarks]  # fmt: skip
    marks += [(door.x, door.y, 0.0, THINGS.index(("door", door.colour)), None) for door in scene.doors]
    for x, y, clear, kind, motion in marks:
        away = math.dist((pose.x, pose.y), (x, y))
        if away > NEAR_ENOUGH["thing"] or away < 1e-6:
            continue
        share = max(0.0, 1 - clear / away)
        front = here + (np.array([[x, y]]) - here) * share
        if not world.house.ground.sees(here, front)[0, 0]:
            continue
        bearing = turn_towards(pose, (x, y))
        for view in range(VIEWS):
            if abs(math.remainder(bearing - view * 2 * math.pi / VIEWS, 2 * math.pi)) <= MIDDLE:
                things[view, kind] = 1
                if motion is not None and away <= NEAR_ENOUGH["motion"]:
                    motions[view, MOTIONS.index(motion)] = 1
    return things, motions


class PanoramaSample(NamedTuple):
    """One panorama of `PanoramaBatch` and the clips of some of its directions."""

    id: str
    depth: Tensor
    heat: Tensor
    pictures: Tensor
    clips: Tensor
    things: Tensor
    motions: Tensor


def random_walk(
    world: World, episode: Episode, count: int, frames: int, clips: int, size: int, seed: int
) -> list[PanoramaSample]:
    """Render `count` panoramas at the steps of a random walk from the start of an episode.

    Args:
        frames: T. clips: number of directions also rendered as clips, those with a centered landmark first.
        size: S.
    """
    rng = np.random.default_rng([seed, 0x77616C6B])
    trail = [(world.reset(episode), world.time)]
    samples = []
    for number in range(count):
        places = open_places(open_lengths(world, world.pose))
        if not places:
            break
        angle, distance = places[int(rng.integers(len(places)))]
        # Long steps, like an agent's: after a turn the frames of a direction show other content.
        steps = int(rng.integers(distance // 2, distance + 1)) + 1
        walked = world.step(-angle * (2 * math.pi / ANGLES), steps * STEP)
        trail += zip(walked.poses, walked.times, strict=True)
        things, motions = in_views(world, world.pose)
        landmarks = things[:, : len(SHAPES) * len(COLOURS)].any(axis=1)
        order = np.argsort(-(2.0 * landmarks + things.any(axis=1) + rng.random(VIEWS)))[:clips]
        last = trail[-frames:]
        views = [
            world.house.camera.views(pose, pose.heading + order * (2 * math.pi / VIEWS), tick, size)[0]
            for pose, tick in [*(last[:1] * (frames - len(last))), *last]
        ]
        heat = heat_map(open_places(open_lengths(world, world.pose)))
        panorama = world.observe()
        arrays = (panorama.depth, heat, panorama.rgb, np.stack(views, axis=1), things, motions[order])
        samples.append(PanoramaSample(f"{episode.id}-{number}", *map(torch.from_numpy, arrays)))
    return samples
