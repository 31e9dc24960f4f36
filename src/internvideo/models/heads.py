"""Question answering and multiple choice on top of the multimodal model.

Shapes: B batch, T frames, S side, L words, K choices, A answers, D video width, W text width.
Source: spec/models.md E.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from internvideo.models.caption_decoder import init_normal
from internvideo.models.clip import EPS, at_end_of_text
from internvideo.models.video_language import VideoLanguage, VideoLanguageConfig


class AnswerHead(nn.Sequential):
    """Dropout, linear to twice the width, layer norm, GELU, dropout, linear: (..., F) -> (..., outputs)."""

    def __init__(self, features: int, outputs: int, dropout: float = 0.5) -> None:
        super().__init__(
            nn.Dropout(dropout),
            nn.Linear(features, 2 * features),
            nn.LayerNorm(2 * features, eps=EPS),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * features, outputs),
        )
        self.apply(init_normal)


@dataclass(frozen=True)
class AnswerOutput:
    """An answering network's output with what led to it.

    Attributes:
        scores: (B, outputs).
        video, text: features after their norms, without projections (B, D), (B, W).
        caption: decoder features (B, L - 1, W).
    """

    scores: Tensor
    video: Tensor
    text: Tensor
    caption: Tensor


class FusedAnswer(nn.Module):
    """Towers without projections, caption decoder without predictor, and an answer head on all three features.

    Args:
        config: a video-language model with a caption decoder; its projections and predictor are left out.
        outputs: number of scores of a (video, text) pair.
        dropout: of the head.
    """

    def __init__(self, config: VideoLanguageConfig, outputs: int, dropout: float = 0.5) -> None:
        super().__init__()
        if config.caption is None:
            raise ValueError("an answering network needs a caption decoder")
        self.model = VideoLanguage(replace(config, joint_width=0, caption=replace(config.caption, vocabulary=0)))
        self.head = AnswerHead(config.vision.width + 2 * config.text.width, outputs, dropout)

    def normalise(self, video: Tensor) -> Tensor:
        """uint8 or float in 0..255 (B, 3, T, S, S) -> normalised float."""
        return self.model.normalise(video)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    def answer(self, video: Tensor, tokens: Tensor) -> AnswerOutput:
        """Normalised (B, 3, T, S, S), ids (B * K, L) with the K texts of a video side by side -> outputs of B * K rows.

        The decoder has one position less than the text tower; a text that fills the context is read at the last one.
        """
        choices = len(tokens) // len(video)
        model = self.model
        decoder = model.caption_decoder
        if decoder is None:
            raise ValueError("an answering network needs a caption decoder")
        seen, words = model.see(video), model.text.tokens(tokens)
        pooled = decoder.pool(seen.tokens).repeat_interleave(choices, dim=0)
        caption = decoder.decode(words[:, :-1], pooled)
        seen_features = model.project_video(seen.pooled).repeat_interleave(choices, dim=0)
        text = at_end_of_text(words, tokens)
        scores = self.head(torch.cat([at_end_of_text(caption, tokens), seen_features, text], dim=1))
        return AnswerOutput(scores, seen_features, text, caption)

    @property
    def layers(self) -> int:
        """Largest layer id."""
        return self.model.layers

    def layer_id(self, name: str) -> int:
        """Layer of a parameter (see `VideoLanguage.layer_id`)."""
        return self.model.layer_id(name.removeprefix("model.")) if name.startswith("model.") else self.layers

    def no_weight_decay(self, name: str, parameter: Tensor) -> bool:
        """See `VideoLanguage.no_weight_decay`."""
        return self.model.no_weight_decay(name.removeprefix("model."), parameter)


class VideoQuestionAnswering(FusedAnswer):
    """Open-ended question answering as classification over A frequent answers."""

    def forward(self, video: Tensor, tokens: Tensor) -> Tensor:
        """Normalised (B, 3, T, S, S), question ids (B, L) -> answer logits (B, A)."""
        return self.answer(video, tokens).scores


class RankedMultipleChoice(FusedAnswer):
    """Multiple choice by a score of every (video, text) pair from the fused features."""

    def __init__(self, config: VideoLanguageConfig, dropout: float = 0.5) -> None:
        super().__init__(config, 1, dropout)

    def forward(self, video: Tensor, tokens: Tensor) -> Tensor:
        """Normalised (B, 3, T, S, S), ids of the choices (B, K, L) -> scores (B, K)."""
        return self.answer(video, tokens.flatten(0, 1)).scores.reshape(tokens.shape[:2])


class SimilarMultipleChoice(nn.Module):
    """Multiple choice by the cosine of the video with each text (zero-shot: no weights of its own)."""

    def __init__(self, config: VideoLanguageConfig) -> None:
        super().__init__()
        self.model = VideoLanguage(replace(config, caption=None))

    def normalise(self, video: Tensor) -> Tensor:
        """uint8 or float in 0..255 (B, 3, T, S, S) -> normalised float."""
        return self.model.normalise(video)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    def forward(self, video: Tensor, tokens: Tensor) -> Tensor:
        """Normalised (B, 3, T, S, S), ids of the choices (B, K, L) -> scaled cosines (B, K)."""
        seen = nn.functional.normalize(self.model.encode_video(video), dim=-1)
        text = nn.functional.normalize(self.model.encode_text(tokens.flatten(0, 1)), dim=-1)
        return self.model.scale * (text.reshape(*tokens.shape[:2], -1) @ seen[:, :, None]).squeeze(2)
