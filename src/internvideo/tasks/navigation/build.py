"""Jobs that learn in worlds to walk in: eyes from panoramas of random walks, the planner from episodes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from internvideo.data.loader import check_batches
from internvideo.data.vocabulary import Vocabulary
from internvideo.errors import RecipeError
from internvideo.recipe import STAGES, Recipe
from internvideo.tasks.navigation.model import Navigator
from internvideo.tasks.navigation.world.episodes import read_episodes
from internvideo.tasks.navigation.world.loader import EpisodeLoader, PanoramaLoader, open_world
from internvideo.tasks.navigation.world.protocol import Episode, NavEnv
from internvideo.tasks.navigation.world.world import World
from internvideo.training.build import Job, draw_model, setting, start_model, training_path
from internvideo.training.loop import BatchSource


def prepare(recipe: Recipe, *, skipped: Path | None) -> Job:
    """Episodes of the split (`train` by default), their world, agent and stage.

    Raises:
        RecipeError, ManifestError, WeightsError: what does not fit together or cannot be read.
    """
    data, path = recipe.data, training_path(recipe)
    episodes = read_episodes(path, data.split or "train")
    model = draw_model(recipe, 0)
    if not isinstance(model, Navigator):
        raise TypeError(f"the stage {recipe.stage} trains a {type(model).__name__}")
    planner = model.config.planner
    words = Vocabulary.from_texts((episode.instruction for episode in episodes), planner.vocabulary)
    world = open_for(recipe, model, path)
    start_model(model, recipe)
    with setting("settings"):
        stage = STAGES[recipe.stage].stage(model, recipe.settings)
    if recipe.stage == "waypoints":
        if not isinstance(world, World):
            raise RecipeError("data.world.kind", data.world.kind, "embedded, for the stage waypoints")
        frames = model.config.video.frames
        loader: object = PanoramaLoader(
            episodes,
            world,
            data.world,
            frames,
            model.config.image.image_size,
            data.loader,
        )
    else:
        most = min(data.world.words, planner.words)
        loader = EpisodeLoader(episodes, world, words, most, data.loader)
        check_batches(len(loader), data.loader, len(episodes), f"episodes in {path}")
    context = {"words": list(words.words), "most_words": min(data.world.words, planner.words)}
    return Job(recipe, stage, cast(BatchSource, loader), (), fingerprint(episodes), context)


def open_for(recipe: Recipe, model: Navigator, path: Path) -> NavEnv:
    """The recipe's world, seen in the sizes that the agent takes."""
    return open_world(path, recipe.data.world, model.config.image.image_size, model.config.depth_size)


def fingerprint(episodes: Sequence[Episode]) -> str:
    """16 hex digits of everything that episodes say."""
    told = [
        (one.id, one.scene, one.split, one.start, one.goal, one.radius, one.instruction, one.path.round(4).tolist())
        for one in episodes
    ]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]
