"""Fine-tuning for text-video retrieval: contrastive loss of clips and captions over the global batch.

Source: paper 4.3.2; Video-Text-Retrieval.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.models.clip import CLIPModel
from internvideo.models.video_language import VideoLanguage
from internvideo.pretraining.global_contrastive import global_contrastive, global_dual_softmax
from internvideo.pretraining.gradient_cache import ChunkSettings, encode_chunked
from internvideo.training.recipe import Stage


class RetrievalSettings(ChunkSettings):
    """Loss and chunk sizes.

    Attributes:
        loss: "symmetric" as published, or "dual_softmax", which needs the whole similarity matrix: no
            similarity_chunk_size (Video-Text-Retrieval).
    """

    loss: Literal["symmetric", "dual_softmax"] = "symmetric"


class RetrievalStage(Stage[VideoLanguage | CLIPModel, RetrievalSettings]):
    """Contrastive loss of captioned clips over all processes.

    Args:
        model: the video-language model, whose caption decoder is not used, or the frame-wise image-text model.
        settings: loss and chunk sizes. Raises ValueError for a contradictory combination.
    """

    def __init__(self, model: VideoLanguage | CLIPModel, settings: RetrievalSettings) -> None:
        super().__init__(model, settings)
        if settings.loss == "dual_softmax" and settings.similarity_chunk_size is not None:
            raise ValueError("loss dual_softmax needs the whole similarity matrix: leave out similarity_chunk_size")
        if model.text.mask_embedding is not None:  # used only by masked language modeling
            model.text.mask_embedding.requires_grad_(False)
        if model.can_caption:
            model.get_submodule("caption_decoder").requires_grad_(False)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute {"loss"} of a batch with `text_ids`."""
        self.model.clamp_logit_scale()

        def encode(video: Tensor, ids: Tensor, frame_mask: Tensor | None, start: int) -> tuple[Tensor, Tensor]:
            video_features = self.model.encode_video(self.model.normalize(video), frame_mask)
            return video_features, self.model.encode_text(ids)

        chunks = encode_chunked(encode, batch, self.settings.encode_chunk_size)
        video, text = (torch.cat(features) for features in zip(*chunks, strict=True))
        if self.settings.loss == "dual_softmax":
            return {"loss": global_dual_softmax(video, text, self.model.scale)}
        return {"loss": global_contrastive(video, text, self.model.scale, self.settings.similarity_chunk_size)}
