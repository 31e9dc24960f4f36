"""Multiple choice: the table of one model, or of several whose similarities are averaged."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from internvideo.data.manifest import Manifest
from internvideo.data.tokenizer import Tokenizer
from internvideo.distributed import choose_device
from internvideo.models.clip import Clip
from internvideo.models.heads import PairScoringMultipleChoice
from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.clip_evaluation import (
    LANGUAGE_MODELS,
    EnsembleOptions,
    clip_source,
    finish,
    members_told,
    split_rows,
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

    return finish(
        multiple_choice.NAME, multiple_choice.score, trained, rows, output, settings, make, told=members_told(models)
    )


def predict(trained: Trained, manifest: Manifest, settings: ClipOptions) -> Predictions:
    """The table of one model."""
    clips, source = clip_source(trained, manifest, settings)
    device, name = choose_device(settings.device), trained.recipe.model.name
    if isinstance(trained.model, PairScoringMultipleChoice):
        return multiple_choice.predict_ranked(trained.model, source, manifest, clips, device, model_name=name)
    model = cast(VideoLanguage | Clip, trained.model)
    tokenizer = Tokenizer(context_length=model.config.text.context)
    return multiple_choice.predict(model, tokenizer, source, manifest, clips, device, model_name=name)
