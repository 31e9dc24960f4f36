"""Compute the exact contrastive loss of a batch that does not fit in memory, by gradient caching (GradCache).

A contrastive loss needs the features of the whole batch at once; these are small, but the activations of the towers are
large. So each chunk of the batch is encoded without keeping activations, and again in the backward pass, when the
gradient of its features is known: value and gradients are those of the whole batch.

Source: Video-Text-Retrieval (loss over gathered batches).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from internvideo.data.batch import Batch
from internvideo.data.settings import Settings

Features = tuple[Tensor, ...]
Encode = Callable[[Tensor, Tensor, Tensor | None, int], Features]
Gather = Callable[[Tensor], Tensor]


def alone(features: Tensor) -> Tensor:
    """Return the features: a single process gathers nothing."""
    return features


class PartSettings(Settings):
    """Memory limits of one step; None for no limit.

    Attributes:
        encode_chunk_size: clips of this process whose activations are kept.
        similarity_chunk_size: rows of the similarities of the global batch.
    """

    encode_chunk_size: int | None = Field(None, ge=1)
    similarity_chunk_size: int | None = Field(None, ge=1)


def in_parts(encode: Encode, batch: Batch, encode_chunk_size: int | None) -> list[Features]:
    """Encode successive chunks of a batch, in order.

    Args:
        encode: (video, tokens, frame mask, index of the first clip) of a chunk -> tensors.
        batch: with tokens. encode_chunk_size: clips per chunk; None for one chunk that keeps its activations.
    """
    if batch.text_ids is None:
        raise ValueError("this stage needs captions: the loader was given no tokenizer")
    size = encode_chunk_size or len(batch)
    features = []
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        mask = None if batch.frame_mask is None else batch.frame_mask[rows]
        part = (batch.video[rows], batch.text_ids[rows], mask, start)
        whole = size >= len(batch)
        features.append(encode(*part) if whole else cast(Features, checkpoint(encode, *part, use_reentrant=False)))
    return features
