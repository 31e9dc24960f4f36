"""Evaluate a navigation agent: save predictions, compare its metrics with those of baselines, plot its paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from internvideo import distributed
from internvideo.data.loader import LoaderSettings
from internvideo.data.vocabulary import Vocabulary
from internvideo.distributed import choose_device
from internvideo.plots.style import write_plot
from internvideo.tasks.navigation import predict as navigation
from internvideo.tasks.navigation.build import EpisodeData, hash_episodes, open_recipe_world
from internvideo.tasks.navigation.model import Navigator
from internvideo.tasks.navigation.plots import FloorPlan, plot_floor_plans
from internvideo.tasks.navigation.stage import NavigationSettings
from internvideo.tasks.navigation.world.batch import NavigationBatch
from internvideo.tasks.navigation.world.episodes import read_episodes
from internvideo.tasks.navigation.world.loader import EpisodeLoader
from internvideo.tasks.navigation.world.protocol import Episode
from internvideo.tasks.navigation.world.world import World
from internvideo.tasks.table import Predictions, Result, check_overwrite, print_result, save_result
from internvideo.tasks.task import EvaluateOptions
from internvideo.training.trained import Trained

DEFAULT_SPLIT = "val_unseen"
NUM_PLOTTED = 6
"""Largest number of episodes in the plot."""

PLOTTED_AGENTS = (navigation.AGENT, "teacher")


def evaluate(trained: Trained, manifest: Path, output: Path, settings: EvaluateOptions, split: str | None) -> Result:
    """Write navigation.npz and .json and walks.svg; print the metrics of the agent and of the baselines.

    `manifest` is a folder of R2R-CE's files, `split` by default val_unseen.
    Raises RecipeError, ManifestError, RunError, WeightsError.
    """
    model, navigation_settings = cast(Navigator, trained.model), trained.recipe.settings_as(NavigationSettings)
    distributed.require_one_process("navigation")
    episodes = read_episodes(manifest, split or DEFAULT_SPLIT)
    world = open_recipe_world(trained.recipe.data_as(EpisodeData), model, manifest)
    vocabulary, batch_size = Vocabulary(trained.extra_metadata["words"]), settings.batch_size
    max_words = trained.extra_metadata["most_words"]
    loader = EpisodeLoader(episodes, world, vocabulary, max_words, LoaderSettings(batch_size=batch_size))

    def batches() -> Iterator[NavigationBatch]:
        for start in range(0, len(episodes), batch_size):
            yield loader.batch(episodes[start : start + batch_size])

    table = navigation.predict(
        model,
        batches,
        navigation_settings,
        choose_device(settings.device),
        split_sha256=hash_episodes(episodes),
        model_name=trained.recipe.model.name,
        source=str(manifest),
    )
    target = output / f"{navigation.NAME}.npz"
    check_overwrite(target, table.protocol)
    result = navigation.score(table)
    save_result(result, table.save(target).with_suffix(".json"))
    if isinstance(world, World):
        write_plot(output / "walks.svg", lambda: plot_walks(table, episodes, world))
    print_result(result)
    return result


def plot_walks(table: Predictions, episodes: Sequence[Episode], world: World) -> str:
    """Plot paths of the agent and the teacher on floor plans, for evenly spaced episodes of the split."""
    walks, names = navigation.read_walks(table), table["agents"].tolist()
    floor_plans = []
    for index in np.unique(np.linspace(0, len(episodes) - 1, NUM_PLOTTED).round().astype(int)):
        episode = episodes[int(index)]
        rows = np.flatnonzero(table["ids"] == episode.id)
        episode_walks = {names[table["agent"][row]]: walks[row][0] for row in rows}
        caption = f"stopped {episode_walks[navigation.AGENT].decision_distances[-1]:.1f} m from the goal"
        paths = {name: episode_walks[name].path for name in PLOTTED_AGENTS if name in episode_walks}
        floor_plans.append(FloorPlan(world.load_house(episode.scene).scene, episode, paths, caption))
    return plot_floor_plans(floor_plans)
