"""Training of short-term anticipation: next verb and time to contact per object box (arXiv 2211.09529)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from internvideo.data.batch import RegionBatch
from internvideo.data.settings import Settings
from internvideo.objectives.anticipation import contact_losses
from internvideo.tasks.anticipation.model import Anticipator
from internvideo.training.recipe import Stage


class AnticipationSettings(Settings):
    """Settings of the loss and of the prediction's score."""

    time_weight: float = Field(15.0, ge=0.0, description="weight of the loss of the time to contact")
    discount: bool = Field(
        False, description="in testing, multiply the detector's score of a box by its probability of contact"
    )


class AnticipationStage(Stage[Anticipator, AnticipationSettings]):
    """Cross entropy of the verb and smooth-L1 error of the time; `targets` (R, 2) are verb and seconds."""

    def forward(self, batch: RegionBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute {"loss", "verb", "seconds"}; 0 for a batch without boxes."""
        logits, seconds = self.model(self.model.normalize(batch.video), batch.clip_index, batch.boxes)
        verbs, truth = batch.targets[:, 0].long(), batch.targets[:, 1]
        verb, time = contact_losses(logits, seconds, verbs, truth, self.divisor)
        return {"loss": verb + self.settings.time_weight * time, "verb": verb.detach(), "seconds": time.detach()}
