"""Training of the network that refines proposals: a cascade of boundary regressors (TCANet)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from internvideo.data.batch import ProposalBatch
from internvideo.data.settings import Settings
from internvideo.objectives.refinement import best_truths, refinement_loss
from internvideo.tasks.refinement.model import TCANet, encode_center, encode_ends
from internvideo.tasks.temporal_localization.nms import SuppressionSettings
from internvideo.training.recipe import Stage

LOSS_NAMES = ("loss", "ends_loss", "centre_loss", "quality_loss")


class RefinementSettings(Settings):
    """Settings of NMS and evaluation; those of training are in the model's config."""

    quality_power: float = Field(
        1.0,
        ge=0.0,
        description="testing: score = detector score * quality^quality_power; 0 keeps the detector's scores",
    )
    alpha: float = Field(
        0.4, gt=0.0, description="testing: soft-NMS multiplies the scores of overlapping segments by "
        "exp(-tIoU^power / alpha)"
    )  # fmt: skip
    power: float = Field(2.5, gt=0.0, description="testing: exponent of the tIoU in soft-NMS")
    max_segments: int = Field(101, ge=1, description="testing: largest number of segments per video")
    min_score: float = Field(0.0, ge=0.0, lt=1.0, description="testing: smallest score of a segment")
    tiou_thresholds: tuple[float, ...] = Field(
        (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
        min_length=1,
        description="testing: tIoU thresholds of the mAP",
    )

    def suppression(self, *, per_class: bool) -> SuppressionSettings:
        """Return the settings of `soft_nms`; class-agnostic segments are suppressed together."""
        nms_settings = self.model_dump(include={"power", "min_score", "max_segments"})
        return SuppressionSettings(**nms_settings, sigma=self.alpha, extent=0.0, per_class=per_class)


class RefinementStage(Stage[TCANet, RefinementSettings]):
    """Losses of ends, of center and length, and of quality, for each regressor of the cascade."""

    def forward(self, batch: ProposalBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute {"loss", "ends_loss", "centre_loss", "quality_loss"}, summed over the regressors.

        Raises:
            ValueError: no video of the batch has a proposal.
        """
        counts = [len(proposals) for proposals in batch.proposals]
        if not sum(counts):
            raise ValueError("no proposals in the batch")
        step = self.model.config.seconds_per_feature
        video = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(counts))
        video = video.to(batch.features.device, non_blocking=True)
        proposals = torch.cat(batch.proposals) * step
        outputs, _ = self.model(batch.features, video, proposals, batch.mask)
        total: dict[str, Tensor] = {}
        for regressor, threshold in zip(outputs, self.model.config.thresholds, strict=True):
            truths_and_tious = map(
                best_truths, regressor.proposals.split(counts), (truths * step for truths in batch.segments)
            )
            truth, tiou = map(torch.cat, zip(*truths_and_tious, strict=True))
            losses = refinement_loss(
                regressor.ends.float(),
                regressor.center.float(),
                regressor.quality.float(),
                encode_ends(regressor.proposals, truth),
                encode_center(regressor.proposals, truth),
                tiou,
                threshold,
                generator,
                self.divisor,
            )
            total = {name: total.get(name, 0.0) + losses[name] for name in LOSS_NAMES}
        return total
