"""Zero-shot recognition: the table of one model, or of several whose similarities are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from internvideo.data.manifest import Manifest
from internvideo.data.tokenizer import Tokenizer
from internvideo.distributed import choose_device
from internvideo.models.clip import Clip
from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.clip_evaluation import (
    EnsembleOptions,
    clip_source,
    finish,
    members_told,
    split_rows,
    with_others,
)
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.tasks.zero_shot import predict as zero_shot
from internvideo.tasks.zero_shot.templates import templates_of
from internvideo.training.trained import Trained


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(EnsembleOptions):
    """Options of the evaluation."""

    templates: Annotated[
        Path | None,
        'Sentences with one "{}" for the class name, one per line; by default templates.txt beside the manifest, '
        "else the 16 published ones.",
    ] = None


def evaluate(trained: Trained, manifest: Path, output: Path, settings: ZeroShotOptions, split: str | None) -> Result:
    """Write zero_shot.npz and .json; print the figures. Raises RecipeError, ManifestError, RunError."""
    rows = split_rows(manifest, split)
    models, templates = with_others(trained), templates_of(rows.source, settings.templates)

    def make() -> Predictions:
        return zero_shot.ensemble([predict(one, rows, settings, templates) for one in models])

    told = {**members_told(models), "templates": list(templates)}
    return finish(zero_shot.NAME, zero_shot.score, trained, rows, output, settings, make, told=told)


def predict(
    trained: Trained, manifest: Manifest, settings: ClipOptions, templates: Sequence[str] | None = None
) -> Predictions:
    """The table of one model, asked with `templates`, by default those of the manifest."""
    clips, source = clip_source(trained, manifest, settings)
    device, name = choose_device(settings.device), trained.recipe.model.name
    model = cast(VideoLanguage | Clip, trained.model)
    tokenizer = Tokenizer(context_length=model.config.text.context)
    asked = templates_of(manifest.source) if templates is None else templates
    return zero_shot.predict(model, tokenizer, source, manifest, clips, device, model_name=name, templates=asked)
