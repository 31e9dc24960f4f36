"""TCANet: refines the ends of another detector's segments with context from both sides (spec tasks.md 2.9).

Shapes: B videos, C channels, T steps, D width, P proposals of one video, S samples. Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.models.attention import attend, split_heads


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
        centre_factors: of the centre and length offsets, as released.
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
    """(1, H, T, T) True where a query does not see a key: the first half of the heads sees a window, the rest all."""
    place = torch.arange(steps, device=device)
    outside = (place[None] - place[:, None]).abs() > window // 2
    mask = torch.zeros(1, heads, steps, steps, dtype=torch.bool, device=device)
    mask[:, : heads // 2] = outside
    return mask


def sample_region(features: Tensor, low: Tensor, high: Tensor, samples: int, seconds: float) -> Tensor:
    """Features at the middles of S equal parts of a region of each video, linearly interpolated.

    Args:
        features: (P, D, T), one row a proposal. low, high: (P,) ends of the region. samples: S.
        seconds: of the T steps.

    Returns:
        (P, D, S); zero outside the features.
    """
    share = (torch.arange(samples, device=features.device, dtype=features.dtype) + 0.5) / samples
    place = low[:, None] + share * (high - low)[:, None]
    across = place / seconds * 2 - 1
    grid = torch.stack([across, torch.zeros_like(across)], dim=-1)[:, None]
    return F.grid_sample(features[:, :, None], grid, padding_mode="zeros", align_corners=False)[:, :, 0]


def sample_regions(features: Tensor, proposals: Tensor, config: TCANetConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Start (P, D, S), action and end regions of proposals (P, 2) over features (P, D, T); cut to the video."""
    seconds = features.shape[-1] * config.seconds_per_feature
    start, end = proposals[:, 0], proposals[:, 1]
    around = config.boundary_ratio * (end - start)
    return (
        sample_region(features, (start - around).clamp(min=0), start, config.start_samples, seconds),
        sample_region(features, start, end, config.action_samples, seconds),
        sample_region(features, end, (end + around).clamp(max=seconds), config.end_samples, seconds),
    )


def encode_ends(proposals: Tensor, truth: Tensor) -> Tensor:
    """Offsets of both ends over the proposal's length, (P, 2)."""
    return (truth - proposals) / _length(proposals)


def decode_ends(proposals: Tensor, offsets: Tensor, factor: float = 1.0) -> Tensor:
    """Inverse of `encode_ends`; `factor` scales the offsets."""
    return proposals + offsets * factor * _length(proposals)


def encode_centre(proposals: Tensor, truth: Tensor) -> Tensor:
    """Offset of the centre over the length, and log ratio of the lengths, (P, 2)."""
    shift = (truth.mean(dim=-1, keepdim=True) - proposals.mean(dim=-1, keepdim=True)) / _length(proposals)
    return torch.cat([shift, (_length(truth) / _length(proposals)).log()], dim=-1)


def decode_centre(proposals: Tensor, offsets: Tensor, factors: tuple[float, float] = (0.1, 0.2)) -> Tensor:
    """New segments (P, 2) from offsets scaled by `factors`."""
    centre = proposals.mean(dim=-1, keepdim=True) + offsets[:, :1] * factors[0] * _length(proposals)
    half = 0.5 * _length(proposals) * (offsets[:, 1:] * factors[1]).exp()
    return torch.cat([centre - half, centre + half], dim=-1)


def _length(segments: Tensor) -> Tensor:
    return (segments[:, 1] - segments[:, 0])[:, None]


class LocalGlobalLayer(nn.Module):
    """Post-norm attention and feed-forward; half of the heads see a window."""

    def __init__(self, config: TCANetConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.window = config.heads, config.window
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, config.feed_forward), nn.Linear(config.feed_forward, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        hidden = blocked(x.shape[1], self.window, self.heads, x.device)
        bias = torch.zeros(hidden.shape, dtype=x.dtype, device=x.device).masked_fill(hidden, float("-inf"))
        x = self.norm1(x + self.dropout(self.proj(attend(query, key, value, bias=bias))))
        return self.norm2(x + self.dropout(self.fc2(F.relu(self.fc1(x)))))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


class BoundaryRegressor(nn.Module):
    """One step of the cascade: offsets of both ends, of centre and length, and how good the proposal is."""

    def __init__(self, config: TCANetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.start, self.end = self._branch(width, config.start_samples), self._branch(width, config.end_samples)
        samples = config.start_samples + config.action_samples + config.end_samples
        self.whole = self._branch(width, samples, outputs=3)

    @staticmethod
    def _branch(width: int, samples: int, outputs: int = 1) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv1d(width, width // 2, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(width // 2, width // 2, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(width // 2, outputs, samples),
        )

    def forward(self, features: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (P, D, T), proposals (P, 2) -> ends (P, 2), centre and length (P, 2), tIoU logit (P,)."""
        start, action, end = sample_regions(features, proposals, self.config)
        whole = self.whole(torch.cat([start, action, end], dim=-1))[:, :, 0]
        ends = torch.cat([self.start(start)[:, :, 0], self.end(end)[:, :, 0]], dim=1)
        return ends, whole[:, :2], whole[:, 2]

    def refine(self, proposals: Tensor, ends: Tensor, centre: Tensor, factor: float) -> Tensor:
        """Mean of both decodings, at least 0; (P, 2)."""
        both = decode_ends(proposals, ends, factor) + decode_centre(proposals, centre, self.config.centre_factors)
        return torch.clamp(0.5 * both, min=0)


@dataclass(frozen=True)
class Refined:
    """What one regressor said about its proposals: `proposals` it was given, `ends`, `centre` offsets, `quality`."""

    proposals: Tensor
    ends: Tensor
    centre: Tensor
    quality: Tensor


class TCANet(nn.Module):
    """Encoder over a video's features and a cascade of regressors."""

    def __init__(self, config: TCANetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.base = nn.Sequential(
            nn.Conv1d(config.input_width, width, 3, padding=1, groups=4),
            nn.ReLU(),
            nn.Conv1d(width, width, 3, padding=1, groups=4),
            nn.ReLU(),
        )
        self.encoder = nn.ModuleList(LocalGlobalLayer(config) for _ in range(config.encoder_layers))
        self.regressors = nn.ModuleList(BoundaryRegressor(config) for _ in config.thresholds)

    def encode(self, features: Tensor) -> Tensor:
        """(B, C, T) -> (B, D, T)."""
        x: Tensor = self.base(features).transpose(1, 2)
        for layer in self.encoder:
            x = layer(x)
        return x.transpose(1, 2)

    def forward(self, features: Tensor, video: Tensor, proposals: Tensor) -> tuple[list[Refined], Tensor]:
        """Refine proposals.

        Args:
            features: (B, C, T). video: (P,) int64 row of each proposal. proposals: (P, 2) seconds.

        Returns:
            what each regressor said, and the final segments (P, 2). Their score is the proposal's times the sigmoid of
            the last regressor's quality.
        """
        encoded = self.encode(features)[video]
        factor = self.config.training_factor if self.training else self.config.inference_factor
        said = []
        for regressor in self.regressors:
            ends, centre, quality = regressor(encoded, proposals)
            said.append(Refined(proposals, ends, centre, quality))
            proposals = regressor.refine(proposals, ends, centre, factor).detach()  # type: ignore[operator]  # a BoundaryRegressor
        return said, proposals
