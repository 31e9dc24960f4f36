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

SHARES: Mapping[str, float] = {
    "masked": 0.36,
    "image_text": 0.02,
    "multimodal_pretrained": 0.10,
    "supervised_masked": 0.14,
    "supervised_scratch": 0.14,
    "supervised_multimodal": 0.08,
    "single_frame": 0.02,
    "interaction": 0.06,
}
"""Part of the demo -> its fraction of the time; the rest is for reading videos and measuring."""
LOOKED_AT = 64
LONG_SECONDS = 4.0
SMALL_SIDE = 56
FEWEST_STEPS = 20


@dataclass(frozen=True)
class SetFacts:
    """Facts of a training set: numbers of videos and classes, median duration (s) and shorter side (px), flips."""

    videos: int
    classes: int
    seconds: float
    side: int
    flip: bool

    @classmethod
    def of(cls, rows: Manifest) -> SetFacts:
        """Measure up to 64 videos of the training rows; unreadable ones are skipped."""
        lengths, sides = [], []
        for row in rows.rows[:: max(1, len(rows) // LOOKED_AT)]:
            try:
                info = read_video_info(rows.video_path(row))
            except VideoError:
                continue
            lengths.append(info.duration if row.span is None else row.span[1] - row.span[0])
            sides.append(min(info.width, info.height))
        seconds, side = (float(np.median(values)) if values else 0.0 for values in (lengths, sides))
        return cls(len(rows), len(rows.classes), round(seconds, 3), round(side), not direction_classes(rows.classes))

    def fitted(self, recipe: Recipe) -> Recipe:
        """Return the recipe with size, frames, batch size and flips that fit these videos.

        Videos with a shorter side above 56 px get twice the pixels per side and the same number of tokens; long ones
        get twice the frames, except in stages on single frames.
        """
        data = recipe.data_as(ClipData)
        finer = 2 if self.side > SMALL_SIDE else 1
        more = 2 if self.seconds > LONG_SECONDS and data.sampling.frames > 1 else 1
        size = max(2, min(data.loader.batch_size, self.videos // 4))
        side = finer * data.augment.size
        flip = self.flip and recipe.stage in ("masked", "supervised", "interaction")
        parts = {
            "loader": replace(data.loader, batch_size=size, max_unreadable=0.1, short_side=side, alike=0, alike_by=()),
            "augment": data.augment.model_copy(update={"size": side, "flip": flip}),
            "sampling": data.sampling.model_copy(update={"frames": more * data.sampling.frames}),
        }
        overrides = _scaled(recipe.model.overrides, {"image_size": finer, "patch_size": finer, "frames": more})
        model = recipe.model.model_copy(update={"overrides": overrides})
        return recipe.model_copy(update={"data": data.model_copy(update=parts), "model": model})


def _scaled(overrides: Mapping[str, Any], factors: Mapping[str, int]) -> dict[str, Any]:
    """Multiply some settings of a model and of its nested parts."""
    return {
        name: _scaled(value, factors) if isinstance(value, Mapping) else value * factors.get(name, 1)
        if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in overrides.items()
    }  # fmt: skip


class Budget:
    """Choose the steps of each part of the demo for a time budget; decisions are saved, so that a resumed demo agrees.

    Args:
        file: file of the decisions. minutes: time for the whole demo. device: where it runs.
    """

    def __init__(self, file: Path, minutes: float, device: str) -> None:
        self.file, self.minutes, self.device = file, minutes, device
        stored = untrusted.read_json(file) if file.is_file() else {}
        self.steps: dict[str, int] = stored.get("steps", {}) if isinstance(stored, dict) else {}

    def paced(self, name: str, recipe: Recipe, facts: SetFacts) -> Recipe:
        """Return the recipe with as many steps as fit its part's time; the time of a step is measured once."""
        if name not in self.steps:
            # Training with and without pretraining gets the same number of steps.
            twin = {"supervised_scratch": "supervised_masked"}.get(name)
            count = self.steps.get(twin or "")
            if count is None:
                each = seconds_per_step(recipe, device=self.device)
                count = max(FEWEST_STEPS, round(60 * self.minutes * SHARES[name] / each))
            self.steps[name] = count
            content = {"minutes": self.minutes, "facts": asdict(facts), "steps": self.steps}
            write_text(self.file, json.dumps(content, indent=1))
        count = self.steps[name]
        schedule = recipe.schedule.model_copy(update={"epochs": None, "steps": count, "warmup": count / 10})
        return recipe.model_copy(update={"schedule": schedule})
