"""Build training jobs of temporal localization on features of untrimmed videos."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from pydantic import Field

from internvideo import distributed
from internvideo.data.settings import DataSettings
from internvideo.errors import ManifestError, RecipeError
from internvideo.tasks.temporal_localization.data import FeatureSet, FeatureSettings, SequenceLoader, read_feature_set
from internvideo.tasks.temporal_localization.model import ActionFormer
from internvideo.tasks.temporal_localization.stage import LocalizationSettings, LocalizationStage
from internvideo.training.loop import BatchSource
from internvideo.training.model_setup import init_model, load_init_weights, training_path
from internvideo.training.recipe import Job, Recipe, StageSpec


class FeatureData(DataSettings):
    """Data settings: features of untrimmed videos."""

    features: FeatureSettings = Field(default_factory=FeatureSettings)


def read_training_features(recipe: Recipe) -> FeatureSet:
    """Read the features of the recipe's training videos. Raises RecipeError, ManifestError."""
    features = read_feature_set(training_path(recipe), recipe.data_as(FeatureData).features)
    features = features if recipe.data.split is None else features.subset(recipe.data.split)
    if not any(len(video.labels) for video in features.videos):
        found = f"none of its {len(features.videos)} training videos has an action"
        hint = "give `internvideo extract` a manifest with segments, a row a video"
        raise ManifestError(features.source, found, "actions with start, end and label", hint)
    return features


def check_width(channels: int, input_width: int) -> None:
    """Raise RecipeError unless the model's input width is the number of channels of the features."""
    if channels != input_width:
        key = "model.overrides.input_width"
        found = f"{input_width}, but the features have {channels} channels"
        raise RecipeError(key, found, str(channels), f"add {key}={channels}")


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe. Raises RecipeError, ManifestError, WeightsError."""
    data, settings = recipe.data_as(FeatureData), recipe.settings_as(LocalizationSettings)
    features = read_training_features(recipe)
    model = init_model(recipe, len(features.classes), ActionFormer)
    check_width(features.width, model.config.input_width)
    head_init_lines = load_init_weights(model, recipe, None if data.features.class_agnostic else features.classes)
    stage = LocalizationStage(model, settings, distributed.gather_with_gradient)
    loader = SequenceLoader(features, data.features, model.config.max_length, data.loader)
    # The loop uses only the length, ids and `to` of a batch, which all batch types have.
    return Job(
        recipe,
        stage,
        cast(BatchSource, loader),
        features.classes,
        features.fingerprint,
        features.protocol,
        head_init_lines,
    )


STAGE = StageSpec(
    name="temporal_localization",
    about="find actions in time, on features of `internvideo extract` (ActionFormer)",
    settings=LocalizationSettings,
    data=FeatureData,
    stage=LocalizationStage,
    models=(ActionFormer,),
    build=build,
    classifier_paths=("",),
)
