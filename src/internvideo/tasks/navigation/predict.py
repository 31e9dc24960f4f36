"""Vision-language navigation: roll out an agent and baselines, and score the walks.

Source: Visual-Language-Navigation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo.errors import ManifestError
from internvideo.tasks.navigation import metrics as walk_metrics
from internvideo.tasks.navigation.metrics import WalkResult
from internvideo.tasks.navigation.model import Navigator, PanoramaFeatures
from internvideo.tasks.navigation.rollout import (
    EpisodeState,
    ObservationEncoder,
    PlannerState,
    Policy,
    ShortestPathTeacher,
    chosen_headings,
    rollout,
)
from internvideo.tasks.navigation.stage import NavigationSettings, input_tokens
from internvideo.tasks.navigation.waypoints import Candidates
from internvideo.tasks.navigation.world.batch import NavigationBatch
from internvideo.tasks.navigation.world.instructions import goal_named_by_motion
from internvideo.tasks.protocol import weights_hash
from internvideo.tasks.table import MetricValues, Predictions, Result

NAME = "navigation"
AGENT = "agent"
HEIGHT_AXIS = 2
"""Column of the height in positions."""

Floats = NDArray[np.float64]


def planner_policy(model: Navigator, tokens: Tensor) -> Policy:
    """Return the policy of the trained agent: the planner's highest score."""
    planner_state = PlannerState(model, tokens)

    def choose(
        active: Sequence[EpisodeState], features: PanoramaFeatures, waypoints: Sequence[Candidates]
    ) -> list[int]:
        rows = torch.tensor([state.row for state in active], device=tokens.device)
        rgb = model.fuse_rgb(features)
        actions: list[int] = planner_state.scores(rows, rgb, features, waypoints).argmax(dim=1).tolist()
        planner_state.append_history(rows, rgb, chosen_headings(waypoints, actions, tokens.device))
        return actions

    return choose


def random_policy(seed: int) -> Policy:
    """Return the policy that chooses among the waypoints and stopping uniformly at random."""
    rng = np.random.default_rng(seed)

    def choose(
        active: Sequence[EpisodeState], features: PanoramaFeatures, waypoints: Sequence[Candidates]
    ) -> list[int]:
        return [int(rng.integers(len(candidates.angle) + 1)) for candidates in waypoints]

    return choose


def stop_policy(
    active: Sequence[EpisodeState], features: PanoramaFeatures, waypoints: Sequence[Candidates]
) -> list[int]:
    """Stop in the first step (a policy)."""
    return [len(candidates.angle) for candidates in waypoints]


def teacher_policy(stop_within: float) -> Policy:
    """Return the shortest-path teacher as a policy: an upper bound for agents with the predicted waypoints."""
    teacher = ShortestPathTeacher(stop_within)
    return lambda active, features, waypoints: list(map(teacher, active, waypoints))


def baselines(settings: NavigationSettings) -> dict[str, Callable[[int], Policy]]:
    """Return, by name, functions that map the index of a batch to the policy of a baseline."""
    return {
        "random": random_policy,
        "stop at once": lambda index: stop_policy,
        "teacher": lambda index: teacher_policy(settings.stop_within),
    }


@torch.no_grad()
def predict(
    model: Navigator,
    batches: Callable[[], Iterator[NavigationBatch]],
    settings: NavigationSettings,
    device: torch.device,
    *,
    split_sha256: str,
    model_name: str = "navigator",
    source: str = "",
) -> Predictions:
    """Roll out the trained agent and the baselines on the same episodes.

    Args:
        model: agent in evaluation mode, on `device`.
        batches: called once per agent; yields all episodes in order, with known goals.
        settings: of the training. split_sha256: hash of the episodes (`hash_episodes`).
        model_name, source: names of the model and of the data, for the protocol.

    Raises:
        ManifestError: an episode without a goal or without a reference path.
    """
    walks: list[tuple[str, EpisodeState, Floats]] = []
    agents = baselines(settings)
    for name in (AGENT, *agents):
        encoder = ObservationEncoder(model, settings.max_cache_size, num_frames=None if name == AGENT else 1)
        for index, batch in enumerate(batches()):
            for episode in batch.episodes:
                if episode.goal is None or not len(episode.path):
                    raise ManifestError(f"episode {episode.id}", "no goal or no reference path", "a split with both")
            batch = batch.to(device)
            policy = (
                planner_policy(model, input_tokens(batch.tokens, settings)) if name == AGENT else agents[name](index)
            )
            states = rollout(encoder, batch, policy, settings.max_test_steps)
            walks += [(name, state, distances_to_goal(state)) for state in states]
    protocol = {
        "model": model_name,
        "weights_sha256": weights_hash(model),
        "split_sha256": split_sha256,
        "source": source,
        "video_feature": model.config.use_video,
        "blind": settings.blind,
        "decisions_at_most": settings.max_test_steps,
        "ndtw": "radius-1 DTW, reference densified to 0.25 m",
    }
    num_episodes = len(walks) // (1 + len(agents))
    coverage = {"asked": num_episodes, "read": num_episodes, "unreadable": []}
    return Predictions(NAME, _make_columns(walks), protocol, coverage)


def distances_to_goal(state: EpisodeState) -> Floats:
    """Compute the geodesic distances (n,) in meters from all poses to the goal; `env` must hold the episode's scene."""
    goal = state.episode.goal
    assert goal is not None
    positions = [pose.position for pose, _ in state.trajectory]
    distances = {position: state.env.geodesic(position, goal) for position in dict.fromkeys(positions)}
    return np.asarray([distances[position] for position in positions])


def _make_columns(walks: Sequence[tuple[str, EpisodeState, Floats]]) -> dict[str, NDArray[Any]]:
    """Make the columns of the table. Walks of different lengths are concatenated; the "..._counts" are lengths."""
    episodes = [state.episode for _, state, _ in walks]
    agents = list(dict.fromkeys(name for name, _, _ in walks))
    positions = [np.asarray([pose.position for pose, _ in state.trajectory]) for _, state, _ in walks]
    references = [np.pad(episode.path, ((0, 0), (0, 3 - episode.path.shape[1]))) for episode in episodes]
    return {
        "agents": np.asarray(agents),
        "agent": np.asarray([agents.index(name) for name, _, _ in walks]),
        "ids": np.asarray([episode.id for episode in episodes]),
        "scenes": np.asarray([episode.scene for episode in episodes]),
        "trajectories": np.asarray([episode.trajectory for episode in episodes]),
        "instructions": np.asarray([episode.instruction for episode in episodes]),
        "stopped": np.asarray([True for _ in walks]),
        "chose_to_stop": np.asarray([state.stopped for _, state, _ in walks]),
        "collided": np.asarray([state.num_collisions for _, state, _ in walks]),
        "positions": np.concatenate(positions),
        "distances": np.concatenate([distances for _, _, distances in walks]),
        "position_counts": np.asarray([len(walk) for walk in positions]),
        "decisions": np.concatenate([np.asarray(state.decision_indices) for _, state, _ in walks]),
        "decision_counts": np.asarray([len(state.decision_indices) for _, state, _ in walks]),
        "references": np.concatenate(references),
        "reference_counts": np.asarray([len(path) for path in references]),
    }


def read_walks(table: Predictions) -> list[tuple[WalkResult, Floats]]:
    """Return every walk of a table, without turns in place, and the reference path of its episode."""

    def split(name: str, counts: str) -> list[NDArray[Any]]:
        return np.split(table[name], np.cumsum(table[f"{counts}_counts"])[:-1])

    walks = []
    for path, decision_indices, distances, reference, stopped in zip(
        split("positions", "position"), split("decisions", "decision"), split("distances", "position"),
        split("references", "reference"), table["stopped"], strict=True,
    ):  # fmt: skip
        moved = np.concatenate([[True], (np.diff(path, axis=0) != 0).any(axis=1)])
        walk = WalkResult(path[moved], distances[decision_indices], bool(stopped), distances[moved])
        walks.append((walk, reference))
    return walks


def compute_walk_metrics(walk: WalkResult, reference: Floats) -> dict[str, float]:
    """Compute all metrics of one walk."""
    success = walk_metrics.success(walk)
    ndtw = walk_metrics.ndtw(walk.path, walk_metrics.densify(reference, height_axis=HEIGHT_AXIS))
    return {
        "NE_m": walk_metrics.navigation_error(walk),
        "PL_m": walk_metrics.path_length(walk),
        "SR": success,
        "OSR": walk_metrics.oracle_success(walk),
        "OSR_of_steps": walk_metrics.oracle_success_any_position(walk),
        "SPL": walk_metrics.success_by_path_length(walk),
        "nDTW": ndtw,
        "sDTW": success * ndtw,
    }


def score(table: Predictions) -> Result:
    """Compute the metrics of the agent, then of the baselines with the prefix "NAME: ".

    NE and PL are in meters. Success is also given for two subsets of episodes of the embedded world: those whose
    goal landmark differs from its twin only in motion ("SR_told_by_motion"), and all others ("SR_of_the_rest").
    Confidence intervals resample trajectories, because the paraphrases of one trajectory are not independent.
    """
    metrics = MetricValues()
    rows = [compute_walk_metrics(*walk) for walk in read_walks(table)]
    motion = np.asarray([goal_named_by_motion(str(text)) for text in table["instructions"]])
    for index, agent in enumerate(table["agents"].tolist()):
        is_agent = table["agent"] == index
        agent_rows = [rows[row] for row in np.flatnonzero(is_agent)]
        values = {name: np.asarray([row[name] for row in agent_rows]) for name in agent_rows[0]}
        prefix = "" if agent == AGENT else f"{agent}: "
        groups = table["trajectories"][is_agent]
        for name, column in values.items():
            metrics.add_mean(prefix + name, column, groups)
        by_motion = motion[is_agent]
        if by_motion.any() and not by_motion.all():
            for name, subset in (("SR_told_by_motion", by_motion), ("SR_of_the_rest", ~by_motion)):
                metrics.add_mean(prefix + name, values["SR"][subset], groups[subset])
    return metrics.result(table)
