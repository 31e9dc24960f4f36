"""TCANet: refine another detector's segments with context from both sides (CVPR 2021).

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

LONGEST = 10.0
"""Largest change of a segment's log length in one step: keeps an untrained network's output finite."""

SHORTEST = 0.01
"""Length of the shortest refined segment in feature steps: an empty or reversed one could not be refined further."""


@dataclass(frozen=True)
class TCANetConfig:
    """Sizes.

    Attributes:
        input_width: channels of the features. width, heads: D and H of the encoder; half of the heads see a window.
        encoder_layers, feed_forward, window, dropout: of the local-global encoder; `window` is odd.
        boundary_ratio: length of the regions before the start and after the end, over the proposal's.
        start_samples, action_samples, end_samples: S of the three regions.
        stages: cascaded regressors, one for each of `thresholds` (tIoU of the proposals that it learns from).
        seconds_per_feature: of the feature grid.
        training_factor, inference_factor: of the start and end offsets, as released (1 and 1 would undo the codec).
        centre_factors: of the center and length offsets, as released.
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
    centre_factors: tuple[float, float] = (0.1, 0.2)

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % 2 or self.window % 2 == 0:
            raise ValueError(f"width {self.width}, heads {self.heads} (even, a divisor), window {self.window} (odd)")


def blocked(steps: int, window: int, heads: int, device: torch.device | None = None) -> Tensor:
    """Return the mask (1, H, T, T), True where attention is blocked: half of the heads see a window, the rest all."""
    step = torch.arange(steps, device=device)
    mask = torch.zeros(1, heads, steps, steps, dtype=torch.bool, device=device)
    mask[:, : heads // 2] = (step[None] - step[:, None]).abs() > window // 2
    return mask


def sample_region(features: Tensor, video: Tensor, low: Tensor, high: Tensor, samples: int, seconds: float) -> Tensor:
    """Interpolate features linearly at the centers of S equal parts of a region of each proposal.

    The middle of feature g is at (g + 0.5) * `seconds`.

    Args:
        features: (B, D, T). video: (P,) int64 row of each proposal. low, high: (P,) ends of the region. samples: S.
        seconds: of a step.

    Returns:
        (P, D, S); zero outside the features.
    """
    share = (torch.arange(samples, device=features.device, dtype=low.dtype) + 0.5) / samples
    place = (low[:, None] + share * (high - low)[:, None]) / seconds - 0.5
    before = place.floor()
    part = (place - before).to(features.dtype)[..., None]
    rows, steps = features.transpose(1, 2), features.shape[-1]

    def at(index: Tensor) -> Tensor:
        inside = (index >= 0) & (index < steps)
        return rows[video[:, None], index.clamp(0, steps - 1).long()] * inside[..., None]

    return (at(before) * (1 - part) + at(before + 1) * part).transpose(1, 2)


def sample_regions(
    features: Tensor, video: Tensor, proposals: Tensor, config: TCANetConfig, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample start, action and end regions (P, D, S) of proposals (P, 2) from features (B, D, T), clipped to the video.

    `video` (P,) is the row of each proposal, `lengths` (B,) the steps of each video where some are shorter than T.
    """
    step = config.seconds_per_feature
    seconds = proposals.new_full((len(proposals),), features.shape[-1] * step)
    if lengths is not None:
        seconds = lengths.to(proposals.dtype)[video] * step
    start, end = proposals[:, 0], proposals[:, 1]
    around = config.boundary_ratio * (end - start)
    return (
        sample_region(features, video, (start - around).clamp(min=0), start, config.start_samples, step),
        sample_region(features, video, start, end, config.action_samples, step),
        sample_region(features, video, end, torch.minimum(end + around, seconds), config.end_samples, step),
    )


def encode_ends(proposals: Tensor, truth: Tensor) -> Tensor:
    """Encode the offsets of both ends, divided by the proposal's length, (P, 2)."""
    return (truth - proposals) / _length(proposals)


def decode_ends(proposals: Tensor, offsets: Tensor, factor: float = 1.0) -> Tensor:
    """Invert `encode_ends`; `factor` scales the offsets."""
    return proposals + offsets * factor * _length(proposals)


def encode_centre(proposals: Tensor, truth: Tensor) -> Tensor:
    """Encode the offset of the center, divided by the length, and the log ratio of the lengths, (P, 2)."""
    shift = (truth.mean(dim=-1, keepdim=True) - proposals.mean(dim=-1, keepdim=True)) / _length(proposals)
    return torch.cat([shift, (_length(truth) / _length(proposals)).log()], dim=-1)


def decode_centre(proposals: Tensor, offsets: Tensor, factors: tuple[float, float] = (0.1, 0.2)) -> Tensor:
    """Decode segments (P, 2) from offsets scaled by `factors`."""
    center = proposals.mean(dim=-1, keepdim=True) + offsets[:, :1] * factors[0] * _length(proposals)
    half = 0.5 * _length(proposals) * (offsets[:, 1:] * factors[1]).clamp(-LONGEST, LONGEST).exp()
    return torch.cat([center - half, center + half], dim=-1)


def _length(segments: Tensor) -> Tensor:
    return (segments[:, 1] - segments[:, 0])[:, None]


class LocalGlobalLayer(Module):
    """Post-norm attention and feed-forward; half of the heads see a window."""

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
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        hidden = blocked(x.shape[1], self.window, self.heads, x.device)
        if mask is not None:  # padded steps attend to everything: a row without keys would be NaN
            hidden = hidden | (mask[:, None, :, None] & ~mask[:, None, None, :])
        bias = torch.zeros(hidden.shape, dtype=x.dtype, device=x.device).masked_fill(hidden, float("-inf"))
        x = self.norm1(x + self.dropout(self.proj(attend(query, key, value, attn_mask=bias))))
        return self.norm2(x + self.dropout(self.fc2(F.relu(self.fc1(x)))))


class BoundaryRegressor(nn.Module):
    """One step of the cascade: offsets of both ends, of center and length, and the proposal's quality."""

    def __init__(self, config: TCANetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.start, self.end = self._branch(width, config.start_samples), self._branch(width, config.end_samples)
        samples = config.start_samples + config.action_samples + config.end_samples
        self.whole = self._branch(width, samples, outputs=3)

    @staticmethod
    def _branch(width: int, samples: int, outputs: int = 1) -> nn.Sequential:
        return Sequential(
            Conv1d(width, width // 2, 3, padding=1),
            nn.ReLU(),
            Conv1d(width // 2, width // 2, 3, padding=1),
            nn.ReLU(),
            Conv1d(width // 2, outputs, samples),
        )

    def forward(
        self, features: Tensor, video: Tensor, proposals: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, D, T), proposals (P, 2) of rows `video` -> ends (P, 2), center and length (P, 2), logit (P,)."""
        start, action, end = sample_regions(features, video, proposals, self.config, lengths)
        whole = self.whole(torch.cat([start, action, end], dim=-1))[:, :, 0]
        ends = torch.cat([self.start(start)[:, :, 0], self.end(end)[:, :, 0]], dim=1)
        return ends, whole[:, :2], whole[:, 2]

    def refine(self, proposals: Tensor, ends: Tensor, center: Tensor, factor: float) -> Tensor:
        """Average both decodings to segments (P, 2) with start >= 0 and start < end."""
        both = decode_ends(proposals, ends, factor) + decode_centre(proposals, center, self.config.centre_factors)
        start, end = torch.clamp(0.5 * both, min=0).sort(dim=-1).values.unbind(dim=-1)
        return torch.stack([start, torch.maximum(end, start + SHORTEST * self.config.seconds_per_feature)], dim=-1)


@dataclass(frozen=True)
class Refined:
    """Output of one regressor: its input `proposals`, offsets `ends` and `center`, `quality`."""

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
        """Encode (B, C, T) to (B, D, T): 0 where `mask` (B, T) is False; those steps are not attended to.

        The released code has no mask: videos are padded with zeros to 1000 steps and attended to everywhere.
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
        self, features: Tensor, video: Tensor, proposals: Tensor, mask: Tensor | None = None
    ) -> tuple[list[Refined], Tensor]:
        """Refine proposals.

        Args:
            features: (B, C, T). video: (P,) int64 row of each proposal. proposals: (P, 2) seconds, the middle of
                feature g at (g + 0.5) * `seconds_per_feature`.
            mask: (B, T) bool, True inside a video; None if all are T long.

        Returns:
            output of each regressor, and the final segments (P, 2), scored by the proposal's score times the sigmoid of
            the last regressor's quality.
        """
        encoded = self.encode(features, mask)
        lengths = None if mask is None else mask.sum(dim=1)
        factor = self.config.training_factor if self.training else self.config.inference_factor
        outputs = []
        for regressor in self.regressors:
            ends, center, quality = regressor(encoded, video, proposals, lengths)
            outputs.append(Refined(proposals, ends, center, quality))
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
