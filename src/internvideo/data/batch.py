"""Batch: the one record that travels from the loader through a stage."""

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
