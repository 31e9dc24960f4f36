"""Stage 1: masked video modelling. 90 % of the tubes are hidden, their pixels are rebuilt.

Source: paper 3.1.1; spec/models.md A.3 to A.6.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from internvideo.data.batch import Batch
from internvideo.models.videomae import VideoMAEPretrain
from internvideo.objectives.masking import random_mask, tube_mask
from internvideo.objectives.reconstruction import pixel_targets, reconstruction_loss


class MaskedSettings(BaseModel):
    """What is hidden and what is rebuilt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask: Literal["tube", "random"] = "tube"
    ratio: float = Field(0.9, gt=0.0, lt=1.0)
    normalised_targets: bool = True


class MaskedStage(nn.Module):
    """VideoMAE pretraining: clip -> {"loss": mean squared error over the hidden tubelets}."""

    def __init__(self, model: VideoMAEPretrain, settings: MaskedSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def draw_mask(self, clips: int, generator: torch.Generator) -> Tensor:
        """(B, N) bool on the generator's device, True = hidden, the same number in every row."""
        draw = tube_mask if self.settings.mask == "tube" else random_mask
        return draw(clips, self.model.config.grid, self.settings.ratio, generator=generator, device=generator.device)

    def targets(self, video: Tensor, mask: Tensor) -> Tensor:
        """uint8 (B, 3, T, S, S) and mask (B, N) -> (B, M, P) float32 pixels of the hidden tubelets, never normalised by
        autocast."""
        config = self.model.config
        return pixel_targets(
            video.float() / 255.0, mask, config.tubelet, config.patch_size, normalise=self.settings.normalised_targets
        )

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Loss of one batch; the mask is drawn from `generator` on the batch's device."""
        mask = self.draw_mask(len(batch), generator)
        predicted = self.model(self.model.normalise(batch.video), mask)
        return {"loss": reconstruction_loss(predicted, self.targets(batch.video, mask))}
