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
from internvideo.tasks.navigation.planner import CANDIDATE, CONTEXT, FEATURE, STOP, Observation
from internvideo.tasks.navigation.waypoints import (
    VIEWS,
    Candidates,
    angle_feature,
    candidates,
    panorama_angles,
    spread,
    suppress,
)
from internvideo.tasks.navigation.world.batch import NavigationBatch
from internvideo.tasks.navigation.world.protocol import Episode, NavEnv, Pose, Position

Key = tuple[object, ...]


@dataclass
class EpisodeState:
    """State of one episode.

    Attributes:
        row: its index in the batch. episode, env: the instruction with its goal, and the environment.
        trajectory: all poses so far with their ticks, the start first. decision_steps: indices of the decisions in it.
        done: has ended. stopped: ended by the policy's stop action. collisions: number of steps that collided.
    """

    row: int
    episode: Episode
    env: NavEnv
    trajectory: list[tuple[Pose, int]] = field(default_factory=list)
    decision_steps: list[int] = field(default_factory=list)
    done: bool = False
    stopped: bool = False
    collisions: int = 0

    def start(self) -> None:
        """Reset the environment to the start of the episode."""
        self.trajectory = [(self.env.reset(self.episode), self.env.time)]
        self.decision_steps = [0]

    def step(self, heading_change: float, meters: float) -> None:
        """Turn (radians, counter-clockwise) and move forward."""
        motion = self.env.step(heading_change, meters)
        self.trajectory += zip(motion.poses, motion.times, strict=True)
        self.decision_steps.append(len(self.trajectory) - 1)
        self.collisions += motion.collided

    def latest(self, count: int) -> tuple[tuple[Pose, int], ...]:
        """Return the last `count` poses, padded in front with copies of the first of them."""
        poses = self.trajectory[-count:]
        return (*(poses[:1] * (count - len(poses))), *poses)


class ObservationEncoder:
    """Encode the last frames of every view, with a cache keyed by the recent poses.

    Args:
        model: its frozen encoders are used. max_cache_size: number of cached panoramas.
        frames: RGB frames per view, 1 for no video feature; None for the model's number.
    """

    def __init__(self, model: Navigator, max_cache_size: int = 20_000, frames: int | None = None) -> None:
        own = model.config.video.frames if model.config.use_video else 1
        self.model, self.max_cache_size, self.frames = model, max_cache_size, own if frames is None else frames
        self._cache: dict[Key, PanoramaFeatures] = {}

    @torch.no_grad()
    def encode(self, episodes: Sequence[EpisodeState]) -> PanoramaFeatures:
        """Compute the features of A episodes, each (A, 12, ...)."""
        device = next(self.model.parameters()).device
        recent = [state.latest(self.frames) for state in episodes]
        keys = [(state.episode.scene, *poses) for state, poses in zip(episodes, recent, strict=True)]
        new = [number for number, key in enumerate(keys) if key not in self._cache]
        if len(self._cache) + len(new) > self.max_cache_size:
            self._cache.clear()
            new = list(range(len(keys)))
        if new:
            pictures, depth = zip(*(_panorama(episodes[number].env, recent[number]) for number in new), strict=True)
            features = self.model.encode(torch.stack(pictures).to(device), torch.stack(depth).to(device))
            for at, number in enumerate(new):
                self._cache[keys[number]] = PanoramaFeatures(*(part[at].cpu() for part in features))
        found = [self._cache[key] for key in keys]
        return PanoramaFeatures(*(torch.stack(parts).to(device) for parts in zip(*found, strict=True)))


def _panorama(env: NavEnv, poses: Sequence[tuple[Pose, int]]) -> tuple[Tensor, Tensor]:
    """Render RGB (T, 12, S, S, 3) at the poses, and depth (12, S', S') at the last one."""
    distinct = list(dict.fromkeys(poses))
    made = {at: env.observe(*at) for at in distinct}
    pictures = torch.stack([torch.from_numpy(made[at].rgb) for at in poses])
    return pictures, torch.from_numpy(made[poses[-1]].depth)


@torch.no_grad()
def predict_waypoints(model: Navigator, depth: Tensor, *, augment: torch.Generator | None = None) -> list[Candidates]:
    """Predict the waypoints of each panorama from depth features (A, 12, C, 4, 4); `augment` jitters them."""
    logits = model.waypoints(depth)
    picked = suppress(logits.flatten(1).softmax(dim=1).view_as(logits), model.config.picks)
    found = [candidates(one) for one in picked]
    if augment is None:
        return found
    return [spread(one, own, augment) for one, own in zip(found, logits, strict=True)]


class ShortestPathExpert:
    """Choose the waypoint from which the goal is nearest after simulating the move (shortest-path oracle).

    Args:
        stop_within: geodesic distance to the goal in meters at which it stops. max_cache_size: of decisions.
    """

    def __init__(self, stop_within: float = 1.5, max_cache_size: int = 100_000) -> None:
        self.stop_within, self.max_cache_size = stop_within, max_cache_size
        self._cache: dict[Key, int] = {}

    def __call__(self, state: EpisodeState, waypoints: Candidates) -> int:
        """Return the index of a waypoint, or their number for stopping. ValueError: the goal is not known."""
        goal, env = state.episode.goal, state.env
        if goal is None:
            raise ValueError(f"episode {state.episode.id} has no goal")
        heading_changes, meters = waypoints.turn.tolist(), waypoints.meters.tolist()
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
        pose, time = env.pose, env.time
        distances = []
        for heading_change, distance in zip(heading_changes, meters, strict=True):
            env.step(heading_change, distance)
            distances.append(env.geodesic(env.pose.position, goal))
            env.place(pose, time)
        return distances.index(min(distances))


Policy = Callable[[Sequence[EpisodeState], PanoramaFeatures, Sequence[Candidates]], list[int]]
"""Chooses for each active episode the index of a waypoint, or their number for stopping."""


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
        for state, found, action in zip(active, waypoints, policy(active, features, waypoints), strict=True):
            if action >= len(found.angle):
                state.done = state.stopped = True
            else:
                state.step(float(found.turn[action]), float(found.meters[action]))
    return episodes


class PlannerState:
    """Recurrent state of the planner: the encoded instruction and one history token per step.

    Args:
        model: of the planner. tokens: (B, L) word ids, 0 for padding.
    """

    def __init__(self, model: Navigator, tokens: Tensor) -> None:
        self.model = model
        self.mask = tokens != 0
        self.text = model.planner.encode_text(tokens, self.mask)
        self.history = model.planner.history.first(len(tokens))[:, None]

    def scores(self, rows: Tensor, rgb: Tensor, features: PanoramaFeatures, waypoints: Sequence[Candidates]) -> Tensor:
        """Score the waypoints and, after the last of them, stopping -> (A, O); -inf for the rest.

        Args:
            rows: (A,) indices of the active rows of the batch. rgb: (A, 12, W) of `Navigator.fuse_rgb`.
        """
        history = self.history[rows]
        full = torch.ones(history.shape[:2], dtype=torch.bool, device=history.device)
        tokens = observation(rgb, features.depth.mean(dim=(3, 4)), waypoints)
        plan = self.model.planner(self.text[rows], self.mask[rows], history, full, tokens)
        return plan.scores  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    def append_history(self, rows: Tensor, rgb: Tensor, angles: Tensor) -> None:
        """Append the history token of a step: rgb (A, 12, W), clockwise angles (A,) of the chosen headings."""
        views = panorama_angles().to(rgb.device)
        step = self.history.shape[1] - 1
        token = self.model.planner.history(rgb[:, 0], angle_feature(angles), rgb, views, step)
        all_tokens = token.new_zeros(len(self.history), 1, token.shape[1])
        all_tokens[rows] = token[:, None]
        self.history = torch.cat([self.history, all_tokens], dim=1)


def observation(rgb: Tensor, depth: Tensor, waypoints: Sequence[Candidates]) -> Observation:
    """Build the planner's tokens: waypoints, the stop token, and the views without a waypoint.

    Args:
        rgb: (A, 12, W). depth: (A, 12, C). waypoints: A.
    """
    rows = []
    device = rgb.device
    angles = panorama_angles().to(device)
    for one, found in enumerate(waypoints):
        views = found.view.to(device)
        rest = torch.tensor([view for view in range(VIEWS) if view not in set(views.tolist())], device=device)
        order, empty = torch.cat([views, rest]).long(), len(views)

        def with_stop(features: Tensor, at: int = empty) -> Tensor:
            return torch.cat([features[:at], features.new_zeros(1, features.shape[1]), features[at:]])

        distance = torch.cat([found.distance_feature.to(rgb), rgb.new_zeros(len(rest), FEATURE)])
        kind = [CANDIDATE] * len(views) + [STOP] + [CONTEXT] * len(rest)
        rows.append(
            (
                with_stop(rgb[one, order]),
                with_stop(depth[one, order]),
                with_stop(torch.cat([found.angle_feature.to(rgb), angles[rest.long()]])),
                with_stop(distance),
                torch.tensor(kind, device=device),
                torch.ones(len(kind), dtype=torch.bool, device=device),
            )
        )
    return Observation(
        *(torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True) for part in zip(*rows, strict=True))
    )


def chosen_headings(waypoints: Sequence[Candidates], actions: Sequence[int], device: torch.device) -> Tensor:
    """Return the clockwise angles (A,) in radians to the chosen waypoints; 0 for stopping."""
    return torch.tensor(
        [float(found.clockwise[action]) if action < len(found.angle) else 0.0
         for found, action in zip(waypoints, actions, strict=True)],
        device=device,
    )  # fmt: skip
