"""Fine-tuning for text-video retrieval: contrastive loss of clips and captions over the global batch.

Source: paper 4.3.2; Video-Text-Retrieval.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.models.clip import Clip
from internvideo.models.video_language import VideoLanguage
from internvideo.pretraining.global_contrastive import global_contrastive, global_dual_softmax
from internvideo.pretraining.gradient_cache import PartSettings, in_parts
from internvideo.training.recipe import Stage


class RetrievalSettings(PartSettings):
    """`loss`: "symmetric" as published, or "dual_softmax", which needs all rows at once (Video-Text-Retrieval)."""

    loss: Literal["symmetric", "dual_softmax"] = "symmetric"


class RetrievalStage(Stage[VideoLanguage | Clip, RetrievalSettings]):
    """Contrastive loss of captioned clips over all processes.

    Args:
        model: the video-language model (its caption decoder is unused), or the frame-wise image-text model.
        settings: loss and memory limits. Raises ValueError for a contradictory combination.
    """

    def __init__(self, model: VideoLanguage | Clip, settings: RetrievalSettings) -> None:
        super().__init__(model, settings)
        if settings.loss == "dual_softmax" and settings.similarity_chunk_size is not None:
            raise ValueError("the dual softmax loss needs all rows at once: leave out similarity_chunk_size")
        if model.text.mask_embedding is not None:  # used only by masked language modeling
            model.text.mask_embedding.requires_grad_(False)
        if model.can_caption:
            model.get_submodule("caption_decoder").requires_grad_(False)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return {"loss"} of a batch with tokens."""
        self.model.clamp_logit_scale()

        def encode(video: Tensor, tokens: Tensor, frame_mask: Tensor | None, start: int) -> tuple[Tensor, Tensor]:
            seen = self.model.encode_video(self.model.normalize(video), frame_mask)
            return seen, self.model.encode_text(tokens)

        parts = in_parts(encode, batch, self.settings.encode_chunk_size)
        video, text = (torch.cat(features) for features in zip(*parts, strict=True))
        if self.settings.loss == "dual_softmax":
            return {"loss": global_dual_softmax(video, text, self.model.scale)}
        return {"loss": global_contrastive(video, text, self.model.scale, self.settings.similarity_chunk_size)}
