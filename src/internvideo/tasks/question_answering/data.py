"""Load questions and answers: the vocabulary of answers, and batches of clips with questions.

Source: multi-modalities-downstream.

Answers are compared as text. An answer that is not in the vocabulary has the label -100, which the loss ignores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor

from internvideo.data.batch import Batch, WrappedLoader
from internvideo.data.dataset import NO_LABEL
from internvideo.data.epoch_plan import random_stream
from internvideo.data.loader import Loader
from internvideo.data.manifest import Manifest
from internvideo.data.sample import QA, Sample
from internvideo.data.tokenizer import Tokenizer
from internvideo.datasets.questions import frequent_answers, read_answers
from internvideo.errors import ManifestError

QUESTION_ORDER_STREAM = 3
"""Id of a random stream (`data.epoch_plan.random_stream`)."""
ANSWERS_FILE = "answers.txt"


@dataclass(frozen=True)
class QuestionSettings:
    """Settings of the questions.

    Attributes:
        answers: file of the vocabulary of answers, one per line or JSON {answer: index}; None for answers.txt in the
            folder of the manifest, or without that file the most frequent training answers.
        max_answers: largest size of a vocabulary of most frequent answers.
        epoch_over: "question": an epoch has every question once, each with a clip of its own (as released); "video": an
            epoch has every video once, with `questions_per_clip` of its questions, in turn over the epochs.
        questions_per_clip: questions that share one encoded clip; 1 with "question".
    """

    answers: Path | None = None
    max_answers: int = 1500
    epoch_over: Literal["question", "video"] = "question"
    questions_per_clip: int = 1

    # In a recipe, which is a pydantic model, an unknown key is an error.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if self.max_answers < 2:
            raise ValueError(f"max_answers is {self.max_answers}, expected 2 or more")
        if self.questions_per_clip < 1 or (self.questions_per_clip > 1 and self.epoch_over == "question"):
            raise ValueError(f"questions_per_clip is {self.questions_per_clip}: 1, or more with epoch_over: video")


def answer_vocabulary(manifest: Manifest, settings: QuestionSettings) -> tuple[str, ...]:
    """Return the vocabulary of answers, from a file or the training rows (see `QuestionSettings`).

    Raises:
        ManifestError: no questions, fewer than two answers, an unreadable file.
    """
    manifest.require("qa")
    default_file = manifest.source.parent / ANSWERS_FILE
    if settings.answers is not None:
        answers, where = read_answers(settings.answers), settings.answers
    elif manifest.source.is_file() and default_file.is_file():
        answers, where = read_answers(default_file), default_file
    else:
        answers, where = frequent_answers(manifest.rows, settings.max_answers), manifest.source
    if len(answers) < 2:
        raise ManifestError(where, f"{len(answers)} different answers", "2 or more")
    return answers


def question_type(pair: QA) -> str:
    """Return the annotated type of a question, else its first word (who, what, where, ...)."""
    return pair.type or pair.question.split()[0].lower().strip("\"'?.,!")


def most_frequent_answers(rows: Iterable[Sample]) -> dict[str, str]:
    """Return type of question -> its most frequent answer; the key "" is for all questions together."""
    counts: dict[str, Counter[str]] = {"": Counter()}
    for row in rows:
        for pair in row.qa:
            counts.setdefault(question_type(pair), Counter())[pair.answer] += 1
            counts[""][pair.answer] += 1
    return {kind: answers.most_common(1)[0][0] for kind, answers in counts.items() if answers}


def one_question_per_row(manifest: Manifest) -> Manifest:
    """Split the rows into one row per question, with the id ROW?INDEX."""
    rows = tuple(
        row.model_copy(update={"id": f"{row.id}?{offset}", "qa": (pair,)})
        for row in manifest.rows
        for offset, pair in enumerate(row.qa)
    )
    return replace(manifest, rows=rows)


def question_tokens(questions: Sequence[str], context_length: int, *, truncate: bool = True) -> Tensor:
    """Encode questions as token ids (B, L), zero padded to the longest one, L at most `context_length`.

    The last position is always padding, because the decoder has no position embedding for it.

    Raises:
        TextError: not a text, or a question that is too long without `truncate`.
    """
    tokens = Tokenizer(context_length=context_length - 1).encode(questions, truncate=truncate)
    length = int((tokens != 0).any(dim=0).sum())
    return torch.nn.functional.pad(tokens[:, :length], (0, 1))


class QuestionLoader(WrappedLoader[Loader]):
    """Add K questions as token ids (B, K, L) and answers as labels (B, K) to batches; (B, L) and (B,) for K = 1.

    An answer that is not in the vocabulary has the label -100. The questions of a clip depend only on (seed, epoch,
    row, repeat). Over the epochs, the questions of a row are used in turn, in a new random order each time.

    Args:
        clips: loader of rows with questions, without tokenizer.
        answers: the vocabulary. context_length: of the text tower. questions_per_clip: K.
    """

    def __init__(self, clips: Loader, answers: Sequence[str], context_length: int, questions_per_clip: int = 1) -> None:
        clips.manifest.require("qa")
        super().__init__(clips)
        self.context_length, self.questions_per_clip = context_length, questions_per_clip
        self._label_of_answer = {answer: index for index, answer in enumerate(answers)}
        self._row_index = {row.id: index for index, row in enumerate(clips.manifest.rows)}

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`; they do not depend on `start`."""
        repeats, num_questions = self.loader.settings.repeated_augmentation, self.questions_per_clip
        for batch in self.loader.epoch(k, start):
            first_questions = [
                (name, (k * repeats + position % repeats) * num_questions) for position, name in enumerate(batch.ids)
            ]
            questions = [
                self._select_question(name, question_number + offset)
                for name, question_number in first_questions
                for offset in range(num_questions)
            ]
            labels = torch.tensor([self._label_of_answer.get(pair.answer, NO_LABEL) for pair in questions])
            tokens = question_tokens([pair.question for pair in questions], self.context_length)
            if num_questions > 1:
                labels, tokens = labels.view(-1, num_questions), tokens.view(len(batch), num_questions, -1)
            yield replace(batch, labels=labels, text_ids=tokens)

    def _select_question(self, name: str, question_number: int) -> QA:
        """Return the question of a row with this number, counted from 0 over all epochs."""
        index = self._row_index[name]
        pairs = self.loader.manifest.rows[index].qa
        cycle, position = divmod(question_number, len(pairs))
        order = random_stream(QUESTION_ORDER_STREAM, self.loader.settings.seed, cycle, index).permutation(len(pairs))
        return pairs[int(order[position])]
