"""Contrastive learning of batches that are larger than the memory: towers and similarities in parts, exactly.

A contrastive loss needs the features of the whole batch at once, but features are small. What is large is what towers
keep for the backward pass. So each part of the batch is encoded without keeping anything, and encoded again, part by
part, when the gradient of its features is known: value and gradients are those of the whole batch.

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
    """How a single process gathers."""
    return features


class PartSettings(Settings):
    """Bounds of the memory of one step; None for no bound.

    `encode_chunk_size`: clips of this process whose activations are kept. `similarity_chunk_size`: rows of the
    similarities of the global batch.
    """

    encode_chunk_size: int | None = Field(None, ge=1)
    similarity_chunk_size: int | None = Field(None, ge=1)


def in_parts(encode: Encode, batch: Batch, encode_chunk_size: int | None) -> list[Features]:
    """`encode` of successive parts of a batch, in order.

    Args:
        encode: (video, tokens, frame mask, number of the first clip) of a part -> tensors.
        batch: with tokens.
        encode_chunk_size: of a part; None for one part that keeps its activations.
    """
    if batch.text_ids is None:
        raise ValueError("this stage needs captions: the loader was given no tokenizer")
    size = encode_chunk_size or len(batch)
    found = []
    for start in range(0, len(batch), size):
        cut = slice(start, start + size)
        mask = None if batch.frame_mask is None else batch.frame_mask[cut]
        part = (batch.video[cut], batch.text_ids[cut], mask, start)
        whole = size >= len(batch)
        found.append(encode(*part) if whole else cast(Features, checkpoint(encode, *part, use_reentrant=False)))
    return found
