"""Question answering and multiple choice on top of the multimodal model.

Shapes: B batch, T frames, S side, L text tokens, K choices, A answers, D video width, W text width.
Source: multi-modalities-downstream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from internvideo.models.caption_decoder import CaptionDecoder, init_normal
from internvideo.models.clip import EPS, at_end_of_text
from internvideo.models.embeddings import Normalize
from internvideo.models.encoder import ClipNeeds, VideoEncoder, prefix_clip_needs
from internvideo.models.module import Dropout, LayerNorm, Linear, Module, Sequential
from internvideo.models.uniformerv2 import UniFormerV2Config
from internvideo.models.video_language import UNDECAYED, VideoLanguage, VideoLanguageConfig

UNUSED_PARAMETERS = re.compile(r"visual_projection|text\.projection|caption_decoder\.predictor\..*")
"""Parameters of a video-language model that a question answering network lacks."""


@dataclass(frozen=True)
class AnswerConfig:
    """Sizes of a question answering network.

    Attributes:
        model: towers and caption decoder; it is built without projections to the joint space and without predictor.
        num_answers: A, the frequent answers (MSRVTT 1501, MSVD 1001, TGIF-frame 1541; multi-modalities-downstream).
        dropout: of the head. layers: linear layers of the head, two in the released code, three in the paper.
        use_video: False for a question-only baseline.
    """

    model: VideoLanguageConfig
    num_answers: int
    dropout: float = 0.5
    layers: int = 2
    use_video: bool = True

    @property
    def vision(self) -> UniFormerV2Config:
        """Sizes of the video tower."""
        return self.model.vision


class AnswerHead(Sequential):
    """MLP (..., width) -> (..., num_outputs) of `layers` linear layers with hidden width 2 * width.

    Each is preceded by dropout; all but the last are followed by layer norm and GELU. The published code
    (multi-modalities-downstream) has two layers, the paper three. Raises ValueError for fewer than two layers.
    """

    def __init__(self, width: int, num_outputs: int, dropout: float = 0.5, layers: int = 2) -> None:
        if layers < 2:
            raise ValueError(f"an answer head of {layers} layers: expected 2 or more")
        hidden_width, modules = 2 * width, list[nn.Module]()
        for in_width in (width, *(hidden_width,) * (layers - 2)):
            modules += [Dropout(dropout), Linear(in_width, hidden_width), LayerNorm(hidden_width, eps=EPS), nn.GELU()]
        super().__init__(*modules, Dropout(dropout), Linear(hidden_width, num_outputs))
        self.apply(init_normal)


@dataclass(frozen=True)
class AnswerOutput:
    """The output of a question answering network with its intermediate features.

    Attributes:
        logits: (B, num_outputs).
        video, text: features after their norms, without projections (B, D), (B, W).
        caption: decoder features (B, L - 1, W).
    """

    logits: Tensor
    video: Tensor
    text: Tensor
    caption: Tensor


@dataclass(frozen=True)
class EncodedVideo:
    """Encoded videos: features (B, D), and pooled visual tokens of the decoder (B, Q, W)."""

    features: Tensor
    pooled: Tensor

    def __getitem__(self, index: slice) -> EncodedVideo:
        """Select videos of the batch."""
        return EncodedVideo(self.features[index], self.pooled[index])


class FusedQANetwork(VideoEncoder):
    """Towers without projections, caption decoder without predictor, and an answer head on the features of all three.

    Args:
        config: a video-language model with a caption decoder; it is built without projections and predictor.
        num_outputs: number of logits per (video, text) pair.
        dropout: of the head. layers: linear layers of the head.
        use_video: False replaces the features and pooled tokens of the video by zeros.
    """

    undecayed = UNDECAYED

    def __init__(
        self,
        config: VideoLanguageConfig,
        num_outputs: int,
        dropout: float = 0.5,
        layers: int = 2,
        use_video: bool = True,
    ) -> None:
        super().__init__()
        if config.caption is None:
            raise ValueError("a question answering network needs a caption decoder")
        self.model = VideoLanguage(replace(config, joint_width=0, caption=replace(config.caption, vocab_size=0)))
        self.head = AnswerHead(config.vision.width + 2 * config.text.width, num_outputs, dropout, layers)
        self.use_video = use_video

    @property
    def checkpointing(self) -> bool:
        """Recompute the video tower's activations in the backward pass instead of storing them."""
        return self.model.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.model.checkpointing = value

    def is_unused_parameter(self, name: str) -> bool:
        """Return whether a parameter does not affect the logits: logit scale, mask embedding, unused video tower."""
        if name in ("model.logit_scale", "model.text.mask_embedding"):
            return True
        visual = r"model\.(visual\.|visual_norm\.|caption_decoder\.(quer|context_norm|pool))"
        return not self.use_video and re.match(visual, name) is not None

    @property
    def decoder(self) -> CaptionDecoder:
        """The caption decoder without its predictor."""
        decoder = self.model.caption_decoder
        if decoder is None:
            raise ValueError("a question answering network needs a caption decoder")
        return decoder

    @property
    def normalize(self) -> Normalize:  # type: ignore[override]  # of a submodule, never set
        """Pixel normalization of the video tower."""
        return self.model.normalize

    @property
    def build_config(self) -> Any:
        """The config of towers and caption decoder."""
        return self.model.config

    @property
    def embed_dim(self) -> int:
        """The video tower's width."""
        return self.model.embed_dim

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """Clip needs of the video tower; () for a question-only network."""
        return self.model.clip_needs if self.use_video else ()

    @property
    def test_clips(self) -> dict[str, Any]:
        """See `VideoLanguage.test_clips`."""
        return self.model.test_clips

    @property
    def tower(self) -> nn.Module | None:
        """See `UniFormerV2.tower`."""
        return self.model.tower

    def features(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> (B, D), without a question."""
        return self.model.encode_video(video)

    def tokens(self, video: Tensor) -> Tensor:
        """See `VideoLanguage.tokens`."""
        return self.model.tokens(video)

    def encode_video(self, video: Tensor) -> EncodedVideo:
        """Encode normalized videos (B, 3, T, S, S); all questions on a video share the result."""
        decoder = self.decoder
        if not self.use_video:
            config, zeros = decoder.config, self.model.visual_norm.weight.new_zeros
            pooled = zeros(len(video), config.num_queries, config.width)
            return EncodedVideo(zeros(len(video), config.vision_width), pooled)
        features = self.model.forward_features(video)
        return EncodedVideo(self.model.project_video(features.pooled), decoder.pool(features.tokens))

    def forward_head(self, encoded: EncodedVideo, ids: Tensor) -> AnswerOutput:
        """Compute outputs of B * K pairs from B encoded videos and ids (B * K, L), K successive texts per video.

        The decoder has one position less than the text tower: of a text as long as the context length, its feature at
        the last position is used.
        """
        num_texts = len(ids) // len(encoded.features)
        text_tokens = self.model.text.tokens(ids)
        caption = self.decoder.decode(text_tokens[:, :-1], encoded.pooled.repeat_interleave(num_texts, dim=0))
        features = encoded.features.repeat_interleave(num_texts, dim=0)
        text = at_end_of_text(text_tokens, ids)
        logits = self.head(torch.cat([at_end_of_text(caption, ids), features, text], dim=1))
        return AnswerOutput(logits, features, text, caption)

    def answer(self, video: Tensor, ids: Tensor) -> AnswerOutput:
        """Normalized (B, 3, T, S, S), ids (B * K, L) -> outputs of B * K pairs (see `forward_head`)."""
        return self.forward_head(self.encode_video(video), ids)

    def initial_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
        """Map weights of a video-language model to (state, pattern of parameters that keep their initialization).

        Returns None for the weights of a question answering network, whose names need no mapping.
        """
        if any(name.startswith("head.") for name in state):
            return None
        return {
            f"model.{name}": value for name, value in state.items() if not UNUSED_PARAMETERS.fullmatch(name)
        }, r"head\."

    @property
    def max_layer_id(self) -> int:
        """Largest layer id."""
        return self.model.max_layer_id

    def get_layer_id(self, name: str) -> int:
        """Return the layer id (see `VideoLanguage.get_layer_id`)."""
        inner = name.removeprefix("model.")
        return self.max_layer_id if inner == name else self.model.get_layer_id(inner)


class VideoQuestionAnswering(FusedQANetwork):
    """Open-ended question answering as classification over A frequent answers.

    Args:
        config: a video-language model with a caption decoder.
        num_answers, dropout, layers, use_video: see `AnswerConfig`.
    """

    def __init__(
        self,
        config: VideoLanguageConfig,
        num_answers: int,
        dropout: float = 0.5,
        layers: int = 2,
        use_video: bool = True,
    ) -> None:
        super().__init__(config, num_answers, dropout, layers, use_video)
        self.config = AnswerConfig(config, num_answers, dropout, layers, use_video)

    config: AnswerConfig

    @property
    def build_config(self) -> AnswerConfig:
        """The config of the whole network."""
        return self.config

    @property
    def num_classes(self) -> int:
        """A."""
        return self.config.num_answers

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """Clip needs of the video tower, with the keys of this network's settings."""
        return prefix_clip_needs("model", super().clip_needs)

    @property
    def class_layer(self) -> tuple[str, int]:
        """The last linear layer of the head."""
        return f"head.{len(self.head) - 1}", 0

    def forward(self, video: Tensor, ids: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S), question ids (B, L) or (B, K, L) -> answer logits (B, A) or (B, K, A)."""
        logits = self.answer(video, ids.flatten(0, -2)).logits
        return logits.reshape(*ids.shape[:-1], -1)


class PairScoringMultipleChoice(FusedQANetwork):
    """Multiple choice with one logit per (video, text) pair, from fused features."""

    def __init__(self, config: VideoLanguageConfig, dropout: float = 0.5) -> None:
        super().__init__(config, 1, dropout)
        self.config = config

    def forward(self, video: Tensor, ids: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S), ids of the choices (B, K, L) -> logits (B, K)."""
        return self.answer(video, ids.flatten(0, 1)).logits.reshape(ids.shape[:2])


class ZeroShotMultipleChoice(Module):
    """Zero-shot multiple choice by the cosine of the video with each text; no weights beyond the dual encoder."""

    def __init__(self, config: VideoLanguageConfig) -> None:
        super().__init__()
        self.model = VideoLanguage(replace(config, caption=None))

    def normalize(self, video: Tensor) -> Tensor:
        """uint8 or float in 0..255 (B, 3, T, S, S) -> normalized float."""
        return self.model.normalize(video)

    def forward(self, video: Tensor, ids: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S), ids of the choices (B, K, L) -> scaled cosines (B, K)."""
        features = nn.functional.normalize(self.model.encode_video(video), dim=-1)
        text = nn.functional.normalize(self.model.encode_text(ids.flatten(0, 1)), dim=-1)
        return self.model.scale * (text.reshape(*ids.shape[:2], -1) @ features[:, :, None]).squeeze(2)
