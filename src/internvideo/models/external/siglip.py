"""The image encoder of SigLIP (arXiv 2303.15343) and SigLIP 2 (arXiv 2502.14786), run on every frame of a clip.

The text tower is not built: it has another tokenizer than ours. Shapes: B batch, T frames, S side, N patches of a
frame, D width. Source: modeling_siglip.py of transformers (names of the parameters, attention pooling).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from internvideo.models.attention import Attention
from internvideo.models.block import Activation, FeedForward, check_activation, run_layer
from internvideo.models.clip import average_direction, clip_block, init_clip_blocks
from internvideo.models.embeddings import Normalize, TubeletEmbedding
from internvideo.models.encoder import ClipNeeds, VideoEncoder
from internvideo.models.module import LayerNorm, Module


@dataclass(frozen=True)
class SigLIPConfig:
    """Sizes.

    Attributes:
        image_size, patch_size: S and the patch side. width, depth, heads: D, L, H.
        mlp_ratio: width of the feed-forwards over D. activation, eps: of feed-forwards and norms.
        mean, std: per channel, of pixels in 0..1.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    activation: Activation = "gelu_tanh"
    eps: float = 1e-6
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.image_size // self.patch_size < 1 or self.width % (self.heads or 1):  # 0 heads: unknown
            raise ValueError("image_size must be at least patch_size, and width a multiple of heads")
        check_activation(self.activation)


class AttentionPooling(Module):
    """Attention pooling with one learned query, followed by a residual feed-forward."""

    def __init__(self, config: SigLIPConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, config.width) * config.width**-0.5)
        self.attn = Attention(config.width, config.heads)
        self.norm = LayerNorm(config.width, eps=config.eps)
        self.mlp = FeedForward(config.width, int(config.width * config.mlp_ratio), activation=config.activation)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        x = self.attn(self.probe.expand(len(patches), -1, -1), patches)[:, 0]
        return x + self.mlp(self.norm(x))


class SigLIP(VideoEncoder, Module):
    """The image encoder; the feature of a clip is the mean of the L2-normalized features of its frames."""

    config: SigLIPConfig
    undecayed = "embedding|probe"

    def __init__(self, config: SigLIPConfig) -> None:
        super().__init__()
        self.config, self.checkpointing = config, False
        self.normalize = Normalize(config.mean, config.std)
        self.patch_embed = TubeletEmbedding(config.width, config.patch_size, tubelet=1)
        self.num_patches = (config.image_size // config.patch_size) ** 2
        self.positional_embedding = nn.Parameter(torch.randn(self.num_patches, config.width) * config.width**-0.5)
        self.blocks = nn.ModuleList(
            clip_block(
                config.width, config.heads, mlp_ratio=config.mlp_ratio, activation=config.activation, eps=config.eps
            )
            for _ in range(config.depth)
        )
        init_clip_blocks(self.blocks)
        self.norm = LayerNorm(config.width, eps=config.eps)
        self.pool = AttentionPooling(config)

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """Any number of frames: each is encoded independently."""
        return (ClipNeeds(image_size=self.config.image_size),)

    @property
    def test_clips(self) -> dict[str, Any]:
        """Eight evenly spaced frames, bicubic resize to a square, as by the published processor."""
        size = self.config.image_size
        square = {"resize": size, "keep_aspect": False, "resize_backend": "pil_bicubic"}
        return {"frames": 8, "size": size, "sampler": "linspace", **square}

    def encode_frames(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> patches of every frame after the last norm (B * T, N, D)."""
        side = (
            self.config.image_size - self.config.image_size % self.config.patch_size
        )  # a remainder of pixels belongs to no patch
        x: Tensor = self.patch_embed(video[..., :side, :side].contiguous())
        x = x.reshape(-1, self.num_patches, self.config.width) + self.positional_embedding
        for block in self.blocks:
            x = run_layer(block, x, checkpointing=self.checkpointing)
        return self.norm(x)

    def tokens(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> patches of all frames (B, T * N, D)."""
        return self.encode_frames(video).reshape(len(video), -1, self.config.width)

    def features(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> (B, D)."""
        return average_direction(self.pool(self.encode_frames(video)).reshape(len(video), -1, self.config.width), None)

    def forward(self, video: Tensor) -> Tensor:
        """As `features`."""
        return self.features(video)
