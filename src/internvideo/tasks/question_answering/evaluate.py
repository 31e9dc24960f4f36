"""Question answering: the table, both accuracies, and the prior beside them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from internvideo.data.manifest import Manifest
from internvideo.distributed import choose_device
from internvideo.models.heads import VideoQuestionAnswering
from internvideo.tasks.clip_evaluation import clip_source, finish, split_rows
from internvideo.tasks.question_answering import predict as answering
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained


def evaluate(trained: Trained, manifest: Path, output: Path, settings: ClipOptions, split: str | None) -> Result:
    """Write question_answering.npz and .json; print the figures. Raises as `evaluate_task`."""
    rows = split_rows(manifest, split)

    def make() -> Predictions:
        return predict(trained, rows, settings)

    return finish(answering.NAME, answering.score, trained, rows, output, settings, make)


def predict(trained: Trained, manifest: Manifest, settings: ClipOptions) -> Predictions:
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
