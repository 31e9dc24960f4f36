"""Compute the exact contrastive loss of a batch that does not fit in memory, by gradient caching (GradCache).

A contrastive loss needs the features of the whole batch, which are small; the activations of the towers are large. So
each chunk of the batch is encoded without storing activations, and encoded again in the backward pass, when the
gradient of its features is known. The loss and its gradients are exact.

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


def identity_gather(features: Tensor) -> Tensor:
    """Return the features unchanged: the gather of a single process."""
    return features


class ChunkSettings(Settings):
    """Chunk sizes that limit the memory of a step with a contrastive loss; None for no chunks.

    Attributes:
        encode_chunk_size: clips that a process encodes at a time.
        similarity_chunk_size: rows of the similarity matrix that a process computes at a time.
    """

    encode_chunk_size: int | None = Field(None, ge=1)
    similarity_chunk_size: int | None = Field(None, ge=1)


def encode_chunked(encode: Encode, batch: Batch, encode_chunk_size: int | None) -> list[Features]:
    """Encode successive chunks of a batch, in order.

    Args:
        encode: (video, token ids, frame mask, batch index of the first clip) of a chunk -> tensors.
        batch: with `text_ids`. encode_chunk_size: clips per chunk; None for the whole batch, without recomputation.
    """
    if batch.text_ids is None:
        raise ValueError("this stage needs captions: the loader was given no tokenizer")
    size = encode_chunk_size or len(batch)
    features = []
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        mask = None if batch.frame_mask is None else batch.frame_mask[rows]
        chunk = (batch.video[rows], batch.text_ids[rows], mask, start)
        one_chunk = size >= len(batch)
        features.append(
            encode(*chunk) if one_chunk else cast(Features, checkpoint(encode, *chunk, use_reentrant=False))
        )
    return features
