"""Captioning loss by teacher forcing. Shapes: B batch, L tokens, V vocabulary. Source: multi-modalities-downstream."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from internvideo.objectives.classification import IGNORE_INDEX, to_float32


def caption_loss(logits: Tensor, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
    """Compute the mean cross entropy of the next tokens, padding excluded, the end-of-text token included.

    Args:
        logits: (B, L - 1, V), position i predicts token i + 1.
        tokens: (B, L) ids, zero padded.
        padding: (B, L) bool, True on padding; None infers it from the ids: zeros after the first largest id, which is
            the end of the text. (Zero is also the id of a token, "!".)

    Returns:
        Scalar float32 or better. ValueError for shapes that do not fit.
    """
    targets = _next_tokens("logits", logits, tokens, padding)
    return F.cross_entropy(to_float32(logits).flatten(0, 1), targets, ignore_index=IGNORE_INDEX)


def chunked_caption_loss(
    features: Tensor,
    predict: Callable[[Tensor], Tensor],
    tokens: Tensor,
    chunk_size: int,
    padding: Tensor | None = None,
) -> Tensor:
    """Compute `caption_loss` in chunks that the backward pass computes again, without the logits of all tokens at once.

    Args:
        features: (B, L - 1, W), position i is that of token i + 1. predict: features -> logits (N, V).
        tokens, padding: as `caption_loss`. chunk_size: tokens whose logits exist at a time.
    """
    targets = _next_tokens("features", features, tokens, padding)

    def summed_loss(features: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(to_float32(predict(features)), targets, ignore_index=IGNORE_INDEX, reduction="sum")

    chunks = zip(torch.split(features.flatten(0, 1), chunk_size), torch.split(targets, chunk_size), strict=True)
    sums = [cast(Tensor, checkpoint(summed_loss, *chunk, use_reentrant=False)) for chunk in chunks]
    return torch.stack(sums).sum() / (targets != IGNORE_INDEX).sum()


def _next_tokens(what: str, values: Tensor, tokens: Tensor, padding: Tensor | None) -> Tensor:
    """Return the targets of values (B, L - 1, ...), flat, with IGNORE_INDEX on padding. Raises ValueError."""
    if values.shape[:2] != (tokens.shape[0], tokens.shape[1] - 1):
        raise ValueError(f"{what} {tuple(values.shape)} do not fit ids {tuple(tokens.shape)}: one position less")
    padding = after_end(tokens) if padding is None else padding
    return tokens[:, 1:].masked_fill(padding[:, 1:].bool(), IGNORE_INDEX).flatten()


def after_end(tokens: Tensor) -> Tensor:
    """Return (B, L) bool, True after the first occurrence of the largest id of each row of (B, L) ids."""
    largest = tokens == tokens.max(dim=1, keepdim=True).values
    return largest.cumsum(dim=1) - largest.long() >= 1
