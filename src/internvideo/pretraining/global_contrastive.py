"""Contrastive losses of the global batch of all processes, with exact gradients of the features of each process.

Shapes: B pairs of the global batch, R of them in this process, E width of the joint space.
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
    """Compute `symmetric_contrastive` of the global batch without its (B, B) similarities in any process.

    Each process computes the (R, B) similarities of its videos to all texts, and of its texts to all videos. Of the
    other processes it gathers the features and the log-sum-exp of each column, which suffice for the gradients of its
    features: the backward pass needs no communication. The gradients are multiplied by the number of processes, because
    DistributedDataParallel and FSDP average over them.

    Args:
        video, text: (R, E) of this process; R may differ between processes.
        scale: see `symmetric_contrastive`. similarity_chunk_size: rows of this process per chunk.

    Returns:
        Scalar, the loss of the global batch, equal in every process.
    """
    if distributed.world_size() == 1:
        return symmetric_contrastive(video, text, scale, similarity_chunk_size)
    with torch.autocast(video.device.type, enabled=False):
        video, text = normalized_pairs(video, text)
        videos, texts = (torch.cat(distributed.gather_rows(features)) for features in (video, text))
        factor = torch.as_tensor(scale).to(video)
        chunk = similarity_chunk_size or max(len(video), 1)
        # Both halves depend on the scale; its gradient is that of the first half alone, which counts all rows.
        video_gradient, per_text = _local_terms(video, texts, text.detach(), factor, chunk)
        text_gradient, per_video = _local_terms(text, videos, video.detach(), factor.detach(), chunk)
        pairs = factor.detach() * (videos * texts).sum(dim=1)
        value = ((per_text - pairs).mean() + (per_video - pairs).mean()) / 2
        gradient = (video_gradient + text_gradient) * (distributed.world_size() / (2 * len(videos)))
        return value + (gradient - gradient.detach())


def _local_terms(
    features: Tensor, others: Tensor, paired: Tensor, scale: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Compute the terms of the loss that contain this process's features (R, E), with all features `others` (B, E).

    Args:
        paired: (R, E), the partner in `others` of each row of `features`.

    Returns:
        a scalar whose gradient is that of the sum of the loss over rows and columns, and the log-sum-exp (B,) of each
        column over the rows of all processes, without gradient.
    """
    rows, columns = log_sum_exps(features, others, scale, chunk_size)
    all_columns = torch.stack(distributed.gather_rows(columns.detach()[None])).flatten(0, 1)
    rank = distributed.rank()
    other_ranks = torch.cat([all_columns[:rank], all_columns[rank + 1 :]]).logsumexp(dim=0)
    pairs = scale * (features * paired).sum(dim=1)
    gradient = rows.sum() + torch.logaddexp(columns, other_ranks).sum() - 2 * pairs.sum()
    return gradient, all_columns.logsumexp(dim=0)


def global_dual_softmax(video: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Compute `symmetric_dual_softmax` of the global batch, with all its similarities in every process."""
    gather = distributed.gather_with_gradient
    return symmetric_dual_softmax(gather(video), gather(text), scale)
