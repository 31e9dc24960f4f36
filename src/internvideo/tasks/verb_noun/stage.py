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
    """The loss."""

    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    noun_weight: float = Field(1.0, ge=0.0, description="of the nouns' loss; 0 learns the verbs alone")


class VerbNounStage(Stage[ClipClassifier, VerbNounSettings]):
    """Cross entropy of the verbs and of the nouns, which are outputs of one model: the first `verbs` are verbs."""

    def __init__(
        self, model: ClipClassifier, settings: VerbNounSettings, verbs: int = 1, divisor: Divisor = at_least_one
    ) -> None:
        super().__init__(model, settings, divisor)
        if not 0 < verbs < model.config.num_classes:
            raise ValueError(f"{verbs} verbs of {model.config.num_classes} outputs: both kinds are needed")
        self.verbs = verbs

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """{"loss", "verb", "noun"}; labels are (B, 2) verb and noun, -100 where a clip has none."""
        if batch.labels is None or batch.labels.ndim != 2:
            raise ValueError("the verb_noun stage needs labels (B, 2), of verb and noun")
        logits = self.model(self.model.normalize(batch.video)).float()
        verb = self._loss(logits[:, : self.verbs], batch.labels[:, 0])
        noun = self._loss(logits[:, self.verbs :], batch.labels[:, 1])
        loss = verb + self.settings.noun_weight * noun
        return {"loss": loss, "verb": verb.detach(), "noun": noun.detach()}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        summed = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.settings.label_smoothing)
        return summed / self.divisor((labels >= 0).sum())  # 0 where no clip of the batch has such a label
