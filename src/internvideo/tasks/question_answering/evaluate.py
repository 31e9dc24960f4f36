"""Evaluate question answering: predictions, both accuracies, and the prior baseline."""

from __future__ import annotations

from pathlib import Path

from internvideo.tasks.clip_evaluation import clip_source, finish, split_rows
from internvideo.tasks.question_answering import predict as answering
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained


def evaluate(trained: Trained, manifest: Path, output: Path, settings: ClipOptions, split: str | None) -> Result:
    """Write question_answering.npz and .json; print the metrics. Raises RecipeError, ManifestError, RunError."""
    inputs = clip_source(trained, split_rows(manifest, split), settings)

    def make() -> Predictions:
        return answering.predict(inputs, trained.classes, commonest=trained.context.get("commonest"))

    return finish(answering.NAME, answering.score, inputs, output, make)
