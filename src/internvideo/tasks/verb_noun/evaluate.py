"""A model of verbs and nouns: table and figures."""

from __future__ import annotations

from pathlib import Path

from internvideo.data.manifest import Manifest
from internvideo.pipeline import Trained
from internvideo.recipe import choose_device
from internvideo.tasks.clip_evaluation import clip_source, finish, split_rows
from internvideo.tasks.evaluation_settings import EvaluationSettings
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.verb_noun import predict as verb_noun
from internvideo.tasks.verb_noun.data import Words


def evaluate(
    trained: Trained, manifest: Path, output: Path, settings: EvaluationSettings, *, split: str | None
) -> Result:
    """Write verb_noun.npz and .json; print the figures. Raises RecipeError, ManifestError, RunError."""
    return finish(verb_noun.NAME, trained, split_rows(manifest, split), output, settings, _predict)


def _predict(trained: Trained, rows: Manifest, settings: EvaluationSettings) -> Predictions:
    clips, source = clip_source(trained, rows, settings)
    return verb_noun.predict(
        trained.model,
        source,
        rows,
        Words.of(trained.classes),
        clips,
        choose_device(settings.device),
        model_name=trained.recipe.model.name,
    )
