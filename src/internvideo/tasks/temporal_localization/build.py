"""Jobs that learn from features of untrimmed videos: the temporal detector."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from internvideo import distributed
from internvideo.errors import RecipeError
from internvideo.recipe import STAGES, Recipe
from internvideo.tasks.temporal_localization.data import FeatureSet, SequenceLoader, read_feature_set
from internvideo.tasks.temporal_localization.model import ActionFormer
from internvideo.training.build import Job, draw_model, start_model, training_path
from internvideo.training.loop import BatchSource


def training_features(recipe: Recipe) -> FeatureSet:
    """The features of the recipe's training videos. Raises RecipeError, ManifestError."""
    features = read_feature_set(training_path(recipe), recipe.data.features)
    return features if recipe.data.split is None else features.subset(recipe.data.split)


def check_width(found: int, asked: int) -> None:
    """Raise RecipeError where features have another number of channels than the model reads."""
    if found != asked:
        place, do = "model.overrides.input_width", f"add model.overrides.input_width={found}"
        raise RecipeError(place, f"{asked}, but the features have {found} channels", str(found), do)


def prepare(recipe: Recipe, *, skipped: Path | None) -> Job:
    """Features, loader, detector and stage. Raises RecipeError, ManifestError, WeightsError."""
    data = recipe.data
    features = training_features(recipe)
    model = draw_model(recipe, len(features.classes))
    if not isinstance(model, ActionFormer):
        raise TypeError(f"the stage localisation trains a {type(model).__name__}")
    check_width(features.width, model.config.input_width)
    head = start_model(model, recipe, None if data.features.class_agnostic else features.classes)
    stage = STAGES[recipe.stage].stage(model, recipe.settings, distributed.gather_with_gradient)
    loader = SequenceLoader(features, data.features, model.config.max_length, data.loader)
    # The loop asks a batch for its length, its ids and to move; every kind of batch answers.
    return Job(
        recipe, stage, cast(BatchSource, loader), features.classes, features.fingerprint, features.protocol, head
    )
