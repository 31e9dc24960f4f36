"""Predict waypoints: a heat map over angles and distances from a depth panorama, and non-maximum suppression.

The heat map has 120 angles, 3 degrees apart and clockwise from straight ahead, and 12 distances, 0.25 m to 3 m. The
predictor takes the views clockwise, a panorama stores them counter-clockwise. Source: Visual-Language-Navigation.
Shapes: B batch, A = 120 angles, R = 12 distances, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from internvideo.models.module import Linear, Module, Sequential
from internvideo.models.post_norm import PostNormConfig, PostNormLayer

VIEWS = 12
ANGLES = 120
DISTANCES = 12
SPACING = 0.25
"""Spacing of the distance bins, m."""
PER_VIEW = ANGLES // VIEWS
HALF_VIEW = PER_VIEW // 2
PICKS = 5
REACH = (5, 7)
"""Angle and distance bins around a pick that exclude other picks."""


@dataclass(frozen=True)
class WaypointConfig:
    """Sizes of the predictor.

    Attributes:
        depth_width: values of one view's depth feature (128 x 4 x 4 of a PointGoal ResNet-50).
        width, heads, depth: of the encoder over the views.
        dropout: in training.
    """

    depth_width: int = 2048
    width: int = 768
    heads: int = 12
    depth: int = 2
    dropout: float = 0.1


def neighbour_mask(reach: int = 1) -> Tensor:
    """Return the attention mask (12, 12): each view attends to itself and `reach` views to both sides, circularly."""
    steps = (torch.arange(VIEWS)[:, None] - torch.arange(VIEWS)[None]).abs()
    return torch.minimum(steps, VIEWS - steps) <= reach


class WaypointPredictor(Module):
    """Map depth features of twelve views to a heat map of reachable waypoints."""

    attn_mask: Tensor

    def __init__(self, config: WaypointConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        layer = PostNormConfig(width, config.heads, 4 * width, config.dropout)
        self.depth = Sequential(Linear(config.depth_width, width), nn.ReLU())
        self.layers = nn.ModuleList(PostNormLayer(layer) for _ in range(config.depth))
        self.head = Sequential(Linear(width, width), nn.ReLU(), Linear(width, PER_VIEW * DISTANCES))
        self.register_buffer("attn_mask", neighbour_mask(), persistent=False)

    def forward(self, depth: Tensor) -> Tensor:
        """Map depth features (B, 12, ...) in counter-clockwise view order to logits (B, 120, 12), clockwise."""
        x = self.depth(clockwise(depth).flatten(2))
        for layer in self.layers:
            x = layer(x, self.attn_mask)
        # Each view predicts the 30 degrees around its center.
        return self.head(x).reshape(-1, ANGLES, DISTANCES).roll(-HALF_VIEW, dims=1)


def clockwise(views: Tensor) -> Tensor:
    """Reverse the order of views (B, 12, ...) between counter-clockwise and clockwise; view 0 stays first."""
    return views[:, (-torch.arange(VIEWS, device=views.device)) % VIEWS]


def suppress(probabilities: Tensor, picks: int = PICKS, *, whole_rows: bool = False) -> Tensor:
    """Apply greedy non-maximum suppression: keep at most `picks` waypoints.

    Angles are circular, padded by one row at each side; picks in padded rows are lost. Distances wrap around in one
    direction: bin d suppresses bin e where min(|e - d|, |e - d + 12|) <= 7, as released.

    Args:
        probabilities: (B, 120, 12), not negative.
        picks: largest number of waypoints.
        whole_rows: round the row of a pick down. The released code keeps a fraction, which shifts the suppressed rows
            by up to one.

    Returns:
        (B, 120, 12): the probability at each pick, 0 elsewhere.
    """
    wrapped = torch.cat([probabilities[:, -1:], probabilities, probabilities[:, :1]], dim=1)
    rows = torch.arange(wrapped.shape[1], device=wrapped.device)
    columns = torch.arange(DISTANCES, device=wrapped.device)
    left, picked = wrapped.clone(), torch.zeros_like(wrapped)
    samples = torch.arange(len(wrapped), device=wrapped.device)
    for _ in range(picks):
        best = left.flatten(1).argmax(dim=1)
        picked.flatten(1)[samples, best] = wrapped.flatten(1)[samples, best]
        row = (best // DISTANCES).float() if whole_rows else best.float() / DISTANCES
        near_row = (rows - row[:, None]).abs() <= REACH[0]
        apart = columns - (best % DISTANCES)[:, None]
        near_column = torch.minimum(apart.abs(), (apart + DISTANCES).abs()) <= REACH[1]
        left = left * ~(near_row[:, :, None] & near_column[:, None])
    return picked[:, 1:-1]


class Candidates(NamedTuple):
    """Candidate waypoints of one panorama by ascending angle: (n,) int64 bins of angle and distance."""

    angle: Tensor
    distance: Tensor

    @property
    def turn(self) -> Tensor:
        """Counter-clockwise turn (n,), 0 < turn <= 2 pi."""
        return 2 * math.pi - self.clockwise

    @property
    def clockwise(self) -> Tensor:
        """Clockwise turn (n,), radians."""
        return self.angle.float() / ANGLES * 2 * math.pi

    @property
    def meters(self) -> Tensor:
        """Distances (n,), m."""
        return (self.distance + 1) * SPACING

    @property
    def view(self) -> Tensor:
        """Index (n,) of the panorama view (counter-clockwise) that contains the waypoint."""
        return (VIEWS - (self.angle + HALF_VIEW) // PER_VIEW) % VIEWS

    @property
    def angle_feature(self) -> Tensor:
        """(n, 4)."""
        return angle_feature(self.clockwise)

    @property
    def distance_feature(self) -> Tensor:
        """Features (n, 4): distance divided by the largest one, repeated four times."""
        return (self.meters / (DISTANCES * SPACING))[:, None].expand(-1, 4)


def angle_feature(clockwise_angle: Tensor) -> Tensor:
    """Map clockwise angles (...,) in radians to (..., 4): sine and cosine of the angle and of elevation 0."""
    zero = torch.zeros_like(clockwise_angle)
    return torch.stack([clockwise_angle.sin(), clockwise_angle.cos(), zero, zero + 1], dim=-1)


def panorama_angles() -> Tensor:
    """Return the angle features (12, 4) of a panorama's views, counter-clockwise."""
    # In double precision, because the sine of 2 pi would be 1.7e-7 otherwise.
    angles = 2 * math.pi - torch.arange(VIEWS, dtype=torch.float64) * (2 * math.pi / VIEWS)
    return angle_feature(angles).float()


def candidates(picked: Tensor) -> Candidates:
    """Extract the waypoints of a suppressed map (120, 12)."""
    found = picked.nonzero()
    return Candidates(found[:, 0], found[:, 1])


def spread(found: Candidates, logits: Tensor, generator: torch.Generator) -> Candidates:
    """Augment waypoints: resample each from the heat map inside the 10 x 12 bins of its view.

    Args:
        found: of a panorama. logits: (120, 12) of it. generator: on the device of the logits.
    """
    regions = logits.roll(HALF_VIEW, dims=0).reshape(VIEWS, -1)  # of the views clockwise
    sector = (-found.view) % VIEWS
    drawn = torch.multinomial(regions[sector].softmax(dim=1), 1, generator=generator)[:, 0]
    angle = (sector * PER_VIEW + drawn // DISTANCES - HALF_VIEW) % ANGLES
    return Candidates(angle, drawn % DISTANCES)
