"""Contrastive losses of the joined batch of all processes, with the exact gradients of each process's own features.

Shapes: B pairs of the joined batch, R of them in this process, E joint space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from internvideo import distributed
from internvideo.objectives.contrastive import (
    log_sum_exps,
    normalized_pairs,
    symmetric_contrastive,
    symmetric_dual_softmax,
)


def global_contrastive(
    video: Tensor, text: Tensor, scale: Tensor | float, similarity_chunk_size: int | None = None
) -> Tensor:
    """Compute `symmetric_contrastive` of the joined batch of all processes; each holds only rows of its own pairs.

    A process computes the (R, B) similarities of its videos to all texts, and of its texts to all videos. Of the other
    processes' rows only the log-sum-exp of each column is gathered. The gradients of a process's own features need
    nothing else, so the backward pass communicates nothing. They are those of the whole loss times the number of
    processes, over which DistributedDataParallel and FSDP average.

    Args:
        video, text: (R, E) of this process; R may differ between processes.
        scale, similarity_chunk_size: as `symmetric_contrastive`, chunks of this process's rows.

    Returns:
        Scalar, the loss of the joined batch in every process.
    """
    if distributed.world_size() == 1:
        return symmetric_contrastive(video, text, scale, similarity_chunk_size)
    with torch.autocast(video.device.type, enabled=False):
        video, text = normalized_pairs(video, text)
        videos, texts = (torch.cat(distributed.gather_rows(features)) for features in (video, text))
        factor = torch.as_tensor(scale).to(video)
        chunk = similarity_chunk_size or max(len(video), 1)
        # The scale is in both halves; its gradient is taken once, of the videos' rows, which all processes have once.
        of_videos, per_text = _own_rows(video, texts, text.detach(), factor, chunk)
        of_texts, per_video = _own_rows(text, videos, video.detach(), factor.detach(), chunk)
        pairs = factor.detach() * (videos * texts).sum(dim=1)
        value = ((per_text - pairs).mean() + (per_video - pairs).mean()) / 2
        gradient = (of_videos + of_texts) * (distributed.world_size() / (2 * len(videos)))
        return value + (gradient - gradient.detach())


def _own_rows(own: Tensor, others: Tensor, partners: Tensor, scale: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Compute the terms of this process's features (R, E) against `others` (B, E).

    Returns:
        a scalar with the gradients of the sum over all rows and columns, and the log-sum-exp of every column over the
        rows of all processes (B,), without gradient.
    """
    rows, columns = log_sum_exps(own, others, scale, chunk_size)
    every = torch.stack(distributed.gather_rows(columns.detach()[None])).flatten(0, 1)
    rank = distributed.rank()
    elsewhere = torch.cat([every[:rank], every[rank + 1 :]]).logsumexp(dim=0)
    pairs = scale * (own * partners).sum(dim=1)
    gradient = rows.sum() + torch.logaddexp(columns, elsewhere).sum() - 2 * pairs.sum()
    return gradient, every.logsumexp(dim=0)


def global_dual_softmax(video: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Compute `symmetric_dual_softmax` of the joined batch of all processes, whole in each of them."""
    gather = distributed.gather_with_gradient
    return symmetric_dual_softmax(gather(video), gather(text), scale)
