"""Captioning loss by teacher forcing. Shapes: B batch, L tokens, V vocabulary. Source: multi-modalities-downstream."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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


def after_end(tokens: Tensor) -> Tensor:
    """Return (B, L) bool, True after the first occurrence of the largest id of each row of (B, L) ids."""
    largest = tokens == tokens.max(dim=1, keepdim=True).values
    return largest.cumsum(dim=1) - largest.long() >= 1
