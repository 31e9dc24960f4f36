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
from internvideo.tasks.spatio_temporal_localization.model import FrameBackbone
from internvideo.tasks.spatio_temporal_localization.regions import RegionHead

MAX_COORDINATE = 1024
"""Size of the table of position embeddings, in pixels; larger box coordinates are clipped."""


class ContactHead(RegionHead):
    """Linear heads on the feature and position embedding of a box: verb (the last class: none) and time to contact."""

    position_table: Tensor

    def __init__(self, width: int, num_verbs: int, *, patch: int, output_size: int = 7, dropout: float = 0.0) -> None:
        super().__init__(width, num_verbs + 1, patch=patch, output_size=output_size, dropout=dropout)
        self.seconds = nn.Linear(width, 1)
        self.register_buffer("position_table", sin_cos_table(MAX_COORDINATE, width), persistent=False)

    def embed_boxes(self, boxes: Tensor) -> Tensor:
        """Embed boxes (R, 4) in pixels to (R, D): sum of sinusoidal embeddings of the rounded coordinates."""
        return self.position_table[boxes.long().clamp(0, MAX_COORDINATE - 1)].sum(dim=1)

    def predict_boxes(self, tokens: Tensor, batch_index: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits (R, C + 1) and positive seconds (R,); arguments as `pool`."""
        feature = self.dropout(self.pool(tokens, batch_index, boxes))
        feature = feature + self.embed_boxes(boxes).to(feature.dtype)
        return self.projection(feature), F.softplus(self.seconds(feature))[:, 0]


class Anticipator(FrameBackbone):
    """The masked encoder with a head on boxes; `num_classes` of its config is the number of verbs."""

    class_layer = ("head.projection", 1)
    """The last output means no contact."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config)
        self.head = ContactHead(config.width, config.num_classes, patch=config.patch_size, dropout=config.head_dropout)
        self.reset_parameters()
        for linear in (self.head.projection, self.head.seconds):
            nn.init.zeros_(linear.bias)

    def forward(self, video: Tensor, batch_index: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict verb and seconds to contact of every box.

        Args:
            video: see `grid_tokens`. batch_index: (R,) int64, clip of each box. boxes: (R, 4) pixels.

        Returns:
            logits (R, C + 1), the last one for no contact, and seconds (R,).
        """
        return self.head.predict_boxes(self.grid_tokens(video), batch_index, boxes)


MODELS = {
    f"anticipator-{size}": ModelEntry(
        Anticipator,
        replace(VIDEOMAE_SIZES[size], num_classes=74),
        None,
        f"next verb and time to contact per object box: masked encoder {size.upper()} with two heads, 74 verbs",
    )
    for size in ("s", "b", "l", "h")
}
