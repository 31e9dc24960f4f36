"""A trained refiner on features and another detector's proposals: figures before and after, detections, timelines."""

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
from internvideo.tasks.refinement.data import read_proposals, with_proposals
from internvideo.tasks.refinement.model import TCANet
from internvideo.tasks.refinement.stage import RefinementSettings
from internvideo.tasks.table import Result, print_result, save_result
from internvideo.tasks.task import EvaluateOptions
from internvideo.tasks.temporal_localization import predict as localization
from internvideo.tasks.temporal_localization.data import read_feature_set
from internvideo.tasks.temporal_localization.evaluate import check_output, check_protocol, page, timelines
from internvideo.training.trained import Trained


@dataclass(frozen=True, kw_only=True)
class RefinementOptions(EvaluateOptions):
    """Options of the evaluation."""

    proposals: Annotated[
        Path | None, "The detections.json of a detector on the same videos: the segments to refine."
    ] = None
    class_scores: Annotated[Path | None, "JSON of whole videos' class scores for class-agnostic segments."] = None


def evaluate(trained: Trained, manifest: Path, output: Path, settings: RefinementOptions, split: str | None) -> Result:
    """Write refinement.npz and .json, detections.json (the refined segments) and timelines; print the figures.

    Args:
        trained: a refiner. manifest: folder of features, or its index, with the actions of its videos.
        output: folder. settings: proposals, device and class scores. split: only its videos.

    Raises:
        WeightsError, ManifestError, RunError, RecipeError: what does not fit together.
    """
    distributed.require_one_process("refinement")
    model, how = cast(TCANet, trained.model), trained.recipe.settings_as(RefinementSettings)
    if settings.proposals is None:
        allowed = "the detections.json of `internvideo evaluate temporal_localization`"
        raise RecipeError("proposals", "are missing", allowed, "add --proposals FILE")
    reading = trained.recipe.data_as(ProposalData).features.model_copy(update={"annotations": None, "folder": None})
    features = read_feature_set(manifest, reading)
    check_protocol(trained.context, features)
    if split is not None:
        features = features.subset(split)
    proposals = read_proposals(settings.proposals, features.classes)
    with_proposals(features, proposals)  # at least one video has some
    fused = None
    if settings.class_scores is not None:
        fused = localization.read_class_scores(settings.class_scores, features.classes)
    target = output / f"{refinement.NAME}.npz"
    table = refinement.predict(
        model,
        features,
        proposals,
        reading,
        how.suppression(per_class=proposals.classes == features.classes),
        choose_device(settings.device),
        tiou_thresholds=how.tiou_thresholds,
        quality_power=how.quality_power,
        model_name=trained.recipe.model.name,
        class_scores=fused,
    )
    check_output(target, table)
    table.save(target)
    write_text(output / "detections.json", json.dumps(localization.submission(table)) + "\n")
    result = refinement.score(table)
    save_result(result, target.with_suffix(".json"))
    old = timelines(table, refinement.before_of(table), ", before")
    new = timelines(table, localization.found_of(table), ", refined")
    write_text(output / "timelines.html", page([picture for pair in zip(old, new, strict=True) for picture in pair]))
    print_result(result)
    return result
