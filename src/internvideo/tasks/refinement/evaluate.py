"""Evaluate refinement of another detector's segments: metrics before and after, detections, timelines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from internvideo import distributed
from internvideo.distributed import choose_device
from internvideo.errors import RecipeError
from internvideo.storage import write_text
from internvideo.tasks.refinement import predict as refinement
from internvideo.tasks.refinement.build import ProposalData
from internvideo.tasks.refinement.data import read_proposals, select_with_proposals
from internvideo.tasks.refinement.model import TCANet
from internvideo.tasks.refinement.stage import RefinementSettings
from internvideo.tasks.table import Result, check_overwrite, print_result, save_result
from internvideo.tasks.task import EvaluateOptions
from internvideo.tasks.temporal_localization import predict as localization
from internvideo.tasks.temporal_localization.data import read_feature_set
from internvideo.tasks.temporal_localization.evaluate import check_protocol, timelines, timelines_html
from internvideo.training.trained import Trained


@dataclass(frozen=True, kw_only=True)
class RefinementOptions(EvaluateOptions):
    """Options of refinement evaluation."""

    proposals: Annotated[
        Path | None, "The detections.json of a detector on the same videos: the segments to refine."
    ] = None
    class_scores: Annotated[Path | None, "JSON of video-level class scores, for class-agnostic segments."] = None


def evaluate(trained: Trained, manifest: Path, output: Path, settings: RefinementOptions, split: str | None) -> Result:
    """Write refinement.npz and .json, detections.json (the refined segments) and timelines; print the metrics.

    `manifest` is a folder of features, or its index, with the actions of its videos.
    Raises WeightsError, ManifestError, RunError, RecipeError.
    """
    distributed.require_one_process("refinement")
    model, refinement_settings = cast(TCANet, trained.model), trained.recipe.settings_as(RefinementSettings)
    if settings.proposals is None:
        expected = "the detections.json of `internvideo evaluate temporal_localization`"
        raise RecipeError("proposals", "are missing", expected, "add --proposals FILE")
    data = trained.recipe.data_as(ProposalData)
    feature_settings = data.features.model_copy(update={"annotations": None, "folder": None})
    features = read_feature_set(manifest, feature_settings)
    check_protocol(trained.extra_metadata, features)
    if split is not None:
        features = features.subset(split)
    proposals = read_proposals(settings.proposals, features.classes)
    select_with_proposals(features, proposals)  # raises ManifestError if no video has proposals
    scores = settings.class_scores
    target = output / f"{refinement.NAME}.npz"
    table = refinement.predict(
        model,
        features,
        proposals,
        feature_settings,
        refinement_settings.suppression(per_class=proposals.classes == features.classes),
        choose_device(settings.device),
        tiou_thresholds=refinement_settings.tiou_thresholds,
        quality_power=refinement_settings.quality_power,
        model_name=trained.recipe.model.name,
        class_scores=None if scores is None else localization.read_class_scores(scores, features.classes),
    )
    check_overwrite(target, table.protocol)
    table.save(target)
    write_text(output / "detections.json", json.dumps(localization.submission(table)) + "\n")
    result = refinement.score(table)
    save_result(result, target.with_suffix(".json"))
    before = timelines(table, refinement.original_segments(table), ", before")
    after = timelines(table, localization.predicted_segments(table), ", refined")
    svgs = [svg for pair in zip(before, after, strict=True) for svg in pair]
    write_text(output / "timelines.html", timelines_html(svgs))
    print_result(result)
    return result
