"""Build training jobs of navigation: the encoders on panoramas of random walks, the planner on episodes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import Field

from internvideo.data.loader import check_batches
from internvideo.data.settings import DataSettings
from internvideo.data.vocabulary import Vocabulary
from internvideo.errors import RecipeError
from internvideo.tasks.navigation.model import Navigator
from internvideo.tasks.navigation.stage import NavigationSettings, NavigationStage
from internvideo.tasks.navigation.waypoint_stage import WaypointSettings, WaypointStage
from internvideo.tasks.navigation.world.episodes import read_episodes
from internvideo.tasks.navigation.world.loader import EpisodeLoader, PanoramaLoader, open_world
from internvideo.tasks.navigation.world.protocol import Episode, NavEnv
from internvideo.tasks.navigation.world.settings import PanoramaSettings, WorldSettings
from internvideo.tasks.navigation.world.world import World
from internvideo.training.loop import BatchSource
from internvideo.training.model_setup import init_model, load_init_weights, setting_errors, training_path
from internvideo.training.recipe import Job, Recipe, StageSpec


class EpisodeData(DataSettings):
    """Data settings: episodes and their environment."""

    world: WorldSettings = Field(default_factory=WorldSettings)


class PanoramaData(EpisodeData):
    """Data settings: episodes, their environment, and panoramas of random walks."""

    world: PanoramaSettings = Field(default_factory=PanoramaSettings)


class _Inputs(NamedTuple):
    """Inputs of both stages; `context` is the metadata saved with the weights."""

    episodes: Sequence[Episode]
    model: Navigator
    vocabulary: Vocabulary
    world: NavEnv
    context: dict[str, Any]


def _load_inputs(recipe: Recipe) -> _Inputs:
    """Read the episodes of the split (by default `train`), open their environment, load the agent's initial weights."""
    data, path = recipe.data_as(EpisodeData), training_path(recipe)
    episodes = read_episodes(path, data.split or "train")
    model = init_model(recipe, 0, Navigator)
    planner = model.config.planner
    vocabulary = Vocabulary.from_texts((episode.instruction for episode in episodes), planner.vocab_size)
    world = open_recipe_world(data, model, path)
    load_init_weights(model, recipe)
    context = {"words": list(vocabulary.words), "most_words": min(data.world.words, planner.max_words)}
    return _Inputs(episodes, model, vocabulary, world, context)


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job that trains the planner. Raises RecipeError, ManifestError, WeightsError."""
    data, (episodes, model, vocabulary, world, context) = recipe.data_as(EpisodeData), _load_inputs(recipe)
    with setting_errors("settings"):
        stage = NavigationStage(model, recipe.settings_as(NavigationSettings))
    loader = EpisodeLoader(episodes, world, vocabulary, context["most_words"], data.loader)
    check_batches(len(loader), data.loader, len(episodes), f"episodes in {training_path(recipe)}")
    return Job(recipe, stage, cast(BatchSource, loader), (), hash_episodes(episodes), context)


def build_waypoints(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job that trains the encoders. Raises RecipeError, ManifestError, WeightsError."""
    data, (episodes, model, _, world, context) = recipe.data_as(PanoramaData), _load_inputs(recipe)
    with setting_errors("settings"):
        stage = WaypointStage(model, recipe.settings_as(WaypointSettings))
    if not isinstance(world, World):
        raise RecipeError("data.world.kind", data.world.kind, "embedded, for the stage waypoints")
    frames, size = model.config.video.frames, model.config.image.image_size
    loader = PanoramaLoader(episodes, world, data.world, frames, size, data.loader)
    return Job(recipe, stage, cast(BatchSource, loader), (), hash_episodes(episodes), context)


def open_recipe_world(data: EpisodeData, model: Navigator, path: Path) -> NavEnv:
    """Open the world of a recipe, which renders views of the sizes that the agent takes."""
    return open_world(path, data.world, model.config.image.image_size, model.config.depth_size)


def hash_episodes(episodes: Sequence[Episode]) -> str:
    """Hash the content of episodes: 16 hexadecimal digits."""
    content = [
        (row.id, row.scene, row.split, row.start, row.goal, row.radius, row.instruction, row.path.round(4).tolist())
        for row in episodes
    ]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


WAYPOINTS = StageSpec(
    name="waypoints",
    about="train an agent's encoders: free directions, landmarks and motion in panoramas (embedded world)",
    settings=WaypointSettings,
    data=PanoramaData,
    stage=WaypointStage,
    models=(Navigator,),
    build=build_waypoints,
)
STAGE = StageSpec(
    name="navigation",
    about="follow instructions through houses, by imitation with scheduled sampling (VLN-CE)",
    settings=NavigationSettings,
    data=EpisodeData,
    stage=NavigationStage,
    models=(Navigator,),
    build=build,
)
