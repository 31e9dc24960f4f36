"""V-JEPA 2's video encoder (arXiv 2506.09985): a plain video transformer with rotary positions.

The predictor of its pretraining is not built. Shapes: B batch, T frames, S side, N tokens, D width, H heads, d = D / H.
Source: modeling_vjepa2.py of transformers (names of the parameters, order of the rotations).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from internvideo.models.attention import attend, split_heads
from internvideo.models.block import Activation, FeedForward, check_activation
from internvideo.models.embeddings import IMAGENET_MEAN, IMAGENET_STD, Normalize, TubeletEmbedding
from internvideo.models.encoder import ClipNeeds, VideoEncoder
from internvideo.models.module import LayerNorm, Linear, Module, init_linears


@dataclass(frozen=True)
class VJEPA2Config:
    """Sizes.

    Attributes:
        image_size, patch_size: S and the patch side. frames, tubelet: T and frames of a token.
        width, depth, heads: D, L, H. mlp_ratio: width of the feed-forwards over D.
        qkv_bias: queries, keys and values have a bias. activation, eps: of feed-forwards and norms.
        mean, std: per channel, of pixels in 0..1.
    """

    image_size: int = 256
    patch_size: int = 16
    frames: int = 64
    tubelet: int = 2
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    activation: Activation = "gelu"
    eps: float = 1e-6
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        heads = self.heads or 1  # 0: unknown, while the layout of a file is inferred
        if self.image_size % self.patch_size or self.frames % self.tubelet or self.width % heads:
            raise ValueError("image_size, frames and width must be multiples of patch_size, tubelet and heads")
        if self.width // heads < 6:
            raise ValueError(f"{self.width // heads} channels per head: rotations over three axes need 6 or more")
        check_activation(self.activation)


def rotation_angles(config: VJEPA2Config) -> Tensor:
    """Compute rotation angles (N, 3 * r): r channels per head for the time, r for the row, r for the column of a token.

    As published, neighboring channels are rotated in pairs, although the r / 2 frequencies are repeated as a whole:
    f1 f2 f3 ... f1 f2 f3 ...
    """
    side, channels = config.image_size // config.patch_size, 2 * (config.width // config.heads // 3 // 2)
    index = torch.arange(config.frames // config.tubelet * side**2)
    positions = (index // side**2, index % side**2 // side, index % side)
    frequency = 1.0 / 10000 ** (torch.arange(channels // 2, dtype=torch.float32) / (channels / 2))
    return torch.cat([(position[:, None].float() * frequency).repeat(1, 2) for position in positions], dim=1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the first 3 * r channels of every head: x (B, H, N, d), angles (N, 3 * r) -> (B, H, N, d)."""
    rotary, unrotated = x[..., : angles.shape[1]], x[..., angles.shape[1] :]
    even, odd = rotary[..., 0::2], rotary[..., 1::2]
    orthogonal = torch.stack((-odd, even), dim=-1).flatten(-2)
    angles = angles.to(x.dtype)
    return torch.cat([rotary * angles.cos() + orthogonal * angles.sin(), unrotated], dim=-1)


class RotaryAttention(Module):
    """Self-attention with rotated queries and keys."""

    def __init__(self, config: VJEPA2Config) -> None:
        super().__init__()
        self.heads = config.heads
        width, bias = config.width, config.qkv_bias
        self.query, self.key, self.value = (Linear(width, width, bias=bias) for _ in range(3))
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """(B, N, D), (N, 3 * r) -> (B, N, D)."""
        query, key = (rotate(split_heads(linear(x), self.heads), angles) for linear in (self.query, self.key))
        return self.proj(attend(query, key, split_heads(self.value(x), self.heads)))


class RotaryBlock(Module):
    """Pre-norm layer with rotary attention."""

    def __init__(self, config: VJEPA2Config) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.width, eps=config.eps)
        self.attn = RotaryAttention(config)
        self.norm2 = LayerNorm(config.width, eps=config.eps)
        self.mlp = FeedForward(config.width, int(config.width * config.mlp_ratio), activation=config.activation)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """(B, N, D), (N, 3 * r) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x), angles)
        return x + self.mlp(self.norm2(x))


class VJEPA2(VideoEncoder, Module):
    """The video encoder; the feature of a clip is the mean of its tokens."""

    config: VJEPA2Config
    tower = None  # the layers take angles besides tokens
    angles: Tensor

    def __init__(self, config: VJEPA2Config) -> None:
        super().__init__()
        self.config = config
        self.normalize = Normalize(config.mean, config.std)
        self.patch_embed = TubeletEmbedding(config.width, config.patch_size, config.tubelet)
        self.register_buffer("angles", rotation_angles(config), persistent=False)
        self.blocks = nn.ModuleList(RotaryBlock(config) for _ in range(config.depth))
        self.norm = LayerNorm(config.width, eps=config.eps)
        init_linears(self)

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """Clips of the config's size."""
        return (ClipNeeds(image_size=self.config.image_size, frames=self.config.frames),)

    @property
    def test_clips(self) -> dict[str, Any]:
        """Evenly spaced frames, short side resized to 256/224 of the crop, as by the published processor."""
        size = self.config.image_size
        return {"frames": self.config.frames, "size": size, "resize": int(size * 256 / 224), "sampler": "linspace"}

    def tokens(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> tokens after the last norm (B, N, D)."""
        x: Tensor = self.patch_embed(video)
        for block in self.blocks:
            x = block(x, self.angles)
        return self.norm(x)

    def features(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> mean of the tokens (B, D)."""
        return self.tokens(video).mean(dim=1)

    def forward(self, video: Tensor) -> Tensor:
        """As `features`."""
        return self.features(video)
