"""Jobs that learn to find what a query asks for, on features of long videos."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from internvideo import distributed
from internvideo.data.vocabulary import Vocabulary
from internvideo.recipe import STAGES, Recipe
from internvideo.tasks.grounding.data import QueryLoader, answered, read_query_set
from internvideo.tasks.grounding.model import Grounder
from internvideo.tasks.grounding.predict import prior_of
from internvideo.tasks.temporal_localization.build import check_width
from internvideo.training.build import Job, draw_model, start_model, training_path
from internvideo.training.loop import BatchSource


def prepare(recipe: Recipe, *, skipped: Path | None) -> Job:
    """Queries, features, words, loader, model and stage; the words are the job's classes.

    Raises RecipeError, ManifestError, WeightsError.
    """
    data = recipe.data
    queries = answered(read_query_set(training_path(recipe), data.queries, data.features, split=data.split))
    words = Vocabulary.from_texts((query.text for query in queries.queries), data.queries.most)
    model = draw_model(recipe, len(words))
    if not isinstance(model, Grounder):
        raise TypeError(f"the stage grounding trains a {type(model).__name__}")
    check_width(queries.features.width, model.config.input_width)
    head = start_model(model, recipe, words.words)
    stage = STAGES[recipe.stage].stage(model, recipe.settings, distributed.divisor)
    config = model.config
    loader = QueryLoader(
        queries,
        words,
        config.words,
        data.features,
        config.max_length,
        data.loader,
    )
    context = {"features": dict(queries.features.protocol), **prior_of(queries)}
    # The loop asks a batch for its length, its ids and to move; every kind of batch answers.
    return Job(recipe, stage, cast(BatchSource, loader), words.words, queries.fingerprint, context, head)
