"""Jobs that learn to choose among a few texts about a clip."""

from __future__ import annotations

from pathlib import Path

from internvideo import distributed
from internvideo.data.settings import TrainClipData
from internvideo.models.heads import PairScoringMultipleChoice
from internvideo.tasks.multiple_choice.data import ChoiceLoader
from internvideo.tasks.question_answering.stage import AnsweringSettings, AnsweringStage
from internvideo.training.clip_job import check_clips, clip_loader, training_rows
from internvideo.training.model_setup import init_model, load_init_weights
from internvideo.training.recipe import Job, Recipe, StageSpec


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe; a model that scores texts has no classes.

    Raises:
        RecipeError, ManifestError, WeightsError: what does not fit together.
    """
    settings = recipe.settings_as(AnsweringSettings)
    manifest = training_rows(recipe)
    model = init_model(recipe, 0, PairScoringMultipleChoice)
    check_clips(recipe, model)
    load_init_weights(model, recipe)
    stage = AnsweringStage(model, settings, distributed.divisor)
    loader = ChoiceLoader(clip_loader(recipe, manifest, skipped), model.config.text.context)
    return Job(recipe, stage, loader, (), manifest.fingerprint)


STAGE = StageSpec(
    "multiple_choice",
    "choose among a few texts about a video, a question before each or none (TGIF-QA's five-way form)",
    AnsweringSettings,
    TrainClipData,
    AnsweringStage,
    (PairScoringMultipleChoice,),
    build,
)
