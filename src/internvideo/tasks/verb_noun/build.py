"""Build training jobs of verb and noun classification."""

from __future__ import annotations

from pathlib import Path

from internvideo import distributed
from internvideo.data.settings import TrainClipData
from internvideo.models.encoder import ClipClassifier
from internvideo.tasks.verb_noun.data import VerbNounLoader, words_of
from internvideo.tasks.verb_noun.stage import VerbNounSettings, VerbNounStage
from internvideo.training.clip_job import check_clips, check_flip, clip_loader, training_rows
from internvideo.training.model_setup import init_model, load_init_weights
from internvideo.training.recipe import Job, Recipe, StageSpec


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe; its classes are all verbs, then all nouns.

    Raises RecipeError, ManifestError, WeightsError.
    """
    data, settings = recipe.data_as(TrainClipData), recipe.settings_as(VerbNounSettings)
    manifest = training_rows(recipe)
    words = words_of(manifest)
    check_flip(data.augment.flip, words.verbs, "verb")
    model = init_model(recipe, len(words.outputs), ClipClassifier)
    check_clips(recipe, model)
    head = load_init_weights(model, recipe, words.outputs)
    stage = VerbNounStage(model, settings, len(words.verbs), distributed.divisor)
    loader = VerbNounLoader(clip_loader(recipe, manifest, skipped), words)
    return Job(recipe, stage, loader, words.outputs, manifest.fingerprint, head=head)


STAGE = StageSpec(
    "verb_noun",
    "classify verbs and nouns of first-person clips: two classifiers on one encoder",
    VerbNounSettings,
    TrainClipData,
    VerbNounStage,
    (ClipClassifier,),
    build,
    classifiers=("",),
)
