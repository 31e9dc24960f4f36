"""Load navigation data: episodes with worlds, and panoramas of random walks.

A batch depends only on epoch, index and settings, so that training can resume at any batch.
"""

from __future__ import annotations

import copy
import importlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from internvideo import distributed
from internvideo.data.loader import LoaderSettings, check_batches
from internvideo.data.vocabulary import Vocabulary
from internvideo.errors import RecipeError
from internvideo.tasks.navigation.world.batch import NavigationBatch, PanoramaBatch
from internvideo.tasks.navigation.world.habitat import Habitat
from internvideo.tasks.navigation.world.miniworld import MiniWorld
from internvideo.tasks.navigation.world.protocol import Episode, NavEnv
from internvideo.tasks.navigation.world.settings import PanoramaSettings, WorldSettings
from internvideo.tasks.navigation.world.walks import PanoramaSample, random_walk
from internvideo.tasks.navigation.world.world import World


def open_world(folder: Path, settings: WorldSettings, size: int, depth_size: int) -> NavEnv:
    """Open the world of a folder of episodes, with views of `size` and depth of `depth_size` pixels.

    Raises:
        RecipeError: `settings.opener` cannot be imported.
    """
    scenes = settings.scenes or folder
    if settings.kind == "embedded":
        return World(scenes, size, depth_size)
    if settings.kind == "miniworld":
        return MiniWorld(scenes, size, depth_size)
    module, colon, name = settings.opener.partition(":")
    try:
        opener = getattr(importlib.import_module(module), name) if module and colon else None
    except (ImportError, AttributeError) as error:
        raise RecipeError("data.world.opener", f"{settings.opener}: {error}", "MODULE:FUNCTION") from error
    if opener is None:
        raise RecipeError("data.world.opener", f"'{settings.opener}'", "MODULE:FUNCTION that opens a scene in habitat")
    return Habitat(opener)


class _Batches:
    """Sample indices of the batches of this process; the order of the `num_samples` samples changes every epoch."""

    def __init__(self, num_samples: int, loader: LoaderSettings) -> None:
        self.num_samples, self.loader = num_samples, loader
        self.rank, self.world_size, self.data_time = distributed.rank(), distributed.world_size(), 0.0

    def __len__(self) -> int:
        """Return the number of full batches of an epoch on this process."""
        return self.num_samples // (self.loader.batch_size * self.world_size)

    def indices(self, k: int, start: int) -> Iterator[list[int]]:
        """Yield the sample indices of batches `start`, `start + 1`, ... of epoch `k`."""
        order, size = np.arange(self.num_samples), self.loader.batch_size
        if self.loader.shuffle:
            seed = np.random.SeedSequence([self.loader.seed, k]).generate_state(4)
            order = np.random.RandomState(seed).permutation(self.num_samples)
        for index in range(start, len(self)):
            first = (index * self.world_size + self.rank) * size
            yield order[first : first + size].tolist()


class EpisodeLoader(_Batches):
    """Batches of episodes.

    Args:
        episodes, world: episodes and their world. Each episode of a batch gets a copy of the world; the copies share
            loaded houses.
        vocabulary: tokenizer. max_words: longer instructions are cut off. loader: batch size, seed, shuffling.
    """

    def __init__(
        self, episodes: Sequence[Episode], world: NavEnv, vocabulary: Vocabulary, max_words: int, loader: LoaderSettings
    ) -> None:
        super().__init__(len(episodes), loader)
        self.episodes, self.vocabulary, self.max_words = episodes, vocabulary, max_words
        self._worlds = tuple(copy.copy(world) for _ in range(loader.batch_size))

    def epoch(self, k: int, start: int = 0) -> Iterator[NavigationBatch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`."""
        for indices in self.indices(k, start):
            yield self.batch([self.episodes[index] for index in indices])

    def batch(self, episodes: Sequence[Episode]) -> NavigationBatch:
        """Make a batch of at most `batch_size` episodes."""
        tokens = self.vocabulary.batch([episode.instruction for episode in episodes], self.max_words)
        return NavigationBatch(tuple(episodes), self._worlds[: len(episodes)], tokens)


class PanoramaLoader(_Batches):
    """Batches of panoramas and clips from random walks through the embedded world, rendered once.

    Args:
        episodes: walks start where these episodes start, in this order. world: embedded world.
        settings: numbers of panoramas, of clips, and of panoramas per walk.
        num_frames, size: number and side in pixels of a clip's frames. loader: as in `EpisodeLoader`.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        world: World,
        settings: PanoramaSettings,
        num_frames: int,
        size: int,
        loader: LoaderSettings,
    ) -> None:
        super().__init__(settings.panoramas, loader)
        self.episodes, self.world, self.settings = episodes, world, settings
        self.num_frames, self.size = num_frames, size
        self._rendered: list[PanoramaSample] = []
        check_batches(len(self), loader, settings.panoramas, "panoramas (data.world.panoramas)")

    def epoch(self, k: int, start: int = 0) -> Iterator[PanoramaBatch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`."""
        began = time.perf_counter()
        self._render()
        self.data_time += time.perf_counter() - began
        for indices in self.indices(k, start):
            samples = (self._rendered[index] for index in indices)
            ids, depth, heat, rgb, clips, things, motions = zip(*samples, strict=True)
            yield PanoramaBatch(
                depth=torch.stack(depth),
                heat=torch.stack(heat),
                rgb=torch.stack(rgb),
                things=torch.stack(things),
                clips=torch.cat(clips),
                motions=torch.cat(motions),
                ids=ids,
            )

    def _render(self) -> None:
        settings, walk = self.settings, 0
        while len(self._rendered) < settings.panoramas:
            episode = self.episodes[walk % len(self.episodes)]
            num_panoramas = min(settings.walk, settings.panoramas - len(self._rendered))
            seed = self.loader.seed + walk
            self._rendered += random_walk(
                self.world, episode, num_panoramas, self.num_frames, settings.clips, self.size, seed
            )
            walk += 1
