"""Contrastive losses between videos and texts, on features or similarities already gathered over all processes.

Shapes: B pairs of the global batch, E joint space. Source: spec/models.md D.6, F; spec/tasks.md 4.3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity_loss(similarity: Tensor) -> Tensor:
    """Mean cross entropy of the rows of (B, B) scaled similarities, the pairs on the diagonal -> scalar."""
    if similarity.dim() != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"expected similarities (B, B), got {tuple(similarity.shape)}")
    return F.cross_entropy(similarity, torch.arange(len(similarity), device=similarity.device))


def symmetric_similarity_loss(similarity: Tensor) -> Tensor:
    """Mean of the cross entropies of rows and of columns of (B, B) scaled similarities -> scalar."""
    return (similarity_loss(similarity) + similarity_loss(similarity.t())) / 2


def symmetric_contrastive(video: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric cross entropy of scaled cosines, row i of both being a pair.

    Args:
        video, text: (B, E) features of the global batch, of any length; normalised here, in float32 or better.
        scale: factor of the cosines, exp(logit_scale) or 1 / temperature.

    Returns:
        Scalar. ValueError when the numbers of rows differ.
    """
    if video.shape != text.shape:
        raise ValueError(f"features {tuple(video.shape)} and {tuple(text.shape)} are not pairs")
    with torch.autocast(video.device.type, enabled=False):
        video, text = F.normalize(_wide(video), dim=-1), F.normalize(_wide(text), dim=-1)
        return symmetric_similarity_loss(scale * video @ text.t())


def soft_symmetric_contrastive(video: Tensor, text: Tensor, scale: Tensor | float, identity: Tensor) -> Tensor:
    """As `symmetric_contrastive`, but all pairs of equal `identity` (B,) are positives, in equal shares (ViCLIP)."""
    if video.shape != text.shape or len(identity) != len(video):
        raise ValueError(f"features {tuple(video.shape)}, {tuple(text.shape)}, identities {tuple(identity.shape)}")
    with torch.autocast(video.device.type, enabled=False):
        video, text = F.normalize(_wide(video), dim=-1), F.normalize(_wide(text), dim=-1)
        similarity = scale * video @ text.t()
        positives = (identity[:, None] == identity).to(similarity)
        targets = positives / positives.sum(dim=1, keepdim=True)
        return (F.cross_entropy(similarity, targets) + F.cross_entropy(similarity.t(), targets)) / 2


def dual_softmax(similarity: Tensor, temperature: float = 1000.0) -> Tensor:
    """Similarities weighted by their share among the queries: S * softmax(S / temperature over rows) * B.

    Args:
        similarity: (B, B) scaled, rows the queries.
        temperature: of the weights.

    Returns:
        (B, B).
    """
    return similarity * F.softmax(similarity / temperature, dim=0) * len(similarity)


def dual_softmax_loss(similarity: Tensor, temperature: float = 1000.0) -> Tensor:
    """Row cross entropy after `dual_softmax`, the released training variant (spec/tasks.md 4.3) -> scalar."""
    return similarity_loss(dual_softmax(similarity, temperature))


def _wide(x: Tensor) -> Tensor:
    """Half precision -> float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
