"""Batches of navigation: episodes with their worlds, and panoramas with perception targets.

Shapes: B batch, C clips, T frames of a direction, 12 views, S side, L words; waypoints: 120 angles, 12 distances.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from internvideo.data.batch import Tensors
from internvideo.tasks.navigation.world.protocol import Episode, NavEnv


@dataclass(frozen=True)
class NavigationBatch(Tensors):
    """B episodes, each with its own world, which stays on the CPU.

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


@dataclass(frozen=True)
class PanoramaBatch(Tensors):
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
