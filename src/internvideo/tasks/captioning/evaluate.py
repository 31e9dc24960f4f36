"""Evaluate captioning: generate captions, compute metrics, write examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from internvideo.storage import write_text
from internvideo.tasks.captioning import predict as captioning
from internvideo.tasks.clip_evaluation import make_clip_inputs, read_split, run_evaluation, text_tokenizer
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained


@dataclass(frozen=True, kw_only=True)
class CaptioningOptions(ClipOptions):
    """Options of captioning evaluation."""

    num_beams: Annotated[int, "Beams of beam search; 1 is greedy."] = 1
    top_p: Annotated[float, "Nucleus sampling with this top-p, 0 to 1; 0 turns it off."] = 0.0
    seed: Annotated[int, "Seed of nucleus sampling."] = 0


def evaluate(trained: Trained, manifest: Path, output: Path, settings: CaptioningOptions, split: str | None) -> Result:
    """Write captioning.npz and .json, examples.jsonl; print the metrics.

    Raises RecipeError, ManifestError, RunError.
    """
    inputs = make_clip_inputs(trained, read_split(manifest, split), settings)

    def predict() -> Predictions:
        decoding = captioning.DecodingSettings(settings.num_beams, settings.top_p, settings.seed)
        return captioning.predict(inputs, text_tokenizer(trained), decoding=decoding)

    def write_examples(table: Predictions, folder: Path) -> None:
        write_text(folder / "examples.jsonl", captioning.examples(table))

    return run_evaluation(captioning.NAME, captioning.score, inputs, output, predict, write_examples)
