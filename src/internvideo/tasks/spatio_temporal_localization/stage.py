"""Training of the action detector on boxes at key frames (AlphAction)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from internvideo.data.batch import RegionBatch
from internvideo.data.settings import Settings
from internvideo.tasks.spatio_temporal_localization.model import ActionDetector
from internvideo.tasks.spatio_temporal_localization.regions import jitter_boxes, region_loss
from internvideo.training.recipe import Stage


class RegionSettings(Settings):
    """Jitter of training boxes, and threshold of test boxes."""

    jitter: bool = Field(
        True,
        description="move the sides of training boxes at random: outwards by up to 20 % of the width and 10 % of the "
        "height, inwards by up to 10 % and 5 %",
    )
    min_person: float = Field(0.8, ge=0.0, le=1.0, description="testing: smallest score of a person box")


class RegionStage(Stage[ActionDetector, RegionSettings]):
    """Sigmoid cross entropy, mean over classes and sum over the boxes of the process, as in the released code."""

    def forward(self, batch: RegionBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute {"loss"}; 0 for a batch without boxes."""
        boxes = batch.boxes
        if self.settings.jitter and self.training and len(boxes):
            height, width = batch.video.shape[-2:]
            boxes = jitter_boxes(boxes, (float(width), float(height)), generator)
        logits = self.model(self.model.normalize(batch.video), batch.clip_index, boxes)
        return {"loss": region_loss(logits, batch.targets) if len(boxes) else logits.sum()}
