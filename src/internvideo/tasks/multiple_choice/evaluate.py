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
    rows = evaluation.read_split(manifest, split)
    scores_pairs = isinstance(trained.model, PairScoringMultipleChoice)
    models = evaluation.ensemble_models(
        trained, (PairScoringMultipleChoice,) if scores_pairs else evaluation.LANGUAGE_MODELS
    )

    def predict_table() -> Predictions:
        return multiple_choice.ensemble([predict(model, rows, settings) for model in models])

    inputs, extra_protocol = evaluation.make_clip_inputs(trained, rows, settings), evaluation.ensemble_protocol(models)
    return evaluation.run_evaluation(
        multiple_choice.NAME, multiple_choice.score, inputs, output, predict_table, extra_protocol=extra_protocol
    )


def predict(trained: Trained, manifest: Manifest, settings: ClipOptions) -> Predictions:
    """Predict with one model."""
    inputs = evaluation.make_clip_inputs(trained, manifest, settings)
    if isinstance(trained.model, PairScoringMultipleChoice):
        return multiple_choice.predict_pair_scores(inputs)
    return multiple_choice.predict(inputs, evaluation.text_tokenizer(trained))
