"""ActionFormer: one-stage temporal detector over a feature sequence (arXiv 2202.07925).

Parameter names are the published ones, so that published checkpoints load as they are.
Shapes: B batch, C channels, T time steps, D width, H heads, W window, K classes, l level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.models.attention import attend, split_heads
from internvideo.models.block import DropPath
from internvideo.models.embeddings import sin_cos_table
from internvideo.models.entry import ModelEntry
from internvideo.models.module import Conv1d, Dropout, Identity, Module, Sequential
from internvideo.tasks.temporal_localization.config import SIZES, ActionFormerConfig

MASKED_KEY = -1e4
"""Added to the attention scores of padded keys; finite, so that the softmax of a padded query is defined."""


@dataclass(frozen=True)
class Detection:
    """Outputs at every point, level by level.

    Attributes:
        logits: (B, T_l, K). offsets: (B, T_l, 2) distances to start and end, in strides of the level, at least 0.
        masks: (B, T_l) True inside the sequence.
    """

    logits: tuple[Tensor, ...]
    offsets: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]


class MaskedConv1d(nn.Module):
    """Convolution with stride s whose output is zero in the padding."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool = True
    ):
        super().__init__()
        self.conv = Conv1d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)
        if bias:
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # there is one

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T), (B, 1, T) bool -> (B, C', T / s), (B, 1, T / s)."""
        mask = mask[:, :, :: self.conv.stride[0]]
        return self.conv(x) * mask, mask


class ChannelNorm(Module):
    """Layer norm over the channels of (B, C, T)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, width, 1)), nn.Parameter(torch.zeros(1, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        norm = F.layer_norm(x.transpose(1, 2), (x.shape[1],), self.weight.flatten(), self.bias.flatten(), 1e-5)
        return norm.transpose(1, 2)


class WindowAttention(nn.Module):
    """Multi-head attention over a window or over all steps, with a depth-wise convolution before each projection."""

    rel_pe: nn.Parameter | None

    def __init__(self, config: ActionFormerConfig, window: int, stride: int) -> None:
        super().__init__()
        width = config.width
        self.heads, self.window = config.heads, window
        kernel = 3 if stride == 1 else stride + 1
        for name in ("query", "key", "value"):
            conv = MaskedConv1d(width, width, kernel, stride=stride, groups=width, bias=False)
            setattr(self, f"{name}_conv", conv)
            setattr(self, f"{name}_norm", ChannelNorm(width))
            setattr(self, name, Conv1d(width, width, 1))
        self.proj = Conv1d(width, width, 1)
        self.proj_drop = Dropout(config.dropout)
        relative = config.relative_positions and window > 1
        self.rel_pe = nn.Parameter(torch.zeros(1, 1, config.heads, window)) if relative else None
        if self.rel_pe is not None:
            nn.init.trunc_normal_(self.rel_pe, std=(2.0 / width) ** 0.5)

    def _bias(self, mask: Tensor) -> Tensor:
        """Compute the attention mask to add to the scores (B, 1 or H, T, T) from the mask of keys (B, 1, T)."""
        keys = mask[:, :, None, :]
        if self.window <= 1:
            return torch.zeros_like(keys, dtype=self.proj.weight.dtype).masked_fill(~keys, float("-inf"))
        steps = torch.arange(mask.shape[-1], device=mask.device)
        offset = steps[None, :] - steps[:, None]
        half = self.window // 2
        out_of_window = offset.abs() > half
        bias = torch.zeros_like(keys, dtype=self.proj.weight.dtype).masked_fill(~keys, MASKED_KEY)
        if self.rel_pe is not None:
            bias = bias + self.rel_pe[0, 0][:, (offset + half).clamp(0, self.window - 1)]
        return bias.masked_fill(out_of_window, float("-inf"))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D, T), (B, 1, T) -> (B, D, T / s), (B, 1, T / s)."""
        projections, out_mask = [], mask
        for name in ("query", "key", "value"):
            y, out_mask = getattr(self, f"{name}_conv")(x, mask)
            y = getattr(self, name)(getattr(self, f"{name}_norm")(y))
            projections.append(split_heads(y.transpose(1, 2), self.heads))
        out = attend(projections[0], projections[1], projections[2], attn_mask=self._bias(out_mask)).transpose(1, 2)
        return self.proj_drop(self.proj(out)) * out_mask, out_mask


class Scale(Module):
    """A learned scalar factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * self.scale


class ScaledDropPath(Module):
    """Per-channel scale that starts at 1e-4, then stochastic depth."""

    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, width, 1), 1e-4))
        self.drop = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T)."""
        return self.drop(x * self.scale)


class TemporalBlock(nn.Module):
    """Pre-norm attention and feed-forward over (B, D, T); stride 2 halves the time, with a max-pooled skip path."""

    def __init__(self, config: ActionFormerConfig, window: int, stride: int) -> None:
        super().__init__()
        width = config.width
        self.stride = stride
        self.ln1, self.ln2 = ChannelNorm(width), ChannelNorm(width)
        self.attn = WindowAttention(config, window, stride)
        self.mlp = Sequential(
            Conv1d(width, 4 * width, 1),
            nn.GELU(),
            Dropout(config.dropout),
            Conv1d(4 * width, width, 1),
            Dropout(config.dropout),
        )
        scaled = config.drop_path > 0
        self.drop_path_attn = ScaledDropPath(width, config.drop_path) if scaled else Identity()
        self.drop_path_mlp = ScaledDropPath(width, config.drop_path) if scaled else Identity()

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D, T), (B, 1, T) -> (B, D, T / s), (B, 1, T / s)."""
        out, out_mask = self.attn(self.ln1(x), mask)
        skip = x if self.stride == 1 else F.max_pool1d(x, self.stride + 1, self.stride, (self.stride + 1) // 2)
        x = skip * out_mask + self.drop_path_attn(out)
        return x + self.drop_path_mlp(self.mlp(self.ln2(x)) * out_mask), out_mask


class TemporalBackbone(nn.Module):
    """Feature pyramid: convolutions, then transformer layers of stride 1, then layers that halve the time."""

    table: Tensor

    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__()
        width = config.width
        self.embd = nn.ModuleList(
            MaskedConv1d(config.input_width if layer == 0 else width, width, 3, bias=False)
            for layer in range(config.embedding_layers)
        )
        self.embd_norm = nn.ModuleList(ChannelNorm(width) for _ in range(config.embedding_layers))
        self.stem = nn.ModuleList(TemporalBlock(config, config.window(0), 1) for _ in range(config.stem_layers))
        self.branch = nn.ModuleList(TemporalBlock(config, config.window(level), 2) for level in range(1, config.levels))
        self.positions = config.absolute_positions
        table = sin_cos_table(config.max_length, width).reshape(1, config.max_length, width).transpose(1, 2)
        self.register_buffer("table", table / width**0.5, persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(B, C, T), (B, 1, T) -> features (B, D, T / 2^l) and masks (B, 1, T / 2^l) of every level."""
        for conv, norm in zip(self.embd, self.embd_norm, strict=True):
            x, mask = conv(x, mask)
            x = F.relu(norm(x))
        if self.positions:
            table = self.table
            if x.shape[-1] > table.shape[-1]:
                table = F.interpolate(table, x.shape[-1], mode="linear", align_corners=False)
            x = x + table[:, :, : x.shape[-1]] * mask
        for block in self.stem:
            x, mask = block(x, mask)
        features, masks = [x], [mask]
        for block in self.branch:
            x, mask = block(x, mask)
            features.append(x)
            masks.append(mask)
        return features, masks


class TemporalNeck(nn.Module):
    """A norm per level; with neck "pyramid", a top-down feature pyramid before it."""

    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__()
        width, levels = config.width, config.levels
        pyramid = config.neck == "pyramid"
        if pyramid:
            self.lateral_convs = nn.ModuleList(MaskedConv1d(width, width, 1, bias=False) for _ in range(levels))
            self.fpn_convs = nn.ModuleList(
                MaskedConv1d(width, width, 3, groups=width, bias=False) for _ in range(levels)
            )
        self.pyramid = pyramid
        self.fpn_norms = nn.ModuleList(ChannelNorm(width) for _ in range(levels))

    def forward(self, features: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """Level by level (B, D, T_l) -> (B, D, T_l)."""
        if self.pyramid:
            sums = [conv(x, mask)[0] for conv, x, mask in zip(self.lateral_convs, features, masks, strict=True)]
            for level in range(len(sums) - 1, 0, -1):
                sums[level - 1] = sums[level - 1] + sums[level].repeat_interleave(2, dim=-1)
            features = [conv(x, mask)[0] for conv, x, mask in zip(self.fpn_convs, sums, masks, strict=True)]
        return [norm(x) for norm, x in zip(self.fpn_norms, features, strict=True)]


class _ConvTower(nn.Module):
    """Convolutions with norm and ReLU, with the same weights for all levels."""

    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__()
        count, width = config.head_layers - 1, config.width
        self.head = nn.ModuleList(MaskedConv1d(width, width, 3, bias=False) for _ in range(count))
        self.norm = nn.ModuleList(ChannelNorm(width) for _ in range(count))

    def forward_convs(self, x: Tensor, mask: Tensor) -> Tensor:
        for conv, norm in zip(self.head, self.norm, strict=True):
            x = F.relu(norm(conv(x, mask)[0]))
        return x


class ClassHead(_ConvTower):
    """Class logits at every step."""

    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__(config)
        self.cls_head = MaskedConv1d(config.width, config.num_classes, 3)
        nn.init.constant_(self.cls_head.conv.bias, -math.log((1 - config.prior) / config.prior))  # type: ignore[arg-type]  # there is one

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, D, T), (B, 1, T) -> (B, T, K)."""
        logits: Tensor = self.cls_head(self.forward_convs(x, mask), mask)[0]
        return logits.transpose(1, 2)


class OffsetHead(_ConvTower):
    """Distances to both ends at every step."""

    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__(config)
        self.offset_head = MaskedConv1d(config.width, 2, 3)
        self.scale = nn.ModuleList(Scale() for _ in range(config.levels))

    def forward(self, x: Tensor, mask: Tensor, level: int) -> Tensor:
        """(B, D, T), (B, 1, T) -> (B, T, 2), at least 0."""
        return F.relu(self.scale[level](self.offset_head(self.forward_convs(x, mask), mask)[0])).transpose(1, 2)


class ActionFormer(nn.Module):
    """Temporal action detector."""

    class_layer = ("cls_head.cls_head.conv", 0)

    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = TemporalBackbone(config)
        self.neck = TemporalNeck(config)
        self.cls_head = ClassHead(config)
        self.reg_head = OffsetHead(config)

    def forward(self, features: Tensor, mask: Tensor) -> Detection:
        """Detect in features (B, C, T) padded at the end with mask (B, T) bool.

        T must be a multiple of `config.multiple` (ValueError); see `config.padded_length`.
        """
        if features.shape[-1] % self.config.multiple:
            raise ValueError(f"{features.shape[-1]} steps: a multiple of {self.config.multiple} is needed")
        levels, masks = self.backbone(features * mask[:, None], mask[:, None])
        levels = self.neck(levels, masks)
        pairs = list(zip(levels, masks, strict=True))
        return Detection(
            logits=tuple(self.cls_head(x, m) for x, m in pairs),
            offsets=tuple(self.reg_head(x, m, level) for level, (x, m) in enumerate(pairs)),
            masks=tuple(m[:, 0] for m in masks),
        )

    def points(self, length: int, device: torch.device | None = None) -> tuple[Tensor, ...]:
        """Return the points (T_l, 4) of each level for a padded length: time in steps, range (low, high), stride."""
        points_by_level = []
        for level, (low, high) in enumerate(self.config.ranges):
            stride = 2**level
            time = torch.arange(0, length, stride, dtype=torch.float32, device=device)
            points_by_level.append(
                torch.stack([time, *(torch.full_like(time, value) for value in (low, high, stride))], dim=1)
            )
        return tuple(points_by_level)

    def no_weight_decay(self, name: str, parameter: Tensor) -> bool:
        """Exempt biases, norms, scales and relative positions from weight decay (ActionFormer)."""
        return name.endswith(("bias", "scale", "rel_pe")) or "norm" in name or ".ln" in name


MODELS = {
    f"actionformer-{name}": ModelEntry(ActionFormer, config, millions, f"temporal detector on features: {about}")
    for name, (config, millions, about) in SIZES.items()
}
