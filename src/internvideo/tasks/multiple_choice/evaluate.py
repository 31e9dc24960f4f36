"""Multiple choice: the table of one model, or of several whose similarities are averaged."""

from __future__ import annotations

from pathlib import Path

from internvideo.data.manifest import Manifest
from internvideo.models.heads import PairScoringMultipleChoice
from internvideo.tasks.clip_evaluation import (
    LANGUAGE_MODELS,
    EnsembleOptions,
    clip_source,
    finish,
    members_told,
    split_rows,
    text_tokenizer,
    with_others,
)
from internvideo.tasks.multiple_choice import predict as multiple_choice
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained


def evaluate(trained: Trained, manifest: Path, output: Path, settings: EnsembleOptions, split: str | None) -> Result:
    """Write multiple_choice.npz and .json; print the figures. Raises RecipeError, ManifestError, RunError."""
    rows = split_rows(manifest, split)
    ranked = isinstance(trained.model, PairScoringMultipleChoice)
    models = with_others(trained, (PairScoringMultipleChoice,) if ranked else LANGUAGE_MODELS)

    def make() -> Predictions:
        return multiple_choice.ensemble([predict(one, rows, settings) for one in models])

    inputs, told = clip_source(trained, rows, settings), members_told(models)
    return finish(multiple_choice.NAME, multiple_choice.score, inputs, output, make, told=told)


def predict(trained: Trained, manifest: Manifest, settings: ClipOptions) -> Predictions:
    """The table of one model."""
    inputs = clip_source(trained, manifest, settings)
    if isinstance(trained.model, PairScoringMultipleChoice):
        return multiple_choice.predict_ranked(inputs)
    return multiple_choice.predict(inputs, text_tokenizer(trained))
