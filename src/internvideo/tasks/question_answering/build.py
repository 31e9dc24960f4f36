"""Jobs that learn to answer questions about clips, freely or by choosing among a few texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from internvideo import distributed
from internvideo.data.loader import Loader
from internvideo.data.manifest import Manifest
from internvideo.errors import RecipeError
from internvideo.models.heads import FusedQANetwork, PairScoringMultipleChoice, VideoQuestionAnswering
from internvideo.pretraining.build import training_rows
from internvideo.recipe import STAGES, Recipe
from internvideo.tasks.multiple_choice.data import ChoiceLoader
from internvideo.tasks.question_answering.data import (
    QuestionLoader,
    answer_vocabulary,
    commonest_answers,
    one_question_a_row,
)
from internvideo.training.build import Job, draw_model, setting, start_model


def prepare(recipe: Recipe, *, skipped: Path | None) -> Job:
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
    head = _start(model, recipe, "model.overrides.model.vision.image_size", answers)
    stage = STAGES[recipe.stage].stage(model, recipe.settings, distributed.divisor)
    rows = one_question_a_row(manifest) if data.questions.each == "question" else manifest
    clips = _clips(recipe, rows, skipped)
    loader = QuestionLoader(clips, answers, model.config.model.text.context, data.questions.at_once)
    context = {"commonest": commonest_answers(manifest.rows)}
    return Job(recipe, stage, loader, answers, replace(manifest, classes=answers).fingerprint, context, head)


def prepare_choices(recipe: Recipe, *, skipped: Path | None) -> Job:
    """Rows with choices, loader, model and stage; a model that scores texts has no classes.

    Raises:
        RecipeError, ManifestError, WeightsError: what does not fit together.
    """
    manifest = training_rows(recipe)
    model = draw_model(recipe, 0)
    if not isinstance(model, PairScoringMultipleChoice):
        raise TypeError(f"the stage multiple_choice trains a {type(model).__name__}")
    _start(model, recipe, "model.overrides.vision.image_size")
    stage = STAGES[recipe.stage].stage(model, recipe.settings, distributed.divisor)
    loader = ChoiceLoader(_clips(recipe, manifest, skipped), model.config.text.context)
    return Job(recipe, stage, loader, (), manifest.fingerprint)


def _start(
    model: FusedQANetwork, recipe: Recipe, place: str, answers: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    size, asked = model.model.config.vision.image_size, recipe.data.augment.size
    if asked != size:
        raise RecipeError("data.augment.size", str(asked), f"{size}, {place}")
    return start_model(model, recipe, answers)


def _clips(recipe: Recipe, rows: Manifest, skipped: Path | None) -> Loader:
    data = recipe.data
    with setting("data.augment"):
        transform = data.augment.train_transform()
    sampler = data.sampling.build()
    return Loader(rows, sampler, transform, data.loader, skipped=skipped)
