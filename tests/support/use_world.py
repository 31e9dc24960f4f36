"""Tiny models in folders and tiny clips, made once for all processes, for the tests of commands that use a model."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import odd_video
import small_world
from filelock import FileLock

from internvideo.data.preprocessing import Preprocessing
from internvideo.inference.video_model import VideoModel

FPS = 15
CLIPS = Preprocessing(small_world.FRAMES, small_world.SIDE, sampler="segment_middle")


@cache
def language() -> VideoModel:
    """A model with texts and captions."""
    return VideoModel("internvideo-mm-b16-caption", small_world.language_model(), preprocessing=CLIPS)


@cache
def classifier() -> VideoModel:
    """A masked encoder with a head of two classes."""
    module = small_world.masked_classifier()
    return VideoModel("videomae-s-classifier", module, preprocessing=CLIPS, class_names=small_world.CLASSES)


@cache
def language_folder() -> Path:
    return _saved(language(), "language")


@cache
def classifier_folder() -> Path:
    return _saved(classifier(), "classifier")


def _saved(model: VideoModel, name: str) -> Path:
    folder = small_world.made_once(name)
    with FileLock(folder.with_suffix(".lock")):
        return folder if folder.is_dir() else model.save_pretrained(folder)


@cache
def clips(count: int = 4) -> Path:
    """A folder with clips of 3 s: 0.mp4, 1.mp4, ..."""
    folder = small_world.made_once(f"clips{count}")
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            folder.mkdir()
            for number in range(count):
                odd_video.encode(folder / f"{number}.mp4", odd_video.moving_frames(3 * FPS, seed=number), fps=FPS)
    return folder


@cache
def piped() -> Path:
    """The pictures of 0.mp4 in a file that can be read from a pipe."""
    path = small_world.made_once("0.mkv")
    with FileLock(path.with_suffix(".lock")):
        return path if path.is_file() else odd_video.encode(path, odd_video.moving_frames(3 * FPS), fps=FPS)
