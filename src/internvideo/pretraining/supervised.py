"""Stage 3: supervised post-pretraining. Each encoder learns action labels on its own.

Source: paper 3.2; run_class_finetuning.py, UniFormerV2 configs. Mixup and cutmix happen where batches are made
(data/mixup.py): a mixed batch carries soft targets (B, C) in place of class indices.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from internvideo.data.batch import Batch
from internvideo.models.encoder import ClipClassifier
from internvideo.objectives.classification import Divisor, at_least_one, cross_entropy


class SupervisedSettings(BaseModel):
    """How labels are softened (mixed batches bring soft targets, which are smoothed already)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    frame_step: int = Field(1, ge=1, description="the model sees every n-th frame of the batch's clip")


class SupervisedStage(nn.Module):
    """Cross entropy of a classifier on a batch of labelled clips."""

    def __init__(
        self,
        model: ClipClassifier,
        settings: SupervisedSettings,
        divisor: Divisor = at_least_one,
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.divisor = divisor

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """{"loss"}: mean cross entropy; labels are (B,) class indices or (B, C) soft targets."""
        if batch.labels is None:
            raise ValueError("the supervised stage needs labels")
        video = batch.video[:, :, :: self.settings.frame_step]
        logits = self.model(self.model.normalize(video))
        smoothing = 0.0 if batch.labels.is_floating_point() else self.settings.label_smoothing
        return {"loss": cross_entropy(logits, batch.labels, smoothing=smoothing, divisor=self.divisor)}
