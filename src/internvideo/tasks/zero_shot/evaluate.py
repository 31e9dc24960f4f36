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
from internvideo.tasks.zero_shot.templates import read_templates
from internvideo.training.trained import Trained


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(evaluation.EnsembleOptions):
    """Options of zero-shot evaluation."""

    templates: Annotated[
        Path | None,
        'File of prompts with one "{}" for the class name, one per line; by default templates.txt in the folder of '
        "the manifest, else the 16 published ones.",
    ] = None


def evaluate(trained: Trained, manifest: Path, output: Path, settings: ZeroShotOptions, split: str | None) -> Result:
    """Write zero_shot.npz and .json; print the metrics. Raises RecipeError, ManifestError, RunError."""
    rows = evaluation.read_split(manifest, split)
    models, templates = evaluation.ensemble_models(trained), read_templates(rows.source, settings.templates)

    def predict_table() -> Predictions:
        return zero_shot.ensemble([predict(one, rows, settings, templates) for one in models])

    extra_protocol = {**evaluation.ensemble_protocol(models), "templates": list(templates)}
    inputs = evaluation.make_clip_inputs(trained, rows, settings)
    return evaluation.run_evaluation(
        zero_shot.NAME, zero_shot.score, inputs, output, predict_table, extra_protocol=extra_protocol
    )


def predict(
    trained: Trained, manifest: Manifest, settings: ClipOptions, templates: Sequence[str] | None = None
) -> Predictions:
    """Predict with one model and `templates`, by default those of `read_templates`."""
    prompts = read_templates(manifest.source) if templates is None else templates
    inputs = evaluation.make_clip_inputs(trained, manifest, settings)
    return zero_shot.predict(inputs, evaluation.text_tokenizer(trained), templates=prompts)
