"""Post-norm layers of BERT, with the attention and feed-forward of `block.Block`.

Used by the navigation planner and the waypoint predictor, whose published weights have post-norm layers. Source:
Visual-Language-Navigation.
Shapes: B batch, N query tokens, K context tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from internvideo.models.attention import CrossAttention
from internvideo.models.block import FeedForward
from internvideo.models.module import Dropout, LayerNorm, Module

EPS = 1e-12


@dataclass(frozen=True)
class PostNormConfig:
    """Sizes of one layer: D, H, width of the feed-forward, dropout rate of branches and attention weights."""

    width: int
    heads: int
    mlp_dim: int
    dropout: float = 0.1


class PostNormAttention(Module):
    """norm(x + attention(x, y))."""

    def __init__(self, config: PostNormConfig) -> None:
        super().__init__()
        self.attn = CrossAttention(config.width, config.width, config.heads, dropout=config.dropout)
        self.dropout = Dropout(config.dropout)
        self.norm = LayerNorm(config.width, eps=EPS)

    def forward(self, x: Tensor, context: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """(B, N, D), context (B, K, D) or None for x, bool attn_mask broadcast to (B, H, N, K) -> (B, N, D)."""
        return self.norm(x + self.dropout(self.attn(x, x if context is None else context, attn_mask=attn_mask)))


class PostNormFeed(Module):
    """norm(x + feed-forward(x))."""

    def __init__(self, config: PostNormConfig) -> None:
        super().__init__()
        self.mlp = FeedForward(config.width, config.mlp_dim, activation="gelu", dropout=config.dropout)
        self.norm = LayerNorm(config.width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.norm(x + self.mlp(x))


class PostNormLayer(Module):
    """Self-attention and feed-forward."""

    def __init__(self, config: PostNormConfig) -> None:
        super().__init__()
        self.attention = PostNormAttention(config)
        self.feed = PostNormFeed(config)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, N, D), bool attn_mask broadcast to (B, H, N, N) -> (B, N, D)."""
        return self.feed(self.attention(x, attn_mask=attn_mask))
