"""Build training jobs of verb and noun classification."""

from __future__ import annotations

from pathlib import Path

from internvideo import distributed
from internvideo.data.settings import TrainClipData
from internvideo.models.encoder import ClipClassifier
from internvideo.tasks.verb_noun.data import VerbNounLoader, collect_classes
from internvideo.tasks.verb_noun.stage import VerbNounSettings, VerbNounStage
from internvideo.training.clip_job import check_clips, clip_loader, read_training_rows, refuse_flip
from internvideo.training.model_setup import init_model, load_init_weights
from internvideo.training.recipe import Job, Recipe, StageSpec


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe; its classes are all verbs, then all nouns.

    Raises RecipeError, ManifestError, WeightsError.
    """
    data, settings = recipe.data_as(TrainClipData), recipe.settings_as(VerbNounSettings)
    manifest = read_training_rows(recipe)
    classes = collect_classes(manifest)
    refuse_flip(data.augment.flip, classes.verbs, "verb")
    model = init_model(recipe, len(classes.outputs), ClipClassifier)
    check_clips(recipe, model)
    head_init_lines = load_init_weights(model, recipe, classes.outputs)
    stage = VerbNounStage(model, settings, len(classes.verbs), distributed.divisor)
    loader = VerbNounLoader(clip_loader(recipe, manifest, skipped), classes)
    return Job(recipe, stage, loader, classes.outputs, manifest.fingerprint, head_init_lines=head_init_lines)


STAGE = StageSpec(
    name="verb_noun",
    about="classify verbs and nouns of first-person clips: two classifiers on one encoder",
    settings=VerbNounSettings,
    data=TrainClipData,
    stage=VerbNounStage,
    models=(ClipClassifier,),
    build=build,
    classifier_paths=("",),
)
