"""Multiple choice: which of a few sentences describes the video, or answers a question about it.

Source: multi-modalities-downstream.

Zero-shot by cosine similarity of video and sentences, or with a network trained to score every sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.data.dataset import TextEncoder
from internvideo.data.manifest import Choice, Sample
from internvideo.metrics.classification import choice_scores, l2_normalize, merge_rows, top_k_hits
from internvideo.models.heads import PairScoringMultipleChoice
from internvideo.tasks.members import joined, of_each
from internvideo.tasks.multiple_choice.data import choice_texts
from internvideo.tasks.protocol import ClipInputs, VideoTextModel
from internvideo.tasks.question_answering.data import question_tokens
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.views import run_clips, run_texts, video_function

NAME = "multiple_choice"


def predict(inputs: ClipInputs[VideoTextModel], tokenizer: TextEncoder) -> Predictions:
    """Encode every video and its candidate sentences.

    Args:
        inputs: clips of rows with choices. tokenizer: of the model's text tower.

    Returns:
        ids (N,), answers (N,), options (N,) number of candidates, text (sum of options, E) in the order of the videos,
        video (N, E), scale () of the videos read.

    Raises:
        ManifestError: a row without choices.
        RunError: see `run_clips`.
    """
    inputs.manifest.require("choices")
    views = run_clips(video_function(inputs.model), inputs, NAME)
    options = [option for row in views.rows if row.choices is not None for option in row.choices.options]
    arrays = {
        **_answers(views.rows),
        "text": run_texts(inputs, tokenizer, options),
        "video": merge_rows(l2_normalize(views.values["video"]), views.sample, len(views.rows)).astype(np.float32),
        "scale": np.asarray(inputs.model.scale.item()),
    }
    protocol = {**inputs.describe(), "merge": "mean of unit vectors"}
    return Predictions(NAME, arrays, protocol, views.coverage)


def _answers(rows: Sequence[Sample]) -> dict[str, np.ndarray]:
    choices = [row.choices for row in rows if row.choices is not None]
    return {
        "ids": np.asarray([row.id for row in rows]),
        "answers": np.asarray([choice.answer for choice in choices], dtype=np.int64),
        "options": np.asarray([len(choice.options) for choice in choices], dtype=np.int64),
        **_kinds(choices),
    }


def predict_ranked(inputs: ClipInputs[PairScoringMultipleChoice]) -> Predictions:
    """Score the texts of every video with a pair-scoring network.

    Returns:
        ids, answers, options (N,) as of `predict`; probabilities (N, most options), means over the views, 0 beyond a
        row's own options.

    Raises:
        ManifestError: a row without choices. RunError: see `run_clips`.
    """
    model, manifest = inputs.model, inputs.manifest
    manifest.require("choices")
    rows = {row.id: row for row in manifest.rows}
    most, context = max(len(choice_texts(row)) for row in manifest.rows), model.config.text.context

    def choose(batch: Batch) -> dict[str, Tensor]:
        encoded = model.encode_video(model.normalize(batch.video))
        output = encoded.features.new_zeros(len(batch), most, dtype=torch.float32)
        for index, name in enumerate(batch.ids):
            tokens = question_tokens(choice_texts(rows[name]), context).to(inputs.device)
            scores = model.forward_head(encoded[index : index + 1], tokens).scores[:, 0]
            output[index, : len(scores)] = scores.float().softmax(dim=0)
        return {"probabilities": output}

    views = run_clips(choose, inputs, NAME)
    merged = merge_rows(views.values["probabilities"], views.sample, len(views.rows))
    arrays = {**_answers(views.rows), "probabilities": merged.astype(np.float32)}
    return Predictions(NAME, arrays, {**inputs.describe(), "merge": "softmax mean"}, views.coverage)


def _kinds(choices: Sequence[Choice]) -> dict[str, np.ndarray]:
    """Return what is wrong with each option (N, max options), "" beyond a row's own; {} if no row has kinds."""
    if not any(choice.kinds for choice in choices):
        return {}
    most = max(len(choice.options) for choice in choices)
    return {"kinds": np.asarray([[*choice.kinds, *[""] * (most - len(choice.kinds))] for choice in choices])}


def ensemble(tables: Sequence[Predictions]) -> Predictions:
    """Join tables of several models; scores are averaged (paper 4.3.3: essential for this task).

    Raises:
        RunError: tables of other rows, or of models that choose in different ways.
    """
    return joined(tables, ("ids", "answers", "options"), ("text", "video", "scale", "probabilities"), "rows or kinds")


def scores(table: Predictions) -> np.ndarray:
    """Return probabilities or scaled cosines (N, max options), averaged over the models of an ensemble.

    Entries beyond a row's own options are below every score.
    """
    options = table["options"]
    place = np.arange(options.max())[None] < options[:, None]
    if "probabilities" in table.arrays:
        learned = np.mean(of_each(table, "probabilities"), axis=0)[:, : options.max()]
        return np.where(place, learned, -1.0)
    cosines, floor = [], -1.0
    for video, texts, scale in zip(*(of_each(table, name) for name in ("video", "text", "scale")), strict=True):
        candidates = np.zeros((*place.shape, texts.shape[1]))
        candidates[place] = texts
        cosines.append(choice_scores(video, candidates, float(scale)))
        floor = min(floor, -2 * abs(float(scale)) - 1)
    # A finite floor below every cosine, so that the ranking refuses NaN but takes rows of different length.
    return np.where(place, np.mean(cosines, axis=0), floor)


def score(table: Predictions) -> Result:
    """Compute the accuracy with its interval; the protocol has the accuracy of guessing.

    Where options have kinds, also `against_KIND`: how often the right option is above that one (guessing: 50 %).
    """
    metrics = MetricValues()
    values, answers = scores(table), table["answers"]
    hits = top_k_hits(values, answers, 1)
    metrics.add_mean("accuracy", hits)
    kinds = table.arrays.get("kinds")
    for kind in () if kinds is None else sorted({*np.unique(kinds)} - {""}):
        rows, places = np.nonzero(kinds == kind)
        wrong = places != answers[rows]
        rows, places = rows[wrong], places[wrong]
        if len(rows):
            ahead = values[rows, answers[rows]] > values[rows, places]
            metrics.add_mean(f"against_{kind.replace(' ', '_')}", ahead)
    return metrics.result(table, chance_accuracy=float((1 / table["options"]).mean()))
