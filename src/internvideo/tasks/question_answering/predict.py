"""Answer every question about a video with one of the frequent answers (multi-modalities-downstream).

Two accuracies are reported: over all questions, and, as released, over those whose answer is in the vocabulary.
Both depend on the prior, so the most frequent answer of a question's type is the baseline; a network without video is
evaluated in a table of its own.
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
AT_ONCE = 64
"""Questions about one video that are read together."""
SHOWN = 5
"""Answers that a table keeps of each question."""

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


def predict(
    inputs: ClipInputs[VideoQuestionAnswering], answers: Sequence[str], *, commonest: Mapping[str, str] | None = None
) -> Predictions:
    """Answer all questions about every video; a clip is decoded and encoded once for all its questions.

    Args:
        inputs: clips of rows with questions. answers: the model's vocabulary.
        commonest: type of question -> most frequent answer of training, "" for all others; None where unknown.

    Returns:
        ids (V,) of the videos read; of their N questions: video (N,) index into ids, question, answer, type (N,),
        label (N,) number of the answer or -100, rank (N,) of the right answer, -1 where it cannot be given,
        top (N, 5) numbers of the likeliest answers and top_probability (N, 5), commonest (N,) the answer of the prior;
        answers (A,). Probabilities are means over the views.

    Raises:
        ManifestError: a row without question. RunError: see `run_clips`.
    """
    model, manifest = inputs.model, inputs.manifest
    manifest.require("qa")
    context = model.model.config.text.context
    rows = {row.id: row for row in manifest.rows}
    sums = dict[str, Floats]()

    def ask(batch: Batch) -> dict[str, Tensor]:
        encoded = model.encode_video(model.normalize(batch.video))
        for index, name in enumerate(batch.ids):
            questions = [pair.question for pair in rows[name].qa]
            sums[name] = sums.get(name, 0.0) + probabilities(model, encoded[index : index + 1], questions, context)
        return {"features": encoded.features.float().abs().amax(dim=1)}

    views = run_clips(ask, inputs, NAME)
    totals = {name: value for share in distributed.all_gather_objects(sums) for name, value in share.items()}
    read = views.rows
    known = {answer: index for index, answer in enumerate(answers)}
    pairs = [pair for row in read for pair in row.qa]
    scores = np.concatenate([totals[row.id] for row in read]) / inputs.clips.num_views
    for index in np.flatnonzero(~np.isfinite(scores).all(axis=1)):
        found = f"scores of {pairs[index].question!r} are NaN"
        raise RunError("model", found, "finite numbers", "check the weights")
    labels = np.asarray([known.get(pair.answer, IGNORE_INDEX) for pair in pairs], dtype=np.int64)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :SHOWN]
    prior = commonest or {}
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.asarray([row.id for row in read]),
        "video": np.repeat(np.arange(len(read)), [len(row.qa) for row in read]),
        "question": np.asarray([pair.question for pair in pairs]),
        "answer": np.asarray([pair.answer for pair in pairs]),
        "type": np.asarray([question_type(pair) for pair in pairs]),
        "label": labels,
        "rank": _ranks(scores, labels),
        "top": top,
        "top_probability": np.take_along_axis(scores, top, axis=1),
        "answers": np.asarray(answers),
    }
    if prior:
        arrays["commonest"] = np.asarray([prior.get(question_type(pair), prior[""]) for pair in pairs])
    protocol = {**inputs.describe(), "merge": "softmax mean", "answers": len(answers), "sees_the_video": model.video}
    return Predictions(NAME, arrays, protocol, views.coverage)


def probabilities(model: VideoQuestionAnswering, encoded: Any, questions: Sequence[str], context: int) -> Floats:
    """Compute answer probabilities (K, A) of questions about one encoded video."""
    parts = []
    for start in range(0, len(questions), AT_ONCE):
        tokens = question_tokens(questions[start : start + AT_ONCE], context).to(encoded.features.device)
        parts.append(model.forward_head(encoded, tokens).scores.float().softmax(dim=1).cpu().numpy())
    return cast(Floats, np.concatenate(parts))


def _ranks(scores: Floats, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    ranks = np.full(len(labels), -1, dtype=np.int64)
    known = labels != IGNORE_INDEX
    if known.any():
        ranks[known] = label_ranks(scores[known], labels[known])
    return ranks


def score(table: Predictions) -> Result:
    """Compute accuracies with intervals; the questions about one video are resampled together.

    accuracy: over all questions. accuracy_in_vocabulary: leaves out those whose answer the model cannot give (as
    released). top5, top5_in_vocabulary; answerable: share of questions with an answer in the vocabulary, the most that
    `accuracy` can reach. accuracy_commonest, accuracy_commonest_in_vocabulary: the most frequent training answer of the
    question's type. accuracy_TYPE: over all questions of a type.
    """
    metrics = MetricValues()
    known, video = table["label"] != IGNORE_INDEX, table["video"]
    everything = np.ones(len(known), dtype=bool)

    def add(name: str, hits: Bools, counted: Bools) -> None:
        if counted.any():
            metrics.add_mean(name, hits[counted], video[counted])

    columns = {"accuracy": hits_at(table, 1), "top5": hits_at(table, 5)}
    if "commonest" in table.arrays:
        columns["accuracy_commonest"] = table["commonest"] == table["answer"]
    for name, hits in columns.items():
        add(name, hits, everything)
        add(f"{name}_in_vocabulary", hits, known)
    add("answerable", known, everything)
    for kind in sorted(set(table["type"].tolist())):
        add(f"accuracy_{kind}", hits_at(table, 1), table["type"] == kind)
    return metrics.result(table, questions=len(known))


def hits_at(table: Predictions, k: int) -> Bools:
    """Return (N,) whether the right answer is among the k likeliest; False where the model cannot give it."""
    ranks = table["rank"]
    result: Bools = (ranks >= 0) & (ranks < k)
    return result
