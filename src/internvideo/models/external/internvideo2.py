"""The video encoder of InternVideo2's video-text models (arXiv 2403.15377): stage 2 and InternVideo2-CLIP.

Space-time attention with normalized queries and keys, then attention pooling. The text towers, separate language
models, are not built. Shapes: B batch, T frames, S side, N = T (S / patch)^2 patches, D width, E width of the feature.
Source: internvideo2_clip_vision.py (names, norms, pooling), internvideo2_clip_small.py (`align`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from internvideo.models.attention import attend, split_heads
from internvideo.models.block import Activation, FeedForward, check_activation, run_layer
from internvideo.models.embeddings import IMAGENET_MEAN, IMAGENET_STD, Normalize, TubeletEmbedding
from internvideo.models.encoder import ClipNeeds, VideoEncoder
from internvideo.models.module import LayerNorm, Linear, Module, RMSNorm, Sequential, init_linears

RMS_EPS, POOL_EPS = 1e-6, 1e-5


@dataclass(frozen=True)
class InternVideo2Config:
    """Sizes.

    Attributes:
        image_size, patch_size: S and the patch side. frames: T, one temporal token per frame.
        width, depth, heads: D, L, H. mlp_ratio: width of the feed-forwards over D.
        activation: of the feed-forwards. The published configs use flash-attn's fused layer, whose GELU is the tanh
            approximation ("gelu_tanh"); the published code without it computes the exact one ("gelu").
        layer_scale: initial scale of the residual branches.
        pool_heads, joint_width: heads and output width of the attention pooling.
        align_width: output width of a norm and linear layer after the pooling (B/14 and L/14 of InternVideo2-CLIP), 0
            for none. E is `align_width`, or `joint_width` without it.
        mean, std: per channel, of pixels in 0..1.
    """

    image_size: int = 224
    patch_size: int = 14
    frames: int = 8
    width: int = 1408
    depth: int = 40
    heads: int = 16
    mlp_ratio: float = 48 / 11
    activation: Activation = "gelu_tanh"
    layer_scale: float = 0.1
    pool_heads: int = 16
    joint_width: int = 768
    align_width: int = 0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        check_activation(self.activation)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, rows, columns) of the patches."""
        side = self.image_size // self.patch_size
        return self.frames, side, side


def validate_num_heads(width: int, heads: int) -> int:
    """Return `heads`. Raises ValueError if it does not divide the width."""
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of {heads} heads")
    return heads


class NormalizedAttention(Module):
    """Self-attention whose queries and keys are normalized over all heads together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = validate_num_heads(width, heads)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(width, eps=RMS_EPS), RMSNorm(width, eps=RMS_EPS)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        query, key, value = (split_heads(x, self.heads) for x in (self.q_norm(query), self.k_norm(key), value))
        return self.proj(attend(query, key, value))


class NormalizedBlock(Module):
    """Pre-norm layer with RMS norms: attention and feed-forward, both scaled per channel."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2 = RMSNorm(width, eps=RMS_EPS), RMSNorm(width, eps=RMS_EPS)
        self.attn = NormalizedAttention(width, config.heads)
        self.mlp = FeedForward(width, int(width * config.mlp_ratio), activation=config.activation)
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((width,), config.layer_scale)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class MeanQueryPooling(Module):
    """Attention pooling whose query is the mean of all tokens; query, keys and values have separate norms."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        width, self.heads = config.width, validate_num_heads(config.width, config.pool_heads)
        self.norm_q, self.norm_k, self.norm_v = (LayerNorm(width, eps=POOL_EPS) for _ in range(3))
        self.q, self.k, self.v = (Linear(width, width) for _ in range(3))
        self.proj = Linear(width, config.joint_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, joint width)."""
        query, key = self.q(self.norm_q(x.mean(dim=1, keepdim=True))), self.k(self.norm_k(x))
        query, key, value = (split_heads(y, self.heads) for y in (query, key, self.v(self.norm_v(x))))
        return self.proj(attend(query, key, value))[:, 0]


class InternVideo2(VideoEncoder, Module):
    """The video encoder; the feature of a clip is the output of the attention pooling, or of `align` after it."""

    config: InternVideo2Config
    undecayed = "pos_embed|cls_token"

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.config, self.checkpointing = config, False
        self.normalize = Normalize(config.mean, config.std)
        self.patch_embed = TubeletEmbedding(config.width, config.patch_size, tubelet=1)
        frames, rows, columns = config.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + frames * rows * columns, config.width))
        self.blocks = nn.ModuleList(NormalizedBlock(config) for _ in range(config.depth))
        self.pool = MeanQueryPooling(config)
        self.align = None
        if config.align_width:
            self.align = Sequential(LayerNorm(config.joint_width), Linear(config.joint_width, config.align_width))
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        init_linears(self)

    @property
    def embed_dim(self) -> int:
        """E."""
        return self.config.align_width or self.config.joint_width

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """Clips of the config's size."""
        return (ClipNeeds(image_size=self.config.image_size, frames=self.config.frames),)

    @property
    def test_clips(self) -> dict[str, Any]:
        """Centers of equal segments, bicubic resize to a square, as in the published zero-shot tests."""
        size = self.config.image_size
        square = {"resize": size, "keep_aspect": False, "resize_backend": "pil_bicubic"}
        return {"frames": self.config.frames, "size": size, "sampler": "segment_middle", **square}

    def tokens(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> class token and patches after the last layer (B, 1 + N, D)."""
        x: Tensor = self.patch_embed(video)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = run_layer(block, x, checkpointing=self.checkpointing)
        return x

    def to_grid(self, output: Tensor, batch_size: int) -> Tensor:
        """Tokens (B, 1 + N, D) of a layer -> (B, T, H, W, D)."""
        return output[:, 1:].reshape(batch_size, *self.config.grid, output.shape[-1])

    def features(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> (B, E)."""
        pooled = self.pool(self.tokens(video))
        return pooled if self.align is None else self.align(pooled)

    def forward(self, video: Tensor) -> Tensor:
        """As `features`."""
        return self.features(video)
