"""Build training jobs of question answering."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import Field

from internvideo import distributed
from internvideo.data.settings import TrainClipData
from internvideo.models.heads import VideoQuestionAnswering
from internvideo.tasks.question_answering.data import (
    QuestionLoader,
    QuestionSettings,
    answer_vocabulary,
    most_frequent_answers,
    one_question_per_row,
)
from internvideo.tasks.question_answering.stage import AnsweringSettings, AnsweringStage
from internvideo.training.clip_job import check_clips, clip_loader, read_training_rows
from internvideo.training.model_setup import init_model, load_init_weights
from internvideo.training.recipe import Job, Recipe, StageSpec


class QuestionData(TrainClipData):
    """Data settings: clips with questions."""

    questions: QuestionSettings = Field(default_factory=QuestionSettings)


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe; its classes are the answers. Raises RecipeError, ManifestError, WeightsError."""
    data, settings = recipe.data_as(QuestionData), recipe.settings_as(AnsweringSettings)
    manifest = read_training_rows(recipe)
    answers = answer_vocabulary(manifest, data.questions)
    model = init_model(recipe, len(answers), VideoQuestionAnswering)
    check_clips(recipe, model)
    head = load_init_weights(model, recipe, answers)
    stage = AnsweringStage(model, settings, distributed.divisor)
    rows = one_question_per_row(manifest) if data.questions.epoch_over == "question" else manifest
    clips = clip_loader(recipe, rows, skipped)
    loader = QuestionLoader(clips, answers, model.config.model.text.context_length, data.questions.questions_per_clip)
    extra_metadata = {"commonest": most_frequent_answers(manifest.rows)}
    return Job(recipe, stage, loader, answers, replace(manifest, classes=answers).fingerprint, extra_metadata, head)


STAGE = StageSpec(
    name="question_answering",
    about="answer questions about videos with one of the frequent answers",
    settings=AnsweringSettings,
    data=QuestionData,
    stage=AnsweringStage,
    models=(VideoQuestionAnswering,),
    build=build,
    classifier_paths=("",),
    num_classes_key="num_answers",
)
