"""Jobs that learn verbs and nouns of clips."""

from __future__ import annotations

from pathlib import Path

from internvideo import distributed
from internvideo.data.loader import Loader
from internvideo.data.transforms import direction_classes
from internvideo.errors import RecipeError
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.videomae import VideoMAEClassifier
from internvideo.pretraining.build import training_rows
from internvideo.recipe import Recipe
from internvideo.tasks.verb_noun.data import VerbNounLoader, words_of
from internvideo.tasks.verb_noun.stage import VerbNounSettings, VerbNounStage
from internvideo.training.build import Job, draw_model, setting, start_model


def prepare(recipe: Recipe, *, skipped: Path | None) -> Job:
    """Rows, loader, model and stage; the classes of the job are all verbs, then all nouns.

    Raises:
        RecipeError, ManifestError, WeightsError: what does not fit together.
    """
    data = recipe.data
    manifest = training_rows(recipe)
    words = words_of(manifest)
    sides = direction_classes(words.verbs)
    if data.augment.flip and sides:
        raise RecipeError("data.augment.flip", f"true, but mirroring changes the verb '{sides[0]}'", "false")
    model = draw_model(recipe, len(words.outputs))
    if not isinstance(model, VideoMAEClassifier | UniFormerV2) or not isinstance(recipe.settings, VerbNounSettings):
        raise TypeError(f"the stage verb_noun trains a {type(model).__name__}")
    if data.augment.size != model.config.image_size:
        found = str(data.augment.size)
        raise RecipeError("data.augment.size", found, f"{model.config.image_size}, model.overrides.image_size")
    if isinstance(model, VideoMAEClassifier) and data.sampling.frames != model.config.frames:
        found = str(data.sampling.frames)
        raise RecipeError("data.sampling.frames", found, f"{model.config.frames}, model.overrides.frames")
    if data.augment.mixup or data.augment.cutmix:
        raise RecipeError("data.augment.mixup", "mixes clips, which have two labels here", "0, and cutmix 0")
    head = start_model(model, recipe, words.outputs)
    stage = VerbNounStage(model, recipe.settings, len(words.verbs), distributed.divisor)
    with setting("data.augment"):
        transform = data.augment.train_transform()
    clips = Loader(manifest, data.sampling.build(), transform, data.loader, skipped=skipped)
    return Job(recipe, stage, VerbNounLoader(clips, words), words.outputs, manifest.fingerprint, head=head)
