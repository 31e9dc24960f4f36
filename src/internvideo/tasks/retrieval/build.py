"""Build training jobs of text-video retrieval."""

from __future__ import annotations

from pathlib import Path

from internvideo.data.manifest import Manifest
from internvideo.data.settings import CaptionedClipData
from internvideo.data.tokenizer import Tokenizer
from internvideo.models.clip import CLIPModel
from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.retrieval.stage import RetrievalSettings, RetrievalStage
from internvideo.training.clip_job import clip_job, clip_loader
from internvideo.training.loop import BatchSource
from internvideo.training.recipe import Job, Recipe, StageSpec


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe. Raises as `clip_job`."""
    settings, data = recipe.settings_as(RetrievalSettings), recipe.data_as(CaptionedClipData)

    def loader(manifest: Manifest, model: VideoLanguage | CLIPModel) -> BatchSource:
        return clip_loader(recipe, manifest, skipped, Tokenizer(context_length=model.config.text.context_length))

    return clip_job(
        recipe, skipped, lambda model: RetrievalStage(model, settings), make_loader=loader, captions=data.captions
    )


STAGE = StageSpec(
    name="retrieval",
    about="fine-tune for text-video retrieval, with clips of any number of frames at one frame per second",
    settings=RetrievalSettings,
    data=CaptionedClipData,
    stage=RetrievalStage,
    models=(VideoLanguage, CLIPModel),
    build=build,
)
