"""Captioning: how captions are written, and examples beside the figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from internvideo.data.manifest import Manifest
from internvideo.data.tokenizer import Tokenizer
from internvideo.distributed import choose_device
from internvideo.models.video_language import VideoLanguage
from internvideo.storage import write_text
from internvideo.tasks.captioning import predict as captioning
from internvideo.tasks.clip_evaluation import clip_source, finish, split_rows
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained


@dataclass(frozen=True, kw_only=True)
class CaptioningOptions(ClipOptions):
    """Options of the evaluation."""

    num_beams: Annotated[int, "Beams of beam search; 1 is greedy."] = 1
    top_p: Annotated[float, "Nucleus (top-p) sampling with this share of the probability, 0 to 1."] = 0.0
    seed: Annotated[int, "Of the sampling."] = 0


def evaluate(trained: Trained, manifest: Path, output: Path, settings: CaptioningOptions, split: str | None) -> Result:
    """Write captioning.npz and .json, examples.jsonl; print the figures.

    Raises:
        RecipeError, ManifestError, RunError: what does not fit together.
    """
    rows = split_rows(manifest, split)

    def make() -> Predictions:
        return predict(trained, rows, settings)

    return finish(captioning.NAME, captioning.score, trained, rows, output, settings, make, draw)


def predict(trained: Trained, manifest: Manifest, settings: CaptioningOptions) -> Predictions:
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
        writing=captioning.Writing(settings.num_beams, settings.top_p, settings.seed),
    )


def draw(table: Predictions, output: Path) -> None:
    """Write examples.jsonl."""
    write_text(output / "examples.jsonl", captioning.examples(table))
