"""Plan and write the clips of the sample world; worker processes import this module, so it does not import torch.

A clip depends only on (seed of the world, split, index in the split), not on the number of clips or workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RecipeError, RunError
from internvideo.sample_world.actions import ACTIONS, CATALOGUE, FAR_CLASSES, HELD_OUT_CLASSES, Cell, Part
from internvideo.sample_world.backgrounds import PLACES
from internvideo.sample_world.language import Facts
from internvideo.sample_world.scene import COLORS, SHAPES, TEXTURES, Actor, Look, Scene, actor_boxes, render
from internvideo.system import call_when_parent_dies, cores
from internvideo.video.writer import write_video

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

RADII: Mapping[str, float] = MappingProxyType({"small": 0.15, "large": 0.195})
_SPLITS = ("train", "validation", "test", "zero_shot", "long", "far")
_UNTRAINED_CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"zero_shot": HELD_OUT_CLASSES, "far": FAR_CLASSES}
)


@dataclass(frozen=True)
class WorldSettings:
    """The settings of a sample world.

    Attributes:
        clips: number of short clips of train, validation and test together (70 %, 10 % and 20 %).
        seed: seed of all random numbers.
        size: side of the square frames in pixels, even. frames: frames per short clip. fps: frames per second.
        difficulty: 0 to 1, scales camera shake, light changes, noise, distractors, occluders and background texture.
        zero_shot_clips: number of clips of the held-out classes; None for a tenth of `clips`, at least one per class.
            Half as many clips are made of the far unknown classes (for the open set).
        long_videos: number of untrimmed videos.
        actions: the trained classes, a subset of ACTIONS, in the order of their indices.

    Raises RecipeError: a value out of range.
    """

    clips: int = 2000
    seed: int = 0
    size: int = 96
    frames: int = 24
    fps: int = 12
    difficulty: float = 0.25
    zero_shot_clips: int | None = None
    long_videos: int = 12
    actions: tuple[str, ...] = ACTIONS

    def __post_init__(self) -> None:
        ranges = {"clips": (10, 10**6), "seed": (0, 2**63), "size": (32, 1024), "frames": (8, 1000), "fps": (2, 120)}
        ranges |= {"difficulty": (0, 1), "long_videos": (0, 10**4)}
        if self.zero_shot_clips is not None:
            ranges["zero_shot_clips"] = (1, 10**6)
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not low <= value <= high or (name != "difficulty" and value != int(value)):
                raise RecipeError(f"sample world {name}", str(value), f"{low} to {high}")
        if self.size % 2:
            raise RecipeError("sample world size", str(self.size), "an even number of pixels")
        unknown = [name for name in self.actions if name not in ACTIONS]
        if unknown or not self.actions or len(set(self.actions)) != len(self.actions):
            found = ", ".join(unknown) or "no action or a duplicate one"
            raise RecipeError("sample world actions", found, ", ".join(ACTIONS))

    @property
    def counts(self) -> dict[str, int]:
        """Number of videos by split."""
        test, validation = round(self.clips * 0.2), round(self.clips * 0.1)
        num_zero_shot = self.zero_shot_clips
        if num_zero_shot is None:
            num_zero_shot = max(len(HELD_OUT_CLASSES), self.clips // 10)
        num_videos = (
            self.clips - test - validation,
            validation,
            test,
            num_zero_shot,
            self.long_videos,
            (num_zero_shot + 1) // 2,
        )
        return dict(zip(_SPLITS, num_videos, strict=True))


def held_out(shape: str, colour: str, place: str) -> bool:
    """Return whether a combination is used only for testing: one of five, so that all pairs occur in training."""
    return (SHAPES.index(shape) + 2 * tuple(COLORS).index(colour) + 3 * PLACES.index(place)) % 5 == 0


@dataclass(frozen=True)
class Clip:
    """A planned video, short or untrimmed: its name, its annotations (`facts`), the scene to draw, and its actions."""

    name: str
    facts: Facts
    scene: Scene
    actions: tuple[str, ...] = ()


def _sample_name(names: tuple[str, ...], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]


def _sample_combination(unseen: bool, rng: np.random.Generator) -> tuple[str, str, str]:
    while True:
        combination = _sample_name(SHAPES, rng), _sample_name(tuple(COLORS), rng), _sample_name(PLACES, rng)
        if held_out(*combination) == unseen:
            return combination


def classes_of(settings: WorldSettings, split: str) -> tuple[str, ...]:
    """Return the classes of a split of short clips, in the order of their indices."""
    return _UNTRAINED_CLASSES.get(split, settings.actions)


def plan(settings: WorldSettings, split: str, number: int) -> Clip:
    """Plan video `number` (from 0) of a split of `settings.counts`."""
    return _plan_long(settings, number) if split == "long" else _plan_short(settings, split, number)


def _plan_short(settings: WorldSettings, split: str, number: int) -> Clip:
    """Plan clip `number` of a split of short clips; its class is `number` modulo the number of classes.

    Clips of train and validation have combinations of shape, color and place that are not held out, all others have
    held-out ones.
    """
    classes, frames = classes_of(settings, split), settings.frames
    action = classes[number % len(classes)]
    key = (settings.seed, _SPLITS.index(split), number)
    rng = np.random.default_rng(key)
    shape, colour, place = _sample_combination(split not in ("train", "validation"), rng)
    texture, size = _sample_name(TEXTURES, rng), _sample_name(tuple(RADII), rng)
    slow = bool(rng.random() < 0.5)
    # The action fills most of the clip; the rest is divided at random between its start and its end.
    filled = rng.uniform(0.88, 1.0) if slow else rng.uniform(0.6, 0.75)
    spare = (1 - filled) * (frames - 1)
    before = rng.uniform(0, spare)
    part = Part((action,), round(before), frames - 1 - round(spare - before))
    radius = RADII[size] * rng.uniform(0.95, 1.05)
    actor = Actor(Look(shape, colour, texture, radius), (part,), Cell(radius=radius))
    scene = Scene(settings.size, frames, place, settings.difficulty, (actor,), key)
    facts = Facts(action, shape, colour, texture, size, place, "slowly" if slow else "quickly")
    return Clip(f"{split}_{number:05d}", facts, scene, (action,))


def _sample_simultaneous_actions(actions: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    """Sample one action, or two that change different properties of an actor."""
    first = CATALOGUE[_sample_name(actions, rng)]
    # The two actions must not overwrite each other, so their channels must be a pair of `_COMPATIBLE_CHANNELS`.
    others = tuple(name for name in actions if {CATALOGUE[name].channel, first.channel} in _COMPATIBLE_CHANNELS)
    if not others or rng.random() < 0.5:
        return (first.name,)
    second = CATALOGUE[_sample_name(others, rng)]
    # Motions of channel "place" assign positions and come first; the others add to them.
    return tuple(action.name for action in sorted((first, second), key=lambda action: action.channel != "place"))


_COMPATIBLE_CHANNELS = ({"place", "size"}, {"place", "look"}, {"place", "angle"}, {"size", "angle"}, {"size", "look"})


def _plan_long(settings: WorldSettings, number: int) -> Clip:
    """Plan an untrimmed video of 10 to 30 s: two or three actors, each with several actions and pauses between them."""
    fps, key = settings.fps, (settings.seed, _SPLITS.index("long"), number)
    rng = np.random.default_rng(key)
    frames = int(rng.integers(10 * fps, 30 * fps + 1))
    moving = tuple(name for name in settings.actions if CATALOGUE[name].channel != "still")
    num_actors = int(rng.integers(2, 4))
    place = _sample_name(PLACES, rng)
    colours = [tuple(COLORS)[int(k)] for k in rng.permutation(len(COLORS))[:num_actors]]
    actors = []
    for index in range(num_actors):
        radius = rng.uniform(0.09, 0.11)
        cell = Cell((index + 0.5) / num_actors, rng.uniform(0.4, 0.6), 0.62, radius)
        parts, start = [], int(rng.uniform(0.3, 3.0) * fps)
        while (stop := start + int(rng.uniform(1.5, 3.5) * fps)) < frames - fps // 2:
            parts.append(Part(_sample_simultaneous_actions(moving, rng), start, stop))
            start = stop + int(rng.uniform(1.0, 4.0) * fps)
        actors.append(
            Actor(
                Look(_sample_name(SHAPES, rng), colours[index], _sample_name(TEXTURES, rng), radius), tuple(parts), cell
            )
        )
    scene = Scene(settings.size, frames, place, settings.difficulty, tuple(actors), key)
    first = actors[0].look
    facts = Facts("standing still", first.shape, first.colour, first.texture, "small", place, "slowly")
    actions = tuple(dict.fromkeys(name for actor in actors for part in actor.parts for name in part.actions))
    return Clip(f"long_{number:04d}", facts, scene, actions)


@dataclass(frozen=True)
class SeenActor:
    """An actor visible at `time` (s): its index, corners x1, y1, x2, y2 as fractions of the frame, and its actions."""

    time: float
    actor: int
    corners: tuple[float, float, float, float]
    actions: tuple[str, ...]


def boxes_per_second(scene: Scene, boxes: NDArray[np.float64], fps: int) -> tuple[SeenActor, ...]:
    """List the visible actors at 0.5 s, 1.5 s, ... from boxes (T, A, 4); between two actions an actor stands still."""
    visible = []
    for frame in range(fps // 2, scene.frames, fps):
        for index, actor in enumerate(scene.actors):
            corners = boxes[frame, index]
            if np.isnan(corners).any():
                continue
            now = [part.actions for part in actor.parts if part.start <= frame <= part.stop]
            x1, y1, x2, y2 = (round(float(value), 4) for value in corners)
            visible.append(SeenActor(frame / fps, index, (x1, y1, x2, y2), now[0] if now else ("standing still",)))
    return tuple(visible)


def clip_path(clip: Clip) -> str:
    """Return the path of a clip below the world's folder."""
    return f"clips/{clip.name[-2:]}/{clip.name}.mp4"


def write_clips(folder: Path, settings: WorldSettings, jobs: Sequence[tuple[str, int]]) -> list[tuple[SeenActor, ...]]:
    """Draw and encode the clips (split, number) that do not exist yet; return the boxes of long ones, () for others."""
    boxes_by_clip: list[tuple[SeenActor, ...]] = []
    for split, number in jobs:
        clip = plan(settings, split, number)
        path, boxes = folder / clip_path(clip), None
        if not path.exists():
            frames, boxes = render(clip.scene)
            path.parent.mkdir(parents=True, exist_ok=True)
            # "veryfast" costs little more than "ultrafast" and halves the files.
            write_video(path, frames, settings.fps, crf=20, options={"preset": "veryfast"})
        if split == "long":
            boxes = actor_boxes(clip.scene) if boxes is None else boxes
            boxes_by_clip.append(boxes_per_second(clip.scene, boxes, settings.fps))
        else:
            boxes_by_clip.append(())
    return boxes_by_clip


def in_processes(
    work: Callable[[Chunk], Result], chunks: Sequence[Chunk], workers: int | None, *, alone: bool, where: Path
) -> Iterator[tuple[Chunk, Result]]:
    """Yield each chunk with the result of `work`, as it is completed by a pool of processes.

    Args:
        work: a function that can be pickled. workers: number of processes, None for one per core.
        alone: work in this process, where starting others would take longer. where: folder for error messages.

    Raises RunError: a process was killed.
    """
    count = min(workers or cores(), len(chunks))
    if count <= 1 or alone:
        yield from ((chunk, work(chunk)) for chunk in chunks)
        return
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start_worker) as pool:
        futures = {pool.submit(work, chunk): chunk for chunk in chunks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            hint = "free memory or use fewer workers, then repeat"
            raise RunError(where, "a worker process was killed", "", hint) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start_worker() -> None:
    """Set up a worker process: ignore SIGINT, which the parent handles, and exit when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    call_when_parent_dies(lambda: os._exit(1))
