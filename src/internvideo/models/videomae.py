"""VideoMAE: the masked video encoder, its decoder for pretraining, and its classifier.

Source: modeling_pretrain.py and modeling_finetune.py. Legend: B batch, T frames, S side, N tokens, K visible,
M masked, D width, C classes, P pixel values of one token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from internvideo.models.block import Block, BlockConfig, run_layer
from internvideo.models.embeddings import Normalize, TubeletEmbedding, resized_table, sin_cos_table
from internvideo.models.encoder import ClipClassifier
from internvideo.models.module import Dropout, Identity, LayerNorm, Linear, Module
from internvideo.models.videomae_config import EPS as EPS
from internvideo.models.videomae_config import MaskedEncoder
from internvideo.models.videomae_config import VideoMAEConfig as VideoMAEConfig

NEWLY_INITIALIZED = r"(fc_norm|head)\."
"""Pattern of the classifier's parameters that pretraining weights lack; they keep their random initialization."""


def make_blocks(config: VideoMAEConfig, width: int, depth: int, heads: int, drop_path: float) -> nn.ModuleList:
    """Build `depth` layers with stochastic depth rising linearly from 0 to `drop_path` inclusive."""
    rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
    return nn.ModuleList(
        Block(
            BlockConfig(
                width=width,
                heads=heads,
                mlp_dim=int(width * config.mlp_ratio),
                activation=config.activation,
                eps=config.eps,
                bias="query_value" if config.qkv_bias else "none",
                layer_scale=config.layer_scale,
                drop_path=rate,
            )
        )
        for rate in rates
    )


def run_blocks(blocks: nn.ModuleList, tokens: Tensor, checkpointing: bool, num_queries: int | None = None) -> Tensor:
    """Apply the layers; `checkpointing` recomputes their activations in the backward pass.

    With `num_queries` the final layer computes only the last tokens: (B, N, D) -> (B, num_queries, D).
    """
    for index, block in enumerate(blocks, 1):
        layer = partial(block, num_queries=num_queries) if num_queries and index == len(blocks) else block
        tokens = run_layer(layer, tokens, checkpointing=checkpointing)
    return tokens


def init_block_constants(blocks: nn.ModuleList, layer_scale: float) -> None:
    """Initialize norms to 1 and 0, biases to 0, layer scales to their setting."""
    for block in blocks:
        for name, parameter in block.named_parameters():
            if name.startswith("norm") and name.endswith("weight"):
                nn.init.ones_(parameter)
            elif name.startswith("gamma"):
                nn.init.constant_(parameter, layer_scale)
            elif parameter.dim() == 1:
                nn.init.zeros_(parameter)


class VideoMAEBackbone(nn.Module):
    """Tubelet embedding, positions and layers, shared by pretraining and classification."""

    pos_embed: Tensor

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        patch, tubelet = config.patch_size, config.tubelet
        self.patch_embed = TubeletEmbedding(config.width, patch, tubelet, motion_stem=config.motion_stem)
        if config.learnable_positions:
            self.pos_embed = nn.Parameter(torch.empty(1, config.num_tokens, config.width))
        else:
            self.register_buffer("pos_embed", self._table()[None], persistent=False)
        self.blocks = make_blocks(config, config.width, config.depth, config.heads, config.drop_path)

    def _table(self) -> Tensor:
        config = self.config
        if config.position_table == "resized":
            return resized_table(config.grid, config.width, config.patch_size, config.tubelet, config.native_clip)
        return sin_cos_table(config.num_tokens, config.width)

    def reset_backbone(self) -> None:
        """Initialize all but the layers' weight matrices, which pretraining and fine-tuning initialize differently."""
        self.patch_embed.proj.reset_parameters()
        if self.config.learnable_positions:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        init_block_constants(self.blocks, self.config.layer_scale)

    def embed(self, video: Tensor, token_index: Tensor | None = None) -> Tensor:
        """Embed a video as tokens with positions.

        Args:
            video: (B, 3, T, S, S) normalized.
            token_index: (B, K) int64, the tokens to embed; None for all N.

        Returns:
            (B, K or N, D).

        Raises:
            ValueError: the clip does not have the size of the config.
        """
        size = (3, self.config.frames, self.config.image_size, self.config.image_size)
        if tuple(video.shape[1:]) != size:
            raise ValueError(f"expected a video (B, {', '.join(map(str, size))}), got {tuple(video.shape)}")
        tokens: Tensor = self.patch_embed(video, token_index)
        positions = self.pos_embed if token_index is None else self.pos_embed[0][token_index]
        return tokens + positions.to(tokens.dtype)

    def to_grid(self, output: Tensor, batch_size: int) -> Tensor:
        """Tokens (B, N, D) of a layer -> (B, T / tubelet, H, W, D)."""
        num_times = self.config.grid[0]
        side = math.isqrt(output.shape[1] // num_times)
        return output.reshape(batch_size, num_times, side, side, output.shape[-1])

    def no_weight_decay(self, name: str, parameter: Tensor) -> bool:
        """Exempt vectors, biases, positions and the mask token from decay (mae.py, modeling_finetune.py)."""
        return parameter.dim() <= 1 or name.endswith(".bias") or name.rpartition(".")[2] in ("pos_embed", "mask_token")


class FineTunedBackbone(VideoMAEBackbone):
    """A backbone with a head on it, fine-tuned with layer decay (modeling_finetune.py)."""

    def reset_parameters(self) -> None:
        """Initialize matrices, also of the head, from a truncated normal with std 0.02."""
        self.reset_backbone()
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.patch_embed.proj:
                nn.init.trunc_normal_(module.weight, std=0.02)
        for module in self.children():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    @property
    def max_layer_id(self) -> int:
        """Largest layer id of the layer decay."""
        return self.config.depth + 1

    def get_layer_id(self, parameter_name: str) -> int:
        """Return the layer id: 0 for embedding and positions, i + 1 for block i, `max_layer_id` for later layers."""
        if parameter_name.startswith("patch_embed.") or parameter_name in ("pos_embed", "cls_token", "mask_token"):
            return 0
        block = re.match(r"blocks\.(\d+)\.", parameter_name)
        return int(block.group(1)) + 1 if block else self.max_layer_id


class VideoMAEEncoder(VideoMAEBackbone, Module):
    """The pretraining encoder: the backbone and a final norm."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config)
        self.norm = LayerNorm(config.width, eps=config.eps) if config.final_norm else Identity()

    def forward(self, video: Tensor, token_index: Tensor | None = None) -> Tensor:
        """(B, 3, T, S, S), token_index (B, K) or None for all -> (B, K or N, D)."""
        tokens = run_blocks(self.blocks, self.embed(video, token_index), self.checkpointing)
        return self.norm(tokens)


class VideoMAEDecoder(Module):
    """Layers over visible and mask tokens, then norm and pixel head on the masked ones, which come last."""

    pos_embed: Tensor

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.checkpointing = False
        self.register_buffer(
            "pos_embed", sin_cos_table(config.num_tokens, config.decoder_width)[None], persistent=False
        )
        self.blocks = make_blocks(config, config.decoder_width, config.decoder_depth, config.decoder_heads, 0.0)
        self.norm = LayerNorm(config.decoder_width, eps=config.head_eps)
        self.head = Linear(config.decoder_width, config.values_per_token)

    def forward(self, tokens: Tensor, num_queries: int) -> Tensor:
        """(B, N, decoder width) -> (B, num_queries, P): predictions for the last tokens only."""
        tokens = run_blocks(self.blocks, tokens, self.checkpointing, num_queries)[:, -num_queries:]
        return self.head(self.norm(tokens))


def order_visible_first(mask: Tensor, num_visible: int | None) -> tuple[Tensor, int]:
    """Sort the token indices of each sample: visible tokens ascending, then masked tokens ascending.

    Args:
        mask: (B, N) bool, True = masked.
        num_visible: K; None counts it in the mask, which needs a device sync.

    Returns:
        token indices (B, N) int64, and K.

    Raises:
        ValueError: the samples differ in their number of visible tokens.
    """
    if num_visible is None or (mask.device.type == "cpu" and not torch.compiler.is_compiling()):
        counts = (~mask).sum(1)
        if num_visible is None:
            num_visible = int(counts[0])
        if not bool((counts == num_visible).all()):
            raise ValueError(f"every sample must have {num_visible} visible tokens, found {counts.tolist()}")
    return mask.to(torch.uint8).argsort(dim=1, stable=True), num_visible


class VideoMAEPretrain(MaskedEncoder, Module):
    """Masked autoencoder: encode the visible tokens, predict the pixels of the masked ones (modeling_pretrain.py)."""

    fixed_clip_size = True

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        if config.position_table == "resized" or config.spatial_head:
            raise ValueError("position_table 'resized' and spatial_head are settings of the classifier only")
        self.config = config
        self.normalize = Normalize(config.mean, config.std)
        self.encoder = VideoMAEEncoder(config)
        self.encoder_to_decoder = Linear(config.width, config.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.decoder_width))
        self.decoder = VideoMAEDecoder(config)
        self.reset_parameters()

    @property
    def checkpointing(self) -> bool:
        """Whether the backward pass recomputes activations (gradient checkpointing)."""
        return self.encoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.encoder.checkpointing = self.decoder.checkpointing = value

    @property
    def tower(self) -> VideoMAEEncoder:
        """The encoder."""
        return self.encoder

    def tokens(self, video: Tensor) -> Tensor:
        """(B, 3, T, S, S) normalized -> all tokens (B, N, D) after the encoder's norm."""
        return self.encoder(video)

    def features(self, video: Tensor) -> Tensor:
        """(B, 3, T, S, S) normalized -> mean of the tokens (B, D)."""
        return self.tokens(video).mean(dim=1)

    def reset_parameters(self) -> None:
        """Initialize: Xavier for matrices, a normal truncated at one std for the mask token.

        `patch_embed` and `encoder_to_decoder` have torch's default initialization of linear layers.
        """
        self.encoder.reset_backbone()
        init_block_constants(self.decoder.blocks, self.config.layer_scale)
        for part in (self.encoder, self.decoder):
            if isinstance(part.norm, nn.LayerNorm):
                part.norm.reset_parameters()
            for module in part.modules():
                if isinstance(module, nn.Linear) and module is not self.encoder.patch_embed.proj:
                    nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(self.decoder.head.bias)
        self.encoder_to_decoder.reset_parameters()
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def encode(self, video: Tensor, mask: Tensor, num_visible: int | None = None) -> Tensor:
        """(B, 3, T, S, S) normalized, mask (B, N) bool True = masked -> visible tokens (B, K, D), ascending.

        `num_visible` is K; None counts it in the mask, which needs a device sync.
        """
        order, num_visible = order_visible_first(mask, num_visible)
        return self.encoder(video, order[:, :num_visible])

    def forward(self, video: Tensor, mask: Tensor, num_visible: int | None = None) -> Tensor:
        """Predict the masked tokens.

        Args:
            video: (B, 3, T, S, S) normalized.
            mask: (B, N) bool, True = masked, the same number in every sample.
            num_visible: as in `encode`.

        Returns:
            (B, M, P) for the masked tokens in ascending order; all N tokens when none is masked.

        Raises:
            ValueError: the video or the mask does not fit.
        """
        order, num_visible = order_visible_first(mask, num_visible)
        visible = self.encoder_to_decoder(self.encoder(video, order[:, :num_visible]))
        num_masked = order.shape[1] - num_visible
        mask_tokens = self.mask_token.to(visible.dtype).expand(visible.shape[0], num_masked, -1)
        positions = self.decoder.pos_embed[0][order].to(visible.dtype)
        tokens = torch.cat([visible, mask_tokens], dim=1) + positions
        return self.decoder(tokens, num_masked or num_visible)


def pretrain_to_classifier(
    state: Mapping[str, Tensor], pooling: Literal["mean", "first"] = "mean"
) -> dict[str, Tensor]:
    """Map a pretraining state dict to a classifier's parameter names (run_class_finetuning.py).

    Drops the decoder, and under mean pooling the encoder's final norm.
    """
    encoder = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    return {name: value for name, value in encoder.items() if pooling == "first" or not name.startswith("norm.")}


class VideoMAEClassifier(FineTunedBackbone, MaskedEncoder, ClipClassifier):
    """The masked encoder with a classification head (modeling_finetune.py).

    Attributes:
        blocks: the layers; models that insert modules between them run them one by one.
        checkpointing: recompute activations in the backward pass (gradient checkpointing).
    """

    class_layer = ("head", 0)

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config)
        self.normalize = Normalize(config.mean, config.std)
        mean_pooling = config.pooling == "mean"
        self.norm = LayerNorm(config.width, eps=config.eps) if config.final_norm and not mean_pooling else None
        self.fc_norm = LayerNorm(config.width, eps=config.head_eps) if config.final_norm and mean_pooling else None
        self.head_dropout = Dropout(config.head_dropout)
        self.head = Linear(config.head_width, config.num_classes) if config.num_classes else Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as `FineTunedBackbone`, the head scaled by `init_scale`."""
        super().reset_parameters()
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.bias)
            with torch.no_grad():
                self.head.weight.mul_(self.config.init_scale)

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool the last block's tokens (B, N, D) to the head's input: (B, D), or (B, HW D) with `spatial_head`."""
        if self.config.spatial_head and self.fc_norm is not None:
            return self.fc_norm(torch.stack(tokens.chunk(self.config.grid[0], dim=1)).mean(0)).flatten(1)
        pooled, norm = (tokens.mean(1), self.fc_norm) if self.config.pooling == "mean" else (tokens[:, 0], self.norm)
        return pooled if norm is None else norm(pooled)

    def tokens(self, video: Tensor) -> Tensor:
        """(B, 3, T, S, S) normalized -> tokens (B, N, D) of the last layer, before the norm."""
        return run_blocks(self.blocks, self.embed(video), self.checkpointing)

    def features(self, video: Tensor) -> Tensor:
        """(B, 3, T, S, S) normalized -> the head's input, see `pool`."""
        tokens, last_block = self.embed(video), self.blocks[-1]
        # Without dropout and gradients, mean pooling is done before the last linear map, which is cheaper: the two
        # commute, so the results differ only by rounding.
        use_full_pass = self.training or torch.is_grad_enabled() or self.config.spatial_head
        if use_full_pass or self.fc_norm is None or not isinstance(last_block, Block):
            return self.pool(run_blocks(self.blocks, tokens, self.checkpointing))
        return self.fc_norm(last_block.forward_mean(run_blocks(self.blocks[:-1], tokens, False)))

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T, S, S) normalized -> logits (B, C)."""
        return self.head(self.head_dropout(self.features(video)))

    @property
    def head_layer(self) -> nn.Linear:
        """The classifier. Raises ValueError without one."""
        if not isinstance(self.head, nn.Linear):
            raise ValueError("this model has no classifier (num_classes=0)")
        return self.head

    def head_input(self, video: Tensor) -> Tensor:
        """(B, 3, T, S, S) normalized -> (B, D), input of `head_layer` before the dropout."""
        return self.features(video)

    def logits_and_grid(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, T, S, S) normalized -> logits (B, C) and tokens of the last layer (B, D, T', H, W), in one pass."""
        tokens = self.tokens(video)
        side = self.config.grid[1]
        grid = tokens.transpose(1, 2).reshape(len(video), tokens.shape[2], -1, side, side)
        return self.head(self.head_dropout(self.pool(tokens))), grid

    def initial_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
        """Map pretraining weights to (state, pattern of parameters that keep their initialization).

        Returns None for the weights of a classifier, whose names need no mapping.
        """
        if not any(name.startswith("encoder.") for name in state):
            return None
        mapped = pretrain_to_classifier(state, self.config.pooling)
        kernel = "patch_embed.proj.weight"  # published in the shape of a convolution
        return {
            name: value.flatten(1) if name == kernel else value for name, value in mapped.items()
        }, NEWLY_INITIALIZED
