"""A small agent, a small house and small batches of navigation for tests."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from processes import as_process

from internvideo.data.loader import LoaderSettings
from internvideo.data.vocabulary import Vocabulary
from internvideo.models.videomae import VideoMAEConfig
from internvideo.tasks.navigation.model import ImageConfig, Navigator, NavigatorConfig
from internvideo.tasks.navigation.planner import PlannerConfig
from internvideo.tasks.navigation.waypoints import WaypointConfig
from internvideo.tasks.navigation.world.batch import NavigationBatch, PanoramaBatch
from internvideo.tasks.navigation.world.house import HouseSettings, generate_house
from internvideo.tasks.navigation.world.loader import EpisodeLoader, PanoramaLoader
from internvideo.tasks.navigation.world.protocol import Episode, Pose
from internvideo.tasks.navigation.world.settings import PanoramaSettings
from internvideo.tasks.navigation.world.world import World

SIZE, FRAMES = 16, 4
PLANNER = PlannerConfig(
    rgb_width=8, depth_width=8, width=16, heads=2, hidden=16, text_layers=1, cross_layers=1, panorama_layers=1,
    vocab_size=20, max_words=12, max_steps=26, dropout=0.0, frozen_words=False, frozen_history=False,
)  # fmt: skip
CONFIG = NavigatorConfig(
    image=ImageConfig(kind="conv", image_size=SIZE, width=8, joint_width=8),
    video=VideoMAEConfig(image_size=SIZE, patch_size=8, frames=FRAMES, width=8, depth=1, heads=2),
    depth_size=SIZE,
    depth_channels=8,
    waypoints=WaypointConfig(depth_width=128, width=8, heads=2, dropout=0.0),
    planner=PLANNER,
    rgb_dropout=0.0,
)


def navigator() -> Navigator:
    torch.manual_seed(0)
    return Navigator(CONFIG)


@cache
def house_world() -> World:
    scene = generate_house("house", 1, HouseSettings(columns=2, rows=1, smallest=5.0, largest=5.5, landmarks=2))
    return World({"house": scene}, SIZE, SIZE)


@cache
def episodes(count: int) -> tuple[Episode, ...]:
    """Ways of some meters between free places."""
    world = house_world()
    width, depth = world.load_house("house").scene.size
    rng = np.random.default_rng(0)
    made: list[Episode] = []
    while len(made) < count:
        x, y, goal_x, goal_y = (rng.random(4) * (width, depth, width, depth)).tolist()
        ground = world.load_house("house").ground
        away = float(ground.distances(np.array([[x, y]]), (goal_x, goal_y))[0])
        if not 2.5 < away < 5:
            continue
        path = ground.path((x, y), (goal_x, goal_y))
        told = "Go to the red box." if len(made) % 2 else "Take the blue door, then wait."
        start = Pose(x, y, float(rng.uniform(-3, 3)))
        made.append(
            Episode(
                str(len(made)), "house", "train", start, (goal_x, goal_y), 3.0, told, str(len(made) // 2), path, away
            )
        )
    return tuple(made)


def episode_loader(count: int, batch_size: int) -> EpisodeLoader:
    rows = episodes(count)
    words = Vocabulary.from_texts((row.instruction for row in rows), PLANNER.vocab_size)
    return EpisodeLoader(rows, house_world(), words, PLANNER.max_words, LoaderSettings(batch_size=batch_size))


def episode_batch(count: int) -> NavigationBatch:
    return episode_loader(count, count).batch(episodes(count))


def panorama_loader(count: int, batch_size: int) -> PanoramaLoader:
    settings = PanoramaSettings(panoramas=count, walk=2)
    return PanoramaLoader(episodes(8), house_world(), settings, FRAMES, SIZE, LoaderSettings(batch_size=batch_size))


def panorama_batch(count: int) -> PanoramaBatch:
    with as_process(0, 1):  # all of it, whoever asks
        return next(panorama_loader(count, count).epoch(0))
