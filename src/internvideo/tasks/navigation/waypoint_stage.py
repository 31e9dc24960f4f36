"""Train an agent's perception jointly in the embedded world: waypoints, depth, object kinds, motions.

The published agent has a waypoint predictor trained on a navigation graph, a depth encoder from PointGoal navigation,
and image and video encoders pretrained on web data (Visual-Language-Navigation). The embedded world has targets for all
four, so they are trained together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from internvideo.data.settings import Settings
from internvideo.tasks.navigation.model import Navigator
from internvideo.tasks.navigation.world.batch import PanoramaBatch
from internvideo.training.recipe import Stage


class WaypointSettings(Settings):
    """Numbers of targets and weights of the loss terms."""

    things: int = Field(40, ge=1, description="number of object kinds that the image tower learns to predict")
    motions: int = Field(3, ge=1, description="number of motions that the video encoder learns to predict")
    things_weight: float = Field(10.0, gt=0.0, description="weight of the loss of object kinds")
    motions_weight: float = Field(10.0, gt=0.0, description="weight of the loss of motions")


class WaypointStage(Stage[Navigator, WaypointSettings]):
    """Cross-entropy of the heat map; binary cross-entropy of object kinds in images and of motions in clips."""

    def __init__(self, model: Navigator, settings: WaypointSettings) -> None:
        super().__init__(model, settings)
        self.things = nn.Linear(model.config.image.joint_width, settings.things)
        self.motions = nn.Linear(model.config.video.width, settings.motions)
        for module in (model.planner, model.rgb):
            module.requires_grad_(False)

    def forward(self, batch: PanoramaBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return "loss", "heat_loss", "things_loss" and "motions_loss"."""
        model = self.model
        log_heat = model.waypoints(model.depth(batch.depth)).flatten(1).log_softmax(dim=1)
        heat_loss = -(batch.heat.flatten(1) * log_heat).sum(dim=1).mean()
        things = self.things(model.image_features(batch.rgb.flatten(0, 1)))
        things_loss = F.binary_cross_entropy_with_logits(things, batch.things.flatten(0, 1))
        motions = self.motions(model.clip_features(batch.clips))
        motions_loss = F.binary_cross_entropy_with_logits(motions, batch.motions)
        weights = self.settings
        return {
            "loss": heat_loss + weights.things_weight * things_loss + weights.motions_weight * motions_loss,
            "heat_loss": heat_loss,
            "things_loss": things_loss,
            "motions_loss": motions_loss,
        }
