"""Training of video question answering: classification over frequent answers, or multiple choice.

Source: multi-modalities-downstream.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.data.settings import Settings
from internvideo.models.heads import PairScoringMultipleChoice, VideoQuestionAnswering
from internvideo.objectives.classification import IGNORE_INDEX, Divisor, at_least_one, cross_entropy
from internvideo.training.recipe import Stage


class AnsweringSettings(Settings):
    """Label smoothing (none in the released code)."""

    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)


class AnsweringStage(Stage[VideoQuestionAnswering | PairScoringMultipleChoice, AnsweringSettings]):
    """Cross entropy of the correct answer; questions with an answer outside the vocabulary (-100) are ignored.

    Parameters without influence on the answers (`FusedQANetwork.is_unused_parameter`) are frozen.
    """

    def __init__(
        self,
        model: VideoQuestionAnswering | PairScoringMultipleChoice,
        settings: AnsweringSettings,
        divisor: Divisor = at_least_one,
    ) -> None:
        super().__init__(model, settings, divisor)
        for name, parameter in model.named_parameters():
            if model.is_unused_parameter(name):
                parameter.requires_grad_(False)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute "loss" (mean cross entropy) and "accuracy", both over the answers in the vocabulary.

        `text_ids` are one question (B, L) or K questions (B, K, L) per clip, `labels` (B,) or (B, K) answer indices or
        -100. For multiple choice, `text_ids` are the K options of each clip (B, K, L), `labels` (B,) the right option.
        """
        if batch.text_ids is None or batch.labels is None:
            raise ValueError("this stage needs questions (text_ids) and answers (labels)")
        logits = self.model(self.model.normalize(batch.video), batch.text_ids)
        num_correct = (logits.detach().argmax(dim=-1) == batch.labels).sum()
        smoothing = self.settings.label_smoothing
        return {
            "loss": cross_entropy(logits, batch.labels, smoothing=smoothing, divisor=self.divisor),
            "accuracy": num_correct / self.divisor((batch.labels != IGNORE_INDEX).sum()),
        }
