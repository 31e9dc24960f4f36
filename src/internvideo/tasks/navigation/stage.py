"""Train the planner by imitation of a shortest-path teacher with scheduled sampling of the agent's own steps.

Source: Visual-Language-Navigation, training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from internvideo.data.settings import Settings
from internvideo.tasks.navigation.model import Navigator, PanoramaFeatures
from internvideo.tasks.navigation.rollout import (
    EpisodeState,
    ObservationEncoder,
    PlannerState,
    ShortestPathExpert,
    chosen_headings,
    rollout,
)
from internvideo.tasks.navigation.waypoints import Candidates
from internvideo.tasks.navigation.world.batch import NavigationBatch
from internvideo.training.recipe import Stage

BLIND = 1
"""Token that replaces the instruction in the blind baseline."""


class NavigationSettings(Settings):
    """Settings of rolling out episodes."""

    max_steps: int = Field(25, ge=1, description="decisions of a training episode at most")
    max_test_steps: int = Field(20, ge=1, description="testing: decisions of an episode at most")
    stop_within: float = Field(1.5, gt=0.0, description="distance from the goal at which the teacher stops, m")
    teacher: float = Field(
        0.75, gt=0.0, le=1.0, description="probability of the teacher's step is p^(iteration//every+1)"
    )
    teacher_every: int = Field(2000, ge=1, description="iterations between two reductions of that probability")
    augment: bool = Field(True, description="waypoint augmentation: sample waypoints around the predicted ones")
    blind: bool = Field(False, description="the instruction is hidden, in training and testing: a baseline")
    max_cache_size: int = Field(20_000, ge=0, description="poses whose features are kept")


def input_tokens(tokens: Tensor, settings: NavigationSettings) -> Tensor:
    """Return the agent's input tokens: the instruction, or `BLIND`."""
    return torch.full_like(tokens[:, :1], BLIND) if settings.blind else tokens


class NavigationStage(Stage[Navigator, NavigationSettings]):
    """Cross-entropy of the teacher's choices, summed over the decisions of an episode."""

    iteration: Tensor
    unused_parameters = True

    def __init__(self, model: Navigator, settings: NavigationSettings) -> None:
        super().__init__(model, settings)
        if settings.max_steps > model.config.planner.steps:
            raise ValueError(f"max_steps {settings.max_steps}, the planner remembers {model.config.planner.steps}")
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        for part in model.encoders():
            part.requires_grad_(False)
        self._encoder = ObservationEncoder(model, settings.max_cache_size)
        self._expert = ShortestPathExpert(settings.stop_within)

    def train(self, mode: bool = True) -> NavigationStage:
        """Set the mode; the frozen feature extractors stay in evaluation mode."""
        super().train(mode)
        for part in self.model.encoders():
            part.eval()
        return self

    @property
    def teacher_share(self) -> float:
        """Probability of taking the teacher's step."""
        settings = self.settings
        return float(settings.teacher ** (int(self.iteration) // settings.teacher_every + 1))

    def forward(self, batch: NavigationBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return "loss", "agreement" (rate of the agent agreeing with the teacher) and "decisions" per episode."""
        settings, share = self.settings, self.teacher_share
        tokens = input_tokens(batch.tokens, settings)
        planner_state = PlannerState(self.model, tokens)
        losses: list[Tensor] = []
        agreed: list[Tensor] = []

        def choose(
            active: Sequence[EpisodeState], features: PanoramaFeatures, waypoints: Sequence[Candidates]
        ) -> list[int]:
            rows = torch.tensor([state.row for state in active], device=tokens.device)
            rgb = self.model.fuse_rgb(features)
            scores = planner_state.scores(rows, rgb, features, waypoints)
            right = [self._expert(*one) for one in zip(active, waypoints, strict=True)]
            target = torch.tensor(right, device=tokens.device)
            losses.append(F.cross_entropy(scores.float(), target, reduction="sum"))
            own = scores.argmax(dim=1)
            agreed.append((own == target).float())
            follow = torch.rand(len(active), generator=generator, device=generator.device) < share
            actions: list[int] = torch.where(follow.to(tokens.device), target, own).tolist()
            planner_state.append_history(rows, rgb, chosen_headings(waypoints, actions, tokens.device))
            return actions

        augment = generator if self.training and settings.augment else None
        rollout(self._encoder, batch, choose, settings.max_steps, augment=augment)
        if self.training:
            self.iteration += 1
        together = torch.cat(agreed)
        count = len(batch)
        return {
            "loss": torch.stack(losses).sum() / count,
            "agreement": together.mean(),
            "decisions": torch.tensor(len(together) / count, device=tokens.device),
        }
