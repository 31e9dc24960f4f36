"""Jobs that learn to refine another detector's segments, from features of untrimmed videos and proposals for them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

from internvideo import distributed
from internvideo.errors import RecipeError
from internvideo.recipe import STAGES, Recipe
from internvideo.tasks.refinement.data import ProposalLoader, read_all_proposals, with_proposals
from internvideo.tasks.refinement.model import TCANet
from internvideo.tasks.temporal_localization.build import check_width, training_features
from internvideo.training.build import Job, draw_model, start_model
from internvideo.training.loop import BatchSource


def prepare(recipe: Recipe, *, skipped: Path | None) -> Job:
    """Features, proposals, loader, model and stage. Raises RecipeError, ManifestError, WeightsError."""
    data = recipe.data
    if not data.proposals.files:
        allowed = "the detections.json of a detector on the training videos"
        raise RecipeError("data.proposals.files", "are missing", allowed, "add data.proposals.files=[PATH]")
    features = training_features(recipe)
    proposals = read_all_proposals(data.proposals.files, features.classes)
    features = with_proposals(features, proposals)
    model = draw_model(recipe, len(features.classes))
    if not isinstance(model, TCANet):
        raise TypeError(f"the stage refinement trains a {type(model).__name__}")
    check_width(features.width, model.config.input_width)
    start_model(model, recipe)
    stage = STAGES[recipe.stage].stage(model, recipe.settings, distributed.divisor)
    loader = ProposalLoader(features, proposals, data.features, data.proposals, data.loader)
    both = hashlib.sha256(f"{features.fingerprint} {proposals.fingerprint}".encode()).hexdigest()[:16]
    context = {**features.protocol, **proposals.about}
    # The loop asks a batch for its length, its ids and to move; every kind of batch answers.
    return Job(recipe, stage, cast(BatchSource, loader), features.classes, both, context)
