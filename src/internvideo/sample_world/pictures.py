"""Write captioned pictures of the sample world, for image-text learning: many objects, each seen once and at rest.

A picture is one frame of a clip that is planned but never written whole, of trained classes and combinations only.
`FOLDER/pictures/*.mp4` hold 5,000 pictures each, one a second; a row of `pictures.jsonl` is the span of one of them.
The first caption names the shape alone, what a small encoder does not learn beside color and place; two name these too.
Attributes are shape, colour, texture, size and place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from internvideo.data.manifest import Sample, write_manifest
from internvideo.sample_world.actions import Cell, Part, track_of
from internvideo.sample_world.backgrounds import PLACES
from internvideo.sample_world.clips import RADII, WorldSettings, held_out, in_processes
from internvideo.sample_world.language import Facts, picture_captions
from internvideo.sample_world.scene import COLORS, SHAPES, TEXTURES, Actor, Frames, Look, Scene, render
from internvideo.storage import folder_lock
from internvideo.terminal import bars_disabled
from internvideo.video.writer import write_video

PACKED = 5000
"""Pictures per video file: few files, which the loader keeps open, are read several times faster than many."""
_STREAM = 100  # in the seeds, after the splits of `clips`
_VISIBLE = 0.4  # smallest opacity of an object, of those that appear, vanish or blink


def generate_pictures(
    folder: str | os.PathLike[str],
    settings: WorldSettings,
    count: int,
    *,
    packed: int = PACKED,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Path]:
    """Write `count` pictures of a world (its seed, size, difficulty and actions), `packed` in a file.

    Files that exist are kept. The pictures do not depend on their number, on `packed` or on `workers`.

    Returns: the path of the manifest, {"pictures": ...}.

    Raises RunError, VideoError: the folder cannot be written.
    """
    root = Path(folder)
    with folder_lock(root):
        files = [(first, min(packed, count - first)) for first in range(0, count, packed)]
        missing = [file for file in files if not (root / _path(*file)).exists()]
        hidden = bars_disabled(None if progress else False)
        left = sum(number for _, number in missing)
        with tqdm(total=count, initial=count - left, desc="pictures", unit="picture", disable=hidden) as bar:
            work = partial(_write, root, settings)
            for chunk, _ in in_processes(work, [[file] for file in missing], workers, alone=left < 500, where=root):
                bar.update(sum(number for _, number in chunk))
        manifest = root / "pictures.jsonl"
        rows = [_row(settings, number, *files[number // packed]) for number in range(count)]
        write_manifest(manifest, rows, ())
        return {"pictures": manifest}


def _path(first: int, count: int) -> str:
    """The file of `count` pictures from number `first` on; its name tells both, so that other sets are drawn anew."""
    return f"pictures/{first:06d}_{count}.mp4"


def _write(root: Path, settings: WorldSettings, files: Sequence[tuple[int, int]]) -> None:
    for first, count in files:
        path = root / _path(first, count)
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = (draw(settings, number)[1][0] for number in range(first, first + count))
        write_video(path, pictures, 1, crf=20, gop=1, options={"preset": "veryfast"})


def _facts_and_scene(settings: WorldSettings, number: int) -> tuple[Facts, Scene]:
    key = (settings.seed, _STREAM, number)
    rng = np.random.default_rng(key)
    action = settings.actions[number % len(settings.actions)]
    while True:
        shape, colour, place = (names[int(rng.integers(len(names)))] for names in (SHAPES, tuple(COLORS), PLACES))
        if not held_out(shape, colour, place):
            break
    texture, size = (names[int(rng.integers(len(names)))] for names in (TEXTURES, tuple(RADII)))
    radius, frames = RADII[size] * rng.uniform(0.95, 1.05), settings.frames
    cell = Cell(radius=radius)
    track = track_of((Part((action,), 0, frames - 1),), frames, cell, key)
    seen = np.flatnonzero(track.alpha >= _VISIBLE)
    moment = int(seen[rng.integers(len(seen))])
    actor = Actor(Look(shape, colour, texture, radius), (), cell, track.part(slice(moment, moment + 1)))
    facts = Facts(action, shape, colour, texture, size, place, "slowly")
    return facts, Scene(settings.size, 1, place, settings.difficulty, (actor,), key)


def draw(settings: WorldSettings, number: int) -> tuple[Facts, Frames]:
    """Draw picture `number` (from 0): its facts, of which action and speed cannot be seen, and (1, S, S, 3) uint8."""
    facts, scene = _facts_and_scene(settings, number)
    return facts, render(scene)[0]


def _row(settings: WorldSettings, number: int, first: int, count: int) -> Sample:
    facts, scene = _facts_and_scene(settings, number)
    second = float(number - first)
    return Sample(
        id=f"picture_{number:06d}",
        path=_path(first, count),
        span=(second, second + 0.5),
        captions=picture_captions(facts, np.random.default_rng((*scene.seed, 2000))),
        attributes={name: value for name, value in asdict(facts).items() if name not in ("action", "speed")},
    )
