"""Vision-language navigation: roll out an agent and baselines, and score the walks.

Source: Visual-Language-Navigation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo.errors import ManifestError
from internvideo.tasks.navigation import metrics as measures
from internvideo.tasks.navigation.metrics import Walked
from internvideo.tasks.navigation.model import Navigator, PanoramaFeatures
from internvideo.tasks.navigation.rollout import (
    EpisodeState,
    ObservationEncoder,
    PlannerState,
    Policy,
    ShortestPathExpert,
    chosen_headings,
    rollout,
)
from internvideo.tasks.navigation.stage import NavigationSettings, input_tokens
from internvideo.tasks.navigation.waypoints import Candidates
from internvideo.tasks.navigation.world.batch import NavigationBatch
from internvideo.tasks.navigation.world.instructions import told_by_motion
from internvideo.tasks.protocol import weights_hash
from internvideo.tasks.table import MetricValues, Predictions, Result

NAME = "navigation"
AGENT = "agent"
UP = 2
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
        return [int(rng.integers(len(found.angle) + 1)) for found in waypoints]

    return choose


def stop_policy(
    active: Sequence[EpisodeState], features: PanoramaFeatures, waypoints: Sequence[Candidates]
) -> list[int]:
    """Stop in the first step (a policy)."""
    return [len(found.angle) for found in waypoints]


def expert_policy(stop_within: float) -> Policy:
    """Return the shortest-path expert as a policy: an upper bound with these waypoints."""
    expert = ShortestPathExpert(stop_within)
    return lambda active, features, waypoints: [expert(*one) for one in zip(active, waypoints, strict=True)]


def baselines(settings: NavigationSettings) -> dict[str, Callable[[int], Policy]]:
    """Name -> index of a batch -> policy."""
    return {
        "random": random_policy,
        "stop at once": lambda index: stop_policy,
        "teacher": lambda index: expert_policy(settings.stop_within),
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
        model: in evaluation mode, on `device`. batches: gives all episodes, in order; their goals must be known.
        settings: those of the training. split_sha256: fingerprint of the episodes.

    Raises:
        ManifestError: an episode without a goal or without a reference path.
    """
    walks: list[tuple[str, EpisodeState, Floats]] = []
    agents = baselines(settings)
    for name in (AGENT, *agents):
        encoder = ObservationEncoder(model, settings.max_cache_size, frames=None if name == AGENT else 1)
        for index, batch in enumerate(batches()):
            for one in batch.episodes:
                if one.goal is None or not len(one.path):
                    raise ManifestError(f"episode {one.id}", "no goal or no reference path", "a split with both")
            here = batch.to(device)
            policy = (
                planner_policy(model, input_tokens(here.tokens, settings)) if name == AGENT else agents[name](index)
            )
            walks += [(name, done, distances(done)) for done in rollout(encoder, here, policy, settings.max_test_steps)]
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
    count = sum(name == AGENT for name, _, _ in walks)
    return Predictions(NAME, _arrays(walks), protocol, {"asked": count, "read": count, "unreadable": []})


def distances(state: EpisodeState) -> Floats:
    """Compute the geodesic distances (n,) in meters from all poses to the goal; `env` must hold the episode."""
    goal, known = state.episode.goal, dict[tuple[float, ...], float]()
    assert goal is not None
    for pose, _ in state.trajectory:
        if pose.position not in known:
            known[pose.position] = state.env.geodesic(pose.position, goal)
    return np.asarray([known[pose.position] for pose, _ in state.trajectory])


def _arrays(walks: Sequence[tuple[str, EpisodeState, Floats]]) -> dict[str, NDArray[Any]]:
    """Concatenate walks of all lengths and return their lengths."""
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
        "collided": np.asarray([state.collisions for _, state, _ in walks]),
        "positions": np.concatenate(positions),
        "distances": np.concatenate([away for _, _, away in walks]),
        "position_counts": np.asarray([len(one) for one in positions]),
        "decisions": np.concatenate([np.asarray(state.decision_steps) for _, state, _ in walks]),
        "decision_counts": np.asarray([len(state.decision_steps) for _, state, _ in walks]),
        "references": np.concatenate(references),
        "reference_counts": np.asarray([len(one) for one in references]),
    }


def walked_of(table: Predictions) -> list[tuple[Walked, Floats]]:
    """Return every walk of a table, without turns in place, with its reference path."""
    cut = {
        name: np.split(table[f"{name}s"], np.cumsum(table[f"{name}_counts"])[:-1])
        for name in ("position", "decision", "reference")
    }
    lengths = np.split(table["distances"], np.cumsum(table["position_counts"])[:-1])
    made = []
    for path, decided, away, reference, stopped in zip(
        cut["position"], cut["decision"], lengths, cut["reference"], table["stopped"], strict=True
    ):
        moved = np.concatenate([[True], (np.diff(path, axis=0) != 0).any(axis=1)])
        made.append((Walked(path[moved], away[decided], bool(stopped), away[moved]), reference))
    return made


def measure(walked: Walked, reference: Floats) -> dict[str, float]:
    """Compute all metrics of one walk."""
    reached = measures.success(walked)
    faithful = measures.ndtw(walked.path, measures.densify(reference, up=UP))
    return {
        "NE_m": measures.navigation_error(walked),
        "PL_m": measures.path_length(walked),
        "SR": reached,
        "OSR": measures.oracle_success(walked),
        "OSR_of_steps": measures.oracle_success_of_steps(walked),
        "SPL": measures.success_by_path_length(walked),
        "nDTW": faithful,
        "sDTW": reached * faithful,
    }


def score(table: Predictions) -> Result:
    """Compute the metrics of the agent, then of the baselines under "NAME: ...".

    NE and PL are in meters. Success is also given separately for episodes of the embedded world whose goal differs from
    its twin only in motion, and for the others. Intervals resample trajectories: paraphrases are not independent.
    """
    metrics = MetricValues()
    rows = [measure(*one) for one in walked_of(table)]
    motion = np.asarray([told_by_motion(str(text)) for text in table["instructions"]])
    for number, agent in enumerate(table["agents"].tolist()):
        own = table["agent"] == number
        chosen = [row for row, mine in zip(rows, own, strict=True) if mine]
        values: Mapping[str, NDArray[Any]] = {name: np.asarray([row[name] for row in chosen]) for name in chosen[0]}
        prefix = "" if agent == AGENT else f"{agent}: "
        groups = table["trajectories"][own]
        for name, column in values.items():
            metrics.add_mean(prefix + name, column, groups)
        by = motion[own]
        if by.any() and not by.all():
            for name, part in (("SR_told_by_motion", by), ("SR_of_the_rest", ~by)):
                metrics.add_mean(prefix + name, values["SR"][part], groups[part])
    return metrics.result(table)
