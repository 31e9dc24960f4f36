"""Ground a query in a long video: predict start and end of the answer (arXiv 2211.09529, after VSLNet).

Context-query attention combines video features and words. The steps are weighted by a foreground score (highlight),
which depends on the sentence embedding. Two stacked predictors compute the logits of start and end.
Shapes: B queries, C channels, T steps, L words, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from internvideo.models.attention import attend
from internvideo.models.embeddings import sin_cos_table
from internvideo.models.entry import ModelEntry
from internvideo.models.module import Conv1d, Dropout, Embedding, LayerNorm, Linear, Module
from internvideo.models.post_norm import PostNormConfig, PostNormLayer


@dataclass(frozen=True)
class GrounderConfig:
    """Sizes of the grounding model.

    Attributes:
        input_width: channels of the features.
        vocab_size: number of words; word 0 is padding.
        width, heads: D, H.
        layers: layers of the encoder that video and words share.
        kernel: kernel size of the convolutions before it, odd.
        max_length: steps of a training sequence; test sequences may be longer.
        max_words: largest number of words per query.
        dropout: of all layers.

    Raises:
        ValueError: contradictory sizes.
    """

    input_width: int = 1024
    vocab_size: int = 4000
    width: int = 256
    heads: int = 8
    layers: int = 1
    kernel: int = 7
    max_length: int = 1024
    max_words: int = 32
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} is not an even multiple of heads {self.heads}")
        if self.kernel % 2 == 0 or min(self.layers, self.max_length, self.max_words) < 1 or self.vocab_size < 2:
            raise ValueError(
                f"kernel {self.kernel} (odd), layers {self.layers}, max_length {self.max_length}, "
                f"max_words {self.max_words}, vocab_size {self.vocab_size} (2 or more)"
            )


@dataclass(frozen=True)
class Grounding:
    """Logits (B, T) per step: start, end (-inf in the padding), and foreground."""

    start: Tensor
    end: Tensor
    highlight: Tensor


class LocalLayer(Module):
    """Residual depth-wise separable convolution with a norm."""

    def __init__(self, config: GrounderConfig) -> None:
        super().__init__()
        width = config.width
        self.depth = Conv1d(width, width, config.kernel, padding=config.kernel // 2, groups=width, bias=False)
        self.mix = Linear(width, width)
        self.norm = LayerNorm(width)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, N, D), (B, N) bool -> (B, N, D)."""
        convolved = self.depth((x * mask[..., None]).transpose(1, 2)).transpose(1, 2)
        return self.norm(x + self.dropout(F.relu(self.mix(convolved))))


class ContextQueryAttention(Module):
    """Context-query attention: video-to-query and query-to-video attention (VSLNet).

    The similarity of step v and word q is a.v + b.q + c.(v * q). Its softmax over words weights the words, and its
    softmax over steps weights the steps for each word; terms to which a softmax is invariant are omitted.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_video = Linear(width, 1, bias=False)
        self.of_query = Linear(width, 1, bias=False)
        self.of_both = nn.Parameter(torch.randn(width) / width)
        self.out = Linear(4 * width, width)

    def forward(self, video: Tensor, query: Tensor, video_mask: Tensor, query_mask: Tensor) -> Tensor:
        """(B, T, D), (B, L, D), seen (B, T) and read (B, L) bool -> (B, T, D)."""
        step_scores = _fill_masked(self.of_video(video).transpose(1, 2), ~video_mask[:, None])[:, None]
        word_scores = _fill_masked(self.of_query(query).transpose(1, 2), ~query_mask[:, None])[:, None]
        v, q = video[:, None], query[:, None]
        query_contexts = attend(q * self.of_both, v, v, scale=1.0, attn_mask=step_scores)
        attended = attend(
            v * self.of_both, q, torch.cat([q, query_contexts[:, None]], dim=-1), scale=1.0, attn_mask=word_scores
        )
        video_to_query, query_to_video = attended.chunk(2, dim=-1)
        return self.out(torch.cat([video, video_to_query, video * video_to_query, video * query_to_video], dim=-1))


def _fill_masked(scores: Tensor, where: Tensor) -> Tensor:
    """Replace scores where the mask is True by the minimum of their dtype, which depends on autocast."""
    return scores.masked_fill(where, torch.finfo(scores.dtype).min)


class StepHead(Module):
    """Compute a logit per step; the output layer has no bias, to which the softmax over steps is invariant."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = Linear(2 * width, width)
        self.out = Linear(width, 1, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, T, D), (B, T, D) -> (B, T)."""
        hidden = F.relu(self.hidden(torch.cat([x, context], dim=-1)))
        return self.out(hidden).squeeze(-1)


class Grounder(nn.Module):
    """Predict the segment of a video that answers a query."""

    class_layer = ("word", 0)
    """`init_head` initializes the word embedding like a classifier, whose classes are the words."""
    step_positions: Tensor
    word_positions: Tensor

    def __init__(self, config: GrounderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        layer = PostNormConfig(width, config.heads, 2 * width, config.dropout)
        self.norm = LayerNorm(config.input_width)  # so that the scale of the features does not matter
        self.video = Linear(config.input_width, width)
        self.word = Embedding(config.vocab_size, width, padding_idx=0)
        self.dropout = Dropout(config.dropout)
        self.local = LocalLayer(config)
        self.encoder = nn.ModuleList(PostNormLayer(layer) for _ in range(config.layers))
        self.attention = ContextQueryAttention(width)
        self.pool = Linear(width, 1, bias=False)
        self.highlight = Linear(2 * width, 1)
        self.start_layer, self.end_layer = PostNormLayer(layer), PostNormLayer(layer)
        self.start_head, self.end_head = StepHead(width), StepHead(width)
        for name, length in (("step_positions", config.max_length), ("word_positions", config.max_words)):
            self.register_buffer(name, sin_cos_table(length, width).reshape(1, length, width), persistent=False)

    def _encode(self, x: Tensor, table: Tensor, mask: Tensor) -> Tensor:
        if x.shape[1] > table.shape[1]:
            table = F.interpolate(table.transpose(1, 2), x.shape[1], mode="linear").transpose(1, 2)
        x = self.local(x + table[:, : x.shape[1]], mask)
        for layer in self.encoder:
            x = layer(x, attn_mask=mask[:, None, None])
        return x

    def encode_video(self, features: Tensor, mask: Tensor) -> Tensor:
        """Encode features (B, C, T), padded at the end, with mask (B, T), to (B, T, D), without a query."""
        x = self.video(self.norm((features * mask[:, None]).transpose(1, 2)))
        return self._encode(self.dropout(x), self.step_positions, mask)

    def ground(self, video: Tensor, mask: Tensor, words: Tensor) -> Grounding:
        """Ground words (B, L) int64, padded with 0, in the output of `look` (B, T, D) with mask (B, T)."""
        query_mask = words > 0
        query = self._encode(self.dropout(self.word(words)), self.word_positions, query_mask)
        x = self.attention(video, query, mask, query_mask)
        pooling_weights = self.pool(query).squeeze(-1).masked_fill(~query_mask, float("-inf")).softmax(dim=-1)
        sentence = (pooling_weights[..., None] * query).sum(dim=1, keepdim=True).expand(-1, x.shape[1], -1)
        highlight = self.highlight(torch.cat([x, sentence], dim=-1)).squeeze(-1)
        x = x * highlight.sigmoid()[..., None]
        start = self.start_layer(x, attn_mask=mask[:, None, None])
        end = self.end_layer(start, attn_mask=mask[:, None, None])
        logits = [head(hidden, x) for head, hidden in ((self.start_head, start), (self.end_head, end))]
        first, last = (row.masked_fill(~mask, float("-inf")) for row in logits)
        return Grounding(first, last, highlight)

    def forward(self, features: Tensor, mask: Tensor, words: Tensor) -> Grounding:
        """Features (B, C, T), mask (B, T) bool, words (B, L) -> logits of every step."""
        return self.ground(self.encode_video(features, mask), mask, words)

    def no_weight_decay(self, name: str, parameter: Tensor) -> bool:
        """Exempt vectors and word embeddings from weight decay."""
        return parameter.dim() < 2 or name.startswith("word.")


CANDIDATES = 1000
"""Largest number of candidate spans of a query before NMS."""


def most_probable_spans(
    start: Tensor, end: Tensor, max_spans: int, nms_threshold: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the most probable spans of one query, after NMS.

    Args:
        start, end: (T,) logits. max_spans: largest number of spans.
        nms_threshold: spans whose tIoU with a more probable span is above this are only used if too few others remain.

    Returns:
        spans (N, 2) in steps, where step t lasts from t - 0.5 to t + 0.5; start * end probability (N,), decreasing.
    """
    length = len(start)
    joint = start.log_softmax(0)[:, None] + end.log_softmax(0)[None]
    joint = joint.masked_fill(torch.ones_like(joint, dtype=torch.bool).tril(-1), float("-inf"))
    num_candidates = min(CANDIDATES, length * (length + 1) // 2)
    values, flat_index = joint.flatten().topk(num_candidates)
    first, last = flat_index.div(length, rounding_mode="floor"), flat_index % length
    spans = torch.stack([first - 0.5, last + 0.5], dim=1).double().cpu().numpy()
    scores: NDArray[Any] = values.double().exp().cpu().numpy()
    selected: list[int] = []
    for row in range(num_candidates):
        if len(selected) == max_spans:
            break
        if not selected or _overlap(spans[row], spans[selected]) <= nms_threshold:
            selected.append(row)
    suppressed = [row for row in range(num_candidates) if row not in selected][: max_spans - len(selected)]
    order = np.asarray(sorted(selected + suppressed), dtype=np.int64)
    return spans[order], scores[order]


def _overlap(span: NDArray[Any], others: NDArray[Any]) -> float:
    intersection = np.minimum(span[1], others[:, 1]) - np.maximum(span[0], others[:, 0])
    union = span[1] - span[0] + others[:, 1] - others[:, 0] - intersection.clip(min=0)
    return float((intersection.clip(min=0) / union).max())


MODELS = {
    "grounder": ModelEntry(
        Grounder,
        GrounderConfig(),
        None,
        "temporal grounding of a query in features of a long video: width 256, trained word embeddings",
    )
}
