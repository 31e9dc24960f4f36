"""Evaluate zero-shot recognition with one model, or with an ensemble whose similarities are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from internvideo.data.manifest import Manifest
from internvideo.tasks import clip_evaluation as evaluation
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.tasks.zero_shot import predict as zero_shot
from internvideo.tasks.zero_shot.templates import templates_of
from internvideo.training.trained import Trained


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(evaluation.EnsembleOptions):
    """Options of zero-shot evaluation."""

    templates: Annotated[
        Path | None,
        'Prompts with one "{}" for the class name, one per line; by default templates.txt beside the manifest, '
        "else the 16 published ones.",
    ] = None


def evaluate(trained: Trained, manifest: Path, output: Path, settings: ZeroShotOptions, split: str | None) -> Result:
    """Write zero_shot.npz and .json; print the metrics. Raises RecipeError, ManifestError, RunError."""
    rows = evaluation.split_rows(manifest, split)
    models, templates = evaluation.with_others(trained), templates_of(rows.source, settings.templates)

    def make() -> Predictions:
        return zero_shot.ensemble([predict(one, rows, settings, templates) for one in models])

    extra_protocol = {**evaluation.ensemble_protocol(models), "templates": list(templates)}
    inputs = evaluation.clip_source(trained, rows, settings)
    return evaluation.finish(zero_shot.NAME, zero_shot.score, inputs, output, make, extra_protocol=extra_protocol)


def predict(
    trained: Trained, manifest: Manifest, settings: ClipOptions, templates: Sequence[str] | None = None
) -> Predictions:
    """Predict with one model and the prompts `templates`, by default those of the manifest."""
    prompts = templates_of(manifest.source) if templates is None else templates
    inputs = evaluation.clip_source(trained, manifest, settings)
    return zero_shot.predict(inputs, evaluation.text_tokenizer(trained), templates=prompts)
