"""Where one could walk to: a heat map over angles and distances from depth panoramas, and the places picked from it.

The heat map has 120 angles, 3 degrees apart and clockwise from straight ahead, and 12 distances, 0.25 m to 3 m. The
predictor takes its twelve views clockwise, a panorama holds them counter-clockwise. Source: Visual-Language-Navigation.
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
"""Metres between the distances."""
PER_VIEW = ANGLES // VIEWS
HALF_VIEW = PER_VIEW // 2
PICKS = 5
REACH = (5, 7)
"""Angle and distance bins around a pick in which there is no other."""


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
    """(12, 12) bool: which views see one another, each itself and `reach` ones to both sides around the circle."""
    steps = (torch.arange(VIEWS)[:, None] - torch.arange(VIEWS)[None]).abs()
    return torch.minimum(steps, VIEWS - steps) <= reach


class WaypointPredictor(Module):
    """Depth features of twelve views to a heat map of places that can be walked to."""

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
        """Depth features (B, 12, ...) of a panorama, counter-clockwise, flattened -> logits (B, 120, 12), clockwise."""
        x = self.depth(clockwise(depth).flatten(2))
        for layer in self.layers:
            x = layer(x, self.attn_mask)
        # Each view answers for the 30 degrees around its center.
        return self.head(x).reshape(-1, ANGLES, DISTANCES).roll(-HALF_VIEW, dims=1)


def clockwise(views: Tensor) -> Tensor:
    """(B, 12, ...) counter-clockwise <-> clockwise, view 0 first in both."""
    return views[:, (-torch.arange(VIEWS, device=views.device)) % VIEWS]


def suppress(probabilities: Tensor, picks: int = PICKS, *, whole_rows: bool = False) -> Tensor:
    """Greedy non-maximum suppression: the `picks` likeliest places that are not near one another.

    The angles are a circle, of which one row is repeated at each side; picks in those rows are lost. Distances are one
    too, but in one direction only: bin d suppresses bin e where min(|e - d|, |e - d + 12|) <= 7, as released.

    Args:
        probabilities: (B, 120, 12), not negative.
        picks: at most so many.
        whole_rows: the row of a pick is a whole number. The released code divides it to a fraction instead, which
            shifts the suppressed rows by up to one.

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
    """Places to go to of one panorama, by ascending angle: (n,) int64 bins of angle and distance."""

    angle: Tensor
    distance: Tensor

    @property
    def turn(self) -> Tensor:
        """(n,) radians to turn, counter-clockwise, 0 < turn <= 2 pi."""
        return 2 * math.pi - self.clockwise

    @property
    def clockwise(self) -> Tensor:
        """(n,) radians to turn clockwise."""
        return self.angle.float() / ANGLES * 2 * math.pi

    @property
    def meters(self) -> Tensor:
        """(n,) to go."""
        return (self.distance + 1) * SPACING

    @property
    def view(self) -> Tensor:
        """(n,) which view of the panorama, counter-clockwise, looks there."""
        return (VIEWS - (self.angle + HALF_VIEW) // PER_VIEW) % VIEWS

    @property
    def angle_feature(self) -> Tensor:
        """(n, 4)."""
        return angle_feature(self.clockwise)

    @property
    def distance_feature(self) -> Tensor:
        """(n, 4): share of the largest distance, four times."""
        return (self.meters / (DISTANCES * SPACING))[:, None].expand(-1, 4)


def angle_feature(clockwise_angle: Tensor) -> Tensor:
    """(..., ) radians -> (..., 4): sine, cosine, and those of an elevation of 0."""
    zero = torch.zeros_like(clockwise_angle)
    return torch.stack([clockwise_angle.sin(), clockwise_angle.cos(), zero, zero + 1], dim=-1)


def panorama_angles() -> Tensor:
    """(12, 4) angle features of the views of a panorama, counter-clockwise."""
    # In double precision, because the sine of 2 pi would be 1.7e-7 otherwise.
    angles = 2 * math.pi - torch.arange(VIEWS, dtype=torch.float64) * (2 * math.pi / VIEWS)
    return angle_feature(angles).float()


def candidates(picked: Tensor) -> Candidates:
    """The places of a suppressed map (120, 12)."""
    found = picked.nonzero()
    return Candidates(found[:, 0], found[:, 1])


def spread(found: Candidates, logits: Tensor, generator: torch.Generator) -> Candidates:
    """Waypoint augmentation: each place is drawn anew from the heat map inside the 10 x 12 bins of its view.

    Args:
        found: of a panorama. logits: (120, 12) of it. generator: on the device of the logits.
    """
    regions = logits.roll(HALF_VIEW, dims=0).reshape(VIEWS, -1)  # of the views clockwise
    sector = (-found.view) % VIEWS
    drawn = torch.multinomial(regions[sector].softmax(dim=1), 1, generator=generator)[:, 0]
    angle = (sector * PER_VIEW + drawn // DISTANCES - HALF_VIEW) % ANGLES
    return Candidates(angle, drawn % DISTANCES)
