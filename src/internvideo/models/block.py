"""Pre-norm transformer layer with self-, causal or cross-attention, optionally gated or scaled.

Source: modeling_pretrain.py, uniformerv2_model.py (CLIP and global blocks), paper 3.3 (cross-model attention).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from internvideo.models.attention import Attention, Bias, CrossAttention, LayerKVCache
from internvideo.models.module import Dropout, LayerNorm, Linear, Module

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]


def check_activation(name: str) -> None:
    """Raise ValueError for a name that is no `Activation`."""
    if name not in get_args(Activation):
        raise ValueError(f"activation {name!r}: expected one of {', '.join(get_args(Activation))}")


class DropPath(Module):
    """Stochastic depth: in training a residual branch is dropped with probability `rate`, drawn per index of `dim`.

    `dim` 0 drops samples. `dim` 1 of (B, N, D) drops token positions for the whole batch: what the published
    UniFormerV2 does, whose layout is (N, B, D) (uniformerv2_model.py).
    """

    def __init__(self, rate: float, dim: int = 0) -> None:
        super().__init__()
        self.rate = rate
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> the same shape; the entries that are not dropped are scaled by 1 / (1 - rate)."""
        if not self.training or self.rate == 0.0:
            return x
        keep_prob = 1.0 - self.rate
        shape = [1] * x.dim()
        shape[self.dim] = x.shape[self.dim]
        return x * torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep_prob).div_(keep_prob)


def activate(hidden: Tensor, activation: Activation) -> Tensor:
    """Apply GELU (exact or tanh), ReLU, SiLU or QuickGELU x * sigmoid(1.702 x); in place without gradients."""
    in_place = not torch.is_grad_enabled()
    if activation == "gelu":
        return torch.ops.aten.gelu_(hidden) if in_place else F.gelu(hidden)
    if activation == "gelu_tanh":
        return F.gelu(hidden, approximate="tanh")
    if activation == "relu":
        return F.relu(hidden, inplace=in_place)
    if activation == "silu":
        return F.silu(hidden, inplace=in_place)
    if in_place:
        return F.silu(hidden.mul_(1.702), inplace=True).div_(1.702)
    return F.silu(1.702 * hidden) / 1.702


class FeedForward(Module):
    """Linear, activation, hidden dropout, Linear, dropout."""

    def __init__(
        self, width: int, mlp_dim: int, *, activation: Activation, dropout: float = 0.0, hidden_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = Linear(width, mlp_dim)
        self.fc2 = Linear(mlp_dim, width)
        self.activation = activation
        self.dropout = Dropout(dropout)
        self.hidden_dropout = Dropout(hidden_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        hidden = activate(self.fc1(x), self.activation)
        return self.dropout(self.fc2(self.hidden_dropout(hidden)))

    def forward_mean(self, x: Tensor) -> Tensor:
        """Compute the mean over the tokens of `forward(x)` without dropout, (B, N, D) -> (B, D)."""
        # The second map is linear, so it can be applied to the mean instead of to every token.
        return self.fc2(activate(self.fc1(x), self.activation).mean(dim=1))


@dataclass(frozen=True)
class BlockConfig:
    """Settings of a layer.

    Attributes:
        width, heads: D and H of the queries.
        mlp_dim: feed-forward width.
        activation: "gelu" (exact), "quick_gelu" (x * sigmoid(1.702 x), CLIP), "gelu_tanh", "relu" or "silu".
        eps: layer norm epsilon (VideoMAE 1e-6, CLIP and CMA 1e-5).
        bias: which of the packed query/key/value projections have a bias (see `Attention`).
        causal: position n attends to 0..n.
        cross_attention: None for self-attention; "packed": to tokens of the same width, with one packed projection of
            query, key and value (UniFormerV2's global block); "separate": to tokens of `context_width`, with separate
            projections (cross-model attention).
        context_width: width of the key/value tokens ("separate" only).
        layer_scale: initial value of the per-channel scales gamma_1 and gamma_2, 0 for none.
        gated: residual branches are multiplied by tanh(gate), gates start at 0 (Flamingo).
        drop_path: stochastic depth rate of both branches.
        drop_path_dim: dropped dimension, 0 samples, 1 token positions (see `DropPath`).
        dropout: after the feed-forward.
        hidden_dropout: between the activation and the second linear map of the feed-forward.
    """

    width: int
    heads: int
    mlp_dim: int
    activation: Activation = "gelu"
    eps: float = 1e-6
    bias: Bias = "all"
    causal: bool = False
    cross_attention: Literal["packed", "separate"] | None = None
    context_width: int = 0
    layer_scale: float = 0.0
    gated: bool = False
    drop_path: float = 0.0
    drop_path_dim: int = 0
    dropout: float = 0.0
    hidden_dropout: float = 0.0


def run_layer(layer: Callable[..., Tensor], *inputs: object, checkpointing: bool) -> Tensor:
    """Apply a layer; `checkpointing` recomputes its activations in the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        return cast(Tensor, checkpoint(layer, *inputs, use_reentrant=False))
    return layer(*inputs)


class Block(Module):
    """x += g1 * attention(norm1 x, norm_context y); x += g2 * feed_forward(norm2 x).

    The two halves are separate methods (`attention_branch`, `feed_forward_branch`), because UniFormerV2 inserts a
    local block between them.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        width, eps = config.width, config.eps
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn: Attention | CrossAttention
        if config.cross_attention == "separate":
            self.attn = CrossAttention(width, config.context_width, config.heads)
        else:
            self.attn = Attention(width, config.heads, bias=config.bias)
        context_width = config.context_width if config.cross_attention == "separate" else width
        self.norm_context = LayerNorm(context_width, eps=eps) if config.cross_attention else None
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = FeedForward(
            width,
            config.mlp_dim,
            activation=config.activation,
            dropout=config.dropout,
            hidden_dropout=config.hidden_dropout,
        )
        self.drop_path = DropPath(config.drop_path, config.drop_path_dim)
        has_scale = config.layer_scale > 0
        self.gamma_1 = nn.Parameter(torch.full((width,), config.layer_scale)) if has_scale else None
        self.gamma_2 = nn.Parameter(torch.full((width,), config.layer_scale)) if has_scale else None
        self.gate_attn = nn.Parameter(torch.zeros(1)) if config.gated else None
        self.gate_mlp = nn.Parameter(torch.zeros(1)) if config.gated else None

    def _branch(self, y: Tensor, gamma: Tensor | None, gate: Tensor | None) -> Tensor:
        if gamma is not None:
            y = gamma * y
        if gate is not None:
            y = torch.tanh(gate) * y
        return self.drop_path(y)

    def attention_branch(
        self,
        x: Tensor,
        context: Tensor | None = None,
        num_queries: int | None = None,
        kv_cache: LayerKVCache | None = None,
    ) -> Tensor:
        """Apply the attention half: x (B, N, D), context (B, K, D') -> (B, N or num_queries, D) (see `forward`)."""
        y = self.norm1(x)
        if self.norm_context is not None:
            if context is None:
                raise ValueError("a block with cross_attention needs context tokens")
            out = self.attn(y, self.norm_context(context))
        elif num_queries is not None and num_queries < x.shape[1]:
            if self.config.causal:
                raise ValueError("a causal block has no `num_queries`")
            x = x[:, -num_queries:]
            out = self.attn(y[:, -num_queries:], y)
        else:
            out = self.attn(y, causal=self.config.causal, kv_cache=kv_cache)
        return x + self._branch(out, self.gamma_1, self.gate_attn)

    def feed_forward_branch(self, x: Tensor) -> Tensor:
        """Apply the feed-forward half. (B, N, D) -> (B, N, D)."""
        return x + self._branch(self.mlp(self.norm2(x)), self.gamma_2, self.gate_mlp)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        num_queries: int | None = None,
        kv_cache: LayerKVCache | None = None,
    ) -> Tensor:
        """(B, N, D), context (B, K, D') for cross-attention -> (B, N, D).

        With `num_queries` only the last tokens are computed and returned, (B, num_queries, D); they attend to all N.
        With a `kv_cache`, of a causal layer, x are the tokens that follow the cached ones.
        """
        return self.feed_forward_branch(self.attention_branch(x, context, num_queries, kv_cache))

    def forward_mean(self, x: Tensor) -> Tensor:
        """Compute the mean over the tokens of `forward(x)` in evaluation mode with less work, (B, N, D) -> (B, D)."""
        x = self.attention_branch(x)
        return x.mean(dim=1) + self._branch(self.mlp.forward_mean(self.norm2(x)), self.gamma_2, self.gate_mlp)
