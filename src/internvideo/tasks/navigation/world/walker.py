"""Movement shared by all worlds: pose, clock, and steps split into small moves."""

from __future__ import annotations

from abc import ABC, abstractmethod

from internvideo.tasks.navigation.world.protocol import Pose, Walk, steps_forward, turn_pieces, wrapped


class Walker(ABC):
    """Movement of a `NavEnv`; a subclass implements one step forward."""

    def __init__(self) -> None:
        self._pose = Pose(0.0, 0.0, 0.0)
        self._time = 0

    @property
    def pose(self) -> Pose:
        """Current pose of the agent."""
        return self._pose

    @property
    def time(self) -> int:
        """Ticks since reset, one per pose."""
        return self._time

    def place(self, pose: Pose, time: int) -> None:
        """Set pose and tick in the current scene."""
        self._pose, self._time = pose, time

    def step(self, turn: float, distance: float) -> Walk:
        """Turn, then walk whole steps of 0.25 m, sliding along obstacles."""
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
        """Return the pose after a step of 0.25 m, and whether it hit an obstacle."""
