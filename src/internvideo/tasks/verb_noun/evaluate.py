"""A model of verbs and nouns: table and figures."""

from __future__ import annotations

from pathlib import Path

from internvideo.data.manifest import Manifest
from internvideo.distributed import choose_device
from internvideo.tasks.clip_evaluation import clip_source, finish, split_rows
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.tasks.verb_noun import predict as verb_noun
from internvideo.tasks.verb_noun.data import Words
from internvideo.training.trained import Trained


def evaluate(trained: Trained, manifest: Path, output: Path, settings: ClipOptions, split: str | None) -> Result:
    """Write verb_noun.npz and .json; print the figures. Raises RecipeError, ManifestError, RunError."""
    rows = split_rows(manifest, split)

    def make() -> Predictions:
        return _predict(trained, rows, settings)

    return finish(verb_noun.NAME, verb_noun.score, trained, rows, output, settings, make)


def _predict(trained: Trained, rows: Manifest, settings: ClipOptions) -> Predictions:
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
