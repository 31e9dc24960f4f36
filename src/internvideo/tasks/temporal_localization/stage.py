"""Training of the temporal detector on feature sequences (ActionFormer)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from internvideo.data.batch import FeatureBatch
from internvideo.data.settings import Settings
from internvideo.objectives.detection import detection_loss, point_targets
from internvideo.pretraining.gradient_cache import Gather, identity_gather
from internvideo.tasks.temporal_localization.model import ActionFormer
from internvideo.tasks.temporal_localization.nms import SuppressionSettings
from internvideo.tasks.temporal_localization.segment_decoding import DecodingSettings
from internvideo.training.recipe import Stage


class LocalizationSettings(Settings):
    """Settings of the losses and of decoding (ActionFormer's configs)."""

    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    loss_weight: float = Field(
        1.0, description="weight of the offset loss; 0 or less: as large as the classification loss"
    )
    initial_norm: float = Field(100.0, gt=0.0, description="initial value of the running mean of positive points")
    center_sample_radius: float = Field(
        1.5, gt=0.0, description="distance from a segment's center within which points are positive, in strides"
    )
    sigma: float = Field(0.5, gt=0.0, description="testing: sigma of Gaussian soft-NMS")
    voting: float = Field(
        0.0, ge=0.0, le=1.0, description="testing: smallest tIoU of the segments in segment voting; 0: no voting"
    )
    voting_weight: Literal["score", "score_x_overlap"] = Field("score", description="testing: weights of the voting")
    max_segments: int = Field(200, ge=1, description="testing: largest number of segments per video")
    min_score: float = Field(0.001, ge=0.0, lt=1.0, description="testing: smallest score of a segment")
    min_length: float = Field(0.05, ge=0.0, description="testing: smallest length of a segment, in feature steps")
    tiou_thresholds: tuple[float, ...] = Field(
        (0.3, 0.4, 0.5, 0.6, 0.7), min_length=1, description="testing: tIoU thresholds of the mAP"
    )
    recall_protocol: Literal["classes", "moments"] = Field(
        "classes", description="testing: recall as ActivityNet's mean over classes, or as Ego4D's moment queries"
    )

    def decoding(self, *, num_classes: int) -> DecodingSettings:
        """Return the settings of `detect`; NMS is per class for several classes."""
        nms_settings = self.model_dump(include={"sigma", "min_score", "max_segments", "voting", "voting_weight"})
        suppression = SuppressionSettings(**nms_settings, per_class=num_classes > 1)
        return DecodingSettings(min_score=self.min_score, min_length=self.min_length, suppression=suppression)


class LocalizationStage(Stage[ActionFormer, LocalizationSettings]):
    """Focal and DIoU loss of ActionFormer, normalized by a running mean of the positive points of all processes."""

    normaliser: Tensor

    def __init__(self, model: ActionFormer, settings: LocalizationSettings, gather: Gather = identity_gather) -> None:
        super().__init__(model, settings)
        self.gather = gather
        self.register_buffer("normaliser", torch.tensor(settings.initial_norm))

    def targets(self, batch: FeatureBatch) -> tuple[Tensor, Tensor]:
        """Compute the target classes (B, P, K) and distances (B, P, 2) of the points of all levels."""
        points = torch.cat(self.model.points(batch.features.shape[-1], batch.features.device))
        settings, classes = self.settings, self.model.config.num_classes
        targets = [
            point_targets(points, segments, labels, classes, radius=settings.center_sample_radius)
            for segments, labels in zip(batch.segments, batch.labels, strict=True)
        ]
        return torch.stack([classes for classes, _ in targets]), torch.stack([distances for _, distances in targets])

    def forward(self, batch: FeatureBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute {"loss", "class_loss", "offset_loss"}."""
        targets, distances = self.targets(batch)
        detection = self.model(batch.features, batch.mask)
        valid = torch.cat(detection.masks, dim=1)
        with torch.no_grad():
            positive = self.gather(((targets.sum(dim=-1) > 0) & valid).sum().reshape(1))
            if self.training:
                self.normaliser.mul_(0.9).add_(0.1 * positive.sum().clamp(min=1))
        return detection_loss(
            torch.cat(detection.logits, dim=1),
            torch.cat(detection.offsets, dim=1),
            valid,
            targets,
            distances,
            normalizer=self.normaliser / len(positive),
            smoothing=self.settings.label_smoothing,
            weight=self.settings.loss_weight,
        )
