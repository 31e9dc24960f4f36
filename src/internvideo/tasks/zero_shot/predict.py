"""Zero-shot recognition with prompted class names (multi-modalities-downstream)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from internvideo.data.dataset import TextEncoder
from internvideo.errors import RecipeError
from internvideo.metrics import bootstrap
from internvideo.metrics.classification import mean_class_accuracy, merge_rows, top_k_hits, zero_shot_ensemble
from internvideo.tasks.members import join_tables, member_arrays
from internvideo.tasks.protocol import ClipInputs, VideoTextModel, check_labels
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.views import run_clips, run_texts, video_function
from internvideo.tasks.zero_shot.templates import ACTION_TEMPLATES, fill_templates

NAME = "zero_shot"


def predict(
    inputs: ClipInputs[VideoTextModel], tokenizer: TextEncoder, *, templates: Sequence[str] = ACTION_TEMPLATES
) -> Predictions:
    """Encode every view and every prompted class name.

    Args:
        inputs: clips of labeled rows. tokenizer: of the model's text tower. templates: sentences with one "{}".

    Returns:
        ids (N,), labels (N,), sample (R,), video (R, E), text (P, C, E), scale () of the videos read.

    Raises:
        ManifestError: a row without label. RecipeError: fewer than two classes.
        RunError: see `run_clips`.
    """
    manifest = inputs.manifest
    labels = check_labels(manifest)
    if len(manifest.classes) < 2:
        raise RecipeError(manifest.source, f"{len(manifest.classes)} classes", "at least 2 class names")
    text = run_texts(inputs, tokenizer, fill_templates(templates, manifest.classes))
    views = run_clips(video_function(inputs.model), inputs, NAME)
    arrays = {
        "ids": np.asarray([row.id for row in views.rows]),
        "labels": labels[views.read],
        "sample": views.sample,
        "video": views.values["video"],
        "text": text.reshape(len(templates), len(manifest.classes), -1),
        "scale": np.asarray(inputs.model.scale.item()),
    }
    protocol = {**inputs.describe(), "templates": list(templates), "merge": "softmax mean over templates and views"}
    return Predictions(NAME, arrays, protocol, views.coverage)


def ensemble(tables: Sequence[Predictions]) -> Predictions:
    """Join the tables of several models; `score` averages their similarities before the softmax (Video-Text-Retrieval).

    Raises:
        RunError: the tables are not of the same videos and views.
    """
    return join_tables(tables, ("ids", "labels", "sample"), ("text", "video", "scale"), "videos or views")


def score(table: Predictions) -> Result:
    """Compute top1, top5 and mean_class with all templates, and top1_plain_name with the template "{}" alone."""
    metrics = MetricValues()
    labels = table["labels"]
    members = list(zip(*(member_arrays(table, name) for name in ("video", "text", "scale")), strict=True))

    def merge_members(templates: slice) -> np.ndarray:
        selected = [(video, text[templates], float(scale)) for video, text, scale in members]
        return merge_rows(zero_shot_ensemble(selected), table["sample"], len(labels))

    probabilities = merge_members(slice(None))
    scores = {f"top{k}": top_k_hits(probabilities, labels, k) for k in (1, 5) if k == 1 or probabilities.shape[1] > k}
    templates = list(table.protocol["templates"])
    if "{}" in templates and len(templates) > 1:
        plain_index = templates.index("{}")
        scores["top1_plain_name"] = top_k_hits(merge_members(slice(plain_index, plain_index + 1)), labels, 1)
    for name, hits in scores.items():
        metrics.add_mean(name, hits)
    predicted = probabilities.argmax(axis=1)
    bounds = bootstrap.interval(bootstrap.class_mean(predicted == labels, labels), len(labels))
    metrics.add("mean_class", mean_class_accuracy(predicted, labels), bounds)
    return metrics.result(table, chance_top1=1 / probabilities.shape[1])
