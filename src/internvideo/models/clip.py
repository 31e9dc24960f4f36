"""CLIP: frame stem, transformer layers, text tower and the plain image-text model.

Shapes: B batch, T frames, S side, N = 1 + HW tokens of a frame (class token first), D width, L text tokens,
E width of the joint space.
Source: uniformerv2_model.py (stem and layers), Multi-Modalities-Pretraining (text tower and initialization).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.models.attention import KVCache
from internvideo.models.block import Activation, Block, BlockConfig, check_activation, run_layer
from internvideo.models.embeddings import CLIP_MEAN, CLIP_STD, ConvolutionStem, Normalize, minus_mean_frame
from internvideo.models.encoder import ClipNeeds, ScaledDualEncoder
from internvideo.models.module import Conv3d, Embedding, LayerNorm, Module

EPS = 1e-5
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)


def clip_block(
    width: int,
    heads: int,
    *,
    causal: bool = False,
    drop_path: float = 0.0,
    drop_path_dim: int = 0,
    mlp_ratio: float = 4.0,
    activation: Activation = "quick_gelu",
    eps: float = EPS,
) -> Block:
    """Build a layer of CLIP: pre-norm, QuickGELU, feed-forward of four times the width by default."""
    return Block(
        BlockConfig(
            width=width,
            heads=heads,
            mlp_dim=int(width * mlp_ratio),
            activation=activation,
            eps=eps,
            causal=causal,
            drop_path=drop_path,
            drop_path_dim=drop_path_dim,
        )
    )


def init_clip_blocks(blocks: nn.ModuleList) -> None:
    """Initialize a stack of `Block`s as CLIP: normal; the std of residual projections falls with the stack's depth."""
    for block in blocks:
        if not isinstance(block, Block):
            raise ValueError(f"expected a Block, got {type(block).__name__}")
        width = block.config.width
        residual_std = width**-0.5 * (2 * len(blocks)) ** -0.5
        for name, parameter in block.named_parameters():
            if name == "attn.qkv.weight":
                nn.init.normal_(parameter, std=width**-0.5)
            elif name in {"attn.proj.weight", "mlp.fc2.weight"}:
                nn.init.normal_(parameter, std=residual_std)
            elif name == "mlp.fc1.weight":
                nn.init.normal_(parameter, std=(2 * width) ** -0.5)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)


class FrameStem(Module):
    """Embed the patches of every frame, add a class token and positions, and apply a layer norm.

    Args:
        image_size, patch_size: S and the patch side, S must be a multiple.
        width: D.
        temporal_downsample: the patch kernel spans 3 frames with stride 2, which halves their number.
        eps: of the norm.
        motion_stem: add a second patch embedding, with a kernel over 3 frames, of the frames minus the clip's mean
            frame. Its weights start at zero; for a clip of one frame its output is always zero.
        convolution_stem: channels of a `ConvolutionStem` that is added too; 0 for none.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        *,
        temporal_downsample: bool = False,
        eps: float = EPS,
        motion_stem: bool = False,
        convolution_stem: int = 0,
    ) -> None:
        super().__init__()
        if convolution_stem and temporal_downsample:
            raise ValueError("a convolution stem keeps all frames: not with temporal_downsample")
        if image_size % patch_size:
            raise ValueError(f"image size {image_size} is not a multiple of patch size {patch_size}")
        self.image_size = image_size
        self.grid_side = image_size // patch_size
        kernel, stride = (3, 2) if temporal_downsample else (1, 1)
        sides: dict[str, Any] = {
            "kernel_size": (kernel, patch_size, patch_size),
            "stride": (stride, patch_size, patch_size),
        }
        self.conv = Conv3d(3, width, **sides, padding=(kernel // 2, 0, 0), bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(1 + self.grid_side**2, width) * width**-0.5)
        self.norm = LayerNorm(width, eps=eps)
        self.motion = nn.Parameter(torch.zeros(width, 3, 3, patch_size, patch_size)) if motion_stem else None
        self.convolutions = ConvolutionStem(convolution_stem, patch_size, width) if convolution_stem else None

    def embed_patches(self, video: Tensor) -> Tensor:
        """(B, 3, T, S, S) normalized -> patch embeddings without positions (B, T', HW, D). ValueError for another S."""
        if video.dim() != 5 or video.shape[1] != 3 or video.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"expected a video (B, 3, T, {self.image_size}, {self.image_size}), got {tuple(video.shape)}"
            )
        patches = F.linear(self._extract_patches(video, self.conv.kernel_size[0]), self.conv.weight.flatten(1))
        if self.motion is not None:
            patches = patches + F.linear(self._extract_patches(minus_mean_frame(video), 3), self.motion.flatten(1))
        return patches

    def _extract_patches(self, video: Tensor, num_frames: int) -> Tensor:
        """(B, 3, T, S, S) -> pixels of each patch over `num_frames` frames (B, T', HW, 3 * num_frames * p * p).

        A linear map of these is faster than conv3d.
        """
        side, stride = self.conv.kernel_size[1], self.conv.stride[0]
        if num_frames > 1:
            video = F.pad(video, (0, 0, 0, 0, num_frames // 2, num_frames // 2))
        grid = video.reshape(*video.shape[:3], self.grid_side, side, self.grid_side, side)
        patches = grid.unfold(2, num_frames, stride).permute(
            0, 2, 3, 5, 1, 7, 4, 6
        )  # (B, T', h, w, 3, num_frames, p, p)
        return patches.flatten(4).flatten(2, 3)

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T, S, S) normalized -> tokens of every frame (B * T', 1 + HW, D)."""
        x = self.embed_patches(video).flatten(0, 1)
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1) + self.positional_embedding
        return self.norm(x if self.convolutions is None else x + self.convolutions(video))


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text tower.

    Attributes:
        width, heads, layers: of the transformer.
        vocab_size: number of token ids; the largest id is the end of text.
        context_length: largest number of tokens of a text.
        mask_embedding: whether there is an embedding for masked tokens (in the multimodal model; not in ViCLIP, CLIP).
        mlp_ratio: width of the feed-forwards over D.
        activation: of the feed-forwards ("quick_gelu" of OpenAI's weights, "gelu" of most others).
        eps: of all norms.
    """

    width: int
    heads: int
    layers: int
    vocab_size: int = 49408
    context_length: int = 77
    mask_embedding: bool = True
    mlp_ratio: float = 4.0
    activation: Activation = "quick_gelu"
    eps: float = EPS

    def __post_init__(self) -> None:
        check_activation(self.activation)


class TextTower(Module):
    """CLIP's causal text transformer (Multi-Modalities-Pretraining).

    Args:
        config: sizes.
        joint_width: E, or 0 for no projection (question answering networks).
    """

    def __init__(self, config: TextConfig, joint_width: int) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        width = config.width
        self.token_embedding = Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(config.context_length, width) * 0.01)
        self.blocks = nn.ModuleList(
            clip_block(
                width,
                config.heads,
                causal=True,
                mlp_ratio=config.mlp_ratio,
                activation=config.activation,
                eps=config.eps,
            )
            for _ in range(config.layers)
        )
        self.norm = LayerNorm(width, eps=config.eps)
        self.projection = nn.Parameter(torch.randn(width, joint_width) * width**-0.5) if joint_width else None
        self.mask_embedding = nn.Parameter(torch.randn(1, 1, width) * 0.02) if config.mask_embedding else None
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        init_clip_blocks(self.blocks)

    def tokens(self, ids: Tensor, masked: Tensor | None = None, *, kv_cache: KVCache | None = None) -> Tensor:
        """Compute the features (B, L, D) of tokens after the final norm, before the projection.

        Args:
            ids: (B, L) integer ids, L up to the context length.
            masked: (B, L) bool, tokens to replace by the mask embedding; None for none.
            kv_cache: keys and values of the preceding tokens; None without incremental decoding.

        Raises:
            ValueError: too many tokens, or a mask where the tower has no mask embedding.
        """
        start = 0 if kv_cache is None else kv_cache.layer(self.blocks[0]).length
        end = start + ids.shape[1]
        if end > self.config.context_length:
            raise ValueError(f"{end} tokens, the text tower takes at most {self.config.context_length}")
        x = self.token_embedding(ids)
        if masked is not None:
            if self.mask_embedding is None:
                raise ValueError("this text tower has no mask embedding")
            x = torch.where(masked.bool()[:, :, None], self.mask_embedding.to(x.dtype), x)
        x = x + self.positional_embedding[start:end]
        for block in self.blocks:
            if kv_cache is None:
                x = run_layer(block, x, checkpointing=self.checkpointing)
            else:
                x = block(x, kv_cache=kv_cache.layer(block))
        return self.norm(x)

    def project(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, E), or unchanged without a projection."""
        return features if self.projection is None else features @ self.projection

    def forward(self, ids: Tensor, masked: Tensor | None = None) -> Tensor:
        """Return the projected feature (B, E) of the end-of-text token of ids (B, L)."""
        return self.project(at_end_of_text(self.tokens(ids, masked), ids))


def at_end_of_text(tokens: Tensor, ids: Tensor) -> Tensor:
    """Select from (B, L, D) the end-of-text token (B, D): the first maximum of the ids (B, L'), or the last token."""
    end = ids.argmax(dim=1).clamp(max=tokens.shape[1] - 1)
    return tokens[torch.arange(ids.shape[0], device=ids.device), end]


def zero_padding_frames(video: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Zero the padding frames of a normalized video (B, 3, T, S, S); `frame_mask` (B, T), None: all frames are real."""
    return video if frame_mask is None else video * frame_mask[:, None, :, None, None]


def average_frames(frames: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Average the real frames of (B, T, E), all for None -> (B, E); 0 if none is real (Video-Text-Retrieval)."""
    if frame_mask is None:
        return frames.mean(dim=1)
    weights = frame_mask[:, :, None].to(frames)
    return (frames * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def average_direction(frames: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Average the L2-normalized real frames of (B, T, E), times the mean norm -> (B, E); one frame stays unchanged."""
    norms = frames.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return average_frames(frames / norms, frame_mask) * average_frames(norms, frame_mask)


class ImageTower(Module):
    """CLIP's image transformer, applied to each frame independently."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        joint_width: int,
        *,
        mlp_ratio: float = 4.0,
        activation: Activation = "quick_gelu",
        eps: float = EPS,
    ) -> None:
        super().__init__()
        self.checkpointing = False
        self.stem = FrameStem(image_size, patch_size, width, eps=eps)
        self.blocks = nn.ModuleList(
            clip_block(width, heads, mlp_ratio=mlp_ratio, activation=activation, eps=eps) for _ in range(depth)
        )
        self.norm = LayerNorm(width, eps=eps)
        self.projection = nn.Parameter(torch.randn(width, joint_width) * width**-0.5)
        init_clip_blocks(self.blocks)

    def class_tokens(self, video: Tensor) -> Tensor:
        """(B, 3, T, S, S) -> class token of every frame before the last norm (B, T, D)."""
        x = self.stem(video)
        for block in self.blocks:
            x = run_layer(block, x, checkpointing=self.checkpointing)
        return x[:, 0].reshape(video.shape[0], -1, x.shape[2])

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T, S, S) -> one vector per frame (B, T, E)."""
        return self.norm(self.class_tokens(video)) @ self.projection


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of CLIP.

    Attributes:
        image_size, patch_size: S and the patch side.
        width, depth, heads: of the image tower.
        text: the text tower (no mask embedding).
        joint_width: E.
        normalize_frames: L2-normalize frame vectors before averaging, as CLIP4Clip and the CLIP row of the paper's
            table 9; otherwise frames with a larger norm have a larger weight.
        mean, std: per channel, of pixels in 0..1.
        mlp_ratio, activation, eps: of the image tower, see `TextConfig`.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    text: TextConfig
    joint_width: int
    normalize_frames: bool = True
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    mlp_ratio: float = 4.0
    activation: Activation = "quick_gelu"
    eps: float = EPS

    def __post_init__(self) -> None:
        check_activation(self.activation)


class CLIPModel(ScaledDualEncoder):
    """The image-text model CLIP (openai/CLIP), with whose weights the training of the multimodal encoders starts.

    The vector of a clip is the mean of the L2-normalized vectors of its real frames (ArrowLuo/CLIP4Clip,
    modules/modeling.py, `_loose_similarity` with meanP).
    """

    config: CLIPConfig
    text: TextTower
    takes_frame_mask = True
    undecayed = "embedding"

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.normalize = Normalize(config.mean, config.std)
        self.visual = ImageTower(
            config.image_size,
            config.patch_size,
            config.width,
            config.depth,
            config.heads,
            config.joint_width,
            mlp_ratio=config.mlp_ratio,
            activation=config.activation,
            eps=config.eps,
        )
        self.text = TextTower(config.text, config.joint_width)
        self.logit_scale = nn.Parameter(torch.tensor([INITIAL_LOGIT_SCALE]))

    def encode_video(self, video: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """(B, 3, T, S, S) normalized, T = 1 for an image; (B, T) bool or None -> (B, E), not L2-normalized."""
        return (average_direction if self.config.normalize_frames else average_frames)(self.visual(video), frame_mask)

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """Any number of frames: each is encoded independently."""
        return (ClipNeeds(image_size=self.config.image_size),)

    @property
    def test_clips(self) -> dict[str, Any]:
        """Eight evenly spaced frames, bicubic resize, center crop (Video-Text-Retrieval)."""
        return {"frames": 8, "size": self.config.image_size, "sampler": "linspace", "resize_backend": "pil_bicubic"}

    @property
    def tower(self) -> ImageTower:
        """The image tower."""
        return self.visual

    def tokens(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> class token of every frame (B, T, D)."""
        return self.visual.class_tokens(video)

    def forward(self, video: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized (B, 3, T, S, S), ids (B, L) -> features (B, E), (B, E)."""
        return self.encode_video(video), self.encode_text(ids)
