"""Evaluate short-term anticipation: predictions, metrics, the challenge's file and plots."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np

from internvideo.distributed import choose_device
from internvideo.storage import write_text
from internvideo.tasks.anticipation import predict as anticipation
from internvideo.tasks.anticipation.build import contact_clip_settings
from internvideo.tasks.anticipation.model import Anticipator
from internvideo.tasks.anticipation.stage import AnticipationSettings
from internvideo.tasks.class_rows import map_labels_to_classes
from internvideo.tasks.clip_evaluation import read_split
from internvideo.tasks.spatio_temporal_localization.box_evaluation import (
    PROTOCOL_KEYS,
    BoxOptions,
    plot_frames,
    read_test_boxes,
)
from internvideo.tasks.spatio_temporal_localization.build import KeyFrameData
from internvideo.tasks.spatio_temporal_localization.object_boxes import ObjectFrame
from internvideo.tasks.table import Result, check_overwrite, print_result, save_result
from internvideo.training.trained import Trained


def evaluate(trained: Trained, manifest: Path, output: Path, settings: BoxOptions, split: str | None) -> Result:
    """Write anticipation.npz and .json, predictions.json and anticipation.svg; print the metrics.

    Raises RecipeError, ManifestError, RunError.
    """
    model, verbs = cast(Anticipator, trained.model), trained.classes
    stage = trained.recipe.settings_as(AnticipationSettings)
    nouns = tuple(trained.extra_metadata["nouns"])
    rows = map_labels_to_classes(read_split(manifest, split), nouns)
    boxes = read_test_boxes(trained, rows, contact_clip_settings(trained.recipe.data_as(KeyFrameData)), settings)
    protocol = {
        **boxes.protocol,
        "score": "detector score times probability of contact" if stage.discount else "detector score",
    }
    target = output / f"{anticipation.NAME}.npz"
    check_overwrite(target, protocol, PROTOCOL_KEYS)
    contact_predictions = anticipation.predict_contacts(model, boxes.views, choose_device(settings.device))
    names, prior = (nouns, verbs), trained.extra_metadata.get("guess", ())
    table = anticipation.make_table(
        boxes.frames, boxes.views, contact_predictions, names, protocol, prior=prior, discount=stage.discount
    )
    result = anticipation.score(table)
    save_result(result, table.save(target).with_suffix(".json"))
    write_text(output / "predictions.json", anticipation.predictions(table))

    def prediction_lines(index: int) -> list[str]:
        if index not in contact_predictions:
            return []
        values, seconds = contact_predictions[index]
        labels = boxes.views.frames[index].labels
        return [
            f"{nouns[labels[box][0]] if labels[box] else '?'}: {verbs[int(values[box, :-1].argmax())]} in "
            f"{seconds[box]:.2f} s, touched {1 - values[box, -1]:.2f}"
            for box in range(len(values))
        ]

    def truth_line(frame: ObjectFrame) -> str:
        lines = [
            f"{nouns[labels[0]]}: {verbs[int(verb)]} in {seconds:.2f} s"
            for labels, (verb, seconds) in zip(frame.labels, frame.contact, strict=True)
            if labels and np.isfinite(verb)
        ]
        return ", ".join(lines)

    plot_frames(boxes, rows, prediction_lines, truth_line, output / "anticipation.svg")
    print_result(result)
    return result
