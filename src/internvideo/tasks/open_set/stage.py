"""Evidential learning: the classifier's outputs are evidence for each class (DEAR).

The paper uses only the "log" loss with "exp" evidence; the other options are DEAR's.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.data.settings import Settings
from internvideo.models.encoder import ClipClassifier
from internvideo.objectives.evidential import (
    Evidence,
    Kind,
    annealing,
    calibration,
    evidence,
    evidential_loss,
    hsic,
    mean_evidence,
    opinion,
    wrong_evidence,
)
from internvideo.tasks.open_set.model import DebiasHead
from internvideo.training.recipe import Stage


class OpenSetSettings(Settings):
    """Settings of the losses.

    Attributes:
        evidence: function from logits to evidence. loss: classification loss; "cross_entropy" always includes `kl`.
        kl: penalize evidence for wrong classes.
        calibration: accuracy-versus-uncertainty loss (AvU), only with "log" and "digamma".
        disentangled: variant of `calibration` with all its terms inside the logarithm.
        annealing: schedule of the weight of `kl` and `calibration`, which rises to 1 within `annealing_batches`
            batches: "step" (published: over 10 epochs) or "exp" (published: from 0.01 over the whole run).
        debias: "none", or DEAR's three branches: "maximized" increases the dependence (HSIC) of the branches;
            "alternated" decreases that of the motion branch, and increases that of the other two branches.
        debias_weight: weight of the branches' losses.
        temporal_stride: the model gets every n-th frame of the batch's clip.
    """

    evidence: Evidence = "exp"
    loss: Kind = "log"
    kl: bool = False
    calibration: bool = False
    disentangled: bool = False
    annealing: Literal["step", "exp"] = "exp"
    annealing_batches: int | None = Field(None, ge=1)
    debias: Literal["none", "maximized", "alternated"] = "none"
    debias_weight: float = Field(0.1, gt=0.0)
    temporal_stride: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.calibration and self.loss not in ("log", "digamma"):
            raise ValueError(f"calibration needs loss log or digamma, found {self.loss}")
        if self.disentangled and not self.calibration:
            raise ValueError("disentangled is a variant of calibration: set calibration too")
        if (self.regularized or self.calibration) and self.annealing_batches is None:
            raise ValueError("annealing_batches is missing: batches until kl and calibration have full weight")
        return self

    @property
    def regularized(self) -> bool:
        """Whether evidence for wrong classes is penalized."""
        return self.kl or self.loss == "cross_entropy"


class OpenSetStage(Stage[ClipClassifier, OpenSetSettings]):
    """Evidential loss of a classifier on a batch of labeled clips."""

    seen: Tensor

    def __init__(self, model: ClipClassifier, settings: OpenSetSettings) -> None:
        super().__init__(model, settings)
        layer = model.head_layer
        self.debias = None if settings.debias == "none" else DebiasHead(layer.in_features, layer.out_features)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # number of batches so far, in checkpoints

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute "loss", its terms, mean "uncertainty", and mean evidence of correct and wrong predictions."""
        if batch.labels is None or batch.labels.is_floating_point():
            raise ValueError("the open-set stage needs class indices as labels, not soft targets")
        labels, settings = batch.labels, self.settings
        video = self.model.normalize(batch.video[:, :, :: settings.temporal_stride])
        logits, grid = (self.model(video), None) if self.debias is None else self.model.logits_and_grid(video)
        class_evidence = evidence(logits.float(), settings.evidence)
        losses = {name: value.mean() for name, value in evidential_loss(class_evidence, labels, settings.loss).items()}
        losses |= self._regularizers(class_evidence, labels)
        if self.debias is not None and grid is not None:
            losses |= self._debias(self.debias, grid, labels, generator)
        evidence_right, evidence_wrong = mean_evidence(class_evidence.detach(), labels)
        logged = {
            "uncertainty": opinion(class_evidence.detach())[1].mean(),
            "evidence_right": evidence_right,
            "evidence_wrong": evidence_wrong,
        }
        return {"loss": torch.stack(list(losses.values())).sum(), **losses, **logged}

    def _regularizers(self, class_evidence: Tensor, labels: Tensor) -> dict[str, Tensor]:
        settings = self.settings
        if settings.annealing_batches is None:
            return {}
        batches = settings.annealing_batches
        weight = annealing(self.seen, batches, settings.annealing, step=batches).to(class_evidence.dtype)
        if self.training:
            self.seen += 1
        losses = {}
        if settings.regularized:
            losses["loss_kl"] = weight * wrong_evidence(class_evidence, labels).mean()
        if settings.calibration:
            losses["loss_avu"] = calibration(class_evidence, labels, weight, disentangled=settings.disentangled).mean()
        return losses

    def _debias(self, head: DebiasHead, grid: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        branches, settings = head(grid, generator), self.settings
        branch_losses = [
            evidential_loss(evidence(branch.logits.float(), settings.evidence), labels, "log")["loss_cls"].mean()
            for branch in branches.values()
        ]
        motion = branches["motion"].features.float()
        others = [branches[name].features.float() for name in ("shuffled", "still")]
        if settings.debias == "maximized":
            dependence = -torch.stack([hsic(motion, other) for other in others]).sum()
        else:  # the published code alternates both updates; here one step has both, and the values of the terms cancel
            leave_term = torch.stack([hsic(motion, other.detach()) for other in others]).sum()
            follow_term = torch.stack([hsic(motion.detach(), other) for other in others]).sum()
            dependence = leave_term - follow_term
        weight = settings.debias_weight
        return {"loss_debias": weight * torch.stack(branch_losses).sum(), "loss_hsic": weight * dependence}
