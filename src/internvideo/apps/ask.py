"""Answer questions about a video with a trained question-answering model (multi-modalities-downstream)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from internvideo.datasets.questions import read_answers
from internvideo.errors import RecipeError, TextError
from internvideo.inference.video_model import VideoModel, VideoSource
from internvideo.models.heads import VideoQuestionAnswering
from internvideo.tasks.question_answering.data import question_tokens
from internvideo.tasks.question_answering.predict import probabilities


class Answerer:
    """Answer questions with a network that has an answer head.

    Args:
        model: of the family internvideo-mm-*-vqa.
        answers: file of the answers (`answer_set.txt`, `ans2label.json`), which published weights do not contain. The
            head may have one output more than answers, as published heads do; it is ignored.

    Raises:
        RecipeError: a model without an answer head, one without video input, or another number of answers.
        ManifestError: `answers` cannot be read.
    """

    def __init__(self, model: VideoModel, answers: Path | None = None) -> None:
        if "answer" not in model.capabilities:
            capabilities = ", ".join(sorted(model.capabilities))
            hint = "train one with `internvideo train sample/question_answering`, or load internvideo-mm-l14-vqa"
            raise RecipeError(f"model {model.name}", "has no head for answers", capabilities, hint)
        module = cast(VideoQuestionAnswering, model.module)
        if not module.use_video:
            raise RecipeError(f"model {model.name}", "was trained on questions alone", "a network with video input")
        self.model, self.module = model, module
        self.names = model.class_names if answers is None else read_answers(answers)
        if answers is not None and len(model.class_names) - len(self.names) not in (0, 1):
            found, expected = (
                f"{len(self.names)} answers",
                f"{len(model.class_names)}, the outputs of the head, or one less",
            )
            raise RecipeError(answers, found, expected)

    def check(self, questions: Sequence[str]) -> None:
        """Raise TextError for no question, a blank one, or one that is longer than the context length."""
        if not questions:
            raise TextError("questions", "none", "at least one")
        for position, text in enumerate(questions, 1):
            if not text.strip():
                raise TextError(f"question {position}", "is blank", 'a text such as "what is the man doing?"')
            try:
                question_tokens([text], self.module.model.config.text.context_length, truncate=False)
            except TextError as error:
                raise TextError(f"question {position}", error.found, error.expected, "shorten it") from error

    def __call__(self, video: VideoSource, questions: Sequence[str], *, top: int = 5) -> list[dict[str, float]]:
        """Return {answer: probability} of the `top` most probable answers to each question, in descending order.

        The video is decoded and encoded once.

        Raises:
            TextError: see `check`. VideoError: the video cannot be read.
        """
        self.check(questions)
        (clips,) = self.model.read(video)
        context = self.module.model.config.text.context_length
        with torch.no_grad():
            encoded = self.module.encode_video(self.module.prepare(clips.to(self.model.device)))
            rows = probabilities(self.module, encoded, questions, context)[:, : len(self.names)]
        best = np.argsort(-rows, axis=1, kind="stable")[:, :top]
        return [{self.names[i]: float(row[i]) for i in order} for row, order in zip(rows, best, strict=True)]
