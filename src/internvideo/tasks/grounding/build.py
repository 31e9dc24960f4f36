"""Build training jobs of query grounding on features of long videos."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from pydantic import Field

from internvideo import distributed
from internvideo.data.vocabulary import Vocabulary
from internvideo.tasks.grounding.data import QueryLoader, QuerySettings, read_query_set, select_answered
from internvideo.tasks.grounding.model import Grounder
from internvideo.tasks.grounding.predict import compute_prior
from internvideo.tasks.grounding.stage import GroundingSettings, GroundingStage
from internvideo.tasks.temporal_localization.build import FeatureData, check_width
from internvideo.training.loop import BatchSource
from internvideo.training.model_setup import init_model, load_init_weights, training_path
from internvideo.training.recipe import Job, Recipe, StageSpec


class QueryData(FeatureData):
    """Data settings: queries about videos, and the features of the videos."""

    queries: QuerySettings = Field(default_factory=QuerySettings)


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe; its classes are the vocabulary. Raises RecipeError, ManifestError, WeightsError."""
    data, settings = recipe.data_as(QueryData), recipe.settings_as(GroundingSettings)
    queries = select_answered(read_query_set(training_path(recipe), data.queries, data.features, split=data.split))
    words = Vocabulary.from_texts((query.text for query in queries.queries), data.queries.max_vocab)
    model = init_model(recipe, len(words), Grounder)
    check_width(queries.features.width, model.config.input_width)
    head_init_lines = load_init_weights(model, recipe, words.words)
    stage = GroundingStage(model, settings, distributed.divisor)
    config = model.config
    loader = QueryLoader(queries, words, config.max_words, data.features, config.max_length, data.loader)
    extra_metadata = {"features": dict(queries.features.protocol), **compute_prior(queries)}
    # The loop uses only the length, ids and `to` of a batch, which all batch types have.
    return Job(
        recipe, stage, cast(BatchSource, loader), words.words, queries.fingerprint, extra_metadata, head_init_lines
    )


STAGE = StageSpec(
    name="grounding",
    about="find the segment that answers a language query, on the same features (VSLNet, Ego4D)",
    settings=GroundingSettings,
    data=QueryData,
    stage=GroundingStage,
    models=(Grounder,),
    build=build,
    classifier_paths=("",),
    num_classes_key="vocab_size",
)
