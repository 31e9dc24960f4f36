"""Predict verbs and nouns of clips; compute top-1 and top-5 of each and of both (arXiv 2211.09529)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.errors import RunError
from internvideo.metrics.classification import top_k_hits
from internvideo.models.encoder import ClipClassifier
from internvideo.tasks.protocol import ClipInputs
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.verb_noun.data import PARTS, Words, labels_of
from internvideo.tasks.views import run_clips

NAME = "verb_noun"


def predict(inputs: ClipInputs[ClipClassifier], words: Words) -> Predictions:
    """Predict probabilities of verbs and nouns, averaged over views; `words` names the outputs of the model."""
    model, labels, verbs = inputs.model, labels_of(inputs.manifest, words), len(words.verbs)

    def outputs(batch: Batch) -> dict[str, Tensor]:
        logits = model(model.normalize(batch.video)).float()
        return {"verb": logits[:, :verbs].softmax(1), "noun": logits[:, verbs:].softmax(1)}

    views = run_clips(outputs, inputs, "verbs and nouns")
    arrays: dict[str, NDArray[Any]] = {
        "id": np.asarray([row.id for row in views.rows]),
        "group": np.asarray([row.group or row.id for row in views.rows]),
        "labels": labels[views.read],
        "verbs": np.asarray(words.verbs),
        "nouns": np.asarray(words.nouns),
    }
    for part in PARTS:
        total = np.zeros((len(views.read), views.values[part].shape[1]))
        np.add.at(total, views.sample, views.values[part])
        arrays[part] = total / inputs.clips.num_views
    return Predictions(NAME, arrays, inputs.describe(), views.coverage)


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
            metrics.add_mean(f"{part}_top{k}", hits, table["group"][known])
    known = np.logical_and.reduce(labels >= 0, axis=1)
    if known.any():
        found = np.stack([table[part].argmax(axis=1) for part in PARTS], axis=1)
        hits = np.logical_and.reduce(found == labels, axis=1)[known]
        metrics.add_mean("both_top1", hits, table["group"][known])
    return metrics.result(table)
