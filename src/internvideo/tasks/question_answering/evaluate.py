"""Question answering: the table, both accuracies, and the prior beside them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from internvideo.data.manifest import Manifest
from internvideo.models.heads import VideoQuestionAnswering
from internvideo.pipeline import Trained
from internvideo.recipe import choose_device
from internvideo.tasks.clip_evaluation import clip_source, finish, split_rows
from internvideo.tasks.evaluation_settings import EvaluationSettings
from internvideo.tasks.question_answering import predict as answering
from internvideo.tasks.table import Predictions, Result


def evaluate(
    trained: Trained, manifest: Path, output: Path, settings: EvaluationSettings, *, split: str | None
) -> Result:
    """Write answering.npz and .json; print the figures. Raises as `evaluate_task`."""
    return finish(answering.NAME, trained, split_rows(manifest, split), output, settings, predict)


def predict(trained: Trained, manifest: Manifest, settings: EvaluationSettings) -> Predictions:
    """What the network answers to every question of the rows."""
    clips, source = clip_source(trained, manifest, settings)
    return answering.predict(
        cast(VideoQuestionAnswering, trained.model),
        trained.classes,
        source,
        manifest,
        clips,
        choose_device(settings.device),
        commonest=trained.context.get("commonest"),
        model_name=trained.recipe.model.name,
    )
