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
from internvideo.tasks.navigation.world.walks import Glance, glances
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


def worlds_of(world: NavEnv, count: int) -> tuple[NavEnv, ...]:
    """Make `count` worlds, one per agent, that share their houses."""
    return tuple(copy.copy(world) for _ in range(count))


class EpisodeLoader:
    """Batches of episodes.

    Args:
        episodes, world: episodes and their world. words: tokenizer. most_words: largest number of words.
        loader: batch size, seed, shuffling.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        world: NavEnv,
        words: Vocabulary,
        most_words: int,
        loader: LoaderSettings,
    ) -> None:
        self.episodes, self.words, self.most_words, self.loader = episodes, words, most_words, loader
        self.rank, self.world_size, self.data_time = distributed.rank(), distributed.world_size(), 0.0
        self._worlds = worlds_of(world, loader.batch_size)

    def __len__(self) -> int:
        """Whole batches of an epoch on this process."""
        return len(self.episodes) // (self.loader.batch_size * self.world_size)

    def epoch(self, k: int, start: int = 0) -> Iterator[NavigationBatch]:
        """Batches `start`, `start + 1`, ... of epoch `k`."""
        order = _order(len(self.episodes), self.loader, k)
        size = self.loader.batch_size
        for number in range(start, len(self)):
            first = (number * self.world_size + self.rank) * size
            yield self.batch([self.episodes[index] for index in order[first : first + size]])

    def batch(self, episodes: Sequence[Episode]) -> NavigationBatch:
        """Make a batch of at most `batch_size` episodes."""
        tokens = self.words.batch([episode.instruction for episode in episodes], self.most_words)
        return NavigationBatch(tuple(episodes), self._worlds[: len(episodes)], tokens)


class PanoramaLoader:
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
        self.episodes, self.world, self.settings, self.loader = episodes, world, settings, loader
        self.frames, self.size = frames, size
        self.rank, self.world_size, self.data_time = distributed.rank(), distributed.world_size(), 0.0
        self._drawn: list[Glance] = []
        check_batches(len(self), loader, settings.panoramas, "panoramas (data.world.panoramas)")

    def __len__(self) -> int:
        """Whole batches of an epoch on this process."""
        return self.settings.panoramas // (self.loader.batch_size * self.world_size)

    def epoch(self, k: int, start: int = 0) -> Iterator[PanoramaBatch]:
        """Batches `start`, `start + 1`, ... of epoch `k`."""
        began = time.perf_counter()
        drawn = self._draw()
        self.data_time += time.perf_counter() - began
        order = _order(len(drawn), self.loader, k)
        size = self.loader.batch_size
        for number in range(start, len(self)):
            first = (number * self.world_size + self.rank) * size
            chosen = [drawn[index] for index in order[first : first + size]]
            yield PanoramaBatch(
                depth=torch.stack([one.depth for one in chosen]),
                heat=torch.stack([one.heat for one in chosen]),
                pictures=torch.stack([one.pictures for one in chosen]),
                things=torch.stack([one.things for one in chosen]),
                clips=torch.cat([one.clips for one in chosen]),
                motions=torch.cat([one.motions for one in chosen]),
                ids=tuple(one.id for one in chosen),
            )

    def _draw(self) -> list[Glance]:
        settings, number = self.settings, 0
        while len(self._drawn) < settings.panoramas:
            episode = self.episodes[number % len(self.episodes)]
            count = min(settings.walk, settings.panoramas - len(self._drawn))
            seed = self.loader.seed + number
            self._drawn += glances(self.world, episode, count, self.frames, settings.clips, self.size, seed)
            number += 1
        return self._drawn


def _order(count: int, loader: LoaderSettings, epoch: int) -> list[int]:
    if not loader.shuffle:
        return list(range(count))
    words = np.random.SeedSequence([loader.seed, epoch]).generate_state(4)
    order: list[int] = np.random.RandomState(words).permutation(count).tolist()
    return order
