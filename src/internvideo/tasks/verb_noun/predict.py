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
from internvideo.tasks.verb_noun.data import WORD_KINDS, VerbNounClasses, label_indices
from internvideo.tasks.views import run_clips

NAME = "verb_noun"


def predict(inputs: ClipInputs[ClipClassifier], classes: VerbNounClasses) -> Predictions:
    """Predict the probabilities of verbs and nouns, averaged over views.

    Args:
        inputs: clips of rows with the attributes "verb" and "noun". classes: of the model's outputs.

    Returns:
        id, group (N,); labels (N, 2), -100 for none; verbs, nouns: names of the classes; verb (N, verbs) and noun (N,
        nouns) probabilities; of the videos read.
    """
    model, labels, num_verbs = inputs.model, label_indices(inputs.manifest, classes), len(classes.verbs)

    def outputs(batch: Batch) -> dict[str, Tensor]:
        logits = model(model.normalize(batch.video)).float()
        return {"verb": logits[:, :num_verbs].softmax(1), "noun": logits[:, num_verbs:].softmax(1)}

    views = run_clips(outputs, inputs, "verbs and nouns")
    arrays: dict[str, NDArray[Any]] = {
        "id": np.asarray([row.id for row in views.rows]),
        "group": np.asarray([row.group or row.id for row in views.rows]),
        "labels": labels[views.read],
        "verbs": np.asarray(classes.verbs),
        "nouns": np.asarray(classes.nouns),
    }
    for kind in WORD_KINDS:
        total = np.zeros((len(views.read), views.values[kind].shape[1]))
        np.add.at(total, views.sample, views.values[kind])
        arrays[kind] = total / inputs.protocol.num_views
    return Predictions(NAME, arrays, inputs.describe(), views.coverage)


def score(table: Predictions) -> Result:
    """Compute top-1 and top-5 of verbs and nouns, and both_top1; intervals resample groups.

    Raises:
        RunError: no row has a label.
    """
    metrics, labels = MetricValues(), table["labels"]
    if (labels < 0).all():
        raise RunError("table", "no row has a verb or noun", "", "evaluate on rows with the attributes verb and noun")
    for column, kind in enumerate(WORD_KINDS):
        has_label = labels[:, column] >= 0
        for k in (1, 5):
            if not has_label.any() or k > table[kind].shape[1]:
                continue
            hits = top_k_hits(table[kind][has_label], labels[has_label, column], k)
            metrics.add_mean(f"{kind}_top{k}", hits, table["group"][has_label])
    has_label = np.logical_and.reduce(labels >= 0, axis=1)
    if has_label.any():
        predicted = np.stack([table[kind].argmax(axis=1) for kind in WORD_KINDS], axis=1)
        hits = np.logical_and.reduce(predicted == labels, axis=1)[has_label]
        metrics.add_mean("both_top1", hits, table["group"][has_label])
    return metrics.result(table)
