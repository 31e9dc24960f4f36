"""Jobs that learn from features of untrimmed videos: the temporal detector."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from pydantic import Field

from internvideo import distributed
from internvideo.data.settings import DataSettings
from internvideo.errors import RecipeError
from internvideo.tasks.temporal_localization.data import (
    FeatureSet,
    FeatureSettings,
    SequenceLoader,
    read_feature_set,
)
from internvideo.tasks.temporal_localization.model import ActionFormer
from internvideo.tasks.temporal_localization.stage import LocalizationSettings, LocalizationStage
from internvideo.training.loop import BatchSource
from internvideo.training.model_setup import init_model, load_init_weights, training_path
from internvideo.training.recipe import Job, Recipe, StageSpec


class FeatureData(DataSettings):
    """Features of untrimmed videos."""

    features: FeatureSettings = Field(default_factory=FeatureSettings)


def training_features(recipe: Recipe) -> FeatureSet:
    """The features of the recipe's training videos. Raises RecipeError, ManifestError."""
    features = read_feature_set(training_path(recipe), recipe.data_as(FeatureData).features)
    return features if recipe.data.split is None else features.subset(recipe.data.split)


def check_width(found: int, asked: int) -> None:
    """Raise RecipeError where features have another number of channels than the model reads."""
    if found != asked:
        place, do = "model.overrides.input_width", f"add model.overrides.input_width={found}"
        raise RecipeError(place, f"{asked}, but the features have {found} channels", str(found), do)


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe. Raises RecipeError, ManifestError, WeightsError."""
    data, settings = recipe.data_as(FeatureData), recipe.settings_as(LocalizationSettings)
    features = training_features(recipe)
    model = init_model(recipe, len(features.classes), ActionFormer)
    check_width(features.width, model.config.input_width)
    head = load_init_weights(model, recipe, None if data.features.class_agnostic else features.classes)
    stage = LocalizationStage(model, settings, distributed.gather_with_gradient)
    loader = SequenceLoader(features, data.features, model.config.max_length, data.loader)
    # The loop asks a batch for its length, its ids and to move; every kind of batch answers.
    return Job(
        recipe, stage, cast(BatchSource, loader), features.classes, features.fingerprint, features.protocol, head
    )


STAGE = StageSpec(
    "temporal_localization",
    "find actions in time, on features of `internvideo extract` (ActionFormer)",
    LocalizationSettings,
    FeatureData,
    LocalizationStage,
    (ActionFormer,),
    build,
    classifiers=("",),
)
