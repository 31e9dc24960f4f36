"""Jobs that learn to refine another detector's segments, from features of untrimmed videos and proposals for them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

from internvideo.data.feature_sequences import read_feature_set
from internvideo.data.proposals import ProposalLoader, read_all_proposals, with_proposals
from internvideo.errors import RecipeError
from internvideo.jobs.job import Job, draw_model, start_model, training_path
from internvideo.models.tcanet import TCANet
from internvideo.recipe import STAGES, Recipe
from internvideo.training.loop import BatchSource


def prepare(recipe: Recipe, *, rank: int, world_size: int, skipped: Path | None) -> Job:
    """Features, proposals, loader, model and stage. Raises RecipeError, ManifestError, WeightsError."""
    data = recipe.data
    if not data.proposals.files:
        allowed = "the detections.json of a detector on the training videos"
        raise RecipeError("data.proposals.files", "are missing", allowed, "add data.proposals.files=[PATH]")
    features = read_feature_set(training_path(recipe), data.features)
    if data.split is not None:
        features = features.subset(data.split)
    proposals = read_all_proposals(data.proposals.files, features.classes)
    features = with_proposals(features, proposals)
    model = draw_model(recipe, len(features.classes))
    if not isinstance(model, TCANet):
        raise TypeError(f"the stage refinement trains a {type(model).__name__}")
    if features.width != model.config.input_width:
        found = f"{model.config.input_width}, but the features have {features.width} channels"
        do = f"add model.overrides.input_width={features.width}"
        raise RecipeError("model.overrides.input_width", found, str(features.width), do)
    start_model(model, recipe)
    stage = STAGES[recipe.stage].stage(model, recipe.settings)
    loader = ProposalLoader(
        features, proposals, data.features, data.proposals, data.loader, rank=rank, world_size=world_size
    )
    both = hashlib.sha256(f"{features.fingerprint} {proposals.fingerprint}".encode()).hexdigest()[:16]
    context = {**features.protocol, **proposals.about}
    # The loop asks a batch for its length, its ids and to move; every kind of batch answers.
    return Job(recipe, stage, cast(BatchSource, loader), features.classes, both, context)
