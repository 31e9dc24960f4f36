"""Batches of navigation: episodes with their worlds, and panoramas with perception targets.

Shapes: B batch, C clips, T frames of a view, 12 views, S and S' sides of color and depth, L words, K kinds of objects,
M motions; waypoints: 120 angle and 12 distance bins.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from internvideo.data.batch import Tensors
from internvideo.tasks.navigation.world.protocol import Episode, NavEnv


@dataclass(frozen=True)
class NavigationBatch(Tensors):
    """B episodes, each with a world object, which stays on the CPU.

    Attributes:
        episodes, worlds: tuples of length B.
        tokens: (B, L) int64 word ids of the instructions, the start word first, padded with 0.
    """

    episodes: tuple[Episode, ...]
    worlds: tuple[NavEnv, ...]
    tokens: Tensor

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the B episodes."""
        return tuple(episode.id for episode in self.episodes)

    def __len__(self) -> int:
        return len(self.episodes)


@dataclass(frozen=True)
class PanoramaBatch(Tensors):
    """B panoramas at steps of random walks, C clips of some of their views, and targets.

    Attributes:
        depth: (B, 12, S', S') float32, 0..1 for 0..10 m. heat: (B, 120, 12) float32, target heat maps, each sums to 1.
        rgb: (B, 12, S, S, 3) uint8. things: (B, 12, K) float32, multi-hot kinds of centered objects.
        clips: (C, T, S, S, 3) uint8, each of one view, newest frame last.
        motions: (C, M) float32, multi-hot motions of the objects centered in the newest frame.
        ids: B names.
    """

    depth: Tensor
    heat: Tensor
    rgb: Tensor
    things: Tensor
    clips: Tensor
    motions: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)
