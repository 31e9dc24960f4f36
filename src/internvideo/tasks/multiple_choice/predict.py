"""Multiple choice: select the sentence that describes the video, or answers a question about it.

Zero-shot by the cosine similarity of video and sentences, or with a network trained to score pairs of both. Source:
multi-modalities-downstream.
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
from internvideo.tasks.members import join_tables, member_arrays
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
        ids (N,), answers (N,) index of the right option, options (N,) number of options, text (sum of options, E) in
        the order of the videos, video (N, E), scale (); of the videos read.

    Raises:
        ManifestError: a row without choices.
        RunError: see `run_clips`.
    """
    inputs.manifest.require("choices")
    views = run_clips(video_function(inputs.model), inputs, NAME)
    options = [option for row in views.rows if row.choices is not None for option in row.choices.options]
    arrays = {
        **_answer_arrays(views.rows),
        "text": run_texts(inputs, tokenizer, options),
        "video": merge_rows(l2_normalize(views.values["video"]), views.sample, len(views.rows)).astype(np.float32),
        "scale": np.asarray(inputs.model.scale.item()),
    }
    protocol = {**inputs.describe(), "merge": "mean of unit vectors"}
    return Predictions(NAME, arrays, protocol, views.coverage)


def _answer_arrays(rows: Sequence[Sample]) -> dict[str, np.ndarray]:
    choices = [row.choices for row in rows if row.choices is not None]
    return {
        "ids": np.asarray([row.id for row in rows]),
        "answers": np.asarray([choice.answer for choice in choices], dtype=np.int64),
        "options": np.asarray([len(choice.options) for choice in choices], dtype=np.int64),
        **_distractor_kinds(choices),
    }


def predict_pair_scores(inputs: ClipInputs[PairScoringMultipleChoice]) -> Predictions:
    """Score the texts of every video with a pair-scoring network.

    Returns:
        ids, answers, options (N,), see `predict`; probabilities (N, max options), means over the views, 0 in columns
        that a row does not have.

    Raises:
        ManifestError: a row without choices. RunError: see `run_clips`.
    """
    model, manifest = inputs.model, inputs.manifest
    manifest.require("choices")
    rows = {row.id: row for row in manifest.rows}
    max_options, context_length = max(len(choice_texts(row)) for row in manifest.rows), model.config.text.context_length

    def score_choices(batch: Batch) -> dict[str, Tensor]:
        encoded = model.encode_video(model.normalize(batch.video))
        output = encoded.features.new_zeros(len(batch), max_options, dtype=torch.float32)
        for index, name in enumerate(batch.ids):
            tokens = question_tokens(choice_texts(rows[name]), context_length).to(inputs.device)
            scores = model.forward_head(encoded[index : index + 1], tokens).logits[:, 0]
            output[index, : len(scores)] = scores.float().softmax(dim=0)
        return {"probabilities": output}

    views = run_clips(score_choices, inputs, NAME)
    merged = merge_rows(views.values["probabilities"], views.sample, len(views.rows))
    arrays = {**_answer_arrays(views.rows), "probabilities": merged.astype(np.float32)}
    return Predictions(NAME, arrays, {**inputs.describe(), "merge": "softmax mean"}, views.coverage)


def _distractor_kinds(choices: Sequence[Choice]) -> dict[str, np.ndarray]:
    """Return {"kinds": kind of error of each option (N, max options), "" for none}; {} if no row has kinds."""
    if not any(choice.kinds for choice in choices):
        return {}
    max_options = max(len(choice.options) for choice in choices)
    return {"kinds": np.asarray([[*choice.kinds, *[""] * (max_options - len(choice.kinds))] for choice in choices])}


def ensemble(tables: Sequence[Predictions]) -> Predictions:
    """Join the tables of several models; `score` averages their scores (paper 4.3.3: essential for this task).

    Raises:
        RunError: the tables are not of the same rows, or mix cosines with probabilities.
    """
    return join_tables(
        tables, ("ids", "answers", "options"), ("text", "video", "scale", "probabilities"), "rows or kinds"
    )


def scores(table: Predictions) -> np.ndarray:
    """Return probabilities or scaled cosines (N, max options), averaged over the models of an ensemble.

    Entries in columns that a row does not have are below every score.
    """
    options = table["options"]
    is_option = np.arange(options.max())[None] < options[:, None]
    if "probabilities" in table.arrays:
        probabilities = np.mean(member_arrays(table, "probabilities"), axis=0)[:, : options.max()]
        return np.where(is_option, probabilities, -1.0)
    cosines, floor = [], -1.0
    for video, texts, scale in zip(*(member_arrays(table, name) for name in ("video", "text", "scale")), strict=True):
        candidates = np.zeros((*is_option.shape, texts.shape[1]))
        candidates[is_option] = texts
        cosines.append(choice_scores(video, candidates, float(scale)))
        floor = min(floor, -2 * abs(float(scale)) - 1)
    # Finite and below every scaled cosine, since the ranking refuses infinity and NaN.
    return np.where(is_option, np.mean(cosines, axis=0), floor)


def score(table: Predictions) -> Result:
    """Compute the accuracy with its interval; the protocol has the accuracy of random guessing.

    If options have kinds, also `against_KIND`: how often the right option has a higher score than one of that kind
    (random guessing: 50 %).
    """
    metrics = MetricValues()
    values, answers = scores(table), table["answers"]
    hits = top_k_hits(values, answers, 1)
    metrics.add_mean("accuracy", hits)
    kinds = table.arrays.get("kinds")
    for kind in () if kinds is None else sorted({*np.unique(kinds)} - {""}):
        rows, option_index = np.nonzero(kinds == kind)
        wrong = option_index != answers[rows]
        rows, option_index = rows[wrong], option_index[wrong]
        if len(rows):
            is_above = values[rows, answers[rows]] > values[rows, option_index]
            metrics.add_mean(f"against_{kind.replace(' ', '_')}", is_above)
    return metrics.result(table, chance_accuracy=float((1 / table["options"]).mean()))
