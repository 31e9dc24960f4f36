"""Questions and answers: the vocabulary of answers, and batches of clips with a question each.

Source: multi-modalities-downstream.

An answer is known by its text; one outside the vocabulary has the label -100, which no loss counts.
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

QUESTIONS = 3  # purpose of random streams, beside those of data/dataset.py
BESIDE = "answers.txt"


@dataclass(frozen=True)
class QuestionSettings:
    """How questions become batches.

    Attributes:
        answers: file of the answers that a model may give, one a line or JSON {answer: number}; None takes answers.txt
            beside the manifest, and without one the most frequent answers of training.
        max_answers: so many of them.
        epoch_over: "question": an epoch asks every question once, each with its own clip (as released); "video": it
            reads every video once and asks `questions_per_clip` questions about its clip, all equally often over the
            epochs.
        questions_per_clip: questions about a clip, which share one look at it; 1 where an epoch is over questions.
    """

    answers: Path | None = None
    max_answers: int = 1500
    epoch_over: Literal["question", "video"] = "question"
    questions_per_clip: int = 1

    # Inside a recipe (a pydantic model) an unknown key is an error.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if self.max_answers < 2:
            raise ValueError(f"max_answers is {self.max_answers}, there must be 2 answers to choose from")
        if self.questions_per_clip < 1 or (self.questions_per_clip > 1 and self.epoch_over == "question"):
            raise ValueError(f"questions_per_clip is {self.questions_per_clip}: 1, or more with epoch_over: video")


def answer_vocabulary(manifest: Manifest, settings: QuestionSettings) -> tuple[str, ...]:
    """The answers that a model learns to give, from the training rows or a file (see `QuestionSettings`).

    Raises:
        ManifestError: no questions, fewer than two answers, a file that cannot be read.
    """
    manifest.require("qa")
    beside = manifest.source.parent / BESIDE
    if settings.answers is not None:
        answers, where = read_answers(settings.answers), settings.answers
    elif manifest.source.is_file() and beside.is_file():
        answers, where = read_answers(beside), beside
    else:
        answers, where = frequent_answers(manifest.rows, settings.max_answers), manifest.source
    if len(answers) < 2:
        raise ManifestError(where, f"{len(answers)} answers", "2 or more, to choose from")
    return answers


def question_type(pair: QA) -> str:
    """The type that the annotation gives, else the question's first word (who, what, where, ...)."""
    return pair.type or pair.question.split()[0].lower().strip("\"'?.,!")


def commonest_answers(rows: Iterable[Sample]) -> dict[str, str]:
    """Type of question -> its most frequent answer; "" stands for all questions together."""
    counts: dict[str, Counter[str]] = {"": Counter()}
    for row in rows:
        for pair in row.qa:
            counts.setdefault(question_type(pair), Counter())[pair.answer] += 1
            counts[""][pair.answer] += 1
    return {kind: found.most_common(1)[0][0] for kind, found in counts.items() if found}


def one_question_a_row(manifest: Manifest) -> Manifest:
    """A row for every question, named by its video and its number."""
    rows = tuple(
        row.model_copy(update={"id": f"{row.id}?{number}", "qa": (pair,)})
        for row in manifest.rows
        for number, pair in enumerate(row.qa)
    )
    return replace(manifest, rows=rows)


def question_tokens(questions: Sequence[str], context: int, *, truncate: bool = True) -> Tensor:
    """Ids (B, L) of questions, zero padded, L as long as the longest one and at most `context`.

    The last position stays free, because the decoder has none for it; what the padding would be made of nobody reads.

    Raises:
        TextError: something that is no text, or a question longer than the context without `truncate`.
    """
    tokens = Tokenizer(context_length=context - 1).encode(questions, truncate=truncate)
    longest = int((tokens != 0).any(dim=0).sum())
    return torch.nn.functional.pad(tokens[:, :longest], (0, 1))


class QuestionLoader(WrappedLoader[Loader]):
    """The clips of a loader, each with K questions (tokens (B, K, L)) and their answers (labels (B, K)); for one
    question (B, L) and (B,). An answer outside the vocabulary has the label -100.

    Which questions a clip is asked depends on (seed, epoch, row, repeat) alone. Over the epochs all questions of a row
    come equally often, and no question twice before all have come.

    Args:
        clips: loader of rows with questions, without tokenizer.
        answers: the vocabulary. context: most words of the text tower. questions_per_clip: K.
    """

    def __init__(self, clips: Loader, answers: Sequence[str], context: int, questions_per_clip: int = 1) -> None:
        clips.manifest.require("qa")
        super().__init__(clips)
        self.context, self.questions_per_clip = context, questions_per_clip
        self._label = {answer: index for index, answer in enumerate(answers)}
        self._row = {row.id: index for index, row in enumerate(clips.manifest.rows)}

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of epoch `k`, exactly as in the uninterrupted epoch."""
        repeats, count = self.loader.settings.repeated_augmentation, self.questions_per_clip
        for batch in self.loader.epoch(k, start):
            turns = [(name, (k * repeats + place % repeats) * count) for place, name in enumerate(batch.ids)]
            asked = [self._pair(name, turn + number) for name, turn in turns for number in range(count)]
            labels = torch.tensor([self._label.get(pair.answer, NO_LABEL) for pair in asked])
            tokens = question_tokens([pair.question for pair in asked], self.context)
            if count > 1:
                labels, tokens = labels.view(-1, count), tokens.view(len(batch), count, -1)
            yield replace(batch, labels=labels, text_ids=tokens)

    def _pair(self, name: str, turn: int) -> QA:
        """The question of a row that is asked when it is asked for time number `turn`."""
        index = self._row[name]
        pairs = self.loader.manifest.rows[index].qa
        cycle, place = divmod(turn, len(pairs))
        order = random_stream(QUESTIONS, self.loader.settings.seed, cycle, index).permutation(len(pairs))
        return pairs[int(order[place])]
