"""Load navigation data: episodes with worlds, and panoramas of random walks; a batch depends only on its index."""

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
    """Open the world of a folder of episodes. Raises RecipeError if it cannot be opened."""
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
    """Indices of the samples of each batch of this process: `count` samples, in a new order every epoch."""

    def __init__(self, count: int, loader: LoaderSettings) -> None:
        self.count, self.loader = count, loader
        self.rank, self.world_size, self.data_time = distributed.rank(), distributed.world_size(), 0.0

    def __len__(self) -> int:
        """Whole batches of an epoch on this process."""
        return self.count // (self.loader.batch_size * self.world_size)

    def indices(self, k: int, start: int) -> Iterator[list[int]]:
        """Yield the samples of batches `start`, `start + 1`, ... of epoch `k`."""
        order, size = np.arange(self.count), self.loader.batch_size
        if self.loader.shuffle:
            words = np.random.SeedSequence([self.loader.seed, k]).generate_state(4)
            order = np.random.RandomState(words).permutation(self.count)
        for number in range(start, len(self)):
            first = (number * self.world_size + self.rank) * size
            yield order[first : first + size].tolist()


class EpisodeLoader(_Batches):
    """Batches of episodes.

    Args:
        episodes, world: episodes and their world; every agent of a batch gets a copy that shares the houses.
        words: tokenizer. most_words: largest number of words. loader: batch size, seed, shuffling.
    """

    def __init__(
        self, episodes: Sequence[Episode], world: NavEnv, words: Vocabulary, most_words: int, loader: LoaderSettings
    ) -> None:
        super().__init__(len(episodes), loader)
        self.episodes, self.words, self.most_words = episodes, words, most_words
        self._worlds = tuple(copy.copy(world) for _ in range(loader.batch_size))

    def epoch(self, k: int, start: int = 0) -> Iterator[NavigationBatch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`."""
        for indices in self.indices(k, start):
            yield self.batch([self.episodes[index] for index in indices])

    def batch(self, episodes: Sequence[Episode]) -> NavigationBatch:
        """Make a batch of at most `batch_size` episodes."""
        tokens = self.words.batch([episode.instruction for episode in episodes], self.most_words)
        return NavigationBatch(tuple(episodes), self._worlds[: len(episodes)], tokens)


class PanoramaLoader(_Batches):
    """Batches of panoramas and clips from random walks through the embedded world, rendered once.

    Args:
        episodes: starts of the walks, in turn. world: embedded world. settings: numbers of panoramas and walk lengths.
        frames, size: number and side of a clip's frames. loader: as in `EpisodeLoader`.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        world: World,
        settings: PanoramaSettings,
        frames: int,
        size: int,
        loader: LoaderSettings,
    ) -> None:
        super().__init__(settings.panoramas, loader)
        self.episodes, self.world, self.settings = episodes, world, settings
        self.frames, self.size = frames, size
        self._rendered: list[PanoramaSample] = []
        check_batches(len(self), loader, settings.panoramas, "panoramas (data.world.panoramas)")

    def epoch(self, k: int, start: int = 0) -> Iterator[PanoramaBatch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`."""
        began = time.perf_counter()
        self._render()
        self.data_time += time.perf_counter() - began
        for indices in self.indices(k, start):
            samples = (self._rendered[index] for index in indices)
            ids, depth, heat, pictures, clips, things, motions = zip(*samples, strict=True)
            yield PanoramaBatch(
                depth=torch.stack(depth),
                heat=torch.stack(heat),
                pictures=torch.stack(pictures),
                things=torch.stack(things),
                clips=torch.cat(clips),
                motions=torch.cat(motions),
                ids=ids,
            )

    def _render(self) -> None:
        settings, number = self.settings, 0
        while len(self._rendered) < settings.panoramas:
            episode = self.episodes[number % len(self.episodes)]
            count = min(settings.walk, settings.panoramas - len(self._rendered))
            seed = self.loader.seed + number
            self._rendered += random_walk(self.world, episode, count, self.frames, settings.clips, self.size, seed)
            number += 1
