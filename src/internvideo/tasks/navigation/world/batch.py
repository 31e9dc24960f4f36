"""Batches of navigation: episodes with worlds to walk in, and panoramas with what an agent's eyes should see.

Shapes: B batch, C clips, T pictures of a direction, 12 views, S side, L words; waypoints: 120 angles, 12 distances.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from internvideo.tasks.navigation.world.protocol import Episode, NavEnv


@dataclass(frozen=True)
class NavigationBatch:
    """B episodes, each with a world of its own to walk in.

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
        """Copy the words to `device`; worlds stay where they are."""
        return replace(self, tokens=self.tokens.to(device, non_blocking=True))

    def pin_memory(self) -> NavigationBatch:
        """Page-locked copy of the words."""
        return replace(self, tokens=self.tokens.pin_memory())


@dataclass(frozen=True)
class PanoramaBatch:
    """B panoramas and C clips of some of their directions at the ends of short walks, and what is true of them.

    Attributes:
        depth: (B, 12, S', S') float32 in 0..1. heat: (B, 120, 12) float32, where one can walk to, summing to 1 each.
        pictures: (B, 12, S, S, 3) uint8. things: (B, 12, K) float32, 1 for each kind of thing in a picture's middle.
        clips: (C, T, S, S, 3) uint8, what was seen in one direction, the newest last.
        motions: (C, M) float32, 1 for each kind of motion in the middle of the newest picture.
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
