"""Answer every question about a video with one of the frequent answers (multi-modalities-downstream).

Two accuracies are reported: over all questions, and, as in the released code, over those whose answer is in the
vocabulary. As both depend on the prior, the baseline is the most frequent answer of a question's type. A question-only
network is another baseline, with predictions of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.errors import RunError
from internvideo.metrics.classification import IGNORE_INDEX, label_ranks
from internvideo.models.heads import VideoQuestionAnswering
from internvideo.tasks.protocol import ClipInputs
from internvideo.tasks.question_answering.data import question_tokens, question_type
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.views import run_clips

NAME = "question_answering"
QUESTION_BATCH_SIZE = 64
"""Questions about one video that are encoded together."""
NUM_TOP_ANSWERS = 5
"""Number of most probable answers of each question in a table."""

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


def predict(
    inputs: ClipInputs[VideoQuestionAnswering], answers: Sequence[str], *, commonest: Mapping[str, str] | None = None
) -> Predictions:
    """Answer all questions about every video; a clip is decoded and encoded once for all its questions.

    Args:
        inputs: clips of rows with questions. answers: the model's vocabulary.
        commonest: type of question -> most frequent training answer, with the key "" for other types; None if unknown.

    Returns:
        ids (V,) of the videos read. Of their N questions: video (N,) index into ids; question, answer, type (N,); label
        (N,) index into answers or -100; rank (N,) of the right answer, -1 if it is not in the vocabulary; top (N, 5)
        indices of the most probable answers and top_probability (N, 5); commonest (N,) answer of the prior. answers
        (A,). Probabilities are means over the views.

    Raises:
        ManifestError: a row without question. RunError: see `run_clips`.
    """
    model, manifest = inputs.model, inputs.manifest
    manifest.require("qa")
    context_length = model.model.config.text.context_length
    rows = {row.id: row for row in manifest.rows}
    probability_sums = dict[str, Floats]()

    def answer_questions(batch: Batch) -> dict[str, Tensor]:
        encoded = model.encode_video(model.normalize(batch.video))
        for index, name in enumerate(batch.ids):
            questions = [pair.question for pair in rows[name].qa]
            probability_sums[name] = probability_sums.get(name, 0.0) + probabilities(
                model, encoded[index : index + 1], questions, context_length
            )
        return {"features": encoded.features.float().abs().amax(dim=1)}

    views = run_clips(answer_questions, inputs, NAME)
    all_sums = {
        name: value
        for rank_sums in distributed.all_gather_objects(probability_sums)
        for name, value in rank_sums.items()
    }
    rows_read = views.rows
    index_of_answer = {answer: index for index, answer in enumerate(answers)}
    pairs = [pair for row in rows_read for pair in row.qa]
    scores = np.concatenate([all_sums[row.id] for row in rows_read]) / inputs.protocol.num_views
    for index in np.flatnonzero(~np.isfinite(scores).all(axis=1)):
        found = f"scores of {pairs[index].question!r} are NaN"
        raise RunError("model", found, "finite numbers", "check the weights")
    labels = np.asarray([index_of_answer.get(pair.answer, IGNORE_INDEX) for pair in pairs], dtype=np.int64)
    top_answers = np.argsort(-scores, axis=1, kind="stable")[:, :NUM_TOP_ANSWERS]
    most_frequent = commonest or {}
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.asarray([row.id for row in rows_read]),
        "video": np.repeat(np.arange(len(rows_read)), [len(row.qa) for row in rows_read]),
        "question": np.asarray([pair.question for pair in pairs]),
        "answer": np.asarray([pair.answer for pair in pairs]),
        "type": np.asarray([question_type(pair) for pair in pairs]),
        "label": labels,
        "rank": _ranks(scores, labels),
        "top": top_answers,
        "top_probability": np.take_along_axis(scores, top_answers, axis=1),
        "answers": np.asarray(answers),
    }
    if most_frequent:
        arrays["commonest"] = np.asarray([most_frequent.get(question_type(pair), most_frequent[""]) for pair in pairs])
    protocol = {
        **inputs.describe(),
        "merge": "softmax mean",
        "answers": len(answers),
        "sees_the_video": model.use_video,
    }
    return Predictions(NAME, arrays, protocol, views.coverage)


def probabilities(model: VideoQuestionAnswering, encoded: Any, questions: Sequence[str], context_length: int) -> Floats:
    """Compute answer probabilities (K, A) of questions about one encoded video."""
    batches = []
    for start in range(0, len(questions), QUESTION_BATCH_SIZE):
        tokens = question_tokens(questions[start : start + QUESTION_BATCH_SIZE], context_length).to(
            encoded.features.device
        )
        batches.append(model.forward_head(encoded, tokens).logits.float().softmax(dim=1).cpu().numpy())
    return cast(Floats, np.concatenate(batches))


def _ranks(scores: Floats, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ranks (N,) of the labels, -1 for IGNORE_INDEX."""
    ranks = np.full(len(labels), -1, dtype=np.int64)
    has_label = labels != IGNORE_INDEX
    if has_label.any():
        ranks[has_label] = label_ranks(scores[has_label], labels[has_label])
    return ranks


def score(table: Predictions) -> Result:
    """Compute accuracies with intervals; the questions about one video are resampled together.

    accuracy, top5: over all questions. The suffix _in_vocabulary leaves out questions whose answer is not in the
    vocabulary (as released). answerable: fraction of questions whose answer is in the vocabulary, the upper bound of
    `accuracy`. accuracy_commonest: of the most frequent training answer of the question's type. accuracy_TYPE: over the
    questions of a type.
    """
    metrics = MetricValues()
    in_vocabulary, video = table["label"] != IGNORE_INDEX, table["video"]
    all_questions = np.ones(len(in_vocabulary), dtype=bool)

    def add(name: str, hits: Bools, selected: Bools) -> None:
        if selected.any():
            metrics.add_mean(name, hits[selected], video[selected])

    columns = {"accuracy": hits_at(table, 1), "top5": hits_at(table, 5)}
    if "commonest" in table.arrays:
        columns["accuracy_commonest"] = table["commonest"] == table["answer"]
    for name, hits in columns.items():
        add(name, hits, all_questions)
        add(f"{name}_in_vocabulary", hits, in_vocabulary)
    add("answerable", in_vocabulary, all_questions)
    for kind in sorted(set(table["type"].tolist())):
        add(f"accuracy_{kind}", hits_at(table, 1), table["type"] == kind)
    return metrics.result(table, questions=len(in_vocabulary))


def hits_at(table: Predictions, k: int) -> Bools:
    """Return (N,) whether the right answer is among the k most probable; False if it is not in the vocabulary."""
    ranks = table["rank"]
    result: Bools = (ranks >= 0) & (ranks < k)
    return result
