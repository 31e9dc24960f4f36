"""Read and write episodes in R2R-CE's format, of Matterport or of the embedded world.

Habitat's axes are x right, y up, z backwards, and it rotates about y. Heading 0 faces its -z, so x = -Z, y = -X and
height = Y here, and the quaternion (x, y, z, w) is (0, sin h/2, 0, cos h/2).
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
from internvideo.tasks.navigation.world.follower import FORWARD, Followed, follow
from internvideo.tasks.navigation.world.house import HouseSettings, draw_house
from internvideo.tasks.navigation.world.instructions import say, vocabulary
from internvideo.tasks.navigation.world.protocol import Episode, Pose, Position
from internvideo.tasks.navigation.world.scene import write_scene
from internvideo.tasks.navigation.world.trajectories import TrajectorySettings, draw_trajectory
from internvideo.tasks.navigation.world.world import House

TOKENS = 200
"""Length of an instruction's padded token row in the files."""


def from_habitat(point: Sequence[float]) -> tuple[float, float, float]:
    """Convert habitat's (X, Y, Z) to (x, y, height)."""
    return (-float(point[2]), -float(point[0]), float(point[1]))


def to_habitat(position: Position) -> list[float]:
    """Convert (x, y) or (x, y, height) to habitat's [X, Y, Z]."""
    return [-position[1], position[2] if len(position) > 2 else 0.0, -position[0]]


def heading_of(rotation: Sequence[float]) -> float:
    """Return the heading of a quaternion (x, y, z, w): the direction of its forward axis -Z."""
    x, y, z, w = (float(value) for value in rotation)
    forward_x, forward_z = -2 * (x * z + w * y), -(1 - 2 * (x * x + y * y))
    return math.atan2(-forward_x, -forward_z)


def rotation_of(heading: float) -> list[float]:
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
    return tuple(_episode(row, split) for row in rows)


def _episode(row: Sample, split: str) -> Episode:
    attributes = {name: untrusted.parse_json(value) for name, value in row.attributes.items()}
    x, y, height = from_habitat(attributes["start_position"])
    path = [from_habitat(point) for point in attributes.get("locations", attributes.get("reference_path", []))]
    return Episode(
        id=row.id,
        scene=row.path,
        split=split,
        start=Pose(x, y, heading_of(attributes["start_rotation"]), height),
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
        scenes: number of houses; a quarter of them, at least one, only for val_unseen.
        episodes: number of training instructions; val_seen and val_unseen get `validation` each.
        paraphrases: instructions per trajectory. seed: of all random draws.
    """

    scenes: int = 20
    episodes: int = 1000
    validation: int = 300
    paraphrases: int = 3
    seed: int = 0
    house: HouseSettings = field(default_factory=HouseSettings)
    trajectory: TrajectorySettings = field(default_factory=TrajectorySettings)

    def __post_init__(self) -> None:
        least = {"scenes": 2, "episodes": 1, "validation": 1, "paraphrases": 1, "seed": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise RecipeError(name, str(getattr(self, name)), f"at least {lowest}")


def write_world(folder: Path, settings: NavigationSettings) -> dict[str, Path]:
    """Write houses as JSON and episodes in R2R-CE's format: train and val_seen share houses, val_unseen has others.

    Returns:
        Split -> its file. Files of the same settings hold the same bytes.

    Raises:
        RunError: the folder cannot be written.
    """
    with folder_lock(folder):
        unseen = max(1, settings.scenes // 4)
        houses: dict[str, House] = {}
        for number in range(settings.scenes):
            name = f"scenes/house_{number:04d}.json"
            scene = draw_house(name, settings.seed * 100_003 + number, settings.house)
            write_scene(folder / name, scene)
            houses[name] = House(scene)
        names = list(houses)
        seen_names, unseen_names = names[: settings.scenes - unseen], names[settings.scenes - unseen :]
        plan = {
            "train": (seen_names, settings.episodes),
            "val_seen": (seen_names, settings.validation),
            "val_unseen": (unseen_names, settings.validation),
        }
        written: dict[str, Path] = {}
        first = 1
        for number, (split, (chosen, count)) in enumerate(plan.items()):
            rng = np.random.default_rng([settings.seed, number, 0x657069])
            episodes, truths = draw_episodes(
                {name: houses[name] for name in chosen}, split, count, settings, rng, first
            )
            written[split] = write_episodes(folder, split, episodes, truths)
            first += count
        return written


def draw_episodes(
    houses: Mapping[str, House], split: str, count: int, settings: NavigationSettings, rng: np.random.Generator,
    first: int = 1,
) -> tuple[list[Episode], dict[str, Followed]]:  # fmt: skip
    """Draw `count` instructions in houses taken in turn, with ground-truth actions; ids count from `first`."""
    episodes: list[Episode] = []
    truths: dict[str, Followed] = {}
    names = list(houses)
    while len(episodes) < count:
        trajectory = first + len(episodes)
        name = names[(trajectory - first) // settings.paraphrases % len(names)]
        drawn = draw_trajectory(houses[name], rng, settings.trajectory)
        walked = follow(houses[name].ground, drawn.start, drawn.goal)
        instructions: list[str] = []
        for _ in range(min(settings.paraphrases, count - len(episodes))):
            tries = [say(drawn.route, rng) for _ in range(8)]  # one that differs from the earlier ones, if possible
            instructions.append(next((text for text in tries if text not in instructions), tries[0]))
            episode = Episode(
                id=str(first + len(episodes)), scene=name, split=split, start=drawn.start, goal=drawn.goal,
                radius=settings.trajectory.radius, instruction=instructions[-1], trajectory=str(trajectory),
                path=drawn.path, geodesic=drawn.geodesic,
            )  # fmt: skip
            truths[episode.id] = walked
            episodes.append(episode)
    return episodes, truths


def write_episodes(folder: Path, split: str, episodes: Sequence[Episode], truths: Mapping[str, Followed]) -> Path:
    """Write SPLIT.json.gz and SPLIT_gt.json.gz deterministically. Raises RunError."""
    words = ("<pad>", "<unk>", *vocabulary())
    index = {word: number for number, word in enumerate(words)}
    content = {
        "episodes": [_record(episode, index) for episode in episodes],
        "instruction_vocab": {"word_list": list(words), "word2idx_dict": index, "UNK_INDEX": 1, "PAD_INDEX": 0},
    }
    truth = {
        number: {
            "locations": [to_habitat(tuple(place.round(4).tolist())) for place in walked.locations],
            "forward_steps": walked.actions.count(FORWARD),
            "actions": list(walked.actions),
        }
        for number, walked in truths.items()
    }
    _write(folder / f"{split}.json.gz", content)
    _write(folder / f"{split}_gt.json.gz", truth)
    return folder / f"{split}.json.gz"


def _record(episode: Episode, index: Mapping[str, int]) -> dict[str, object]:
    tokens = [index.get(word.strip(",.").lower(), 1) for word in episode.instruction.split()]
    goal = [] if episode.goal is None else [{"position": to_habitat(episode.goal), "radius": episode.radius}]
    return {
        "episode_id": int(episode.id),
        "trajectory_id": int(episode.trajectory),
        "scene_id": episode.scene,
        "start_position": to_habitat(episode.start.position),
        "start_rotation": rotation_of(episode.start.heading),
        "info": {"geodesic_distance": episode.geodesic},
        "goals": goal,
        "instruction": {"instruction_text": episode.instruction,
                        "instruction_tokens": (tokens + [0] * TOKENS)[:TOKENS]},
        "reference_path": [to_habitat(tuple(place.tolist())) for place in episode.path],
    }  # fmt: skip


def _write(path: Path, content: object) -> None:
    with atomic_path(path) as temporary:
        text = json.dumps(content, separators=(",", ":")).encode()
        temporary.write_bytes(gzip.compress(text, mtime=0))
