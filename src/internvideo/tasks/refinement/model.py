"""TCANet: refine the segments of a detector with context from both sides (CVPR 2021).

Shapes: B videos, C channels, T steps, D width, P proposals of one video, S samples. Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.models.attention import attend, split_heads
from internvideo.models.entry import ModelEntry
from internvideo.models.module import Conv1d, Dropout, LayerNorm, Linear, Module, Sequential

MAX_LOG_LENGTH_CHANGE = 10.0
"""Largest change of a segment's log length per regressor, which keeps the output of an untrained network finite."""

MIN_LENGTH = 0.01
"""Smallest length of a refined segment in feature steps; the next regressor cannot refine empty segments."""


@dataclass(frozen=True)
class TCANetConfig:
    """Sizes of TCANet.

    Attributes:
        input_width: channels of the features.
        width, heads: D and H of the encoder; half of the heads attend within a window only.
        encoder_layers, feed_forward, window, dropout: of the encoder; `window` is odd.
        boundary_ratio: length of the regions before the start and after the end, relative to the proposal.
        start_samples, action_samples, end_samples: S of the three regions.
        thresholds: one per regressor of the cascade, the smallest tIoU of the proposals that it is trained on.
        seconds_per_feature: distance between features in seconds.
        training_factor, inference_factor: factors of the predicted start and end offsets, as released (with 1,
            `decode_ends` inverts `encode_ends`).
        center_factors: factors of the predicted center and length offsets, as released.
    """

    input_width: int = 2304
    width: int = 512
    heads: int = 8
    encoder_layers: int = 1
    feed_forward: int = 256
    window: int = 9
    dropout: float = 0.1
    boundary_ratio: float = 0.5
    start_samples: int = 8
    action_samples: int = 16
    end_samples: int = 8
    thresholds: tuple[float, ...] = (0.5, 0.6, 0.7)
    seconds_per_feature: float = 8 / 15
    training_factor: float = 1.0
    inference_factor: float = 0.2
    center_factors: tuple[float, float] = (0.1, 0.2)

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % 2 or self.window % 2 == 0:
            raise ValueError(
                f"width {self.width}, heads {self.heads}, window {self.window}: heads must be even and divide width, "
                "window must be odd"
            )


def blocked_attention_mask(steps: int, window: int, heads: int, device: torch.device | None = None) -> Tensor:
    """Return a mask (1, H, T, T), True where attention is blocked: the first half of the heads attends in a window."""
    step = torch.arange(steps, device=device)
    mask = torch.zeros(1, heads, steps, steps, dtype=torch.bool, device=device)
    mask[:, : heads // 2] = (step[None] - step[:, None]).abs() > window // 2
    return mask


def sample_region(
    features: Tensor, video_index: Tensor, low: Tensor, high: Tensor, samples: int, step_seconds: float
) -> Tensor:
    """Interpolate features linearly at the centers of S equal parts of a region of each proposal.

    The center of feature g is at (g + 0.5) * `step_seconds`.

    Args:
        features: (B, D, T). video_index: (P,) int64, video of each proposal.
        low, high: (P,) ends of the region in seconds. samples: S. step_seconds: distance between features.

    Returns:
        (P, D, S); zero outside the features.
    """
    fractions = (torch.arange(samples, device=features.device, dtype=low.dtype) + 0.5) / samples
    positions = (low[:, None] + fractions * (high - low)[:, None]) / step_seconds - 0.5
    left = positions.floor()
    fraction = (positions - left).to(features.dtype)[..., None]
    rows, steps = features.transpose(1, 2), features.shape[-1]

    def take_steps(index: Tensor) -> Tensor:
        is_inside = (index >= 0) & (index < steps)
        return rows[video_index[:, None], index.clamp(0, steps - 1).long()] * is_inside[..., None]

    return (take_steps(left) * (1 - fraction) + take_steps(left + 1) * fraction).transpose(1, 2)


def sample_regions(
    features: Tensor, video_index: Tensor, proposals: Tensor, config: TCANetConfig, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample start, action and end regions (P, D, S) of proposals (P, 2) from features (B, D, T), clipped to the video.

    Args:
        video_index: (P,) int64, video of each proposal. lengths: (B,) steps of each video; None if all have T.
    """
    step_seconds = config.seconds_per_feature
    seconds = proposals.new_full((len(proposals),), features.shape[-1] * step_seconds)
    if lengths is not None:
        seconds = lengths.to(proposals.dtype)[video_index] * step_seconds
    start, end = proposals[:, 0], proposals[:, 1]
    margin = config.boundary_ratio * (end - start)
    return (
        sample_region(features, video_index, (start - margin).clamp(min=0), start, config.start_samples, step_seconds),
        sample_region(features, video_index, start, end, config.action_samples, step_seconds),
        sample_region(
            features, video_index, end, torch.minimum(end + margin, seconds), config.end_samples, step_seconds
        ),
    )


def encode_ends(proposals: Tensor, truth: Tensor) -> Tensor:
    """Return the offsets of both ends, divided by the length of the proposal, (P, 2)."""
    return (truth - proposals) / _length(proposals)


def decode_ends(proposals: Tensor, offsets: Tensor, factor: float = 1.0) -> Tensor:
    """Invert `encode_ends`; `factor` scales the offsets."""
    return proposals + offsets * factor * _length(proposals)


def encode_center(proposals: Tensor, truth: Tensor) -> Tensor:
    """Return the offset of the center, divided by the length of the proposal, and the log ratio of lengths, (P, 2)."""
    shift = (truth.mean(dim=-1, keepdim=True) - proposals.mean(dim=-1, keepdim=True)) / _length(proposals)
    return torch.cat([shift, (_length(truth) / _length(proposals)).log()], dim=-1)


def decode_center(proposals: Tensor, offsets: Tensor, factors: tuple[float, float] = (0.1, 0.2)) -> Tensor:
    """Decode segments (P, 2) from offsets scaled by `factors`."""
    center = proposals.mean(dim=-1, keepdim=True) + offsets[:, :1] * factors[0] * _length(proposals)
    half = (
        0.5
        * _length(proposals)
        * (offsets[:, 1:] * factors[1]).clamp(-MAX_LOG_LENGTH_CHANGE, MAX_LOG_LENGTH_CHANGE).exp()
    )
    return torch.cat([center - half, center + half], dim=-1)


def _length(segments: Tensor) -> Tensor:
    return (segments[:, 1] - segments[:, 0])[:, None]


class LocalGlobalLayer(Module):
    """Post-norm attention and feed-forward; half of the heads attend within a window only."""

    def __init__(self, config: TCANetConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.window = config.heads, config.window
        self.qkv, self.proj = Linear(width, 3 * width), Linear(width, width)
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.fc1, self.fc2 = Linear(width, config.feed_forward), Linear(config.feed_forward, width)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); steps where `mask` (B, T) is False are not attended to."""
        query, key, value = (split_heads(projected, self.heads) for projected in self.qkv(x).chunk(3, dim=-1))
        is_blocked = blocked_attention_mask(x.shape[1], self.window, self.heads, x.device)
        if mask is not None:  # padded steps attend to all: without keys, they would be NaN
            is_blocked = is_blocked | (mask[:, None, :, None] & ~mask[:, None, None, :])
        bias = torch.zeros(is_blocked.shape, dtype=x.dtype, device=x.device).masked_fill(is_blocked, float("-inf"))
        x = self.norm1(x + self.dropout(self.proj(attend(query, key, value, attn_mask=bias))))
        return self.norm2(x + self.dropout(self.fc2(F.relu(self.fc1(x)))))


class BoundaryRegressor(nn.Module):
    """One regressor of the cascade: offsets of both ends, offsets of center and length, quality."""

    def __init__(self, config: TCANetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.start, self.end = self._branch(width, config.start_samples), self._branch(width, config.end_samples)
        samples = config.start_samples + config.action_samples + config.end_samples
        self.whole = self._branch(width, samples, num_outputs=3)

    @staticmethod
    def _branch(width: int, samples: int, num_outputs: int = 1) -> nn.Sequential:
        return Sequential(
            Conv1d(width, width // 2, 3, padding=1),
            nn.ReLU(),
            Conv1d(width // 2, width // 2, 3, padding=1),
            nn.ReLU(),
            Conv1d(width // 2, num_outputs, samples),
        )

    def forward(
        self, features: Tensor, video_index: Tensor, proposals: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict offsets of ends (P, 2), offsets of center and length (P, 2), and the quality logit (P,).

        Args: see `sample_regions`.
        """
        start, action, end = sample_regions(features, video_index, proposals, self.config, lengths)
        whole = self.whole(torch.cat([start, action, end], dim=-1))[:, :, 0]
        ends = torch.cat([self.start(start)[:, :, 0], self.end(end)[:, :, 0]], dim=1)
        return ends, whole[:, :2], whole[:, 2]

    def refine(self, proposals: Tensor, ends: Tensor, center: Tensor, factor: float) -> Tensor:
        """Return the mean of both decodings, segments (P, 2) with 0 <= start < end."""
        ends_sum = decode_ends(proposals, ends, factor) + decode_center(proposals, center, self.config.center_factors)
        start, end = torch.clamp(0.5 * ends_sum, min=0).sort(dim=-1).values.unbind(dim=-1)
        return torch.stack([start, torch.maximum(end, start + MIN_LENGTH * self.config.seconds_per_feature)], dim=-1)


@dataclass(frozen=True)
class RegressorOutput:
    """Input proposals and output of one regressor: offsets `ends` and `center`, and `quality` logits."""

    proposals: Tensor
    ends: Tensor
    center: Tensor
    quality: Tensor


class TCANet(nn.Module):
    """Encoder over a video's features and a cascade of regressors."""

    def __init__(self, config: TCANetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.base = Sequential(
            Conv1d(config.input_width, width, 3, padding=1, groups=4),
            nn.ReLU(),
            Conv1d(width, width, 3, padding=1, groups=4),
            nn.ReLU(),
        )
        self.encoder = nn.ModuleList(LocalGlobalLayer(config) for _ in range(config.encoder_layers))
        self.regressors = nn.ModuleList(BoundaryRegressor(config) for _ in config.thresholds)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode (B, C, T) to (B, D, T); padded steps, where `mask` (B, T) is False, are 0 and not attended to.

        In the released code, without a mask, padded steps are attended to.
        """
        x: Tensor = features
        for layer in self.base:
            x = layer(x)
            if mask is not None:
                x = x * mask[:, None]
        x = x.transpose(1, 2)
        for layer in self.encoder:
            x = layer(x, mask)
        x = x.transpose(1, 2)
        return x if mask is None else x * mask[:, None]

    def forward(
        self, features: Tensor, video_index: Tensor, proposals: Tensor, mask: Tensor | None = None
    ) -> tuple[list[RegressorOutput], Tensor]:
        """Refine proposals.

        Args:
            features: (B, C, T). video_index: (P,) int64, video of each proposal.
            proposals: (P, 2) seconds; the center of feature g is at (g + 0.5) * `seconds_per_feature`.
            mask: (B, T) bool, False for padded steps; None for no padding.

        Returns:
            output of each regressor, and the refined segments (P, 2).
        """
        encoded = self.encode(features, mask)
        lengths = None if mask is None else mask.sum(dim=1)
        factor = self.config.training_factor if self.training else self.config.inference_factor
        outputs = []
        for regressor in self.regressors:
            ends, center, quality = regressor(encoded, video_index, proposals, lengths)
            outputs.append(RegressorOutput(proposals, ends, center, quality))
            proposals = regressor.refine(proposals, ends, center, factor).detach()  # type: ignore[operator]  # a BoundaryRegressor
        return outputs, proposals


MODELS = {
    "tcanet": ModelEntry(
        TCANet,
        TCANetConfig(),
        None,
        "refinement of a detector's segments: encoder of width 512, cascade of three regressors",
    )
}
"""TCANet as for HACS, on SlowFast's 2304 channels."""
