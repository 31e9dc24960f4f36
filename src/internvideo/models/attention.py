"""Multi-head attention with torch's fused kernel, with packed or separate projections, and key/value caches.

Shapes: B batch, N query tokens, K key tokens, D width, H heads, d = D / H. Source: arXiv 1706.03762.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.models.module import Linear, Module

Bias = Literal["all", "query_value", "none"]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    attn_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention.

    Args:
        query: (B, H, N, d).
        key: (B, H, K, d), or (B, 1, K, d) for one key/value head shared by all query heads.
        value: as `key`.
        causal: a query at position n attends to keys 0..n.
        scale: factor of the query-key products, None for 1 / sqrt(d).
        attn_mask: broadcast to (B, H, N, K); float: added to the products before the softmax; bool: False hides a key.
            Not with `causal`.
        dropout: probability of setting an attention weight to 0; the caller gives 0 outside training.

    Returns:
        (B, N, H * d), the heads concatenated.
    """
    if key.shape[1] != query.shape[1]:
        key, value = key.expand(-1, query.shape[1], -1, -1), value.expand(-1, query.shape[1], -1, -1)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attn_mask, dropout_p=dropout, is_causal=causal, scale=scale
    )
    return out.transpose(1, 2).flatten(2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, H * d) -> (B, H, N, d)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


class LayerKVCache:
    """Keys and values that one attention layer has computed for the tokens so far.

    Attributes:
        key_value: key and value (R, H, n, d) of R texts, None before the first token.
    """

    key_value: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        """n."""
        return 0 if self.key_value is None else self.key_value[0].shape[2]

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values of the next tokens, and return all, (R, H, n, d) each."""
        if self.key_value is not None:
            if key.shape[2] != 1:
                raise ValueError(f"{key.shape[2]} new tokens, a filled cache takes 1")  # more would need a mask
            key, value = torch.cat([self.key_value[0], key], dim=2), torch.cat([self.key_value[1], value], dim=2)
        self.key_value = key, value
        return self.key_value

    def reorder(self, text_index: Tensor) -> None:
        """Select and order the texts: (R',) indices."""
        if self.key_value is not None:
            self.key_value = self.key_value[0][text_index], self.key_value[1][text_index]


class KVCache:
    """The keys and values of every attention layer of a decoder, for R texts that are being generated."""

    def __init__(self) -> None:
        self._layers: dict[nn.Module, LayerKVCache] = {}

    def layer(self, attention: nn.Module) -> LayerKVCache:
        """Return the cache of one attention layer, empty at first."""
        return self._layers.setdefault(attention, LayerKVCache())

    def reorder(self, text_index: Tensor) -> None:
        """Select and order the texts of every layer: (R',) indices."""
        for layer in self._layers.values():
            layer.reorder(text_index)


class Attention(Module):
    """Multi-head attention with one packed projection [query; key; value] (VideoMAE, CLIP).

    Args:
        width: D of queries, keys and values.
        heads: H, must divide D.
        bias: "all" (CLIP), "query_value" (VideoMAE: the key has none), "none".
    """

    def __init__(self, width: int, heads: int, *, bias: Bias = "all") -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=bias == "all")
        self.q_bias = nn.Parameter(torch.zeros(width)) if bias == "query_value" else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if bias == "query_value" else None
        self.proj = Linear(width, width)

    def _bias(self) -> Tensor | None:
        if self.q_bias is None or self.v_bias is None:
            return self.qkv.bias
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, causal: bool = False, kv_cache: LayerKVCache | None = None
    ) -> Tensor:
        """(B, N, D), context (B, K, D) or None for self-attention -> (B, N, D).

        With a `kv_cache` x are the tokens that follow the cached ones, to which they attend too. The first call may
        have several tokens, later calls one.
        """
        weight, bias = self.qkv.weight, self._bias()
        if context is None:
            query, key, value = F.linear(x, weight, bias).chunk(3, dim=-1)
        elif x.shape[1] * self.heads <= weight.shape[1] // 4:
            return self.proj(self._attend_few_queries(x, context))
        else:
            width = weight.shape[1]
            query = F.linear(x, weight[:width], None if bias is None else bias[:width])
            key, value = F.linear(context, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
        heads = self.heads
        key, value = split_heads(key, heads), split_heads(value, heads)
        if kv_cache is not None:
            causal = causal and not kv_cache.length
            key, value = kv_cache.extend(key, value)
        out = attend(split_heads(query, heads), key, value, causal=causal)
        return self.proj(out)

    def _attend_few_queries(self, x: Tensor, context: Tensor) -> Tensor:
        """Compute cross-attention of few queries without the keys and values of the context tokens.

        q . (W_k y) = (W_k^T q) . y, and sum a (W_v y) = W_v sum a y: the heads attend to the context itself. The key's
        bias shifts all products of a query equally, to which softmax is invariant.
        """
        batch, num_queries, width = x.shape
        bias = self._bias()
        size = width // self.heads
        to_query, to_key, to_value = self.qkv.weight.chunk(3)
        query = F.linear(x, to_query, None if bias is None else bias[:width]).view(batch, num_queries, self.heads, size)
        query = torch.einsum("bnhd,hdw->bnhw", query, to_key.view(self.heads, size, width)).flatten(1, 2)
        tokens = context[:, None]
        attended = attend(query[:, None], tokens, tokens, scale=size**-0.5).view(batch, num_queries, self.heads, width)
        value = torch.einsum("bnhw,hdw->bnhd", attended, to_value.view(self.heads, size, width)).flatten(2)
        return value if bias is None else value + bias[2 * width :]


class CrossAttention(Module):
    """Multi-head attention from one width onto tokens of another, with separate projections (CMA, caption decoder).

    Args:
        width: D of the queries and of the output.
        context_width: width of the key/value tokens.
        heads: query heads H.
        key_value_heads: H, or 1 for multi-query attention.
        bias: biases on all four projections.
        dropout: of the attention weights, in training.
    """

    def __init__(
        self,
        width: int,
        context_width: int,
        heads: int,
        *,
        key_value_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.key_value_heads = heads if key_value_heads is None else key_value_heads
        inner = self.key_value_heads * (width // heads)
        self.q = Linear(width, width, bias=bias)
        self.k = Linear(context_width, inner, bias=bias)
        self.v = Linear(context_width, inner, bias=bias)
        self.out = Linear(width, width, bias=bias)

    def forward(
        self, x: Tensor, context: Tensor, *, kv_cache: LayerKVCache | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """(B, N, D), (B, K, context width) -> (B, N, D).

        A `kv_cache` stores the context's keys and values, which later calls reuse. `attn_mask` is as in `attend`.
        """
        query = split_heads(self.q(x), self.heads)
        if kv_cache is not None and kv_cache.key_value is not None:
            key, value = kv_cache.key_value
        else:
            key = split_heads(self.k(context), self.key_value_heads)
            value = split_heads(self.v(context), self.key_value_heads)
            if kv_cache is not None:
                kv_cache.extend(key, value)
        dropout = self.dropout if self.training else 0.0
        return self.out(attend(query, key, value, attn_mask=attn_mask, dropout=dropout))
