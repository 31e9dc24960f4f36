"""Build training jobs of evidential learning."""

from __future__ import annotations

from pathlib import Path

from internvideo.data.settings import ClipData
from internvideo.models.encoder import ClipClassifier
from internvideo.tasks.open_set.stage import OpenSetSettings, OpenSetStage
from internvideo.training.clip_job import clip_job
from internvideo.training.recipe import Job, Recipe, StageSpec


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe. Raises as `clip_job`."""
    settings = recipe.settings_as(OpenSetSettings)
    return clip_job(recipe, skipped, lambda model: OpenSetStage(model, settings))


STAGE = StageSpec(
    name="open_set",
    about="evidential learning: a classifier that estimates its uncertainty",
    settings=OpenSetSettings,
    data=ClipData,
    stage=OpenSetStage,
    models=(ClipClassifier,),
    build=build,
    classifier_paths=("",),
)
