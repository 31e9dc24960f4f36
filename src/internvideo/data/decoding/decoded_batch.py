"""Batches of decoded frames with drawn augmentations, which are transformed on the device they are moved to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from internvideo.data.batch import Batch, Tensors
from internvideo.data.mixup import Mixup
from internvideo.data.transforms import DrawnTransform, TrainTransform


@dataclass(frozen=True)
class DrawnClip:
    """Shape (T, H, W) of the frames of a decoded clip, and an augmentation for each of its repeats."""

    shape: tuple[int, int, int]
    repeats: tuple[DrawnTransform, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the frames, (T, H, W, 3) uint8."""
        return 3 * math.prod(self.shape)


@dataclass(frozen=True)
class DrawnMix:
    """Mixup or CutMix of a batch, and the seeds (4,) uint32 of its random choices."""

    mixup: Mixup
    seeds: tuple[int, ...]

    def __call__(self, video: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix (B, 3, T, S, S) uint8 with labels (B,) int64; return uint8 and (B, C) float32 targets."""
        mixed, targets = self.mixup(video, labels, np.random.RandomState(self.seeds))
        return mixed.round_().to(torch.uint8), targets


@dataclass(frozen=True, kw_only=True)
class DecodedBatch(Tensors):
    """A batch before its augmentation: B clips of C decoded ones; `to` gives the `Batch`.

    Attributes:
        pixels: (N,) uint8, the frames of all decoded clips one after the other, as decoded.
        clips: C shapes and draws; the repeats of a decoded clip are successive clips of the batch.
        transform: applies the draws.
        padded: T of the batch if clips may have fewer frames; None if all have the same number.
        mix: mixing of the clips and labels after their augmentation, or None.
        ids, text_ids: as in `Batch`. labels: (B,) int64; with `mix`, `to` makes them (B, number of classes) float32.
    """

    pixels: Tensor
    clips: tuple[DrawnClip, ...]
    transform: TrainTransform
    padded: int | None
    ids: tuple[str, ...]
    labels: Tensor | None = None
    text_ids: Tensor | None = None
    mix: DrawnMix | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Batch:  # type: ignore[override]  # augmented, it is another kind of batch
        """Copy the frames to `device` (asynchronously from pinned memory) and augment them there."""
        pixels = self.pixels.to(device, non_blocking=True)
        frames = torch.split(pixels, [clip.num_bytes for clip in self.clips])
        size, length = self.transform.size, self.padded or self.clips[0].shape[0]
        allocate = torch.zeros if self.padded else torch.empty
        out = allocate((len(self), 3, length, size, size), dtype=torch.uint8, device=device)
        rows = iter(out)
        for clip, flat in zip(self.clips, frames, strict=True):
            for drawn in clip.repeats:
                self.transform.apply(flat.view(*clip.shape, 3), drawn, next(rows)[:, : clip.shape[0]])
        labels = self.labels
        if self.mix is not None and labels is not None:
            out, labels = self.mix(out, labels)
        lengths = [clip.shape[0] for clip in self.clips for _ in clip.repeats]
        mask = None if self.padded is None else torch.arange(self.padded)[None] < torch.tensor(lengths)[:, None]
        tensors = (labels, self.text_ids, mask)
        moved = (None if tensor is None else tensor.to(device, non_blocking=True) for tensor in tensors)
        return Batch(out, self.ids, *moved)


def concatenate_frames(clips: Sequence[Tensor], flat: Tensor) -> Tensor:
    """Copy the frames (T, H, W, 3) uint8 of several clips into `flat` (N,) uint8 and return it."""
    for clip, destination in zip(clips, torch.split(flat, [clip.numel() for clip in clips]), strict=True):
        destination.view(clip.shape).copy_(clip)
    return flat
