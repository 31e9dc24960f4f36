"""Fit the demo to the user's videos: measure them, choose clip size and frames, and fit the steps to a time budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from internvideo import untrusted
from internvideo.data.manifest import Manifest
from internvideo.data.settings import ClipData
from internvideo.data.transforms import direction_classes
from internvideo.errors import VideoError
from internvideo.pipeline import seconds_per_step
from internvideo.recipe import Recipe
from internvideo.storage import write_text
from internvideo.video.reader import read_video_info

TIME_FRACTIONS: Mapping[str, float] = {
    "masked": 0.36,
    "image_text": 0.02,
    "multimodal_pretrained": 0.10,
    "supervised_masked": 0.14,
    "supervised_scratch": 0.14,
    "supervised_multimodal": 0.08,
    "single_frame": 0.02,
    "interaction": 0.06,
}
"""Step of the demo -> fraction of the time budget; what remains is for reading the videos and for the evaluation."""
MAX_MEASURED_VIDEOS = 64
LONG_VIDEO_SECONDS = 4.0
SMALL_VIDEO_PIXELS = 56
MIN_STEPS = 20


@dataclass(frozen=True)
class VideoSetStatistics:
    """Numbers of videos and classes of a training set, median duration (s) and shorter side (px), and whether flipped
    videos keep their class."""

    videos: int
    classes: int
    seconds: float
    side: int
    flip: bool

    @classmethod
    def measure(cls, manifest: Manifest) -> VideoSetStatistics:
        """Measure about 64 videos, evenly spaced over the rows of the manifest; unreadable ones are skipped."""
        durations, sides = [], []
        for row in manifest.rows[:: max(1, len(manifest) // MAX_MEASURED_VIDEOS)]:
            try:
                info = read_video_info(manifest.video_path(row))
            except VideoError:
                continue
            durations.append(info.duration if row.span is None else row.span[1] - row.span[0])
            sides.append(min(info.width, info.height))
        seconds, side = (float(np.median(values)) if values else 0.0 for values in (durations, sides))
        may_flip = not direction_classes(manifest.classes)
        return cls(len(manifest), len(manifest.classes), round(seconds, 3), round(side), may_flip)

    def fit_recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe with size, frames, batch size and flips that fit these videos.

        Videos with a shorter side above 56 px get twice the pixels per side and the same number of tokens; long ones
        get twice the frames, except in stages on single frames.
        """
        data = recipe.data_as(ClipData)
        size_factor = 2 if self.side > SMALL_VIDEO_PIXELS else 1
        frame_factor = 2 if self.seconds > LONG_VIDEO_SECONDS and data.sampling.frames > 1 else 1
        batch_size = max(2, min(data.loader.batch_size, self.videos // 4))
        side = size_factor * data.augment.size
        flip = self.flip and recipe.stage in ("masked", "supervised", "interaction")
        loader = replace(
            data.loader, batch_size=batch_size, max_unreadable=0.1, short_side=side, alike=0, alike_by=()
        )  # fmt: skip
        data_changes = {
            "loader": loader,
            "augment": data.augment.model_copy(update={"size": side, "flip": flip}),
            "sampling": data.sampling.model_copy(update={"frames": frame_factor * data.sampling.frames}),
        }
        factors = {"image_size": size_factor, "patch_size": size_factor, "frames": frame_factor}
        overrides = _scale_settings(recipe.model.overrides, factors)
        model = recipe.model.model_copy(update={"overrides": overrides})
        return recipe.model_copy(update={"data": data.model_copy(update=data_changes), "model": model})


def _scale_settings(overrides: Mapping[str, Any], factors: Mapping[str, int]) -> dict[str, Any]:
    """Multiply the integer settings of a model, and of nested mappings, that have a factor under their name."""
    return {
        name: _scale_settings(value, factors) if isinstance(value, Mapping) else value * factors.get(name, 1)
        if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in overrides.items()
    }  # fmt: skip


class Budget:
    """Choose the number of training steps of each step of the demo for a time budget.

    The numbers are saved, so that a resumed demo trains the same number of steps.

    Args:
        file: JSON file of the saved numbers. minutes: time for the whole demo. device: cpu or cuda, on which it runs.
    """

    def __init__(self, file: Path, minutes: float, device: str) -> None:
        self.file, self.minutes, self.device = file, minutes, device
        stored = untrusted.read_json(file) if file.is_file() else {}
        self.steps: dict[str, int] = stored.get("steps", {}) if isinstance(stored, dict) else {}

    def set_num_steps(self, name: str, recipe: Recipe, facts: VideoSetStatistics) -> Recipe:
        """Return the recipe of a demo step with as many training steps as fit into the fraction of the time for it.

        The time of a training step is measured when the number of steps is chosen.
        """
        if name not in self.steps:
            # Training with and without pretraining gets the same number of steps.
            compared_with = {"supervised_scratch": "supervised_masked"}.get(name)
            num_steps = self.steps.get(compared_with or "")
            if num_steps is None:
                step_seconds = seconds_per_step(recipe, device=self.device)
                num_steps = max(MIN_STEPS, round(60 * self.minutes * TIME_FRACTIONS[name] / step_seconds))
            self.steps[name] = num_steps
            content = {"minutes": self.minutes, "facts": asdict(facts), "steps": self.steps}
            write_text(self.file, json.dumps(content, indent=1))
        num_steps = self.steps[name]
        schedule = recipe.schedule.model_copy(update={"epochs": None, "steps": num_steps, "warmup": num_steps / 10})
        return recipe.model_copy(update={"schedule": schedule})
