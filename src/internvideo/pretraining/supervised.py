"""Stage 3: supervised post-pretraining of each encoder on action labels.

Source: paper 3.2; run_class_finetuning.py, UniFormerV2 configs. Mixup and cutmix are applied by the loader
(data/mixup.py), whose batches then have soft targets (B, C) in place of class indices.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.data.manifest import Manifest
from internvideo.data.mixture import MixedLoader
from internvideo.data.settings import LabeledClipData, Settings
from internvideo.models.encoder import ClipClassifier
from internvideo.objectives.classification import cross_entropy
from internvideo.training.clip_job import clip_job, clip_loader
from internvideo.training.loop import BatchSource
from internvideo.training.model_setup import setting_errors
from internvideo.training.recipe import Job, Recipe, Stage, StageSpec


class SupervisedSettings(Settings):
    """Label smoothing and temporal stride."""

    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="of class indices; the soft targets of mixup and cutmix are smoothed already"
    )
    temporal_stride: int = Field(1, ge=1, description="the model gets every n-th frame of the batch's clip")


class SupervisedStage(Stage[ClipClassifier, SupervisedSettings]):
    """Cross entropy of a classifier on a batch of labeled clips."""

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute {"loss"}, the mean cross entropy; labels are (B,) class indices or (B, C) soft targets."""
        if batch.labels is None:
            raise ValueError("the supervised stage needs labels")
        video = batch.video[:, :, :: self.settings.temporal_stride]
        logits = self.model(self.model.normalize(video))
        smoothing = 0.0 if batch.labels.is_floating_point() else self.settings.label_smoothing
        return {"loss": cross_entropy(logits, batch.labels, smoothing=smoothing, divisor=self.divisor)}


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe, with mixup and cutmix if it sets them. Raises as `clip_job`."""
    settings, data = recipe.settings_as(SupervisedSettings), recipe.data_as(LabeledClipData)

    def loader(manifest: Manifest, _: nn.Module) -> BatchSource:
        clips = clip_loader(recipe, manifest, skipped)
        with setting_errors("data.augment"):
            mixup = data.augment.mix(len(manifest.classes))
        return clips if mixup is None else MixedLoader(clips, mixup, seed=data.loader.seed)

    return clip_job(
        recipe, skipped, lambda model: SupervisedStage(model, settings, divisor=distributed.divisor), make_loader=loader
    )


STAGE = StageSpec(
    name="supervised",
    about="learn action labels, one encoder at a time",
    settings=SupervisedSettings,
    data=LabeledClipData,
    stage=SupervisedStage,
    models=(ClipClassifier,),
    build=build,
    classifier_paths=("",),
)
