"""Contrastive losses between videos and texts, on features or similarities already gathered over all processes.

Shapes: B pairs of the global batch, E joint space. Source: Multi-Modalities-Pretraining, viclip.py.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def similarity_loss(similarity: Tensor) -> Tensor:
    """Mean cross entropy of the rows of (B, B) scaled similarities, the pairs on the diagonal -> scalar."""
    if similarity.dim() != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"expected similarities (B, B), got {tuple(similarity.shape)}")
    return F.cross_entropy(similarity, torch.arange(len(similarity), device=similarity.device))


def symmetric_similarity_loss(similarity: Tensor) -> Tensor:
    """Mean of the cross entropies of rows and of columns of (B, B) scaled similarities -> scalar."""
    return (similarity_loss(similarity) + similarity_loss(similarity.t())) / 2


def symmetric_contrastive(
    video: Tensor, text: Tensor, scale: Tensor | float, rows_at_once: int | None = None
) -> Tensor:
    """Symmetric cross entropy of scaled cosines, row i of both being a pair.

    Args:
        video, text: (B, E) features of the global batch, of any length; normalised here, in float32 or better.
        scale: factor of the cosines, exp(logit_scale) or 1 / temperature.
        rows_at_once: never hold more than so many rows of the (B, B) similarities, neither here nor in the backward
            pass, which computes them again; value and gradients are the same. None for all of them.

    Returns:
        Scalar. ValueError when the numbers of rows differ.
    """
    if video.shape != text.shape:
        raise ValueError(f"features {tuple(video.shape)} and {tuple(text.shape)} are not pairs")
    with torch.autocast(video.device.type, enabled=False):
        video, text = F.normalize(_wide(video), dim=-1), F.normalize(_wide(text), dim=-1)
        if rows_at_once is None or rows_at_once >= len(video):
            return symmetric_similarity_loss(scale * video @ text.t())
        return _in_rows(video, text, torch.as_tensor(scale).to(video), rows_at_once)


def _in_rows(video: Tensor, text: Tensor, scale: Tensor, count: int) -> Tensor:
    """Both cross entropies from the log-sums of rows and columns, a few rows at a time."""
    rows, columns = [], []
    for part in torch.split(video, count):
        row, column = cast(tuple[Tensor, Tensor], checkpoint(_log_sums, part, text, scale, use_reentrant=False))
        rows.append(row)
        columns.append(column)
    pairs = scale * (video * text).sum(dim=1)
    return ((torch.cat(rows) - pairs).mean() + (torch.stack(columns).logsumexp(dim=0) - pairs).mean()) / 2


def _log_sums(video: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sums of exp of the similarities (R, B) of some rows: over columns (R,), over these rows (B,)."""
    similarity = scale * video @ text.t()
    return similarity.logsumexp(dim=1), similarity.logsumexp(dim=0)


def dual_softmax(similarity: Tensor, temperature: float = 1000.0) -> Tensor:
    """Similarities weighted by their share among the queries: S * softmax(S / temperature over rows) * B.

    Args:
        similarity: (B, B) scaled, rows the queries.
        temperature: of the weights.

    Returns:
        (B, B).
    """
    return similarity * F.softmax(similarity / temperature, dim=0) * len(similarity)


def symmetric_dual_softmax(video: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Mean of `dual_softmax_loss` of texts against videos and of videos against texts; arguments as
    `symmetric_contrastive` -> scalar."""
    if video.shape != text.shape:
        raise ValueError(f"features {tuple(video.shape)} and {tuple(text.shape)} are not pairs")
    with torch.autocast(video.device.type, enabled=False):
        video, text = F.normalize(_wide(video), dim=-1), F.normalize(_wide(text), dim=-1)
        similarity = scale * text @ video.t()
        return (dual_softmax_loss(similarity) + dual_softmax_loss(similarity.t())) / 2


def dual_softmax_loss(similarity: Tensor, temperature: float = 1000.0) -> Tensor:
    """Row cross entropy after `dual_softmax`, the released training variant (Video-Text-Retrieval) -> scalar."""
    return similarity_loss(dual_softmax(similarity, temperature))


def _wide(x: Tensor) -> Tensor:
    """Half precision -> float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
