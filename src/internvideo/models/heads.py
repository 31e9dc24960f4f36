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
from internvideo.models.encoder import ClipNeeds, VideoEncoder, in_part
from internvideo.models.module import Dropout, LayerNorm, Linear, Module, Sequential
from internvideo.models.uniformerv2 import UniFormerV2Config
from internvideo.models.video_language import UNDECAYED, VideoLanguage, VideoLanguageConfig

LEFT_BEHIND = re.compile(r"visual_projection|text\.projection|caption_decoder\.predictor\..*")
"""Parameters of a video-language model that a question answering network does not have."""


@dataclass(frozen=True)
class AnswerConfig:
    """A question answering network.

    Attributes:
        model: towers and caption decoder; their projections and its predictor are left out.
        answers: A, the frequent answers (MSRVTT 1501, MSVD 1001, TGIF-frame 1541; multi-modalities-downstream).
        dropout: of the head. layers: linear layers of the head, two in the released code, three in the paper.
        video: whether the video is used; without it the network is a question-only baseline.
    """

    model: VideoLanguageConfig
    answers: int
    dropout: float = 0.5
    layers: int = 2
    video: bool = True

    @property
    def vision(self) -> UniFormerV2Config:
        """Sizes of the video tower."""
        return self.model.vision


class AnswerHead(Sequential):
    """MLP head (..., F) -> (..., outputs): `layers` - 1 times dropout, linear, layer norm, GELU; then dropout, linear.

    The hidden width is 2 F. The published code (multi-modalities-downstream) has two linear layers, the paper three.
    Raises ValueError: fewer than two layers.
    """

    def __init__(self, features: int, outputs: int, dropout: float = 0.5, layers: int = 2) -> None:
        if layers < 2:
            raise ValueError(f"an answer head of {layers} layers: 2 or more")
        hidden, parts = 2 * features, list[nn.Module]()
        for before in (features, *(hidden,) * (layers - 2)):
            parts += [Dropout(dropout), Linear(before, hidden), LayerNorm(hidden, eps=EPS), nn.GELU()]
        super().__init__(*parts, Dropout(dropout), Linear(hidden, outputs))
        self.apply(init_normal)


@dataclass(frozen=True)
class AnswerOutput:
    """The output of a question answering network with its intermediate features.

    Attributes:
        scores: (B, outputs).
        video, text: features after their norms, without projections (B, D), (B, W).
        caption: decoder features (B, L - 1, W).
    """

    scores: Tensor
    video: Tensor
    text: Tensor
    caption: Tensor


@dataclass(frozen=True)
class EncodedVideo:
    """An encoded video, shared by its questions: features (B, D), and pooled visual tokens of the decoder (B, Q, W)."""

    features: Tensor
    pooled: Tensor

    def __getitem__(self, index: slice) -> EncodedVideo:
        """Select videos of the batch."""
        return EncodedVideo(self.features[index], self.pooled[index])


class FusedQANetwork(VideoEncoder):
    """Towers without projections, caption decoder without predictor, and an answer head on all three features.

    Args:
        config: a video-language model with a caption decoder; its projections and predictor are left out.
        outputs: number of scores of a (video, text) pair.
        dropout: of the head. layers: linear layers of the head.
        video: whether the video is used; otherwise its features and pooled tokens are zeros.
    """

    undecayed = UNDECAYED

    def __init__(
        self, config: VideoLanguageConfig, outputs: int, dropout: float = 0.5, layers: int = 2, video: bool = True
    ) -> None:
        super().__init__()
        if config.caption is None:
            raise ValueError("an answering network needs a caption decoder")
        self.model = VideoLanguage(replace(config, joint_width=0, caption=replace(config.caption, vocabulary=0)))
        self.head = AnswerHead(config.vision.width + 2 * config.text.width, outputs, dropout, layers)
        self.video = video

    @property
    def checkpointing(self) -> bool:
        """Recompute the video tower's activations in the backward pass instead of storing them."""
        return self.model.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.model.checkpointing = value

    def is_unused_parameter(self, name: str) -> bool:
        """Return whether a parameter does not affect the scores: logit scale, mask embedding, unused video tower."""
        if name in ("model.logit_scale", "model.text.mask_embedding"):
            return True
        visual = r"model\.(visual\.|visual_norm\.|caption_decoder\.(quer|context_norm|pool))"
        return not self.video and re.match(visual, name) is not None

    @property
    def decoder(self) -> CaptionDecoder:
        """The caption decoder without its predictor."""
        decoder = self.model.caption_decoder
        if decoder is None:
            raise ValueError("an answering network needs a caption decoder")
        return decoder

    @property
    def normalize(self) -> Normalize:  # type: ignore[override]  # of a part, never set
        """Pixel normalization of the video tower."""
        return self.model.normalize

    @property
    def build_config(self) -> Any:
        """The config of the towers."""
        return self.model.config

    @property
    def embed_dim(self) -> int:
        """The video tower's width."""
        return self.model.embed_dim

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """Clip needs of the video tower; () if it is not used."""
        return self.model.clip_needs if self.video else ()

    @property
    def test_clips(self) -> dict[str, Any]:
        """See `VideoLanguage.test_clips`."""
        return self.model.test_clips

    @property
    def tower(self) -> nn.Module | None:
        """The module with the blocks of the video tower."""
        return self.model.tower

    def features(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> (B, D), without a question."""
        return self.model.encode_video(video)

    def tokens(self, video: Tensor) -> Tensor:
        """See `VideoLanguage.tokens`."""
        return self.model.tokens(video)

    def encode_video(self, video: Tensor) -> EncodedVideo:
        """Encode videos (B, 3, T, S, S), normalized, once for all their questions."""
        decoder = self.decoder
        if not self.video:
            config, zeros = decoder.config, self.model.visual_norm.weight.new_zeros
            pooled = zeros(len(video), config.queries, config.width)
            return EncodedVideo(zeros(len(video), config.vision_width), pooled)
        features = self.model.forward_features(video)
        return EncodedVideo(self.model.project_video(features.pooled), decoder.pool(features.tokens))

    def forward_head(self, encoded: EncodedVideo, tokens: Tensor) -> AnswerOutput:
        """Compute outputs of B * K rows from B encoded videos and ids (B * K, L), the K texts of a video in succession.

        The decoder has one position less than the text tower; a text that fills the context is read at its last one.
        """
        choices = len(tokens) // len(encoded.features)
        text_tokens = self.model.text.tokens(tokens)
        caption = self.decoder.decode(text_tokens[:, :-1], encoded.pooled.repeat_interleave(choices, dim=0))
        features = encoded.features.repeat_interleave(choices, dim=0)
        text = at_end_of_text(text_tokens, tokens)
        scores = self.head(torch.cat([at_end_of_text(caption, tokens), features, text], dim=1))
        return AnswerOutput(scores, features, text, caption)

    def answer(self, video: Tensor, tokens: Tensor) -> AnswerOutput:
        """Normalized (B, 3, T, S, S), ids (B * K, L) -> outputs of B * K rows (see `forward_head`)."""
        return self.forward_head(self.encode_video(video), tokens)

    def initial_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
        """Map weights of a video-language model to this network, with a pattern of the names that stay random.

        Projections to the joint space and the caption predictor are dropped. None for weights of a whole network.
        """
        if any(name.startswith("head.") for name in state):
            return None
        return {f"model.{name}": value for name, value in state.items() if not LEFT_BEHIND.fullmatch(name)}, r"head\."

    @property
    def max_layer_id(self) -> int:
        """Largest layer id."""
        return self.model.max_layer_id

    def get_layer_id(self, name: str) -> int:
        """Layer of a parameter (see `VideoLanguage.get_layer_id`)."""
        inner = name.removeprefix("model.")
        return self.max_layer_id if inner == name else self.model.get_layer_id(inner)


class VideoQuestionAnswering(FusedQANetwork):
    """Open-ended question answering as classification over A frequent answers.

    Args:
        config: a video-language model with a caption decoder. answers: A. dropout, layers, video: see `AnswerConfig`.
    """

    def __init__(
        self, config: VideoLanguageConfig, answers: int, dropout: float = 0.5, layers: int = 2, video: bool = True
    ) -> None:
        super().__init__(config, answers, dropout, layers, video)
        self.config = AnswerConfig(config, answers, dropout, layers, video)

    config: AnswerConfig

    @property
    def build_config(self) -> AnswerConfig:
        """The config with the answers and the head."""
        return self.config

    @property
    def num_classes(self) -> int:
        """A."""
        return self.config.answers

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """Clip needs of the video tower, in the settings of this model."""
        return in_part("model", super().clip_needs)

    @property
    def class_layer(self) -> tuple[str, int]:
        """The last linear layer of the head."""
        return f"head.{len(self.head) - 1}", 0

    def forward(self, video: Tensor, tokens: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S), question ids (B, L) or (B, K, L) -> answer logits (B, A) or (B, K, A)."""
        scores = self.answer(video, tokens.flatten(0, -2)).scores
        return scores.reshape(*tokens.shape[:-1], -1)


class PairScoringMultipleChoice(FusedQANetwork):
    """Multiple choice by scoring every (video, text) pair from fused features."""

    def __init__(self, config: VideoLanguageConfig, dropout: float = 0.5) -> None:
        super().__init__(config, 1, dropout)
        self.config = config

    def forward(self, video: Tensor, tokens: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S), ids of the choices (B, K, L) -> scores (B, K)."""
        return self.answer(video, tokens.flatten(0, 1)).scores.reshape(tokens.shape[:2])


class ZeroShotMultipleChoice(Module):
    """Multiple choice by the cosine of the video with each text (zero-shot: no further weights)."""

    def __init__(self, config: VideoLanguageConfig) -> None:
        super().__init__()
        self.model = VideoLanguage(replace(config, caption=None))

    def normalize(self, video: Tensor) -> Tensor:
        """uint8 or float in 0..255 (B, 3, T, S, S) -> normalized float."""
        return self.model.normalize(video)

    def forward(self, video: Tensor, tokens: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S), ids of the choices (B, K, L) -> scaled cosines (B, K)."""
        features = nn.functional.normalize(self.model.encode_video(video), dim=-1)
        text = nn.functional.normalize(self.model.encode_text(tokens.flatten(0, 1)), dim=-1)
        return self.model.scale * (text.reshape(*tokens.shape[:2], -1) @ features[:, :, None]).squeeze(2)
