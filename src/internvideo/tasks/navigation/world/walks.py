"""Render short random walks through the embedded world, with targets for the encoders at each step.

Waypoint targets are the directions with the longest free rays over the floor, at least 30 degrees apart.
Shapes: T frames of a view, 12 views, S side, 120 clockwise angle bins of 3 degrees, 12 distance bins of 0.25 m.
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
from internvideo.tasks.navigation.world.scene import BODY, COLORS, MOTIONS, SHAPES
from internvideo.tasks.navigation.world.world import World

OBJECT_KINDS = (*((shape, color) for shape in SHAPES for color in COLORS), *(("door", color) for color in COLORS))
"""Object kinds that the image tower learns to recognize."""
ANGLES, DISTANCES = 120, 12
MAX_RAY = 6.0
"""Length of rays, m."""
MAX_WAYPOINTS = 5
MIN_ANGLE_BINS = 10
"""Smallest number of angle bins between two waypoints."""
MAX_OFFSET = math.radians(20)
"""Largest angle between a view's axis and an object that counts as centered, radians."""
MAX_DISTANCE = {"thing": 8.0, "motion": 5.0}
"""Largest distance at which an object is a target, m."""

Floats = NDArray[np.float64]


def free_lengths(world: World, pose: Pose) -> Floats:
    """Return the free length (120,) of each direction in m, clockwise from straight ahead."""
    angles = pose.heading - np.arange(ANGLES) * (2 * math.pi / ANGLES)
    steps = np.arange(1, round(MAX_RAY / (STEP / 2)) + 1) * (STEP / 2)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.array([pose.x, pose.y]) + directions[:, None] * steps[None, :, None]
    free = world.house.ground.free(points.reshape(-1, 2)).reshape(ANGLES, -1)
    lengths: Floats = np.cumprod(free, axis=1).sum(axis=1) * (STEP / 2)
    return lengths


def choose_waypoints(lengths: Floats) -> list[tuple[int, int]]:
    """Choose at most five waypoints, (angle bin, distance bin): the longest free directions, 30 degrees apart.

    A direction's free length is the minimum over five neighboring bins, which keeps waypoints away from walls.
    """
    smoothed = np.stack([np.roll(lengths, shift) for shift in range(-2, 3)]).min(axis=0)
    remaining = smoothed.copy()
    waypoints: list[tuple[int, int]] = []
    while len(waypoints) < MAX_WAYPOINTS and remaining.max() >= 2 * STEP:
        angle = _center_of_best_run(remaining)
        waypoints.append((angle, min(DISTANCES, int(smoothed[angle] / STEP)) - 1))
        remaining[_angle_bins_from(angle) <= MIN_ANGLE_BINS] = 0
    return waypoints


def _angle_bins_from(angle: int) -> NDArray[np.int64]:
    """Return the circular distance (120,) in bins of every angle bin from `angle`."""
    offset = np.abs(np.arange(ANGLES) - angle)
    result: NDArray[np.int64] = np.minimum(offset, ANGLES - offset)
    return result


def _center_of_best_run(values: Floats) -> int:
    """Return the index in the middle of the circular run of nearly maximal values around the first maximum."""
    best = values >= values.max() - STEP / 4
    start = int(values.argmax())
    low = high = 0
    while high - low < ANGLES - 1 and best[(start + high + 1) % ANGLES]:
        high += 1
    while high - low < ANGLES - 1 and best[(start + low - 1) % ANGLES]:
        low -= 1
    return (start + (low + high) // 2) % ANGLES


def heat_map(waypoints: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    """Return the target (120, 12) float32: a Gaussian per waypoint, sum 1; uniform without waypoints."""
    heat = np.full((ANGLES, DISTANCES), 1e-6)
    for angle, distance in waypoints:
        angle_offset, distance_offset = _angle_bins_from(angle)[:, None] / 2.0, (np.arange(DISTANCES) - distance) / 0.7
        heat += np.exp(-0.5 * angle_offset**2 - 0.5 * distance_offset**2)
    result: NDArray[np.float32] = (heat / heat.sum()).astype(np.float32)
    return result


def label_views(world: World, pose: Pose) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Label the visible objects centered in each view: kinds (12, K) and motions (12, M), multi-hot."""
    things, motions = np.zeros((VIEWS, len(OBJECT_KINDS)), np.float32), np.zeros((VIEWS, len(MOTIONS)), np.float32)
    scene, position = world.house.scene, np.array([[pose.x, pose.y]])
    objects = [
        (landmark.x, landmark.y, landmark.half_side + BODY + 0.05, OBJECT_KINDS.index((landmark.shape, landmark.color)),
         landmark.motion)
        for landmark in scene.landmarks
    ]  # fmt: skip
    objects += [(door.x, door.y, 0.0, OBJECT_KINDS.index(("door", door.color)), None) for door in scene.doors]
    for x, y, clearance, kind, motion in objects:
        distance = math.dist((pose.x, pose.y), (x, y))
        if distance > MAX_DISTANCE["thing"] or distance < 1e-6:
            continue
        fraction = max(0.0, 1 - clearance / distance)
        front = position + (np.array([[x, y]]) - position) * fraction
        if not world.house.ground.sees(position, front)[0, 0]:
            continue
        bearing = turn_towards(pose, (x, y))
        for view in range(VIEWS):
            if abs(math.remainder(bearing - view * 2 * math.pi / VIEWS, 2 * math.pi)) <= MAX_OFFSET:
                things[view, kind] = 1
                if motion is not None and distance <= MAX_DISTANCE["motion"]:
                    motions[view, MOTIONS.index(motion)] = 1
    return things, motions


class PanoramaSample(NamedTuple):
    """One panorama of a `PanoramaBatch`, and clips of some of its views."""

    id: str
    depth: Tensor
    heat: Tensor
    rgb: Tensor
    clips: Tensor
    things: Tensor
    motions: Tensor


def random_walk(
    world: World, episode: Episode, num_panoramas: int, num_frames: int, num_clips: int, size: int, seed: int
) -> list[PanoramaSample]:
    """Render `num_panoramas` panoramas along a random walk from the start of an episode.

    Args:
        num_frames: T. num_clips: number of directions also rendered as clips, those with a centered landmark first.
        size: S, pixels.
    """
    rng = np.random.default_rng([seed, 0x77616C6B])
    trajectory = [(world.reset(episode), world.tick)]
    samples = []
    for step in range(num_panoramas):
        waypoints = choose_waypoints(free_lengths(world, world.pose))
        if not waypoints:
            break
        angle, distance = waypoints[int(rng.integers(len(waypoints)))]
        # Long steps, like an agent's: after a turn the frames of a direction show other content.
        num_steps = int(rng.integers(distance // 2, distance + 1)) + 1
        walk = world.step(-angle * (2 * math.pi / ANGLES), num_steps * STEP)
        trajectory += zip(walk.poses, walk.ticks, strict=True)
        things, motions = label_views(world, world.pose)
        landmarks = things[:, : len(SHAPES) * len(COLORS)].any(axis=1)
        directions = np.argsort(-(2.0 * landmarks + things.any(axis=1) + rng.random(VIEWS)))[:num_clips]
        recent = trajectory[-num_frames:]
        clip_frames = [
            world.house.camera.views(pose, pose.heading + directions * (2 * math.pi / VIEWS), tick, size)[0]
            for pose, tick in [*(recent[:1] * (num_frames - len(recent))), *recent]
        ]
        heat = heat_map(choose_waypoints(free_lengths(world, world.pose)))
        panorama = world.observe()
        arrays = (panorama.depth, heat, panorama.rgb, np.stack(clip_frames, axis=1), things, motions[directions])
        samples.append(PanoramaSample(f"{episode.id}-{step}", *map(torch.from_numpy, arrays)))
    return samples
