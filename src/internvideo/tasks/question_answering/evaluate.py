"""Evaluate question answering: predictions, both accuracies, and the prior baseline."""

from __future__ import annotations

from pathlib import Path

from internvideo.tasks.clip_evaluation import make_clip_inputs, read_split, run_evaluation
from internvideo.tasks.question_answering import predict as answering
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained


def evaluate(trained: Trained, manifest: Path, output: Path, settings: ClipOptions, split: str | None) -> Result:
    """Write question_answering.npz and .json; print the metrics. Raises RecipeError, ManifestError, RunError."""
    inputs = make_clip_inputs(trained, read_split(manifest, split), settings)

    def predict_table() -> Predictions:
        return answering.predict(inputs, trained.classes, commonest=trained.extra_metadata.get("commonest"))

    return run_evaluation(answering.NAME, answering.score, inputs, output, predict_table)
