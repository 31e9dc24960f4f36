"""Captioning loss by teacher forcing. Shapes: B batch, L tokens, V vocabulary. Source: multi-modalities-downstream."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def caption_loss(logits: Tensor, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
    """Compute the mean cross entropy of the next tokens, padding excluded, the end-of-text token included.

    Args:
        logits: (B, L - 1, V), position i predicts word i + 1.
        tokens: (B, L) ids, zero padded.
        padding: (B, L) bool, True on padding; None reads it from the ids: zeros after the first largest id, which is
            the end of the text. (Zero is also the id of a real word, "!".)

    Returns:
        Scalar float32 or better. ValueError for shapes that do not fit.
    """
    if logits.shape[:2] != (tokens.shape[0], tokens.shape[1] - 1):
        raise ValueError(f"logits {tuple(logits.shape)} do not fit ids {tuple(tokens.shape)}: one position less")
    if padding is None:
        padding = after_end(tokens)
    targets = tokens[:, 1:].masked_fill(padding[:, 1:].bool(), -100)
    if logits.element_size() < 4:
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def chunked_caption_loss(
    features: Tensor,
    predict: Callable[[Tensor], Tensor],
    tokens: Tensor,
    chunk_size: int,
    padding: Tensor | None = None,
) -> Tensor:
    """Compute `caption_loss` without the logits of all words at once, neither here nor in the backward pass.

    Args:
        features: (B, L - 1, W), position i is that of word i + 1. predict: features -> logits (N, V).
        tokens, padding: as `caption_loss`. chunk_size: words whose logits exist at a time.
    """
    if features.shape[:2] != (tokens.shape[0], tokens.shape[1] - 1):
        raise ValueError(f"features {tuple(features.shape)} do not fit ids {tuple(tokens.shape)}: one position less")
    padding = after_end(tokens) if padding is None else padding
    targets = tokens[:, 1:].masked_fill(padding[:, 1:].bool(), -100).flatten()
    part = partial(_summed_loss, predict)
    sums = [
        cast(Tensor, checkpoint(part, rows, own, use_reentrant=False))
        for rows, own in zip(
            torch.split(features.flatten(0, 1), chunk_size), torch.split(targets, chunk_size), strict=True
        )
    ]
    return torch.stack(sums).sum() / (targets != -100).sum()


def _summed_loss(predict: Callable[[Tensor], Tensor], features: Tensor, targets: Tensor) -> Tensor:
    logits = predict(features)
    if logits.element_size() < 4:
        logits = logits.float()
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")


def after_end(tokens: Tensor) -> Tensor:
    """Return (B, L) bool, True after the first occurrence of the largest id of each row of (B, L) ids."""
    largest = tokens == tokens.max(dim=1, keepdim=True).values
    return largest.cumsum(dim=1) - largest.long() >= 1
