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

    highlight_weight: float = Field(5.0, ge=0.0, description="weight of the foreground loss")
    highlight_margin: float = Field(
        0.1, ge=0.0, description="fraction of its length by which the answer is extended on both sides as foreground"
    )
    spans: int = Field(5, ge=1, description="testing: largest number of spans per query")
    nms_threshold: float = Field(
        0.7,
        ge=0.0,
        le=1.0,
        description="testing: spans whose tIoU with a more probable one is above this come last; 1: no NMS",
    )


class GroundingStage(Stage[Grounder, GroundingSettings]):
    """Cross entropy of both ends and binary cross entropy of the steps between them."""

    def steps(self, batch: QueryBatch) -> Tensor:
        """Return the first and last step of the answers (B, 2)."""
        lengths = batch.mask.sum(dim=1)
        no_answer = torch.full((2,), NO_ANSWER, device=batch.mask.device)
        steps = [
            span_to_steps(spans[0], length) if len(spans) else no_answer
            for spans, length in zip(batch.segments, lengths, strict=True)
        ]
        return torch.stack(steps)

    def forward(self, batch: QueryBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute {"loss", "span", "highlight"}."""
        answer_steps = self.steps(batch)
        logits = self.model(batch.features, batch.mask, batch.words)
        targets = highlight_targets(answer_steps, batch.mask.shape[1], self.settings.highlight_margin)
        valid = batch.mask & (answer_steps[:, :1] != NO_ANSWER)
        span = span_loss(logits.start.float(), logits.end.float(), answer_steps, self.divisor)
        highlight = highlight_loss(logits.highlight.float(), targets, valid, self.divisor)
        loss = span + self.settings.highlight_weight * highlight
        return {"loss": loss, "span": span.detach(), "highlight": highlight.detach()}
