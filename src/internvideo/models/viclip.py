"""ViCLIP: CLIP's image transformer with joint space-time attention over all patches of a clip, and CLIP's text tower.

Shapes: B batch, T frames, N = 1 + T * HW tokens, D width, E width of the joint space, L text tokens.
Source: viclip.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from internvideo.models.block import run_layer
from internvideo.models.clip import EPS, FrameStem, TextConfig, TextTower, clip_block, init_clip_blocks
from internvideo.models.embeddings import IMAGENET_MEAN, IMAGENET_STD, Normalize
from internvideo.models.encoder import ClipNeeds, DualEncoder
from internvideo.models.module import LayerNorm, Module

INITIAL_TEMPERATURE = 0.01


@dataclass(frozen=True)
class ViCLIPConfig:
    """Sizes.

    Attributes:
        image_size, patch_size: S and the patch side.
        frames: T, number of temporal positions; clips may have fewer frames.
        width, depth, heads: of the video transformer.
        joint_width: E.
        text: the text tower (context 32, no mask embedding).
        drop_path: largest stochastic depth rate (along token positions, as published).
        token_keep_rate: fraction of the patch tokens used in training (published: 0.1, then 1).
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    joint_width: int
    text: TextConfig
    frames: int = 8
    drop_path: float = 0.0
    token_keep_rate: float = 1.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class ViCLIPVision(Module):
    """The video tower."""

    def __init__(self, config: ViCLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        width = config.width
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.stem = FrameStem(config.image_size, config.patch_size, width)
        self.time_embedding = nn.Parameter(torch.zeros(1, config.frames, width))
        self.blocks = nn.ModuleList(clip_block(width, config.heads, drop_path=r, drop_path_dim=1) for r in rates)
        self.norm = LayerNorm(width, eps=EPS)
        self.projection = nn.Parameter(torch.randn(width, config.joint_width) * width**-0.5)
        init_clip_blocks(self.blocks)

    def _temporal_positions(self, frames: int) -> Tensor:
        """Return temporal positions (1, frames, 1, D): the first ones, for a single frame the mean of all."""
        if frames > self.config.frames:
            raise ValueError(f"{frames} frames, this model has temporal positions for {self.config.frames}")
        table = self.time_embedding.mean(dim=1, keepdim=True) if frames == 1 else self.time_embedding[:, :frames]
        return table[:, :, None]

    def tokens(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> all tokens after the last norm (B, 1 + HW * T, D).

        The class token comes first, then the patches, all frames of one position in succession, as in the published
        code. In training the layers get only a random fraction `token_keep_rate` of the patch tokens.
        """
        stem = self.stem
        x = stem.embed_patches(video) + stem.positional_embedding[1:] + self._temporal_positions(video.shape[2])
        x = x.transpose(1, 2).flatten(1, 2)
        if self.training and self.config.token_keep_rate < 1:
            num_kept = max(1, int(x.shape[1] * self.config.token_keep_rate))
            index = torch.rand(x.shape[:2], device=x.device).argsort(dim=1)[:, :num_kept].sort(dim=1).values
            x = x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))
        cls = (stem.class_embedding + stem.positional_embedding[0]).expand(x.shape[0], 1, -1)
        x = stem.norm(torch.cat([cls.to(x.dtype), x], dim=1))
        for block in self.blocks:
            x = run_layer(block, x, checkpointing=self.checkpointing)
        return self.norm(x)

    def forward(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> (B, E)."""
        return self.tokens(video)[:, 0] @ self.projection


class ViCLIP(DualEncoder):
    """Video and text towers with a learned temperature."""

    config: ViCLIPConfig
    text: TextTower
    initial_sources = (("weights",), ("clip",))
    undecayed = "embedding"

    def __init__(self, config: ViCLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.normalize = Normalize(config.mean, config.std)
        self.visual = ViCLIPVision(config)
        self.text = TextTower(config.text, config.joint_width)
        self.temperature = nn.Parameter(torch.tensor([INITIAL_TEMPERATURE]))

    def encode_video(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> (B, E), not L2-normalized."""
        return self.visual(video)

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """At most as many frames as there are temporal positions."""
        return (ClipNeeds(image_size=self.config.image_size, max_frames=self.config.frames),)

    @property
    def test_clips(self) -> dict[str, Any]:
        """Centers of equal segments, not specified in the paper; bicubic resize to a square (viclip.py)."""
        square = {"size": self.config.image_size, "keep_aspect": False, "resize_backend": "pil_bicubic"}
        return {"frames": self.config.frames, "sampler": "segment_middle", **square}

    @property
    def tower(self) -> ViCLIPVision:
        """The video tower."""
        return self.visual

    def tokens(self, video: Tensor) -> Tensor:
        """See `ViCLIPVision.tokens`."""
        return self.visual.tokens(video)

    @property
    def scale(self) -> Tensor:
        """1 / temperature."""
        return 1 / self.temperature

    def forward(self, video: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized (B, 3, T, S, S), ids (B, L) -> features (B, E), (B, E)."""
        return self.encode_video(video), self.encode_text(ids)

    @property
    def max_layer_id(self) -> int:
        """Largest layer id."""
        return self.config.depth + 1

    def get_layer_id(self, name: str) -> int:
        """Return the layer id: 0 for stem and positions, i + 1 for video layer i, `max_layer_id` for the others."""
        if name.startswith(("visual.stem.", "visual.time_embedding")):
            return 0
        return int(name.split(".")[2]) + 1 if name.startswith("visual.blocks.") else self.max_layer_id
