"""What travels from a loader through a stage: a batch of clips, with boxes or without, or of feature sequences."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B clips with what is known of them.

    Attributes:
        video: (B, 3, T, S, S) uint8; RGB, not normalised (the model normalises).
        ids: B sample ids; with repeated sampling one id stands several times in a row.
        labels: (B,) int64 class indices, -100 where a sample has none; None when no sample has one.
        tokens: (B, L) int64 text ids padded with 0; None when the loader was given no tokenizer.
    """

    video: Tensor
    ids: tuple[str, ...]
    labels: Tensor | None = None
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to `device` (asynchronously from pinned memory)."""
        if self.video.device == device:
            return self

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self, video=self.video.to(device, non_blocking=True), labels=move(self.labels), tokens=move(self.tokens)
        )

    def pin_memory(self) -> Batch:
        """Page-locked copy (called by the data loader when it pins)."""

        def pin(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.pin_memory()

        return replace(self, video=self.video.pin_memory(), labels=pin(self.labels), tokens=pin(self.tokens))


@dataclass(frozen=True, kw_only=True)
class RegionBatch(Batch):
    """B clips around key frames, (B, 3, T, H, W), and the R boxes of persons in all of them.

    Attributes:
        clip: (R,) int64, to which clip a box belongs. boxes: (R, 4) float32, corners in pixels of the clip.
        targets: (R, C) float32, 1 for what a person does.
    """

    clip: Tensor
    boxes: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> RegionBatch:
        """Copy the tensors to `device`."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in REGIONS}
        return replace(self, **moved)

    def pin_memory(self) -> RegionBatch:
        """Page-locked copy (called by the data loader when it pins)."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in REGIONS})


REGIONS = ("video", "clip", "boxes", "targets")


@dataclass(frozen=True)
class FeatureBatch:
    """B sequences of features of untrimmed videos, padded at the end, and the actions in them.

    Attributes:
        features: (B, C, T) float32.
        mask: (B, T) bool, True where the sequence is.
        ids: B sample ids.
        segments: B tensors (G, 2), start and end in feature steps.
        labels: B tensors (G,) int64 class indices.
    """

    features: Tensor
    mask: Tensor
    ids: tuple[str, ...]
    segments: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> FeatureBatch:
        """Copy the tensors to `device`."""
        return replace(
            self,
            features=self.features.to(device, non_blocking=True),
            mask=self.mask.to(device, non_blocking=True),
            segments=tuple(segment.to(device, non_blocking=True) for segment in self.segments),
            labels=tuple(label.to(device, non_blocking=True) for label in self.labels),
        )

    def pin_memory(self) -> FeatureBatch:
        """Page-locked copy (called by the data loader when it pins)."""
        return replace(
            self,
            features=self.features.pin_memory(),
            mask=self.mask.pin_memory(),
            segments=tuple(segment.pin_memory() for segment in self.segments),
            labels=tuple(label.pin_memory() for label in self.labels),
        )
