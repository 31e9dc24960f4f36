"""Evaluate detection of state-change objects: predictions, metrics, detections in COCO's format, plots."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from internvideo.distributed import choose_device
from internvideo.errors import RecipeError
from internvideo.storage import write_text
from internvideo.tasks.class_rows import map_labels_to_classes
from internvideo.tasks.clip_evaluation import read_split
from internvideo.tasks.spatio_temporal_localization.box_evaluation import (
    PROTOCOL_KEYS,
    BoxOptions,
    plot_frames,
    read_test_boxes,
)
from internvideo.tasks.spatio_temporal_localization.build import KeyFrameData, make_clip_settings
from internvideo.tasks.spatio_temporal_localization.model import ActionDetector
from internvideo.tasks.spatio_temporal_localization.predict import action_scores
from internvideo.tasks.state_change import predict as state_change
from internvideo.tasks.table import Result, check_overwrite, print_result, save_result
from internvideo.training.trained import Trained


def evaluate(trained: Trained, manifest: Path, output: Path, settings: BoxOptions, split: str | None) -> Result:
    """Write state_change.npz and .json, detections.json and state_change.svg; print the metrics.

    Raises RecipeError, ManifestError, RunError.
    """
    model = cast(ActionDetector, trained.model)
    if model.config.num_classes != 1:
        raise RecipeError("weights", f"a model of {len(trained.classes)} classes", "one class, the object that changes")
    rows = map_labels_to_classes(read_split(manifest, split), trained.classes)
    boxes = read_test_boxes(trained, rows, make_clip_settings(trained.recipe.data_as(KeyFrameData), 1), settings)
    target = output / f"{state_change.NAME}.npz"
    check_overwrite(target, boxes.protocol, PROTOCOL_KEYS)
    scores = action_scores(model, boxes.views, choose_device(settings.device))
    table = state_change.make_table(boxes.frames, boxes.views, scores, boxes.protocol)
    result = state_change.score(table)
    save_result(result, table.save(target).with_suffix(".json"))
    write_text(output / "detections.json", state_change.detections(table))

    def prediction_lines(index: int) -> list[str]:
        if index not in scores:
            return []
        detector_scores = boxes.views.frames[index].scores
        pairs = zip(scores[index][:, 0], detector_scores, strict=True)
        return [f"{model_score:.2f} (detector {detector_score:.2f})" for model_score, detector_score in pairs]

    plot_frames(
        boxes, rows, prediction_lines, lambda frame: f"{len(frame.boxes)} of change", output / "state_change.svg"
    )
    print_result(result)
    return result
