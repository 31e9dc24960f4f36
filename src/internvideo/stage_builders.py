"""The table JOBS: which stage learns from what."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from internvideo.pretraining import build as clips
from internvideo.recipe import Recipe
from internvideo.tasks.anticipation import build as anticipation
from internvideo.tasks.grounding import build as grounding
from internvideo.tasks.hands import build as hands
from internvideo.tasks.navigation import build as navigation
from internvideo.tasks.question_answering import build as questions
from internvideo.tasks.refinement import build as refinement
from internvideo.tasks.temporal_localization import build as features
from internvideo.tasks.verb_noun import build as verb_noun
from internvideo.training.build import Job
from internvideo.training.positions import with_positions


class Prepare(Protocol):
    """Builds the job of a recipe for this process; unreadable videos are told in `skipped`."""

    def __call__(self, recipe: Recipe, *, skipped: Path | None) -> Job:
        """Raise RecipeError, ManifestError, WeightsError: settings, data or weights that do not fit together."""


JOBS: dict[str, Prepare] = {
    "masked": clips.prepare,
    "multimodal": clips.prepare,
    "retrieval": clips.prepare,
    "supervised": clips.prepare,
    "open_set": clips.prepare,
    "interaction": clips.prepare,
    "regions": clips.prepare,
    "answering": questions.prepare,
    "multiple_choice": questions.prepare_choices,
    "localisation": features.prepare,
    "grounding": grounding.prepare,
    "hands": hands.prepare,
    "verb_noun": verb_noun.prepare,
    "anticipation": anticipation.prepare,
    "refinement": refinement.prepare,
    "waypoints": navigation.prepare,
    "navigation": navigation.prepare,
}
"""Stage -> what builds its job."""


def prepare(recipe: Recipe, *, skipped: Path | None = None) -> Job:
    """Data, model (with its initial weights) and stage of a recipe.

    Raises:
        RecipeError: settings that do not fit together. ManifestError, WeightsError: what they name cannot be used.
    """
    return JOBS[recipe.stage](with_positions(recipe), skipped=skipped)
