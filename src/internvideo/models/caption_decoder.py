"""Caption decoder: token features attend to a fixed number of pooled visual tokens and predict the next token.

Shapes: B batch, L text tokens, K visual tokens, Q pooled visual tokens, V vocabulary, W text width, Wv visual width,
H heads.
Source: multi-modalities-downstream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.models.attention import CrossAttention, KVCache, LayerKVCache, attend, split_heads
from internvideo.models.block import run_layer
from internvideo.models.clip import EPS
from internvideo.models.module import LayerNorm, Linear, Module, Sequential


@dataclass(frozen=True)
class CaptionDecoderConfig:
    """Sizes of a caption decoder.

    Attributes:
        width: W, the text tower's width.
        heads: H (published: W / 64).
        vision_width: Wv.
        layers: published code 4, paper 6.
        vocab_size: V, or 0 for no predictor: the decoder then returns features (question answering networks).
        num_queries: Q, number of pooled visual tokens.
        mlp_ratio: width of the feed-forwards over W.
    """

    width: int
    heads: int
    vision_width: int
    layers: int = 4
    vocab_size: int = 49408
    num_queries: int = 256
    mlp_ratio: int = 4


def swiglu(x: Tensor) -> Tensor:
    """Multiply the first half by the SiLU of the second, (..., 2 F) -> (..., F)."""
    value, gate = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def rotate(x: Tensor, start: int = 0) -> Tensor:
    """Apply rotary positions start..start+L-1 to x (B, H, L, d); channel i is rotated with channel i + d / 2.

    Frequencies 10000^(-2i/d) are float32, as published; angles are float32, or float64 for a float64 x.
    """
    width = x.shape[3]
    dtype = torch.promote_types(x.dtype, torch.float32)
    frequencies = 1.0 / 10000 ** (torch.arange(0, width, 2, device=x.device).float() / width)
    angles = torch.arange(start, start + x.shape[2], device=x.device, dtype=dtype)[:, None] * frequencies.to(dtype)
    angles = torch.cat([angles, angles], dim=-1)
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return x * angles.cos().to(x.dtype) + rotated * angles.sin().to(x.dtype)


class ParallelBlock(Module):
    """Residual layer: causal multi-query self-attention and SwiGLU feed-forward in parallel, from one projection."""

    def __init__(self, config: CaptionDecoderConfig) -> None:
        super().__init__()
        width, inner = config.width, config.mlp_ratio * config.width
        head_width = width // config.heads
        self.heads = config.heads
        self.split_sizes = [width, head_width, head_width, 2 * inner]
        self.norm = LayerNorm(width, eps=EPS, bias=False)
        self.fused = Linear(width, sum(self.split_sizes), bias=False)
        self.attn_out = Linear(width, width, bias=False)
        self.ff_out = Linear(inner, width, bias=False)

    def forward(self, x: Tensor, kv_cache: LayerKVCache | None = None) -> Tensor:
        """(B, L, W) -> (B, L, W); with a `kv_cache` x are the tokens that follow the cached ones."""
        query, key, value, hidden = torch.split(self.fused(self.norm(x)), self.split_sizes, dim=-1)
        start = 0 if kv_cache is None else kv_cache.length
        query = rotate(split_heads(query, self.heads), start)
        key, value = rotate(split_heads(key, 1), start), split_heads(value, 1)
        if kv_cache is not None:
            key, value = kv_cache.extend(key, value)
        attended = attend(query, key, value, causal=start == 0)
        return x + self.attn_out(attended) + self.ff_out(swiglu(hidden))


class VisualBlock(Module):
    """Residual layer: multi-query attention to the pooled visual tokens and SwiGLU feed-forward in parallel."""

    def __init__(self, config: CaptionDecoderConfig) -> None:
        super().__init__()
        width, inner = config.width, config.mlp_ratio * config.width
        self.norm = LayerNorm(width, eps=EPS, bias=False)
        self.attn = CrossAttention(width, width, config.heads, key_value_heads=1, bias=False)
        self.fc1 = Linear(width, 2 * inner, bias=False)
        self.fc2 = Linear(inner, width, bias=False)

    def forward(self, x: Tensor, visual: Tensor, kv_cache: LayerKVCache | None = None) -> Tensor:
        """Text (B, L, W), visual (B, Q, W) -> (B, L, W); a `kv_cache` stores the visual keys and values."""
        y = self.norm(x)
        return x + self.attn(y, visual, kv_cache=kv_cache) + self.fc2(swiglu(self.fc1(y)))


class CaptionLayer(Module):
    """A parallel block, then a visual block."""

    def __init__(self, config: CaptionDecoderConfig) -> None:
        super().__init__()
        self.words = ParallelBlock(config)
        self.visual = VisualBlock(config)

    def forward(self, x: Tensor, visual: Tensor, kv_cache: KVCache | None = None) -> Tensor:
        """Text (B, L, W), visual (B, Q, W) -> (B, L, W)."""
        caches = [None if kv_cache is None else kv_cache.layer(block) for block in (self.words, self.visual)]
        return self.visual(self.words(x, caches[0]), visual, caches[1])


class CaptionDecoder(Module):
    """Predict next tokens from the text tower's token features and the tokens of the video tower's last layer.

    No padding mask is needed, since attention is causal and padding comes last.
    """

    def __init__(self, config: CaptionDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        width = config.width
        self.queries = nn.Parameter(torch.randn(config.num_queries, width) * width**-0.5)
        self.query_norm = LayerNorm(width, eps=EPS, bias=False)
        self.context_norm = LayerNorm(config.vision_width, eps=EPS, bias=False)
        self.pooler = CrossAttention(width, config.vision_width, config.heads, key_value_heads=1, bias=False)
        self.pooled_norm = LayerNorm(width, eps=EPS)
        self.text_norm = LayerNorm(width, eps=EPS)
        self.layers = nn.ModuleList(CaptionLayer(config) for _ in range(config.layers))
        self.predictor = build_predictor(width, config.vocab_size) if config.vocab_size else None
        self.apply(init_normal)

    def pool(self, visual: Tensor) -> Tensor:
        """Pool the video tokens (B, K, Wv), in any order, to (B, Q, W). There is no residual connection."""
        queries = self.query_norm(self.queries).expand(len(visual), -1, -1)
        return self.pooled_norm(self.pooler(queries, self.context_norm(visual)))

    def decode(self, text: Tensor, pooled: Tensor, kv_cache: KVCache | None = None) -> Tensor:
        """Token features (B, L, W) of the text tower, pooled visual tokens (B, Q, W) -> logits (B, L, V).

        Position i predicts token i + 1. Without a predictor: features (B, L, W). A `kv_cache` stores the preceding
        tokens, and the visual tokens of the first call.
        """
        x = self.features(text, pooled, kv_cache)
        return x if self.predictor is None else self.predictor(x)

    def features(self, text: Tensor, pooled: Tensor, kv_cache: KVCache | None = None) -> Tensor:
        """Compute the predictor's input (B, L, W); arguments as `decode`."""
        x = self.text_norm(text)
        for layer in self.layers:
            x = run_layer(layer, x, pooled, kv_cache, checkpointing=self.checkpointing and kv_cache is None)
        return x

    def forward(self, visual: Tensor, text: Tensor) -> Tensor:
        """Video tokens (B, K, Wv), text features (B, L, W) -> logits (B, L, V)."""
        return self.decode(text, self.pool(visual))


def build_predictor(width: int, vocab_size: int) -> nn.Sequential:
    """Build the predictor: layer norm, linear, GELU, layer norm, linear to the vocabulary."""
    return Sequential(
        LayerNorm(width, eps=EPS), Linear(width, width), nn.GELU(), LayerNorm(width, eps=EPS), Linear(width, vocab_size)
    )


def init_normal(module: nn.Module) -> None:
    """Initialize a linear layer with normal weights of std 0.02 and zero biases; other modules stay unchanged."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
