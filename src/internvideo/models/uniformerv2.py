"""UniFormerV2: a CLIP image transformer per frame, local temporal blocks, and a query token that attends to all frames.

Shapes: B batch, T frames (after temporal downsampling), N = 1 + HW tokens of a frame, D width, C classes.
Source: uniformerv2_model.py (structure, sizes), UniFormerV2 configs (normalization, decay).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from internvideo.models.block import Block, BlockConfig, DropPath, run_layer
from internvideo.models.clip import EPS, FrameStem, clip_block, init_clip_blocks
from internvideo.models.embeddings import HALF_MEAN, HALF_STD, Normalize
from internvideo.models.encoder import ClipClassifier, ClipNeeds
from internvideo.models.module import Conv3d, Dropout, LayerNorm, Linear, Module


@dataclass(frozen=True)
class UniFormerV2Config:
    """Sizes and options.

    Attributes:
        image_size, patch_size: S and the patch side.
        frames: T of the default test clips; the model takes any number.
        width, depth, heads: of the CLIP layers.
        global_layers: ascending 0-based indices of the layers whose output tokens the query token attends to.
        global_heads: heads of this cross-attention, 0 for as many as `heads`.
        num_classes: C, 0 for no head.
        mlp_ratio: feed-forward width of the global blocks over D.
        local_blocks: local temporal blocks per layer: 0, 1 (before attention) or 2 (also before the feed-forward).
        local_reduction: ratio of D to the channels inside the local blocks.
        temporal_downsample: the patch kernel halves the number of frames.
        balance: add the mean class token to the query with a learned weight (False, the "frozen" variant: query only).
        head_dropout, mlp_dropout: before the classifier; inside the feed-forward of the global blocks.
        drop_path, backbone_drop_path: largest stochastic depth rate of global blocks and of CLIP layers.
        mean, std: per channel, of pixels in 0..1.
        motion_stem: a second patch embedding, zero at the start, of the frames minus the clip's mean frame
            (`clip.FrameStem`). For small encoders trained from scratch; not in the paper.
        convolution_stem: channels of overlapping convolutions beside the patches, zero at the start, 0 for none
            (`embeddings.ConvolutionStem`). Not of the paper: for small objects and encoders that learn from scratch.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    global_layers: tuple[int, ...]
    frames: int = 8
    num_classes: int = 400
    global_heads: int = 0
    mlp_ratio: float = 4.0
    local_blocks: int = 0
    local_reduction: float = 1.5
    temporal_downsample: bool = False
    balance: bool = True
    head_dropout: float = 0.5
    mlp_dropout: float = 0.5
    drop_path: float = 0.0
    backbone_drop_path: float = 0.0
    mean: tuple[float, float, float] = HALF_MEAN
    std: tuple[float, float, float] = HALF_STD
    motion_stem: bool = False
    convolution_stem: int = 0

    def __post_init__(self) -> None:
        layers = self.global_layers
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= self.depth:
            raise ValueError(f"global layers {layers} must ascend within 0..{self.depth - 1}")
        if self.local_blocks not in (0, 1, 2):
            raise ValueError(f"local_blocks {self.local_blocks}: expected 0, 1 or 2 per layer")
        if self.convolution_stem < 0:
            raise ValueError(f"convolution stem of {self.convolution_stem} channels: 0 for none, or more")


@dataclass(frozen=True)
class StagedFeatures:
    """Outputs of the encoder after its last layer.

    Attributes:
        tokens: input of each global stage, before its position term: (B, T * N, D), frame by frame.
        query: (B, 1, D) after the last global stage.
        class_mean: (B, D), mean over frames of the class tokens of the last layer.
        all_tokens: (B, T, N, D), the last layer's output.
    """

    tokens: list[Tensor]
    query: Tensor
    class_mean: Tensor
    all_tokens: Tensor


class LocalBlock(Module):
    """Mix patch tokens over time at each position: norm, 1x1x1, depthwise 3x1x1, 1x1x1 convolutions, residual."""

    def __init__(self, width: int, reduction: float, drop_path: float) -> None:
        super().__init__()
        inner = int(width / reduction)
        self.norm = nn.BatchNorm3d(width)
        self.reduce = Conv3d(width, inner, 1)
        self.temporal = Conv3d(inner, inner, (3, 1, 1), padding=(1, 0, 0), groups=inner)
        self.expand = Conv3d(inner, width, 1)
        nn.init.zeros_(self.expand.weight)  # the block starts as the identity
        nn.init.zeros_(self.expand.bias)  # type: ignore[arg-type]  # the convolution has a bias
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(B * T, 1 + HW, D) -> (B * T, 1 + HW, D); the class tokens stay unchanged."""
        patches = patches_to_grid(x[:, 1:], frames)
        patches = patches + self.drop_path(self.expand(self.temporal(self.reduce(self.norm(patches)))))
        return torch.cat([x[:, :1], grid_to_patches(patches)], dim=1)


class GlobalBlock(Module):
    """One global stage: depthwise 3x3x3 position term on the patches, cross-attention of the query, feed-forward."""

    def __init__(self, config: UniFormerV2Config, drop_path: float) -> None:
        super().__init__()
        width = config.width
        self.position = Conv3d(width, width, 3, padding=1, groups=width)
        self.block = Block(
            BlockConfig(
                width=width,
                heads=config.global_heads or config.heads,
                mlp_dim=int(config.mlp_ratio * width),
                activation="quick_gelu",
                eps=EPS,
                cross_attention="packed",
                drop_path=drop_path,
                drop_path_dim=1,
                hidden_dropout=config.mlp_dropout,
            )
        )
        nn.init.zeros_(self.position.bias)  # type: ignore[arg-type]  # the convolution has a bias
        for name, parameter in self.block.named_parameters():
            if name in {"attn.qkv.weight", "mlp.fc1.weight"}:
                nn.init.xavier_uniform_(parameter)
            elif name.startswith(("attn.", "mlp.")):  # biases, and both output maps: the block starts as the identity
                nn.init.zeros_(parameter)

    def add_positions(self, tokens: Tensor, frames: int) -> Tensor:
        """Add the position term to the patches of (B, T * N, D); class tokens stay unchanged."""
        batch, num_tokens, width = tokens.shape
        x = tokens.reshape(batch * frames, -1, width)
        patches = patches_to_grid(x[:, 1:], frames)
        x = torch.cat([x[:, :1], grid_to_patches(patches + self.position(patches))], dim=1)
        return x.reshape(batch, num_tokens, width)

    def forward(self, query: Tensor, tokens: Tensor, frames: int) -> Tensor:
        """Query (B, 1, D), tokens (B, T * N, D) -> (B, 1, D)."""
        return self.block(query, self.add_positions(tokens, frames))


def patches_to_grid(patches: Tensor, frames: int) -> Tensor:
    """(B * T, HW, D) -> (B, D, T, H, W), H = W."""
    side = math.isqrt(patches.shape[1])
    return patches.reshape(-1, frames, side, side, patches.shape[2]).permute(0, 4, 1, 2, 3)


def grid_to_patches(grid: Tensor) -> Tensor:
    """(B, D, T, H, W) -> (B * T, HW, D)."""
    return grid.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)


class ClassHead(Module):
    """Layer norm, dropout, linear classifier."""

    def __init__(self, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.norm = LayerNorm(width, eps=EPS)
        self.dropout = Dropout(dropout)
        self.linear = Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> logits (B, C)."""
        return self.linear(self.dropout(self.norm(x)))


class UniFormerV2(ClipClassifier):
    """The multimodal video encoder, as a classifier or (num_classes=0) as the video tower of `VideoLanguage`.

    Attributes:
        checkpointing: recompute the layers' activations in the backward pass (gradient checkpointing).
    """

    config: UniFormerV2Config
    class_layer = ("proj.linear", 0)
    initial_sources = (("weights",), ("clip",))

    def __init__(self, config: UniFormerV2Config) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        width, depth = config.width, config.depth
        rates = torch.linspace(0, config.backbone_drop_path, depth, device="cpu").tolist()
        global_rates = torch.linspace(0, config.drop_path, len(config.global_layers), device="cpu").tolist()
        self.normalize = Normalize(config.mean, config.std)
        self.stem = FrameStem(
            config.image_size,
            config.patch_size,
            width,
            temporal_downsample=config.temporal_downsample,
            motion_stem=config.motion_stem,
            convolution_stem=config.convolution_stem,
        )
        self.blocks = nn.ModuleList(clip_block(width, config.heads, drop_path=rate, drop_path_dim=1) for rate in rates)
        self.local1 = self._local_blocks(rates if config.local_blocks >= 1 else [])
        self.local2 = self._local_blocks(rates if config.local_blocks == 2 else [])
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.global_blocks = nn.ModuleList(GlobalBlock(config, rate) for rate in global_rates)
        self.balance = nn.Parameter(torch.zeros(width)) if config.balance else None
        self.proj = ClassHead(width, config.num_classes, config.head_dropout) if config.num_classes else None
        # The published model always starts from CLIP; from scratch the layers get CLIP's own initialization.
        init_clip_blocks(self.blocks)

    def _local_blocks(self, rates: list[float]) -> nn.ModuleList:
        return nn.ModuleList(LocalBlock(self.config.width, self.config.local_reduction, rate) for rate in rates)

    def _run_layer(self, layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return run_layer(layer, x, checkpointing=self.checkpointing and self.training)

    def _apply_layer(self, i: int, x: Tensor, frames: int) -> Tensor:
        """Apply layer i to (B * T, N, D), with its local blocks.

        Local blocks are not checkpointed: recomputing them would update their batch-norm statistics twice.
        """
        block = self.blocks[i]
        assert isinstance(block, Block)
        if len(self.local1):
            x = self.local1[i](x, frames)
        if not len(self.local2):
            return self._run_layer(block, x)
        x = self.local2[i](self._run_layer(block.attention_branch, x), frames)
        return self._run_layer(block.feed_forward_branch, x)

    def backbone(self, video: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run all layers without the query token, which does not influence them.

        Args:
            video: (B, 3, T, S, S) normalized.

        Returns:
            The input tokens of each global stage (B, T * N, D), and the last layer's tokens (B, T, N, D).
        """
        x = self.stem(video)
        batch, stages = video.shape[0], []
        frames = x.shape[0] // batch
        for i in range(self.config.depth):
            x = self._apply_layer(i, x, frames)
            if i in self.config.global_layers:
                stages.append(x.reshape(batch, -1, x.shape[2]))
        return stages, x.reshape(batch, frames, *x.shape[1:])

    def apply_global_stage(self, stage: int, query: Tensor, tokens: Tensor, frames: int) -> Tensor:
        """Apply global stage `stage` (0-based): query (B, 1, D), input tokens (B, T * N, D) -> query (B, 1, D)."""
        return cast(Tensor, self.global_blocks[stage](query, tokens, frames))

    def stages(self, video: Tensor) -> StagedFeatures:
        """Compute the outputs of all stages from a normalized video (B, 3, T, S, S)."""
        tokens, last = self.backbone(video)
        query = self.query.expand(video.shape[0], -1, -1)
        for stage, stage_tokens in enumerate(tokens):
            query = self.apply_global_stage(stage, query, stage_tokens, last.shape[1])
        return StagedFeatures(tokens, query, last[:, :, 0].mean(dim=1), last)

    def merge_class_token(self, query: Tensor, class_mean: Tensor) -> Tensor:
        """Mix query (B, D) or (B, 1, D) and mean class token (B, D) into the clip feature (B, D)."""
        query = query.flatten(1)
        if self.balance is None:
            return query
        class_weight = torch.sigmoid(self.balance)
        return (1 - class_weight) * query + class_weight * class_mean

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """Any number of frames, from 3 for a patch kernel over 3 frames."""
        min_frames = 3 if self.config.temporal_downsample else 1
        return (ClipNeeds(image_size=self.config.image_size, min_frames=min_frames),)

    @property
    def test_clips(self) -> dict[str, Any]:
        """Sparse frames, torch's bilinear resize without antialiasing (UniFormerV2 configs)."""
        clip = {"frames": self.config.frames, "size": self.config.image_size}
        return {**clip, "sampler": "sparse", "resize_backend": "torch"}

    @property
    def tower(self) -> UniFormerV2 | None:
        """This module; None with local blocks, since a block's output is then not the layer's."""
        return None if len(self.local2) else self

    def to_grid(self, output: Tensor, batch_size: int) -> Tensor:
        """Tokens (B * T, 1 + HW, D) of a layer -> (B, T, H, W, D), without the class tokens."""
        patches = output[:, 1:]
        side = math.isqrt(patches.shape[1])
        return patches.reshape(batch_size, -1, side, side, output.shape[-1])

    def tokens(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> tokens of the last layer (B, T * N, D)."""
        return self.stages(video).all_tokens.flatten(1, 2)

    def features(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> (B, D), the head's input."""
        staged = self.stages(video)
        return self.merge_class_token(staged.query, staged.class_mean)

    def forward(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> logits (B, C), or features (B, D) without a head."""
        features = self.features(video)
        return features if self.proj is None else self.proj(features)

    def _class_head(self) -> ClassHead:
        if self.proj is None:
            raise ValueError("this model has no classifier (num_classes=0)")
        return self.proj

    @property
    def head_layer(self) -> nn.Linear:
        """The classifier. Raises ValueError without one."""
        return self._class_head().linear

    def head_input(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> (B, D), input of `head_layer` before the dropout."""
        return self._class_head().norm(self.features(video))

    def logits_and_grid(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized (B, 3, T, S, S) -> logits (B, C) and patches of the last layer (B, D, T, H, W), in one pass."""
        head, staged = self._class_head(), self.stages(video)
        grid = patches_to_grid(staged.all_tokens[:, :, 1:].flatten(0, 1), staged.all_tokens.shape[1])
        return head(self.merge_class_token(staged.query, staged.class_mean)), grid

    def initial_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
        """Map a video-language model's video tower to (state, pattern of parameters that keep their initialization).

        Returns None for the weights of a UniFormerV2, whose names need no mapping.
        """
        tower = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
        return (tower, r"proj\.") if tower else None

    @property
    def max_layer_id(self) -> int:
        """Largest layer id (head, query and global blocks)."""
        return self.config.depth + 1

    def get_layer_id(self, name: str) -> int:
        """Return the layer id for layer-wise learning rates: 0 stem, i + 1 layer i, `max_layer_id` otherwise."""
        module, _, rest = name.partition(".")
        if module in {"blocks", "local1", "local2"}:
            return int(rest.partition(".")[0]) + 1
        return 0 if module == "stem" else self.max_layer_id
