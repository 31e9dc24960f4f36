"""Roll out navigation agents in a batch of environments: encode views, predict waypoints, choose one, move there.

The stage of imitation learning and the evaluation use the same rollout with different policies.
Source: Visual-Language-Navigation. Shapes: A active episodes, 12 views, O observation tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from internvideo.tasks.navigation.model import Navigator, PanoramaFeatures
from internvideo.tasks.navigation.planner import CANDIDATE, CONTEXT, FEATURE_WIDTH, STOP, Observation
from internvideo.tasks.navigation.waypoints import (
    VIEWS,
    Candidates,
    angle_feature,
    extract_candidates,
    jitter_waypoints,
    non_max_suppression,
    panorama_angles,
)
from internvideo.tasks.navigation.world.batch import NavigationBatch
from internvideo.tasks.navigation.world.protocol import Episode, NavEnv, Pose, Position

CacheKey = tuple[object, ...]


@dataclass
class EpisodeState:
    """State of one episode.

    Attributes:
        row: index of the episode in the batch. episode, env: the instruction with its goal, and the environment.
        trajectory: (pose, tick) of all poses so far, the start first.
        decision_indices: index in `trajectory` of the pose of each decision.
        done: the episode has ended. stopped: the policy chose to stop. num_collisions: moves that hit an obstacle.
    """

    row: int
    episode: Episode
    env: NavEnv
    trajectory: list[tuple[Pose, int]] = field(default_factory=list)
    decision_indices: list[int] = field(default_factory=list)
    done: bool = False
    stopped: bool = False
    num_collisions: int = 0

    def start(self) -> None:
        """Reset the environment to the start of the episode."""
        self.trajectory = [(self.env.reset(self.episode), self.env.tick)]
        self.decision_indices = [0]

    def step(self, heading_change: float, meters: float) -> None:
        """Turn (radians, counter-clockwise) and move forward."""
        walk = self.env.step(heading_change, meters)
        self.trajectory += zip(walk.poses, walk.ticks, strict=True)
        self.decision_indices.append(len(self.trajectory) - 1)
        self.num_collisions += walk.collided

    def latest(self, num_frames: int) -> tuple[tuple[Pose, int], ...]:
        """Return the last `num_frames` (pose, tick); fewer ones are padded in front with copies of the first."""
        poses = self.trajectory[-num_frames:]
        return (*(poses[:1] * (num_frames - len(poses))), *poses)


class ObservationEncoder:
    """Encode the last frames of every view, with a cache keyed by the recent poses.

    Args:
        model: agent with frozen encoders. max_cache_size: largest number of cached panoramas.
        num_frames: RGB frames per view, 1 for no video feature; None for the model's number.
    """

    def __init__(self, model: Navigator, max_cache_size: int = 20_000, num_frames: int | None = None) -> None:
        self.model, self.max_cache_size = model, max_cache_size
        self.num_frames = num_frames or (model.config.video.frames if model.config.use_video else 1)
        self._cache: dict[CacheKey, PanoramaFeatures] = {}

    @torch.no_grad()
    def encode(self, episodes: Sequence[EpisodeState]) -> PanoramaFeatures:
        """Compute the features of A episodes, each (A, 12, ...)."""
        device = next(self.model.parameters()).device
        recent = [state.latest(self.num_frames) for state in episodes]
        keys = [(state.episode.scene, *poses) for state, poses in zip(episodes, recent, strict=True)]
        missing = [index for index, key in enumerate(keys) if key not in self._cache]
        if len(self._cache) + len(missing) > self.max_cache_size:
            self._cache.clear()
            missing = list(range(len(keys)))
        if missing:
            rgb, depth = zip(*(_panorama(episodes[index].env, recent[index]) for index in missing), strict=True)
            features = self.model.encode(torch.stack(rgb).to(device), torch.stack(depth).to(device))
            for row, index in enumerate(missing):
                self._cache[keys[index]] = PanoramaFeatures(*(feature[row].cpu() for feature in features))
        cached = [self._cache[key] for key in keys]
        return PanoramaFeatures(*(torch.stack(rows).to(device) for rows in zip(*cached, strict=True)))


def _panorama(env: NavEnv, poses: Sequence[tuple[Pose, int]]) -> tuple[Tensor, Tensor]:
    """Render RGB (T, 12, S, S, 3) at T (pose, tick), and depth (12, S', S') at the last of them."""
    panoramas = {pose: env.observe(*pose) for pose in dict.fromkeys(poses)}
    rgb = torch.stack([torch.from_numpy(panoramas[pose].rgb) for pose in poses])
    return rgb, torch.from_numpy(panoramas[poses[-1]].depth)


@torch.no_grad()
def predict_waypoints(model: Navigator, depth: Tensor, *, augment: torch.Generator | None = None) -> list[Candidates]:
    """Predict the waypoints of each panorama from depth features (A, 12, C, 4, 4).

    With the generator `augment`, each waypoint is resampled (`jitter_waypoints`).
    """
    logits = model.waypoints(depth)
    heat_maps = non_max_suppression(logits.flatten(1).softmax(dim=1).view_as(logits), model.config.max_waypoints)
    waypoints = [extract_candidates(heat_map) for heat_map in heat_maps]
    if augment is None:
        return waypoints
    return [jitter_waypoints(panorama, row, augment) for panorama, row in zip(waypoints, logits, strict=True)]


class ShortestPathTeacher:
    """Choose the waypoint from which the goal is nearest after simulating the move (shortest-path oracle).

    Args:
        stop_within: geodesic distance to the goal in meters at which the teacher stops.
        max_cache_size: largest number of cached decisions.
    """

    def __init__(self, stop_within: float = 1.5, max_cache_size: int = 100_000) -> None:
        self.stop_within, self.max_cache_size = stop_within, max_cache_size
        self._cache: dict[CacheKey, int] = {}

    def __call__(self, state: EpisodeState, waypoints: Candidates) -> int:
        """Return the index of a waypoint, or the number of waypoints to stop. ValueError: the goal is not known."""
        goal, env = state.episode.goal, state.env
        if goal is None:
            raise ValueError(f"episode {state.episode.id} has no goal")
        heading_changes, meters = waypoints.heading_change.tolist(), waypoints.meters.tolist()
        key = (state.episode.scene, env.pose, goal, *heading_changes, *meters)
        if key not in self._cache:
            if len(self._cache) >= self.max_cache_size:
                self._cache.clear()
            self._cache[key] = self._best(env, goal, heading_changes, meters)
        return self._cache[key]

    def _best(self, env: NavEnv, goal: Position, heading_changes: Sequence[float], meters: Sequence[float]) -> int:
        stop = len(heading_changes)
        if not stop or env.geodesic(env.pose.position, goal) <= self.stop_within:
            return stop
        pose, tick = env.pose, env.tick
        distances = []
        for heading_change, distance in zip(heading_changes, meters, strict=True):
            env.step(heading_change, distance)
            distances.append(env.geodesic(env.pose.position, goal))
            env.set_state(pose, tick)
        return distances.index(min(distances))


Policy = Callable[[Sequence[EpisodeState], PanoramaFeatures, Sequence[Candidates]], list[int]]
"""Returns for each active episode the index of a waypoint, or the number of waypoints to stop."""


def rollout(
    encoder: ObservationEncoder,
    batch: NavigationBatch,
    policy: Policy,
    max_steps: int,
    *,
    augment: torch.Generator | None = None,
) -> list[EpisodeState]:
    """Roll out the episodes of a batch until they stop, or for `max_steps` decisions."""
    episodes = [
        EpisodeState(row, episode, env)
        for row, (episode, env) in enumerate(zip(batch.episodes, batch.worlds, strict=True))
    ]
    for state in episodes:
        state.start()
    for _ in range(max_steps):
        active = [state for state in episodes if not state.done]
        if not active:
            break
        features = encoder.encode(active)
        waypoints = predict_waypoints(encoder.model, features.depth, augment=augment)
        actions = policy(active, features, waypoints)
        for state, candidates, action in zip(active, waypoints, actions, strict=True):
            if action >= len(candidates.angle):
                state.done = state.stopped = True
            else:
                state.step(float(candidates.heading_change[action]), float(candidates.meters[action]))
    return episodes


class PlannerState:
    """Recurrent state of the planner: the encoded instruction and one history token per step.

    Args:
        model: agent. tokens: (B, L) word ids of the instructions, 0 for padding.
    """

    def __init__(self, model: Navigator, tokens: Tensor) -> None:
        self.model = model
        self.mask = tokens != 0
        self.text = model.planner.encode_text(tokens, self.mask)
        self.history = model.planner.history.start_tokens(len(tokens))[:, None]

    def scores(self, rows: Tensor, rgb: Tensor, features: PanoramaFeatures, waypoints: Sequence[Candidates]) -> Tensor:
        """Score the observation tokens (A, O): waypoints in order, then stopping; -inf for all other tokens.

        Args:
            rows: (A,) batch indices of the active episodes. rgb: (A, 12, W) of `Navigator.fuse_rgb`.
            features, waypoints: of the current panoramas.
        """
        history = self.history[rows]
        history_mask = torch.ones(history.shape[:2], dtype=torch.bool, device=history.device)
        observation = build_observation(rgb, features.depth.mean(dim=(3, 4)), waypoints)
        plan = self.model.planner(self.text[rows], self.mask[rows], history, history_mask, observation)
        return plan.scores  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    def append_history(self, rows: Tensor, rgb: Tensor, angles: Tensor) -> None:
        """Append the history tokens of a step: rgb (A, 12, W), clockwise angles (A,) of the chosen headings.

        Episodes that have ended get a zero token.
        """
        views = panorama_angles().to(rgb.device)
        step = self.history.shape[1] - 1
        token = self.model.planner.history(rgb[:, 0], angle_feature(angles), rgb, views, step)
        all_tokens = token.new_zeros(len(self.history), 1, token.shape[1])
        all_tokens[rows] = token[:, None]
        self.history = torch.cat([self.history, all_tokens], dim=1)


def build_observation(rgb: Tensor, depth: Tensor, waypoints: Sequence[Candidates]) -> Observation:
    """Build the planner's tokens: waypoints, the stop token (zeros), and the views without a waypoint.

    Args:
        rgb: (A, 12, W). depth: (A, 12, C). waypoints: A panoramas.
    """
    rows = []
    device = rgb.device
    angles = panorama_angles().to(device)
    for row, candidates in enumerate(waypoints):
        views = candidates.view.to(device)
        other_views = torch.tensor([view for view in range(VIEWS) if view not in set(views.tolist())], device=device)
        order, num_candidates = torch.cat([views, other_views]).long(), len(views)

        def insert_stop(features: Tensor, index: int = num_candidates) -> Tensor:
            return torch.cat([features[:index], features.new_zeros(1, features.shape[1]), features[index:]])

        distance = torch.cat([candidates.distance_feature.to(rgb), rgb.new_zeros(len(other_views), FEATURE_WIDTH)])
        kind = [CANDIDATE] * num_candidates + [STOP] + [CONTEXT] * len(other_views)
        rows.append(
            (
                insert_stop(rgb[row, order]),
                insert_stop(depth[row, order]),
                insert_stop(torch.cat([candidates.angle_feature.to(rgb), angles[other_views.long()]])),
                insert_stop(distance),
                torch.tensor(kind, device=device),
                torch.ones(len(kind), dtype=torch.bool, device=device),
            )
        )
    return Observation(
        *(torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True) for column in zip(*rows, strict=True))
    )


def chosen_headings(waypoints: Sequence[Candidates], actions: Sequence[int], device: torch.device) -> Tensor:
    """Return the clockwise angles (A,) in radians to the chosen waypoints; 0 for stopping."""
    return torch.tensor(
        [float(candidates.clockwise[action]) if action < len(candidates.angle) else 0.0
         for candidates, action in zip(waypoints, actions, strict=True)],
        device=device,
    )  # fmt: skip
