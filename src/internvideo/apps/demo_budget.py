"""Fit the demo to somebody's videos: what they are like, how clips are cut from them, and how many steps fit a time."""

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
"""Of the time that is given, by step; the rest is for reading videos and measuring."""
LOOKED_AT = 64
LONG_SECONDS = 4.0
SMALL_SIDE = 56
FEWEST_STEPS = 20


@dataclass(frozen=True)
class SetFacts:
    """What a set is like: videos to learn from, classes, median seconds and shorter side in pixels, mirrored or not."""

    videos: int
    classes: int
    seconds: float
    side: int
    flip: bool

    @classmethod
    def of(cls, rows: Manifest) -> SetFacts:
        """Look at up to 64 videos of the training rows; unreadable ones are left out."""
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
        """The recipe with clips as these videos need them: pixels, frames, batch, and mirrored where classes allow it.

        Videos of a shorter side above 56 px get twice the pixels along each side for as many tokens; long ones twice
        the frames, but for single frames.
        """
        finer = 2 if self.side > SMALL_SIDE else 1
        more = 2 if self.seconds > LONG_SECONDS and recipe.data_as(ClipData).sampling.frames > 1 else 1
        data = recipe.data_as(ClipData)
        size = max(2, min(data.loader.batch_size, self.videos // 4))
        loader = replace(
            data.loader, batch_size=size, max_unreadable=0.1, short_side=finer * data.augment.size, alike=0, alike_by=()
        )
        flip = self.flip and recipe.stage in ("masked", "supervised", "interaction")
        parts = {
            "loader": loader,
            "augment": data.augment.model_copy(update={"size": finer * data.augment.size, "flip": flip}),
            "sampling": data.sampling.model_copy(update={"frames": more * data.sampling.frames}),
        }
        overrides = _scaled(recipe.model.overrides, {"image_size": finer, "patch_size": finer, "frames": more})
        return recipe.model_copy(
            update={
                "data": data.model_copy(update=parts),
                "model": recipe.model.model_copy(update={"overrides": overrides}),
            }
        )


def _scaled(overrides: Mapping[str, Any], factors: Mapping[str, int]) -> dict[str, Any]:
    """Settings of a model and of its parts, some of them multiplied."""
    return {
        name: _scaled(value, factors) if isinstance(value, Mapping) else value * factors.get(name, 1)
        if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in overrides.items()
    }  # fmt: skip


class Budget:
    """Steps of each part of the demo within a time; what was decided is kept in a file, so that a resumed demo agrees.

    Args:
        file: of this demo. minutes: for the whole demo. device: where it runs.
    """

    def __init__(self, file: Path, minutes: float, device: str) -> None:
        self.file, self.minutes, self.device = file, minutes, device
        stored = untrusted.read_json(file) if file.is_file() else {}
        self.steps: dict[str, int] = stored.get("steps", {}) if isinstance(stored, dict) else {}

    def paced(self, name: str, recipe: Recipe, facts: SetFacts) -> Recipe:
        """The recipe with as many steps as fit the share of its part; the time of a step is measured here, once."""
        if name not in self.steps:
            # With and without pretraining get equally many steps.
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
