"""Evidential training: the classifier's outputs are evidence for each class (DEAR).

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
        calibration: accuracy-versus-uncertainty loss (AvU), with "log" and "digamma"; disentangled: all terms inside
            the logarithm.
        annealing: rise of the weight of `kl` and `calibration` to 1 within `annealing_batches` batches: the published
            10 epochs for "step", from 0.01 over the whole run for "exp".
        debias: none, or DEAR's three branches: "maximized" raises the dependence (HSIC) of the branches; "alternated"
            lets the motion branch leave the other two, and these follow it.
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
    def _fits(self) -> Self:
        if self.calibration and self.loss not in ("log", "digamma"):
            raise ValueError(f"calibration goes with the losses log and digamma, not {self.loss}")
        if self.disentangled and not self.calibration:
            raise ValueError("disentangled belongs to calibration")
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
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # batches so far, kept on resume

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return "loss", its terms, mean "uncertainty", and mean totals "evidence_right" and "evidence_wrong"."""
        if batch.labels is None or batch.labels.is_floating_point():
            raise ValueError("the open-set stage needs labels that are one class of every clip")
        labels, settings = batch.labels, self.settings
        video = self.model.normalize(batch.video[:, :, :: settings.temporal_stride])
        logits, grid = (self.model(video), None) if self.debias is None else self.model.logits_and_grid(video)
        found = evidence(logits.float(), settings.evidence)
        parts = {name: value.mean() for name, value in evidential_loss(found, labels, settings.loss).items()}
        parts |= self._regularisers(found, labels)
        if self.debias is not None and grid is not None:
            parts |= self._debias(self.debias, grid, labels, generator)
        right, wrong = mean_evidence(found.detach(), labels)
        watched = {"uncertainty": opinion(found.detach())[1].mean(), "evidence_right": right, "evidence_wrong": wrong}
        return {"loss": torch.stack(list(parts.values())).sum(), **parts, **watched}

    def _regularisers(self, found: Tensor, labels: Tensor) -> dict[str, Tensor]:
        settings = self.settings
        if settings.annealing_batches is None:
            return {}
        batches = settings.annealing_batches
        weight = annealing(self.seen, batches, settings.annealing, step=batches).to(found.dtype)
        if self.training:
            self.seen += 1
        parts = {}
        if settings.regularized:
            parts["loss_kl"] = weight * wrong_evidence(found, labels).mean()
        if settings.calibration:
            parts["loss_avu"] = calibration(found, labels, weight, disentangled=settings.disentangled).mean()
        return parts

    def _debias(self, head: DebiasHead, grid: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        branches, settings = head(grid, generator), self.settings
        learned = [
            evidential_loss(evidence(branch.logits.float(), settings.evidence), labels, "log")["loss_cls"].mean()
            for branch in branches.values()
        ]
        motion = branches["motion"].features.float()
        others = [branches[name].features.float() for name in ("shuffled", "still")]
        if settings.debias == "maximized":
            dependence = -torch.stack([hsic(motion, other) for other in others]).sum()
        else:  # both players are updated in one step, each with the other detached; the terms cancel in value
            leave = torch.stack([hsic(motion, other.detach()) for other in others]).sum()
            follow = torch.stack([hsic(motion.detach(), other) for other in others]).sum()
            dependence = leave - follow
        weight = settings.debias_weight
        return {"loss_debias": weight * torch.stack(learned).sum(), "loss_hsic": weight * dependence}
