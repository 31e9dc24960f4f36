"""Walks of agents through worlds, several side by side: look, find places to go, choose one, go there.

The stage of imitation and the task of navigation walk with the same code; what differs is who chooses.
Source: Visual-Language-Navigation. Shapes: A travellers on their way, 12 views, O observation tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from internvideo.tasks.navigation.model import Navigator, Seen
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
class Traveller:
    """One episode on its way.

    Attributes:
        row: its number in the batch. episode, world: what and where.
        trail: every pose so far with its tick, the start first. decisions: which of them were decisions.
        done: has ended. chose_to_stop: ended by itself. collided: steps that met something.
    """

    row: int
    episode: Episode
    world: NavEnv
    trail: list[tuple[Pose, int]] = field(default_factory=list)
    decisions: list[int] = field(default_factory=list)
    done: bool = False
    chose_to_stop: bool = False
    collided: int = 0

    def start(self) -> None:
        """Go to the start of the episode."""
        self.trail = [(self.world.reset(self.episode), self.world.time)]
        self.decisions = [0]

    def go(self, turn: float, metres: float) -> None:
        """Turn (radians, counter-clockwise) and walk."""
        walk = self.world.step(turn, metres)
        self.trail += zip(walk.poses, walk.times, strict=True)
        self.decisions.append(len(self.trail) - 1)
        self.collided += walk.collided

    def latest(self, count: int) -> tuple[tuple[Pose, int], ...]:
        """The last poses, copies of the first in front where there are fewer."""
        poses = self.trail[-count:]
        return (*(poses[:1] * (count - len(poses))), *poses)


class Eyes:
    """What travellers see: features of the last pictures of every direction, computed once for a pose and its past.

    Args:
        model: its frozen parts look. most: poses whose features are kept.
        frames: pictures of a direction, 1 for no video feature; None for what the model takes.
    """

    def __init__(self, model: Navigator, most: int = 20_000, frames: int | None = None) -> None:
        own = model.config.video.frames if model.config.use_video else 1
        self.model, self.most, self.frames = model, most, own if frames is None else frames
        self._kept: dict[Key, Seen] = {}

    @torch.no_grad()
    def look(self, travellers: Sequence[Traveller]) -> Seen:
        """Features of A travellers, each (A, 12, ...)."""
        device = next(self.model.parameters()).device
        looks = [traveller.latest(self.frames) for traveller in travellers]
        keys = [(traveller.episode.scene, *look) for traveller, look in zip(travellers, looks, strict=True)]
        new = [number for number, key in enumerate(keys) if key not in self._kept]
        if len(self._kept) + len(new) > self.most:
            self._kept.clear()
            new = list(range(len(keys)))
        if new:
            pictures, depth = zip(*(_panorama(travellers[number].world, looks[number]) for number in new), strict=True)
            seen = self.model.see(torch.stack(pictures).to(device), torch.stack(depth).to(device))
            for at, number in enumerate(new):
                self._kept[keys[number]] = Seen(*(part[at].cpu() for part in seen))
        found = [self._kept[key] for key in keys]
        return Seen(*(torch.stack(parts).to(device) for parts in zip(*found, strict=True)))


def _panorama(world: NavEnv, look: Sequence[tuple[Pose, int]]) -> tuple[Tensor, Tensor]:
    """Pictures (T, 12, S, S, 3) of the poses, and the depth (12, S', S') of the last one."""
    distinct = list(dict.fromkeys(look))
    made = {at: world.observe(*at) for at in distinct}
    pictures = torch.stack([torch.from_numpy(made[at].rgb) for at in look])
    return pictures, torch.from_numpy(made[look[-1]].depth)


@torch.no_grad()
def find_places(model: Navigator, depth: Tensor, *, augment: torch.Generator | None = None) -> list[Candidates]:
    """Places to go of each panorama, from depth features (A, 12, C, 4, 4); drawn around them with an `augment`."""
    logits = model.waypoints(depth)
    picked = suppress(logits.flatten(1).softmax(dim=1).view_as(logits), model.config.picks)
    found = [candidates(one) for one in picked]
    if augment is None:
        return found
    return [spread(one, own, augment) for one, own in zip(found, logits, strict=True)]


class Teacher:
    """The next step of an agent that knows the way: the place from which the goal is nearest after really going there.

    Args:
        stop_within: metres from the goal, around obstacles, at which it stops.
    """

    def __init__(self, stop_within: float = 1.5, most: int = 100_000) -> None:
        self.stop_within, self.most = stop_within, most
        self._known: dict[Key, int] = {}

    def __call__(self, traveller: Traveller, places: Candidates) -> int:
        """The number of a place, or how many there are for stopping. ValueError: the goal is not known."""
        goal, world = traveller.episode.goal, traveller.world
        if goal is None:
            raise ValueError(f"episode {traveller.episode.id} has no goal")
        turns, metres = places.turn.tolist(), places.metres.tolist()
        key = (traveller.episode.scene, world.pose, goal, *turns, *metres)
        if key not in self._known:
            if len(self._known) >= self.most:
                self._known.clear()
            self._known[key] = self._best(world, goal, turns, metres)
        return self._known[key]

    def _best(self, world: NavEnv, goal: Position, turns: Sequence[float], metres: Sequence[float]) -> int:
        stop = len(turns)
        if not stop or world.geodesic(world.pose.position, goal) <= self.stop_within:
            return stop
        pose, time = world.pose, world.time
        left = []
        for turn, distance in zip(turns, metres, strict=True):
            world.step(turn, distance)
            left.append(world.geodesic(world.pose.position, goal))
            world.place(pose, time)
        return left.index(min(left))


Choose = Callable[[Sequence[Traveller], Seen, Sequence[Candidates]], list[int]]
"""For each traveller the number of a place, or how many there are for stopping."""


def walk(
    eyes: Eyes,
    batch: NavigationBatch,
    choose: Choose,
    most: int,
    *,
    augment: torch.Generator | None = None,
) -> list[Traveller]:
    """Walk the episodes of a batch to their ends; after `most` decisions an agent stops where it is."""
    travellers = [
        Traveller(row, episode, world)
        for row, (episode, world) in enumerate(zip(batch.episodes, batch.worlds, strict=True))
    ]
    for traveller in travellers:
        traveller.start()
    for _ in range(most):
        active = [traveller for traveller in travellers if not traveller.done]
        if not active:
            break
        seen = eyes.look(active)
        places = find_places(eyes.model, seen.depth, augment=augment)
        for traveller, found, action in zip(active, places, choose(active, seen, places), strict=True):
            if action >= len(found.angle):
                traveller.done = traveller.chose_to_stop = True
            else:
                traveller.go(float(found.turn[action]), float(found.metres[action]))
    return travellers


class Mind:
    """The planner on its way: the instruction, a token for every step so far.

    Args:
        model: of the planner. tokens: (B, L) words, 0 for padding.
    """

    def __init__(self, model: Navigator, tokens: Tensor) -> None:
        self.model = model
        self.mask = tokens != 0
        self.text = model.planner.encode_text(tokens, self.mask)
        self.history = model.planner.history.first(len(tokens))[:, None]

    def scores(self, rows: Tensor, rgb: Tensor, seen: Seen, places: Sequence[Candidates]) -> Tensor:
        """(A, O) scores of places and, after the last of them, of stopping; -inf for the rest.

        Args:
            rows: (A,) which rows of the batch are on their way. rgb: (A, 12, W) of `Navigator.enter`.
        """
        history = self.history[rows]
        full = torch.ones(history.shape[:2], dtype=torch.bool, device=history.device)
        seen_now = observation(rgb, seen.depth.mean(dim=(3, 4)), places)
        plan = self.model.planner(self.text[rows], self.mask[rows], history, full, seen_now)
        return plan.scores  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    def remember(self, rows: Tensor, rgb: Tensor, angles: Tensor) -> None:
        """Add the token of a step: rgb (A, 12, W), clockwise angles (A,) of the turns that were taken."""
        views = panorama_angles().to(rgb.device)
        step = self.history.shape[1] - 1
        token = self.model.planner.history(rgb[:, 0], angle_feature(angles), rgb, views, step)
        all_tokens = token.new_zeros(len(self.history), 1, token.shape[1])
        all_tokens[rows] = token[:, None]
        self.history = torch.cat([self.history, all_tokens], dim=1)


def observation(rgb: Tensor, depth: Tensor, places: Sequence[Candidates]) -> Observation:
    """What the planner chooses from: places, the stop token, and the views that no place uses.

    Args:
        rgb: (A, 12, W). depth: (A, 12, C). places: A.
    """
    rows = []
    device = rgb.device
    angles = panorama_angles().to(device)
    for one, found in enumerate(places):
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


def taken(places: Sequence[Candidates], actions: Sequence[int], device: torch.device) -> Tensor:
    """(A,) clockwise radians of the turns to the chosen places; 0 for stopping."""
    return torch.tensor(
        [float(found.clockwise[action]) if action < len(found.angle) else 0.0
         for found, action in zip(places, actions, strict=True)],
        device=device,
    )  # fmt: skip
