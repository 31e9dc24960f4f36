"""Predict verbs and nouns of clips; compute top-1 and top-5 of each and of both (arXiv 2211.09529)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from internvideo.data.manifest import Manifest
from internvideo.errors import RunError
from internvideo.metrics import bootstrap
from internvideo.metrics.classification import top_k_hits
from internvideo.tasks.protocol import ClipProtocol, ClipSource, describe
from internvideo.tasks.table import BOOTSTRAP, MetricValues, Predictions, Result
from internvideo.tasks.verb_noun.data import PARTS, Words, labels_of
from internvideo.tasks.views import evaluating, run_clips

NAME = "verb_noun"


def predict(
    model: nn.Module,
    source: ClipSource,
    manifest: Manifest,
    words: Words,
    clips: ClipProtocol,
    device: torch.device,
    *,
    model_name: str = "",
) -> Predictions:
    """Predict probabilities of verbs and nouns, averaged over views; `words` names the outputs of `model`."""
    labels, verbs = labels_of(manifest, words), len(words.verbs)

    def outputs(video: Tensor) -> dict[str, Tensor]:
        logits = model(model.normalize(video)).float()  # type: ignore[operator]  # both encoders have it
        return {"verb": logits[:, :verbs].softmax(1), "noun": logits[:, verbs:].softmax(1)}

    with evaluating(model, device, clips.precision):
        views = run_clips(outputs, source, manifest, clips, device, "verbs and nouns")
    arrays: dict[str, NDArray[Any]] = {
        "id": np.asarray([manifest.rows[row].id for row in views.read]),
        "group": np.asarray([manifest.rows[row].group or manifest.rows[row].id for row in views.read]),
        "labels": labels[views.read],
        "verbs": np.asarray(words.verbs),
        "nouns": np.asarray(words.nouns),
    }
    for part in PARTS:
        total = np.zeros((len(views.read), views.values[part].shape[1]))
        np.add.at(total, views.sample, views.values[part])
        arrays[part] = total / clips.num_views
    return Predictions(NAME, arrays, describe(model, model_name, manifest, clips), views.coverage)


def score(table: Predictions) -> Result:
    """Compute the accuracies; intervals resample groups. Raises RunError: no row has a label."""
    metrics, labels = MetricValues(), table["labels"]
    if (labels < 0).all():
        raise RunError("table", "no row has a verb or noun", "", "evaluate on rows with the attributes verb and noun")
    for column, part in enumerate(PARTS):
        known = labels[:, column] >= 0
        for k in (1, 5):
            if not known.any() or k > table[part].shape[1]:
                continue
            hits = top_k_hits(table[part][known], labels[known, column], k)
            bounds = bootstrap.interval(bootstrap.mean(hits), len(hits), groups=table["group"][known], **BOOTSTRAP)
            metrics.add(f"{part}_top{k}", float(hits.mean()), bounds)
    known = np.logical_and.reduce(labels >= 0, axis=1)
    if known.any():
        found = np.stack([table[part].argmax(axis=1) for part in PARTS], axis=1)
        hits = np.logical_and.reduce(found == labels, axis=1)[known]
        bounds = bootstrap.interval(bootstrap.mean(hits), len(hits), groups=table["group"][known], **BOOTSTRAP)
        metrics.add("both_top1", float(hits.mean()), bounds)
    return metrics.result(table)
