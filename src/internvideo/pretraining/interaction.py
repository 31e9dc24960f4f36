"""Stage 4: cross-model interaction. Train the cross-model attention and the logit fusion of two frozen encoders.

Source: paper 3.3 and 4.2.3.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.data.settings import ClipData, Settings
from internvideo.models.cross_model import CrossModel
from internvideo.objectives.classification import Divisor, at_least_one, cross_entropy
from internvideo.training.clip_job import clip_job
from internvideo.training.recipe import Job, Recipe, Stage, StageSpec


class InteractionSettings(Settings):
    """Temporal stride of the multimodal encoder, and label smoothing.

    Attributes:
        temporal_stride: the multimodal encoder gets every n-th frame of the masked encoder's clip.
        label_smoothing: of the class labels.
    """

    temporal_stride: int = Field(2, ge=1)
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)


class InteractionStage(Stage[CrossModel, InteractionSettings]):
    """Cross entropy of the fused logits; only `CrossModel.trainable_names` are trained: cross-model attention, score
    fusion, classification heads and query token."""

    def __init__(self, model: CrossModel, settings: InteractionSettings, divisor: Divisor = at_least_one) -> None:
        super().__init__(model, settings, divisor)
        model.freeze()

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute {"loss", gates and fusion weights by name}; both encoders get frames of the same augmented clip."""
        if batch.labels is None:
            raise ValueError("the interaction stage needs labels")
        masked_input = self.model.masked.normalize(batch.video)
        multimodal_input = self.model.multimodal.normalize(batch.video[:, :, :: self.settings.temporal_stride])
        logits = self.model(masked_input, multimodal_input)
        loss = cross_entropy(logits.fused, batch.labels, self.settings.label_smoothing, self.divisor)
        return {"loss": loss, **self.model.gates()}


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe. Raises as `clip_job`."""
    settings = recipe.settings_as(InteractionSettings)
    return clip_job(recipe, skipped, lambda model: InteractionStage(model, settings, distributed.divisor))


STAGE = StageSpec(
    name="interaction",
    about="cross-model attention between the two frozen encoders, learned fusion of their logits",
    settings=InteractionSettings,
    data=ClipData,
    stage=InteractionStage,
    models=(CrossModel,),
    build=build,
    classifier_paths=("masked", "multimodal"),
)
