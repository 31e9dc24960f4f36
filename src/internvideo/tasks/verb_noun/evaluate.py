"""Evaluate verb and noun classification."""

from __future__ import annotations

from pathlib import Path

from internvideo.tasks.clip_evaluation import make_clip_inputs, read_split, run_evaluation
from internvideo.tasks.table import Result
from internvideo.tasks.task import ClipOptions
from internvideo.tasks.verb_noun import predict as verb_noun
from internvideo.tasks.verb_noun.data import VerbNounClasses
from internvideo.training.trained import Trained


def evaluate(trained: Trained, manifest: Path, output: Path, settings: ClipOptions, split: str | None) -> Result:
    """Write verb_noun.npz and .json; print the metrics. Raises RecipeError, ManifestError, RunError."""
    inputs, classes = (
        make_clip_inputs(trained, read_split(manifest, split), settings),
        VerbNounClasses.parse(trained.classes),
    )
    return run_evaluation(verb_noun.NAME, verb_noun.score, inputs, output, lambda: verb_noun.predict(inputs, classes))
