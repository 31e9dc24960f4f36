"""Train the planner by imitation of a shortest-path teacher, with scheduled sampling.

The labels are the teacher's actions. The agent walks the teacher's action with a probability that decays during the
training, else its own best one.

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
    ShortestPathTeacher,
    chosen_headings,
    rollout,
)
from internvideo.tasks.navigation.waypoints import Candidates
from internvideo.tasks.navigation.world.batch import NavigationBatch
from internvideo.training.recipe import Stage

BLIND_TOKEN = 1
"""Id of the one token that replaces an instruction in the blind baseline."""


class NavigationSettings(Settings):
    """Settings of rolling out episodes."""

    max_steps: int = Field(25, ge=1, description="largest number of decisions of a training episode")
    max_test_steps: int = Field(20, ge=1, description="largest number of decisions of a test episode")
    stop_within: float = Field(1.5, gt=0.0, description="distance from the goal at which the teacher stops, m")
    teacher: float = Field(
        0.75, gt=0.0, le=1.0,
        description="p; the teacher's action is walked with probability p^(iteration // teacher_every + 1)",
    )  # fmt: skip
    teacher_every: int = Field(2000, ge=1, description="iterations between two reductions of that probability")
    augment: bool = Field(True, description="waypoint augmentation: sample waypoints around the predicted ones")
    blind: bool = Field(False, description="baseline without instructions, in training and testing")
    max_cache_size: int = Field(20_000, ge=0, description="largest number of panoramas whose features are cached")


def input_tokens(tokens: Tensor, settings: NavigationSettings) -> Tensor:
    """Return the agent's input tokens: the instructions, or `BLIND_TOKEN`."""
    return torch.full_like(tokens[:, :1], BLIND_TOKEN) if settings.blind else tokens


class NavigationStage(Stage[Navigator, NavigationSettings]):
    """Cross-entropy of the teacher's actions, summed over the decisions of an episode, mean over episodes."""

    iteration: Tensor
    unused_parameters = True

    def __init__(self, model: Navigator, settings: NavigationSettings) -> None:
        super().__init__(model, settings)
        if settings.max_steps > model.config.planner.max_steps:
            raise ValueError(
                f"max_steps {settings.max_steps}, more than planner.max_steps {model.config.planner.max_steps}"
            )
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        for encoder in model.encoders():
            encoder.requires_grad_(False)
        self._encoder = ObservationEncoder(model, settings.max_cache_size)
        self._teacher = ShortestPathTeacher(settings.stop_within)

    def train(self, mode: bool = True) -> NavigationStage:
        """Set the mode; the frozen encoders stay in evaluation mode."""
        super().train(mode)
        for encoder in self.model.encoders():
            encoder.eval()
        return self

    @property
    def teacher_probability(self) -> float:
        """Probability that a training step walks the teacher's action."""
        settings = self.settings
        return float(settings.teacher ** (int(self.iteration) // settings.teacher_every + 1))

    def forward(self, batch: NavigationBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return "loss", "agreement" (fraction of equal actions of agent and teacher) and "decisions" per episode."""
        settings, teacher_probability = self.settings, self.teacher_probability
        tokens = input_tokens(batch.tokens, settings)
        planner_state = PlannerState(self.model, tokens)
        losses: list[Tensor] = []
        agreements: list[Tensor] = []

        def choose(
            active: Sequence[EpisodeState], features: PanoramaFeatures, waypoints: Sequence[Candidates]
        ) -> list[int]:
            rows = torch.tensor([state.row for state in active], device=tokens.device)
            rgb = self.model.fuse_rgb(features)
            scores = planner_state.scores(rows, rgb, features, waypoints)
            teacher_actions = torch.tensor(list(map(self._teacher, active, waypoints)), device=tokens.device)
            losses.append(F.cross_entropy(scores.float(), teacher_actions, reduction="sum"))
            agent_actions = scores.argmax(dim=1)
            agreements.append((agent_actions == teacher_actions).float())
            random = torch.rand(len(active), generator=generator, device=generator.device)
            use_teacher = (random < teacher_probability).to(tokens.device)
            actions: list[int] = torch.where(use_teacher, teacher_actions, agent_actions).tolist()
            planner_state.append_history(rows, rgb, chosen_headings(waypoints, actions, tokens.device))
            return actions

        augment = generator if self.training and settings.augment else None
        rollout(self._encoder, batch, choose, settings.max_steps, augment=augment)
        if self.training:
            self.iteration += 1
        agreement = torch.cat(agreements)
        return {
            "loss": torch.stack(losses).sum() / len(batch),
            "agreement": agreement.mean(),
            "decisions": torch.tensor(len(agreement) / len(batch), device=tokens.device),
        }
