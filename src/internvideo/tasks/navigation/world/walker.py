"""Who walks through a world: pose, clock, and moves in pieces, the same in every world."""

from __future__ import annotations

from abc import ABC, abstractmethod

from internvideo.tasks.navigation.world.protocol import Pose, Walk, steps_forward, turn_pieces, wrapped


class Walker(ABC):
    """The part of a `NavEnv` that moves; a world says where one step forward leads."""

    def __init__(self) -> None:
        self._pose = Pose(0.0, 0.0, 0.0)
        self._time = 0

    @property
    def pose(self) -> Pose:
        """Where the agent is now."""
        return self._pose

    @property
    def time(self) -> int:
        """Ticks since reset: one for each pose walked through."""
        return self._time

    def place(self, pose: Pose, time: int) -> None:
        """Be at a pose at a tick of this scene."""
        self._pose, self._time = pose, time

    def step(self, turn: float, distance: float) -> Walk:
        """Turn, then whole steps of 0.25 m, sliding along what is in the way."""
        poses: list[Pose] = []
        pose, collided = self._pose, False
        for piece in turn_pieces(turn):
            pose = Pose(pose.x, pose.y, wrapped(pose.heading + piece), pose.height)
            poses.append(pose)
        for _ in range(steps_forward(distance)):
            pose, met = self._forward(pose)
            poses.append(pose)
            collided |= met
        first = self._time + 1
        self.place(pose, self._time + len(poses))
        return Walk(tuple(poses), tuple(range(first, first + len(poses))), collided)

    @abstractmethod
    def _forward(self, pose: Pose) -> tuple[Pose, bool]:
        """The pose after a step of 0.25 m, and whether something was met."""
