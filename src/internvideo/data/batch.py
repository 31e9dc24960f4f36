"""Batches that a loader gives to a stage: clips (also with boxes or hand positions), or feature sequences (also with
proposals or queries)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tensors:
    """Base of batches: `to` and `pin_memory` convert the fields that are tensors or tuples of tensors."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy in which `change` was applied to every tensor."""

        def convert(value: object) -> object:
            if isinstance(value, tuple):
                return tuple(convert(part) for part in value)
            return change(value) if isinstance(value, Tensor) else value

        return replace(self, **{field.name: convert(getattr(self, field.name)) for field in fields(self)})

    def to(self, device: torch.device) -> Self:
        """Copy the tensors to `device` (asynchronously from pinned memory)."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Return a page-locked copy (called by the data loader when it pins)."""
        return self.each(Tensor.pin_memory)


@dataclass(frozen=True)
class Batch(Tensors):
    """B clips with their annotations.

    Attributes:
        video: (B, 3, T, S, S) RGB in 0..255, not normalized (the model normalizes); uint8, or float32 in evaluation
            with the resize backend "torch".
        ids: B sample ids; with repeated augmentation, one id several times in succession.
        labels: (B,) int64 class indices, -100 where a sample has none; after mixup or CutMix (B, C) float32 soft
            targets. None when no sample of the data set has a label.
        text_ids: (B, L) int64 token ids padded with 0; None without a tokenizer or with caption "none".
        frame_mask: (B, T) bool, True where a frame is real; the others are black. None if the sampler always gives T
            frames.
    """

    video: Tensor
    ids: tuple[str, ...]
    labels: Tensor | None = None
    text_ids: Tensor | None = None
    frame_mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class RegionBatch(Batch):
    """B clips around key frames, (B, 3, T, H, W), and the R boxes of persons in all of them.

    Attributes:
        clip_index: (R,) int64, clip of each box. boxes: (R, 4) float32, corners in pixels of the clip.
        targets: (R, C) float32, 1 for the actions of the person.
    """

    clip_index: Tensor
    boxes: Tensor
    targets: Tensor


@dataclass(frozen=True, kw_only=True)
class HandBatch(Batch):
    """B clips and the future positions of the person's hands.

    Attributes:
        positions: (B, 5, 2, 2) float32: key frame, hand (left, right), (x, y) in pixels of the whole frame.
        visible: (B, 5, 2) bool. size: (B, 2) float32, width and height of the whole frame.
    """

    positions: Tensor
    visible: Tensor
    size: Tensor


@dataclass(frozen=True)
class FeatureBatch(Tensors):
    """B sequences of features of untrimmed videos, padded at the end, and the actions in them.

    Attributes:
        features: (B, C, T) float32.
        mask: (B, T) bool, True where the sequence is.
        ids: B sample ids.
        segments: B tensors (G, 2), start and end in feature steps; the middle of feature g is g (in a `ProposalBatch`
            g + 0.5).
        labels: B tensors (G,) int64 class indices.
    """

    features: Tensor
    mask: Tensor
    ids: tuple[str, ...]
    segments: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class ProposalBatch(FeatureBatch):
    """B sequences of features with segments that another detector proposed.

    `segments` and `proposals` count steps from the beginning of the sequence: the middle of feature g is g + 0.5.
    `labels` are all 0, because refinement does not depend on the class.

    Attributes:
        proposals: B tensors (P, 2), start and end.
    """

    proposals: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class QueryBatch(FeatureBatch):
    """B sequences of features, each with a query; its answer is the one segment, or there is none.

    Attributes:
        words: (B, L) int64 numbers of the query's words, 0 behind them.
    """

    words: Tensor


class _Loader(Protocol):
    def __len__(self) -> int: ...

    @property
    def data_time(self) -> float: ...


L = TypeVar("L", bound=_Loader)


class WrappedLoader(Generic[L]):
    """Base of loaders that give other batches: forward length and data time of the wrapped loader."""

    def __init__(self, loader: L) -> None:
        self.loader = loader

    def __len__(self) -> int:
        """Number of batches per epoch on this process."""
        return len(self.loader)

    @property
    def data_time(self) -> float:
        """Seconds spent waiting for batches so far."""
        return self.loader.data_time
