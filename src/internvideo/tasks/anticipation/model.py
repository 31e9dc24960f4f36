"""Short-term anticipation: predict the next verb and the time to contact of object boxes (arXiv 2211.09529).

Legend: B clips, R boxes of all of them, D width, C verbs.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.models.embeddings import sin_cos_table
from internvideo.models.entry import ModelEntry
from internvideo.models.factory import VIDEOMAE_SIZES
from internvideo.models.videomae import VideoMAEConfig
from internvideo.tasks.spatio_temporal_localization.model import FrameTrunk
from internvideo.tasks.spatio_temporal_localization.regions import RegionHead

FARTHEST = 1024
"""Size of the table of box coordinates in pixels; larger coordinates are clipped."""


class ContactHead(RegionHead):
    """Linear heads on a box's feature and position embedding: verb (last class: none) and time to contact."""

    places: Tensor

    def __init__(self, width: int, verbs: int, *, patch: int, bins: int = 7, dropout: float = 0.0) -> None:
        super().__init__(width, verbs + 1, patch=patch, bins=bins, dropout=dropout)
        self.seconds = nn.Linear(width, 1)
        self.register_buffer("places", sin_cos_table(FARTHEST, width), persistent=False)

    def embedded(self, boxes: Tensor) -> Tensor:
        """Embed boxes (R, 4) in pixels to (R, D): sum of sinusoidal embeddings of the rounded coordinates."""
        return self.places[boxes.long().clamp(0, FARTHEST - 1)].sum(dim=1)

    def both(self, tokens: Tensor, clip: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits (R, C + 1) and positive seconds (R,); arguments as `pool`."""
        feature = self.dropout(self.pool(tokens, clip, boxes))
        feature = feature + self.embedded(boxes).to(feature.dtype)
        return self.projection(feature), F.softplus(self.seconds(feature))[:, 0]


class Anticipator(FrameTrunk):
    """The masked encoder with a head on boxes; `num_classes` of its config is the number of verbs."""

    class_layer = ("head.projection", 1)
    """The last output means no contact."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config)
        self.head = ContactHead(config.width, config.num_classes, patch=config.patch_size, dropout=config.head_dropout)
        self.reset_parameters()
        for part in (self.head.projection, self.head.seconds):
            nn.init.zeros_(part.bias)

    def forward(self, video: Tensor, clip: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict verb and seconds to contact of every box.

        Args:
            video: as in `grid_tokens`. clip: (R,) int64, clip index of each box. boxes: (R, 4) pixels.

        Returns:
            logits (R, C + 1), the last one for no contact, and seconds (R,).
        """
        return self.head.both(self.grid_tokens(video), clip, boxes)


MODELS = {
    f"anticipator-{size}": ModelEntry(
        Anticipator,
        replace(VIDEOMAE_SIZES[size], num_classes=74),
        None,
        f"next verb and time to contact per object box: masked encoder {size.upper()} with two heads, 74 verbs",
    )
    for size in ("s", "b", "l", "h")
}
