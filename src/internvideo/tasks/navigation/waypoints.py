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
"""Number of angle bins of a view."""
HALF_VIEW = PER_VIEW // 2
MAX_WAYPOINTS = 5
NMS_RADIUS = (5, 7)
"""Numbers of angle bins and of distance bins around a maximum that are suppressed."""


@dataclass(frozen=True)
class WaypointConfig:
    """Sizes of the predictor.

    Attributes:
        depth_width: values of one view's depth feature (128 x 4 x 4 of a PointGoal ResNet-50).
        width, heads, depth: width, attention heads and number of layers of the encoder over the views.
        dropout: of all layers.
    """

    depth_width: int = 2048
    width: int = 768
    heads: int = 12
    depth: int = 2
    dropout: float = 0.1


def neighbor_mask(radius: int = 1) -> Tensor:
    """Return the attention mask (12, 12): each view attends to itself and `radius` views on each side, circularly."""
    offset = (torch.arange(VIEWS)[:, None] - torch.arange(VIEWS)[None]).abs()
    return torch.minimum(offset, VIEWS - offset) <= radius


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
        self.register_buffer("attn_mask", neighbor_mask(), persistent=False)

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


def non_max_suppression(
    probabilities: Tensor, max_waypoints: int = MAX_WAYPOINTS, *, floor_rows: bool = False
) -> Tensor:
    """Apply greedy non-maximum suppression: keep at most `max_waypoints` maxima.

    The circular angles are padded by one row at each side; maxima in padded rows are lost. Distances wrap around in
    one direction: bin d suppresses bin e where min(|e - d|, |e - d + 12|) <= 7, as released.

    Args:
        probabilities: (B, 120, 12), not negative.
        max_waypoints: largest number of waypoints.
        floor_rows: compute the row of a maximum by integer division. The released code (False) divides as floats,
            which shifts the suppressed rows by up to one.

    Returns:
        (B, 120, 12): the probability at each kept maximum, 0 elsewhere.
    """
    padded = torch.cat([probabilities[:, -1:], probabilities, probabilities[:, :1]], dim=1)
    rows = torch.arange(padded.shape[1], device=padded.device)
    columns = torch.arange(DISTANCES, device=padded.device)
    remaining, kept = padded.clone(), torch.zeros_like(padded)
    samples = torch.arange(len(padded), device=padded.device)
    for _ in range(max_waypoints):
        best = remaining.flatten(1).argmax(dim=1)
        kept.flatten(1)[samples, best] = padded.flatten(1)[samples, best]
        row = (best // DISTANCES).float() if floor_rows else best.float() / DISTANCES
        near_row = (rows - row[:, None]).abs() <= NMS_RADIUS[0]
        offset = columns - (best % DISTANCES)[:, None]
        near_column = torch.minimum(offset.abs(), (offset + DISTANCES).abs()) <= NMS_RADIUS[1]
        remaining = remaining * ~(near_row[:, :, None] & near_column[:, None])
    return kept[:, 1:-1]


class Candidates(NamedTuple):
    """Candidate waypoints of one panorama by ascending angle: (n,) int64 bins of angle and distance."""

    angle: Tensor
    distance: Tensor

    @property
    def heading_change(self) -> Tensor:
        """Counter-clockwise turns (n,) in radians, 0 < turn <= 2 pi."""
        return 2 * math.pi - self.clockwise

    @property
    def clockwise(self) -> Tensor:
        """Clockwise turns (n,), radians."""
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
        """Features (n, 4) of the clockwise turns."""
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


def extract_candidates(heat_map: Tensor) -> Candidates:
    """Extract the waypoints, the bins that are not 0, of a heat map (120, 12) of `non_max_suppression`."""
    bins = heat_map.nonzero()
    return Candidates(bins[:, 0], bins[:, 1])


def jitter_waypoints(candidates: Candidates, logits: Tensor, generator: torch.Generator) -> Candidates:
    """Augment waypoints: resample each from the heat map, within the 10 x 12 bins of the view that contains it.

    Args:
        candidates: waypoints of a panorama. logits: (120, 12) of the panorama. generator: on the logits' device.
    """
    logits_by_view = logits.roll(HALF_VIEW, dims=0).reshape(VIEWS, -1)  # (12, 10 * 12), clockwise
    view = (-candidates.view) % VIEWS
    sample = torch.multinomial(logits_by_view[view].softmax(dim=1), 1, generator=generator)[:, 0]
    angle = (view * PER_VIEW + sample // DISTANCES - HALF_VIEW) % ANGLES
    return Candidates(angle, sample % DISTANCES)
