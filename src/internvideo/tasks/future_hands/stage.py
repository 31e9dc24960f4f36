"""Training of future hands: predict both hands' positions at five moments from the preceding clip (arXiv 2211.09529).

The model is a classifier with 20 outputs: offsets of x and y from the frame's center, as fractions of the frame, at
five moments for two hands.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from internvideo.data.batch import HandBatch
from internvideo.data.settings import Settings
from internvideo.models.encoder import ClipClassifier
from internvideo.objectives.positions import masked_smooth_l1
from internvideo.training.recipe import Stage

MOMENTS, HANDS = 5, 2


class HandsSettings(Settings):
    """Settings of the loss."""

    beta: float = Field(5.0, gt=0.0, description="error in pixels up to which the loss is quadratic")


def outputs_to_pixels(outputs: Tensor, size: Tensor) -> Tensor:
    """Convert outputs (B, 20) to pixels (B, 5, 2, 2); `size` (B, 2) is width and height of the frames."""
    fractions = outputs.float().view(-1, MOMENTS, HANDS, 2) + 0.5
    return fractions * size[:, None, None]


class HandsStage(Stage[ClipClassifier, HandsSettings]):
    """Smooth-L1 error in pixels over visible hands."""

    def forward(self, batch: HandBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute {"loss"}; 0 for a batch without a visible hand."""
        predicted = outputs_to_pixels(self.model(self.model.normalize(batch.video)), batch.size)
        visible, beta = batch.visible[..., None].expand_as(predicted), self.settings.beta
        return {"loss": masked_smooth_l1(predicted, batch.positions, visible, beta=beta, divisor=self.divisor)}
