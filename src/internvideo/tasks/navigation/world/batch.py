"""Batches of navigation: episodes with their worlds, and panoramas with perception targets.

Shapes: B batch, C clips, T frames of a direction, 12 views, S side, L words; waypoints: 120 angles, 12 distances.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from internvideo.tasks.navigation.world.protocol import Episode, NavEnv


@dataclass(frozen=True)
class NavigationBatch:
    """B episodes, each with its own world.

    Attributes:
        episodes, worlds: B of each.
        tokens: (B, L) int64 words of the instructions, the start word first, padded with 0.
    """

    episodes: tuple[Episode, ...]
    worlds: tuple[NavEnv, ...]
    tokens: Tensor

    @property
    def ids(self) -> tuple[str, ...]:
        """B ids."""
        return tuple(episode.id for episode in self.episodes)

    def __len__(self) -> int:
        return len(self.episodes)

    def to(self, device: torch.device) -> NavigationBatch:
        """Copy the tokens to `device`; worlds stay on the CPU."""
        return replace(self, tokens=self.tokens.to(device, non_blocking=True))

    def pin_memory(self) -> NavigationBatch:
        """Return a copy with page-locked tokens."""
        return replace(self, tokens=self.tokens.pin_memory())


@dataclass(frozen=True)
class PanoramaBatch:
    """B panoramas and C clips of some of their directions at the ends of short walks, with targets.

    Attributes:
        depth: (B, 12, S', S') float32 in 0..1. heat: (B, 120, 12) float32, target heat maps of waypoints, each sum 1.
        pictures: (B, 12, S, S, 3) uint8. things: (B, 12, K) float32, multi-hot kinds of centered objects.
        clips: (C, T, S, S, 3) uint8 of one direction, newest frame last.
        motions: (C, M) float32, multi-hot motions of the objects centered in the newest frame.
        ids: B names.
    """

    depth: Tensor
    heat: Tensor
    pictures: Tensor
    things: Tensor
    clips: Tensor
    motions: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> PanoramaBatch:
        """Copy the tensors to `device`."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS})

    def pin_memory(self) -> PanoramaBatch:
        """Page-locked copy."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _TENSORS})


_TENSORS = ("depth", "heat", "pictures", "things", "clips", "motions")
