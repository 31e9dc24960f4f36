"""Jobs that learn to answer questions about clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from internvideo.data.loader import Loader
from internvideo.data.questions import (
    QuestionLoader,
    answer_vocabulary,
    commonest_answers,
    one_question_a_row,
)
from internvideo.errors import RecipeError
from internvideo.jobs.clips import training_rows
from internvideo.jobs.job import Job, draw_model, setting, start_model
from internvideo.models.heads import VideoQuestionAnswering
from internvideo.recipe import STAGES, Recipe


def prepare(recipe: Recipe, *, rank: int, world_size: int, skipped: Path | None) -> Job:
    """Questions, answers, loader, model and stage; the classes of the job are the answers.

    Raises:
        RecipeError, ManifestError, WeightsError: what does not fit together.
    """
    data = recipe.data
    manifest = training_rows(recipe)
    answers = answer_vocabulary(manifest, data.questions)
    model = draw_model(recipe, len(answers))
    if not isinstance(model, VideoQuestionAnswering):
        raise TypeError(f"the stage answering trains a {type(model).__name__}")
    size = model.config.vision.image_size
    if data.augment.size != size:
        place = "model.overrides.model.vision.image_size"
        raise RecipeError("data.augment.size", str(data.augment.size), f"{size}, {place}")
    start_model(model, recipe)
    stage = STAGES[recipe.stage].stage(model, recipe.settings)
    with setting("data.augment"):
        transform = data.augment.train_transform()
    rows = one_question_a_row(manifest) if data.questions.each == "question" else manifest
    clips = Loader(
        rows,
        data.sampling.build(),
        transform,
        data.loader,
        rank=rank,
        world_size=world_size,
        skipped=skipped,
    )
    loader = QuestionLoader(clips, answers, model.config.model.text.context, data.questions.at_once)
    context = {"commonest": commonest_answers(manifest.rows)}
    return Job(recipe, stage, loader, answers, replace(manifest, classes=answers).fingerprint, context)
