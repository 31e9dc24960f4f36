"""An agent's eyes learn to see in a world: where one can walk to, what stands there, what of it moves.

The published agent takes its waypoint predictor from a graph of places, its depth encoder from PointGoal navigation and
its image and video encoders from the web (spec tasks.md 6.1). In a world that knows everything all four learn at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from internvideo.data.navigation.batch import PanoramaBatch
from internvideo.models.navigator import Navigator


class WaypointSettings(BaseModel):
    """Weights of the parts of the loss."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    things: int = Field(40, ge=1, description="kinds of things to be recognised by the image tower")
    motions: int = Field(3, ge=1, description="kinds of motion to be recognised by the video encoder")
    clips: int = Field(8, ge=1, description="clips of a batch, at least, that the video encoder learns from")
    things_weight: float = Field(10.0, gt=0.0)
    motions_weight: float = Field(10.0, gt=0.0)


class WaypointStage(nn.Module):
    """Cross-entropy of the heat map; binary cross-entropy of things in images and of motions in clips."""

    def __init__(self, model: Navigator, settings: WaypointSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.things = nn.Linear(model.config.image.joint_width, settings.things)
        self.motions = nn.Linear(model.config.video.width, settings.motions)
        for part in (model.planner, model.rgb):
            part.requires_grad_(False)

    def _motions_loss(self, batch: PanoramaBatch, generator: torch.Generator) -> Tensor:
        """On the clips in which something moves and as many others: nothing moves in most."""
        moving = batch.motions.flatten(0, 1)
        order = torch.rand(len(moving), generator=generator, device=generator.device).to(moving.device)
        order = torch.where(moving.any(dim=1), order - 1, order).argsort()
        chosen = order[: max(self.settings.clips, 2 * int(moving.any(dim=1).sum()))]
        clips = batch.pictures.permute(0, 2, 5, 1, 3, 4).flatten(0, 1)[chosen]
        video = self.model.video
        found = self.motions(video.features(video.normalise(clips)))
        return F.binary_cross_entropy_with_logits(found, moving[chosen])

    def forward(self, batch: PanoramaBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """{"loss", "heat_loss", "things_loss", "motions_loss"}."""
        model = self.model
        heat = model.waypoints(model.depth(batch.depth)).flatten(1).log_softmax(dim=1)
        heat_loss = -(batch.heat.flatten(1) * heat).sum(dim=1).mean()
        things = self.things(model.see_images(batch.pictures[:, -1]))
        things_loss = F.binary_cross_entropy_with_logits(things, batch.things)
        motions_loss = self._motions_loss(batch, generator)
        weights = self.settings
        return {
            "loss": heat_loss + weights.things_weight * things_loss + weights.motions_weight * motions_loss,
            "heat_loss": heat_loss,
            "things_loss": things_loss,
            "motions_loss": motions_loss,
        }
