"""Build training jobs of multiple choice."""

from __future__ import annotations

from pathlib import Path

from internvideo import distributed
from internvideo.data.settings import TrainClipData
from internvideo.models.heads import PairScoringMultipleChoice
from internvideo.tasks.multiple_choice.data import ChoiceLoader
from internvideo.tasks.question_answering.stage import AnsweringSettings, AnsweringStage
from internvideo.training.clip_job import check_clips, clip_loader, read_training_rows
from internvideo.training.model_setup import init_model, load_init_weights
from internvideo.training.recipe import Job, Recipe, StageSpec


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe; it has no classes, because the model scores pairs of clip and text.

    Raises RecipeError, ManifestError, WeightsError.
    """
    settings = recipe.settings_as(AnsweringSettings)
    manifest = read_training_rows(recipe)
    model = init_model(recipe, 0, PairScoringMultipleChoice)
    check_clips(recipe, model)
    load_init_weights(model, recipe)
    stage = AnsweringStage(model, settings, distributed.divisor)
    loader = ChoiceLoader(clip_loader(recipe, manifest, skipped), model.config.text.context_length)
    return Job(recipe, stage, loader, (), manifest.fingerprint)


STAGE = StageSpec(
    name="multiple_choice",
    about="choose one of several texts about a video, with or without a question (as TGIF-QA's five-way questions)",
    settings=AnsweringSettings,
    data=TrainClipData,
    stage=AnsweringStage,
    models=(PairScoringMultipleChoice,),
    build=build,
)
