"""Folders of small clips whose class is their colour, and an encoder that sees colours, for the tests of `fit`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import small_apps

from internvideo.inference.video_model import VideoModel
from internvideo.video.writer import write_video

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 60, 40)}
FRAMES, SIDE = 6, 32


def write_clips(folder: Path, each: int = 12, *, classes: tuple[str, ...] = tuple(COLOURS), parts: int = 1) -> Path:
    """CLASS/clip_NN_partM.mp4: clips of one NN are pieces of one recording, with the same picture but for noise."""
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            rng = np.random.default_rng([place, number // parts])
            picture = np.asarray(COLOURS[name]) + rng.normal(0, 25, (SIDE, SIDE, 3)) + rng.normal(0, 20, 3)
            for _ in range(number % parts + 1):
                frames = picture + rng.normal(0, 8, (FRAMES, SIDE, SIDE, 3))
            file = folder / name / f"clip_{number // parts:02d}_part{number % parts}.mp4"
            write_video(file, frames.clip(0, 255).astype(np.uint8), 8)
    return folder


@cache
def encoder(family: str = "supervised") -> VideoModel:
    """An untrained model; what it sees of a plain picture still is its colour."""
    return small_apps.random_model(family)
