"""Captioning: how captions are written, and examples beside the figures."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from internvideo.data.manifest import Manifest
from internvideo.data.tokenizer import Tokenizer
from internvideo.models.video_language import VideoLanguage
from internvideo.pipeline import Trained
from internvideo.recipe import choose_device
from internvideo.storage import write_text
from internvideo.tasks.captioning import predict as captioning
from internvideo.tasks.clip_evaluation import clip_source, finish, split_rows
from internvideo.tasks.evaluation_settings import EvaluationSettings
from internvideo.tasks.table import Predictions, Result


def evaluate(
    trained: Trained, manifest: Path, output: Path, settings: EvaluationSettings, *, split: str | None
) -> Result:
    """Write captioning.npz and .json, examples.jsonl; print the figures.

    Raises:
        RecipeError, ManifestError, RunError: what does not fit together.
    """
    return finish(captioning.NAME, trained, split_rows(manifest, split), output, settings, predict, draw)


def predict(trained: Trained, manifest: Manifest, settings: EvaluationSettings) -> Predictions:
    """A caption of every video. Raises RecipeError."""
    clips, source = clip_source(trained, manifest, settings)
    model = cast(VideoLanguage, trained.model)
    return captioning.predict(
        model,
        Tokenizer(context_length=model.config.text.context),
        source,
        manifest,
        clips,
        choose_device(settings.device),
        model_name=trained.recipe.model.name,
        writing=captioning.Writing(settings.beams, settings.nucleus, settings.seed),
    )


def draw(table: Predictions, output: Path) -> None:
    """Write examples.jsonl."""
    write_text(output / "examples.jsonl", captioning.examples(table))
