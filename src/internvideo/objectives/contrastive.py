"""Contrastive losses between videos and texts, on features or similarities already gathered over all processes.

Shapes: B pairs of the global batch, R rows of a part of them, E joint space.
Source: Multi-Modalities-Pretraining, viclip.py.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from internvideo.objectives.classification import to_float32


def similarity_loss(similarity: Tensor) -> Tensor:
    """Compute the mean cross entropy over the rows of (B, B) scaled similarities with the pairs on the diagonal."""
    if similarity.dim() != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"expected similarities (B, B), got {tuple(similarity.shape)}")
    return F.cross_entropy(similarity, torch.arange(len(similarity), device=similarity.device))


def symmetric_similarity_loss(similarity: Tensor) -> Tensor:
    """Compute the mean of the cross entropies over rows and over columns of (B, B) scaled similarities."""
    return (similarity_loss(similarity) + similarity_loss(similarity.t())) / 2


def normalized_pairs(video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """L2-normalize paired features (B, E) in float32 or better. Raises ValueError for different shapes."""
    if video.shape != text.shape:
        raise ValueError(f"features {tuple(video.shape)} and {tuple(text.shape)} are not pairs")
    return F.normalize(to_float32(video), dim=-1), F.normalize(to_float32(text), dim=-1)


def symmetric_contrastive(
    video: Tensor, text: Tensor, scale: Tensor | float, similarity_chunk_size: int | None = None
) -> Tensor:
    """Compute the symmetric contrastive (InfoNCE) loss of scaled cosines; row i of both is a pair.

    Args:
        video, text: (B, E) features of the global batch, of any length; normalized here, in float32 or better.
        scale: factor of the cosines, exp(logit_scale) or 1 / temperature.
        similarity_chunk_size: rows of the (B, B) similarities held at a time, here and in the backward pass, which
            computes them again; value and gradients are the same. None for all of them.

    Returns:
        Scalar. ValueError when the numbers of rows differ.
    """
    with torch.autocast(video.device.type, enabled=False):
        video, text = normalized_pairs(video, text)
        if similarity_chunk_size is None or similarity_chunk_size >= len(video):
            return symmetric_similarity_loss(scale * video @ text.t())
        return _chunked_loss(video, text, torch.as_tensor(scale).to(video), similarity_chunk_size)


def _chunked_loss(video: Tensor, text: Tensor, scale: Tensor, chunk_size: int) -> Tensor:
    """Compute the loss from the log-sum-exp of rows and columns, in chunks of rows."""
    rows, columns = log_sum_exps(video, text, scale, chunk_size)
    pairs = scale * (video * text).sum(dim=1)
    return ((rows - pairs).mean() + (columns - pairs).mean()) / 2


def log_sum_exps(video: Tensor, text: Tensor, scale: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Return `_log_sum_exp` of rows (R, E), in chunks that the backward pass computes again: (R,), (B,)."""
    chunks = torch.split(video, chunk_size)
    sums = [
        cast(tuple[Tensor, Tensor], checkpoint(_log_sum_exp, chunk, text, scale, use_reentrant=False))
        for chunk in chunks
    ]
    rows, columns = zip(*sums, strict=True)
    return torch.cat(rows), torch.stack(columns).logsumexp(dim=0)


def _log_sum_exp(video: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exp of the similarities (R, B) of some rows: over columns (R,), over these rows (B,)."""
    similarity = scale * video @ text.t()
    return similarity.logsumexp(dim=1), similarity.logsumexp(dim=0)


def dual_softmax(similarity: Tensor, temperature: float = 1000.0) -> Tensor:
    """Weight scaled similarities (B, B), rows the queries, by S * softmax(S / temperature over rows) * B."""
    return similarity * F.softmax(similarity / temperature, dim=0) * len(similarity)


def symmetric_dual_softmax(video: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Average `dual_softmax_loss` of texts against videos and of videos against texts; as `symmetric_contrastive`."""
    with torch.autocast(video.device.type, enabled=False):
        video, text = normalized_pairs(video, text)
        similarity = scale * text @ video.t()
        return (dual_softmax_loss(similarity) + dual_softmax_loss(similarity.t())) / 2


def dual_softmax_loss(similarity: Tensor, temperature: float = 1000.0) -> Tensor:
    """Compute the row cross entropy after `dual_softmax`, the released training variant (Video-Text-Retrieval)."""
    return similarity_loss(dual_softmax(similarity, temperature))
