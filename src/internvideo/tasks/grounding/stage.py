"""Training of query grounding: predict the span that answers a query (arXiv 2211.09529)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from internvideo.data.batch import QueryBatch
from internvideo.data.settings import Settings
from internvideo.objectives.grounding import NO_ANSWER, highlight_loss, highlight_targets, span_loss, span_to_steps
from internvideo.tasks.grounding.model import Grounder
from internvideo.training.recipe import Stage


class GroundingSettings(Settings):
    """Settings of the losses and of span selection."""

    highlight_weight: float = Field(5.0, ge=0.0, description="of the loss of the steps that belong to the answer")
    highlight_margin: float = Field(0.1, ge=0.0, description="fraction by which the highlighted answer is extended")
    spans: int = Field(5, ge=1, description="testing: spans of a query")
    nms_threshold: float = Field(
        0.7, ge=0.0, le=1.0, description="testing: tIoU with a better span above which a span is ranked last; 1: never"
    )


class GroundingStage(Stage[Grounder, GroundingSettings]):
    """Cross entropy of both ends and binary cross entropy of the steps between them."""

    def steps(self, batch: QueryBatch) -> Tensor:
        """Return the first and last step of the answers (B, 2)."""
        lengths = batch.mask.sum(dim=1)
        none = torch.full((2,), NO_ANSWER, device=batch.mask.device)
        made = [
            span_to_steps(spans[0], length) if len(spans) else none
            for spans, length in zip(batch.segments, lengths, strict=True)
        ]
        return torch.stack(made)

    def forward(self, batch: QueryBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return {"loss", "span", "highlight"}."""
        steps = self.steps(batch)
        found = self.model(batch.features, batch.mask, batch.words)
        targets = highlight_targets(steps, batch.mask.shape[1], self.settings.highlight_margin)
        answered = batch.mask & (steps[:, :1] != NO_ANSWER)
        span = span_loss(found.start.float(), found.end.float(), steps, self.divisor)
        highlight = highlight_loss(found.highlight.float(), targets, answered, self.divisor)
        loss = span + self.settings.highlight_weight * highlight
        return {"loss": loss, "span": span.detach(), "highlight": highlight.detach()}
