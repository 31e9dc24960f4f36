"""Verb and noun pretraining: two classifiers on one encoder (arXiv 2211.09529)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.data.settings import Settings
from internvideo.models.encoder import ClipClassifier
from internvideo.objectives.classification import Divisor, at_least_one
from internvideo.training.recipe import Stage


class VerbNounSettings(Settings):
    """Settings of the loss."""

    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    noun_weight: float = Field(1.0, ge=0.0, description="weight of the nouns' loss; 0 trains the verbs only")


class VerbNounStage(Stage[ClipClassifier, VerbNounSettings]):
    """Cross entropy of the verbs plus that of the nouns; the model's first `num_verbs` outputs are verbs."""

    def __init__(
        self, model: ClipClassifier, settings: VerbNounSettings, num_verbs: int = 1, divisor: Divisor = at_least_one
    ) -> None:
        super().__init__(model, settings, divisor)
        if not 0 < num_verbs < model.config.num_classes:
            raise ValueError(f"{num_verbs} verbs of {model.config.num_classes} outputs: both kinds are needed")
        self.num_verbs = num_verbs

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute {"loss", "verb", "noun"}; labels are (B, 2), verb and noun, -100 for none."""
        if batch.labels is None or batch.labels.ndim != 2:
            raise ValueError("the verb_noun stage needs labels (B, 2), of verb and noun")
        logits = self.model(self.model.normalize(batch.video)).float()
        verb = self._loss(logits[:, : self.num_verbs], batch.labels[:, 0])
        noun = self._loss(logits[:, self.num_verbs :], batch.labels[:, 1])
        loss = verb + self.settings.noun_weight * noun
        return {"loss": loss, "verb": verb.detach(), "noun": noun.detach()}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        summed = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.settings.label_smoothing)
        return summed / self.divisor((labels >= 0).sum())  # 0 for a batch without such labels
