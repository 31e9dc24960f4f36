"""Build training jobs of refinement: features of untrimmed videos and another detector's proposals."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

from pydantic import Field

from internvideo import distributed
from internvideo.errors import RecipeError
from internvideo.tasks.refinement.data import (
    ProposalLoader,
    ProposalSettings,
    read_all_proposals,
    select_with_proposals,
)
from internvideo.tasks.refinement.model import TCANet
from internvideo.tasks.refinement.stage import RefinementSettings, RefinementStage
from internvideo.tasks.temporal_localization.build import FeatureData, check_width, read_training_features
from internvideo.training.loop import BatchSource
from internvideo.training.model_setup import init_model, load_init_weights
from internvideo.training.recipe import Job, Recipe, StageSpec


class ProposalData(FeatureData):
    """Data settings: proposals, and the features of their videos."""

    proposals: ProposalSettings = Field(default_factory=ProposalSettings)


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe. Raises RecipeError, ManifestError, WeightsError."""
    data, settings = recipe.data_as(ProposalData), recipe.settings_as(RefinementSettings)
    if not data.proposals.files:
        expected = "the detections.json of a detector on the training videos"
        raise RecipeError("data.proposals.files", "are missing", expected, "add data.proposals.files=[PATH]")
    features = read_training_features(recipe)
    proposals = read_all_proposals(data.proposals.files, features.classes)
    features = select_with_proposals(features, proposals)
    model = init_model(recipe, len(features.classes), TCANet)
    check_width(features.width, model.config.input_width)
    load_init_weights(model, recipe)
    stage = RefinementStage(model, settings, distributed.divisor)
    loader = ProposalLoader(features, proposals, data.features, data.proposals, data.loader)
    fingerprint = hashlib.sha256(f"{features.fingerprint} {proposals.fingerprint}".encode()).hexdigest()[:16]
    extra_metadata = {**features.protocol, **proposals.provenance}
    # The loop uses only the length, ids and `to` of a batch, which all batch types have.
    return Job(recipe, stage, cast(BatchSource, loader), features.classes, fingerprint, extra_metadata)


STAGE = StageSpec(
    name="refinement",
    about="refine the boundaries of a detector's segments and rescore them, on the same features (TCANet)",
    settings=RefinementSettings,
    data=ProposalData,
    stage=RefinementStage,
    models=(TCANet,),
    build=build,
)
