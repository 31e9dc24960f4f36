"""Evaluate multiple choice with one model, or with an ensemble whose similarities are averaged."""

from __future__ import annotations

from pathlib import Path

from internvideo.data.manifest import Manifest
from internvideo.models.heads import PairScoringMultipleChoice
from internvideo.tasks import clip_evaluation as evaluation
from internvideo.tasks.multiple_choice import predict as multiple_choice
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained


def evaluate(
    trained: Trained, manifest: Path, output: Path, settings: evaluation.EnsembleOptions, split: str | None
) -> Result:
    """Write multiple_choice.npz and .json; print the metrics. Raises RecipeError, ManifestError, RunError."""
    rows = evaluation.split_rows(manifest, split)
    ranked = isinstance(trained.model, PairScoringMultipleChoice)
    models = evaluation.with_others(trained, (PairScoringMultipleChoice,) if ranked else evaluation.LANGUAGE_MODELS)

    def make() -> Predictions:
        return multiple_choice.ensemble([predict(one, rows, settings) for one in models])

    inputs, extra_protocol = evaluation.clip_source(trained, rows, settings), evaluation.ensemble_protocol(models)
    return evaluation.finish(
        multiple_choice.NAME, multiple_choice.score, inputs, output, make, extra_protocol=extra_protocol
    )


def predict(trained: Trained, manifest: Manifest, settings: ClipOptions) -> Predictions:
    """Predict with one model."""
    inputs = evaluation.clip_source(trained, manifest, settings)
    if isinstance(trained.model, PairScoringMultipleChoice):
        return multiple_choice.predict_ranked(inputs)
    return multiple_choice.predict(inputs, evaluation.text_tokenizer(trained))
