"""Vision-language navigation agent: frozen feature extractors, a waypoint predictor and the planner.

Every direction of a panorama has three features: of an image tower on the last frame, of the masked video encoder on
the last T frames, and of a depth tower. Video and image features are concatenated and projected to the planner's
width. Source: Visual-Language-Navigation; paper 4.3 (vision-language navigation).
Shapes: B batch, 12 views, T frames, S side, E image feature, V video feature, C depth channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.models.clip import ImageTower
from internvideo.models.embeddings import CLIP_MEAN, CLIP_STD, Normalize
from internvideo.models.entry import ModelEntry
from internvideo.models.module import Conv2d, Dropout, Linear, Module
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig
from internvideo.tasks.navigation.planner import Planner, PlannerConfig
from internvideo.tasks.navigation.waypoints import VIEWS, WaypointConfig, WaypointPredictor

DEPTH_GRID = 4
"""Height and width of a depth feature map."""


@dataclass(frozen=True)
class ImageConfig:
    """Sizes of the image tower; `joint_width` is E.

    `kind` "clip" is CLIP's ViT (B/32 by default). "conv" is three stride-2 convolutions with `width` channels, which
    learn from few images (`patch_size`, `depth` and `heads` are unused).
    """

    kind: Literal["clip", "conv"] = "clip"
    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    depth: int = 12
    heads: int = 12
    joint_width: int = 512


@dataclass(frozen=True)
class NavigatorConfig:
    """Sizes.

    Attributes:
        image, video: sizes of the towers. use_video: if False, the video feature is zero.
        depth_size: side of a depth view in pixels, DEPTH_GRID times a power of two. depth_channels: C.
        waypoints, planner: sizes; `waypoints.depth_width` must be C * 16, `planner.depth_width` C.
        max_waypoints: of a panorama.
        rgb_dropout: of image and video features.
    """

    image: ImageConfig = field(default_factory=ImageConfig)
    video: VideoMAEConfig = field(default_factory=lambda: VideoMAEConfig(width=1024, depth=24, heads=16))
    use_video: bool = True
    depth_size: int = 256
    depth_channels: int = 128
    waypoints: WaypointConfig = field(default_factory=WaypointConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    max_waypoints: int = 5
    rgb_dropout: float = 0.4

    def __post_init__(self) -> None:
        if self.waypoints.depth_width != self.depth_channels * DEPTH_GRID**2:
            expected = f"{DEPTH_GRID**2} * depth_channels {self.depth_channels}"
            raise ValueError(f"waypoints.depth_width {self.waypoints.depth_width}, expected {expected}")
        if self.planner.depth_width != self.depth_channels:
            raise ValueError(f"planner.depth_width {self.planner.depth_width}, expected {self.depth_channels}")
        if self.image.image_size != self.video.image_size:
            raise ValueError(f"images of {self.image.image_size} and clips of {self.video.image_size} pixels")
        if self.depth_size < 2 * DEPTH_GRID or self.depth_size & (self.depth_size - 1):
            raise ValueError(f"depth_size {self.depth_size}, expected a power of two of at least {2 * DEPTH_GRID}")


class PanoramaFeatures(NamedTuple):
    """Features of panoramas: image (B, 12, E), video (B, 12, V), depth (B, 12, C, 4, 4)."""

    image: Tensor
    video: Tensor
    depth: Tensor


class _Convolutions(Module):
    """Stride-2 convolutions with ReLU; `widths` are the channels of the input and of each output."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths))

    def convolve(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return x


class DepthTower(_Convolutions):
    """Convolutional depth encoder with features C x 4 x 4, like a PointGoal ResNet-50's; trained with the waypoints."""

    def __init__(self, size: int, channels: int) -> None:
        steps = int(math.log2(size // DEPTH_GRID))
        super().__init__([1, *(max(8, channels >> (steps - 1 - step)) for step in range(steps - 1)), channels])

    def forward(self, depth: Tensor) -> Tensor:
        """Map depths (B, 12, S, S), 0..1 of the largest depth, to features (B, 12, C, 4, 4)."""
        x = self.convolve(depth.flatten(0, 1)[:, None])
        return x.reshape(*depth.shape[:2], *x.shape[1:])


class ConvTower(_Convolutions):
    """Three stride-2 convolutions and a linear layer on the flattened feature map."""

    def __init__(self, size: int, width: int, joint_width: int) -> None:
        super().__init__((3, width // 2, width, width))
        self.projection = Linear(width * (-(-size // 8)) ** 2, joint_width)

    def forward(self, video: Tensor) -> Tensor:
        """Map normalized frames (B, 3, T, S, S) to features (B, T, E)."""
        x = self.convolve(video.transpose(1, 2).flatten(0, 1))
        return self.projection(x.flatten(1)).view(video.shape[0], video.shape[2], -1)


def build_image_tower(config: ImageConfig) -> ImageTower | ConvTower:
    """Build the image tower of a config."""
    if config.kind == "conv":
        return ConvTower(config.image_size, config.width, config.joint_width)
    sizes = (config.image_size, config.patch_size, config.width, config.depth, config.heads, config.joint_width)
    return ImageTower(*sizes)


class Navigator(nn.Module):
    """Feature extractors, waypoint predictor and planner in one module, so that one file holds an agent."""

    def __init__(self, config: NavigatorConfig) -> None:
        super().__init__()
        self.config = config
        image = config.image
        self.normalize = Normalize(CLIP_MEAN, CLIP_STD)
        self.image = build_image_tower(image)
        self.video = VideoMAEClassifier(config.video)
        self.depth = DepthTower(config.depth_size, config.depth_channels)
        self.waypoints = WaypointPredictor(config.waypoints)
        self.rgb = Linear(image.joint_width + config.video.width, config.planner.rgb_width)
        self.rgb_dropout = Dropout(config.rgb_dropout)
        self.planner = Planner(config.planner)

    def encoders(self) -> tuple[nn.Module, ...]:
        """List the encoders, which are frozen while the planner is trained."""
        return (self.image, self.video, self.depth, self.waypoints)

    def image_features(self, rgb: Tensor) -> Tensor:
        """Map images (N, S, S, 3) uint8 to features (N, E)."""
        video = self.normalize(rgb.permute(0, 3, 1, 2)[:, :, None])
        return self.image(video)[:, 0]

    def clip_features(self, clips: Tensor) -> Tensor:
        """Map clips (N, T, S, S, 3) uint8, newest frame last, to features (N, V)."""
        return self.video.features(self.video.normalize(clips.permute(0, 4, 1, 2, 3)))

    def encode(self, rgb: Tensor, depth: Tensor) -> PanoramaFeatures:
        """Compute all features of panoramas.

        Args:
            rgb: (B, T, 12, S, S, 3) uint8, newest frame last; with T = 1 the video feature is zero.
            depth: (B, 12, S', S') float.
        """
        image = self.image_features(rgb[:, -1].flatten(0, 1)).view(len(rgb), VIEWS, -1)
        video = image.new_zeros(*image.shape[:2], self.config.video.width)
        if rgb.shape[1] > 1:
            video = self.clip_features(rgb.transpose(1, 2).flatten(0, 1)).view(len(rgb), VIEWS, -1)
        return PanoramaFeatures(image, video, self.depth(depth))

    def fuse_rgb(self, features: PanoramaFeatures) -> Tensor:
        """Project the concatenated image and video features to the planner's input (B, 12, planner.rgb_width)."""
        return self.rgb(self.rgb_dropout(torch.cat([features.image, features.video], dim=-1)))


MODELS = {
    "navigator": ModelEntry(
        Navigator,
        NavigatorConfig(),
        None,
        "follows instructions in worlds: masked encoder L, CLIP B/32, waypoints from depth, history-aware planner",
    )
}
