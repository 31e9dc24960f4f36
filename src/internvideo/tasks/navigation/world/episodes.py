"""Read and write episodes in R2R-CE's format, of Matterport or of the embedded world.

Habitat's axes X right, Y up, Z backwards map to ours (protocol.py) as x = -Z, y = -X, height = Y. Our heading h (0
along habitat's -Z) is a rotation about Y: the quaternion (x, y, z, w) = (0, sin h/2, 0, cos h/2).
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from internvideo import untrusted
from internvideo.data.sample import Sample
from internvideo.datasets.navigation import SPLITS, read_r2r
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import ManifestError, RecipeError
from internvideo.storage import atomic_path, folder_lock
from internvideo.tasks.navigation.world.follower import FORWARD, ReferenceWalk, follow
from internvideo.tasks.navigation.world.house import HouseSettings, generate_house
from internvideo.tasks.navigation.world.instructions import generate_instruction, vocabulary
from internvideo.tasks.navigation.world.protocol import Episode, Pose, Position
from internvideo.tasks.navigation.world.scene import write_scene
from internvideo.tasks.navigation.world.trajectories import TrajectorySettings, sample_trajectory
from internvideo.tasks.navigation.world.world import House

NUM_TOKENS = 200
"""Number of tokens of every instruction in the files, padded with 0."""


def from_habitat(point: Sequence[float]) -> tuple[float, float, float]:
    """Convert habitat's (X, Y, Z) to (x, y, height)."""
    return (-float(point[2]), -float(point[0]), float(point[1]))


def to_habitat(position: Position) -> list[float]:
    """Convert (x, y) or (x, y, height) to habitat's [X, Y, Z]."""
    return [-position[1], position[2] if len(position) > 2 else 0.0, -position[0]]


def quaternion_to_heading(rotation: Sequence[float]) -> float:
    """Return the heading of a quaternion (x, y, z, w): the direction of its forward axis -Z."""
    x, y, z, w = (float(value) for value in rotation)
    forward_x, forward_z = -2 * (x * z + w * y), -(1 - 2 * (x * x + y * y))
    return math.atan2(-forward_x, -forward_z)


def heading_to_quaternion(heading: float) -> list[float]:
    """Return the quaternion (x, y, z, w) of a heading."""
    return [0.0, math.sin(heading / 2), 0.0, math.cos(heading / 2)]


def read_episodes(path: Path, split: str) -> tuple[Episode, ...]:
    """Read the episodes of a split from a folder of R2R-CE (`read_r2r`).

    The reference path is that of the _gt file if present, else the episode's own.

    Raises:
        ManifestError: files that are missing or malformed; a split without episodes.
    """
    rows = read_r2r(AnnotationSource(path)).splits.get(split, [])
    if not rows:
        raise ManifestError(path, f"no episodes of {split}", ", ".join(SPLITS))
    return tuple(_make_episode(row, split) for row in rows)


def _make_episode(row: Sample, split: str) -> Episode:
    attributes = {name: untrusted.parse_json(value) for name, value in row.attributes.items()}
    x, y, height = from_habitat(attributes["start_position"])
    path = [from_habitat(point) for point in attributes.get("locations", attributes.get("reference_path", []))]
    return Episode(
        id=row.id,
        scene=row.path,
        split=split,
        start=Pose(x, y, quaternion_to_heading(attributes["start_rotation"]), height),
        goal=from_habitat(attributes["goal"]) if "goal" in attributes else None,
        radius=attributes.get("radius", 3.0),
        instruction=row.captions[0],
        trajectory=row.group or row.id,
        path=np.array(path, dtype=np.float64).reshape(-1, 3),
        geodesic=attributes.get("distance"),
    )


@dataclass(frozen=True)
class NavigationSettings:
    """Settings of `write_world`.

    Attributes:
        scenes: number of houses; a quarter of them, at least one, are used only for val_unseen.
        episodes: number of training instructions. validation: number of instructions of val_seen and of val_unseen.
        paraphrases: number of instructions per trajectory. seed: of all random choices.
        house, trajectory: settings of houses and paths.
    """

    scenes: int = 20
    episodes: int = 1000
    validation: int = 300
    paraphrases: int = 3
    seed: int = 0
    house: HouseSettings = field(default_factory=HouseSettings)
    trajectory: TrajectorySettings = field(default_factory=TrajectorySettings)

    def __post_init__(self) -> None:
        minimums = {"scenes": 2, "episodes": 1, "validation": 1, "paraphrases": 1, "seed": 0}
        for name, minimum in minimums.items():
            if getattr(self, name) < minimum:
                raise RecipeError(name, str(getattr(self, name)), f"at least {minimum}")


def write_world(folder: Path, settings: NavigationSettings) -> dict[str, Path]:
    """Write houses as JSON and episodes in R2R-CE's format: train and val_seen share houses, val_unseen has others.

    Returns:
        The episodes file of each split. Equal settings give files of equal bytes.

    Raises:
        RunError: the folder cannot be written.
    """
    with folder_lock(folder):
        num_unseen = max(1, settings.scenes // 4)
        houses: dict[str, House] = {}
        for index in range(settings.scenes):
            name = f"scenes/house_{index:04d}.json"
            scene = generate_house(name, settings.seed * 100_003 + index, settings.house)
            write_scene(folder / name, scene)
            houses[name] = House(scene)
        names = list(houses)
        seen_names, unseen_names = names[: settings.scenes - num_unseen], names[settings.scenes - num_unseen :]
        splits = {
            "train": (seen_names, settings.episodes),
            "val_seen": (seen_names, settings.validation),
            "val_unseen": (unseen_names, settings.validation),
        }
        files: dict[str, Path] = {}
        first_id = 1
        for index, (split, (scene_names, num_episodes)) in enumerate(splits.items()):
            rng = np.random.default_rng([settings.seed, index, 0x657069])
            episodes, walks = generate_episodes(
                {name: houses[name] for name in scene_names}, split, num_episodes, settings, rng, first_id
            )
            files[split] = write_episodes(folder, split, episodes, walks)
            first_id += num_episodes
        return files


def generate_episodes(
    houses: Mapping[str, House], split: str, num_episodes: int, settings: NavigationSettings, rng: np.random.Generator,
    first_id: int = 1,
) -> tuple[list[Episode], dict[str, ReferenceWalk]]:  # fmt: skip
    """Generate `num_episodes` episodes and the ground-truth walks by episode id; ids count from `first_id`.

    Trajectories are sampled in the houses in turn; each has `settings.paraphrases` episodes.
    """
    episodes: list[Episode] = []
    walks: dict[str, ReferenceWalk] = {}
    names = list(houses)
    while len(episodes) < num_episodes:
        trajectory = first_id + len(episodes)
        name = names[(trajectory - first_id) // settings.paraphrases % len(names)]
        sampled = sample_trajectory(houses[name], rng, settings.trajectory)
        walk = follow(houses[name].ground, sampled.start, sampled.goal)
        instructions: list[str] = []
        for _ in range(min(settings.paraphrases, num_episodes - len(episodes))):
            candidates = [generate_instruction(sampled.route, rng) for _ in range(8)]
            # A text that differs from the earlier ones, if possible.
            instructions.append(next((text for text in candidates if text not in instructions), candidates[0]))
            episode = Episode(
                id=str(first_id + len(episodes)), scene=name, split=split, start=sampled.start, goal=sampled.goal,
                radius=settings.trajectory.radius, instruction=instructions[-1], trajectory=str(trajectory),
                path=sampled.path, geodesic=sampled.geodesic,
            )  # fmt: skip
            walks[episode.id] = walk
            episodes.append(episode)
    return episodes, walks


def write_episodes(folder: Path, split: str, episodes: Sequence[Episode], walks: Mapping[str, ReferenceWalk]) -> Path:
    """Write SPLIT.json.gz and SPLIT_gt.json.gz deterministically. Raises RunError."""
    words = ("<pad>", "<unk>", *vocabulary())
    word_ids = {word: index for index, word in enumerate(words)}
    content = {
        "episodes": [_episode_record(episode, word_ids) for episode in episodes],
        "instruction_vocab": {"word_list": list(words), "word2idx_dict": word_ids, "UNK_INDEX": 1, "PAD_INDEX": 0},
    }
    ground_truth = {
        episode_id: {
            "locations": [to_habitat(tuple(position.round(4).tolist())) for position in walk.locations],
            "forward_steps": walk.actions.count(FORWARD),
            "actions": list(walk.actions),
        }
        for episode_id, walk in walks.items()
    }
    _write_gzip(folder / f"{split}.json.gz", content)
    _write_gzip(folder / f"{split}_gt.json.gz", ground_truth)
    return folder / f"{split}.json.gz"


def _episode_record(episode: Episode, word_ids: Mapping[str, int]) -> dict[str, object]:
    tokens = [word_ids.get(word.strip(",.").lower(), 1) for word in episode.instruction.split()]
    goal = [] if episode.goal is None else [{"position": to_habitat(episode.goal), "radius": episode.radius}]
    return {
        "episode_id": int(episode.id),
        "trajectory_id": int(episode.trajectory),
        "scene_id": episode.scene,
        "start_position": to_habitat(episode.start.position),
        "start_rotation": heading_to_quaternion(episode.start.heading),
        "info": {"geodesic_distance": episode.geodesic},
        "goals": goal,
        "instruction": {"instruction_text": episode.instruction,
                        "instruction_tokens": (tokens + [0] * NUM_TOKENS)[:NUM_TOKENS]},
        "reference_path": [to_habitat(tuple(position.tolist())) for position in episode.path],
    }  # fmt: skip


def _write_gzip(path: Path, content: object) -> None:
    with atomic_path(path) as temporary:
        text = json.dumps(content, separators=(",", ":")).encode()
        temporary.write_bytes(gzip.compress(text, mtime=0))
