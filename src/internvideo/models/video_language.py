"""The multimodal model: UniFormerV2 video tower, CLIP text tower, joint embedding space and caption decoder.

Shapes: B batch, T frames, S side, D video width, W text width, E width of the joint space, L text tokens, V vocabulary.
Source: Multi-Modalities-Pretraining (towers), multi-modalities-downstream (caption decoder, weight-space ensemble).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from internvideo.models.attention import KVCache
from internvideo.models.caption_decoder import CaptionDecoder, CaptionDecoderConfig
from internvideo.models.clip import EPS, INITIAL_LOGIT_SCALE, TextConfig, TextTower, at_end_of_text, zero_padding_frames
from internvideo.models.embeddings import CLIP_MEAN, CLIP_STD, Normalize
from internvideo.models.encoder import ClipNeeds, ScaledDualEncoder, prefix_clip_needs
from internvideo.models.generation import generate, sample
from internvideo.models.module import LayerNorm
from internvideo.models.uniformerv2 import UniFormerV2, UniFormerV2Config

UNDECAYED = r"embedding|^(model\.)?visual\.query$"
"""Embeddings and the query token (Multi-Modalities-Pretraining), also where the model is the submodule `model`."""


@dataclass(frozen=True)
class VideoLanguageConfig:
    """Sizes of the multimodal model.

    Attributes:
        vision: the video tower; it must have no head (num_classes=0).
        text: the text tower.
        joint_width: E, or 0 for no projections into a joint space (question answering networks).
        caption: the caption decoder, None for none; its widths must be those of the towers.
        mean, std: per channel, of pixels in 0..1 (CLIP's).
    """

    vision: UniFormerV2Config
    text: TextConfig
    joint_width: int
    caption: CaptionDecoderConfig | None = None
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.vision.num_classes:
            raise ValueError(f"vision.num_classes {self.vision.num_classes}: a video tower has no head, expected 0")
        caption = self.caption
        if caption and (caption.width, caption.vision_width) != (self.text.width, self.vision.width):
            raise ValueError(
                f"caption decoder widths {caption.width}, {caption.vision_width} differ from the towers' "
                f"{self.text.width}, {self.vision.width}"
            )


@dataclass(frozen=True)
class VideoLanguageOutput:
    """Outputs of one forward pass, for both losses.

    Attributes:
        video, text: (B, E), not L2-normalized.
        caption_logits: (B, L - 1, V) of the captioned clips, position i predicts token i + 1; None without a decoder.
        caption_features: (B, L - 1, W), input of `predict_tokens`, instead of `caption_logits` with `predict=False`.
    """

    video: Tensor
    text: Tensor
    caption_logits: Tensor | None
    caption_features: Tensor | None = None


@dataclass(frozen=True)
class VideoFeatures:
    """Outputs of the video tower: `pooled` (B, D) before the last norm, `tokens` (B, T * N, D)."""

    pooled: Tensor
    tokens: Tensor


class VideoLanguage(ScaledDualEncoder):
    """InternVideo-MM: dual encoder with a caption decoder. Images are videos of one frame."""

    config: VideoLanguageConfig
    text: TextTower
    initial_sources = (("weights",), ("clip",))
    takes_frame_mask = True
    undecayed = UNDECAYED

    def __init__(self, config: VideoLanguageConfig) -> None:
        super().__init__()
        self.config = config
        width, joint = config.vision.width, config.joint_width
        self.normalize = Normalize(config.mean, config.std)
        self.visual = UniFormerV2(config.vision)
        self.visual_norm = LayerNorm(width, eps=EPS)
        self.visual_projection = nn.Parameter(torch.randn(width, joint) * width**-0.5) if joint else None
        self.text = TextTower(config.text, joint)
        self.logit_scale = nn.Parameter(torch.tensor([INITIAL_LOGIT_SCALE]))
        self.caption_decoder = CaptionDecoder(config.caption) if config.caption else None

    @property
    def checkpointing(self) -> bool:
        """Recompute the video tower's activations in the backward pass instead of storing them."""
        return self.visual.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.visual.checkpointing = value

    @property
    def embed_dim(self) -> int:
        """Width E of the joint space, or the video tower's width without one."""
        return self.config.joint_width or self.config.vision.width

    @property
    def can_caption(self) -> bool:
        """Whether there is a caption decoder."""
        return self.caption_decoder is not None

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """Clip needs of the video tower."""
        return prefix_clip_needs("vision", self.visual.clip_needs)

    @property
    def test_clips(self) -> dict[str, Any]:
        """Evenly spaced frames from first to last, PIL's bilinear resize (Multi-Modalities-Pretraining)."""
        frames, size = self.config.vision.frames, self.config.vision.image_size
        resizing = {"resize": round(size * 256 / 224), "resize_backend": "pil"}
        return {"frames": frames, "size": size, "sampler": "linspace", **resizing}

    @property
    def tower(self) -> UniFormerV2 | None:
        """See `UniFormerV2.tower`."""
        return self.visual.tower

    def tokens(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> tokens of the video tower's last layer (B, T * N, D)."""
        return self.forward_features(video).tokens

    def forward_features(self, video: Tensor) -> VideoFeatures:
        """Normalized (B, 3, T, S, S) -> the video tower's outputs."""
        staged = self.visual.stages(video)
        pooled = self.visual.merge_class_token(staged.query, staged.class_mean)
        return VideoFeatures(pooled, staged.all_tokens.flatten(1, 2))

    def project_video(self, pooled: Tensor) -> Tensor:
        """(B, D) -> norm and projection into the joint space (B, E)."""
        features: Tensor = self.visual_norm(pooled)
        return features if self.visual_projection is None else features @ self.visual_projection

    def encode_video(self, video: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Normalized (B, 3, T, S, S), (B, T) bool where frames are real or None -> (B, E), not L2-normalized."""
        return self.project_video(self.forward_features(zero_padding_frames(video, frame_mask)).pooled)

    def encode_text(self, ids: Tensor, masked: Tensor | None = None) -> Tensor:
        """Token ids (B, L), bool mask (B, L) of tokens to hide -> (B, E), not L2-normalized."""
        return self.text(ids, masked)

    def _decoder(self) -> CaptionDecoder:
        if self.caption_decoder is None:
            raise ValueError("this video-language model has no caption decoder")
        return self.caption_decoder

    def caption_logits(self, video: Tensor, ids: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S), token ids (B, L) -> logits (B, L - 1, V) of the next token."""
        self._decoder()
        return cast(Tensor, self.forward(video, ids).caption_logits)

    def forward(
        self,
        video: Tensor,
        ids: Tensor,
        *,
        max_captioned_clips: int | None = None,
        frame_mask: Tensor | None = None,
        predict: bool = True,
    ) -> VideoLanguageOutput:
        """Run both towers and, if present, the caption decoder.

        Args:
            video: normalized (B, 3, T, S, S).
            ids: (B, L) token ids, zero padded.
            max_captioned_clips: the decoder runs on the first clips of the batch, at most this many; None for all.
            frame_mask: (B, T) bool, True where a frame is real; None for all.
            predict: False for the features of the captions instead of their logits.
        """
        visual, text = self.forward_features(zero_padding_frames(video, frame_mask)), self.text.tokens(ids)
        num_captioned = len(ids) if max_captioned_clips is None else max_captioned_clips
        logits, features = None, None
        if num_captioned and self.caption_decoder:
            pooled = self.caption_decoder.pool(visual.tokens[:num_captioned])
            if predict:
                logits = self.caption_decoder.decode(text[:num_captioned, :-1], pooled)
            else:
                features = self.caption_decoder.features(text[:num_captioned, :-1], pooled)
        text_features = self.text.project(at_end_of_text(text, ids))
        return VideoLanguageOutput(self.project_video(visual.pooled), text_features, logits, features)

    def predict_tokens(self, features: Tensor) -> Tensor:
        """Features of captions (..., W) -> logits (..., V)."""
        predictor = self._decoder().predictor
        if predictor is None:
            raise ValueError("this caption decoder has no predictor")
        return cast(Tensor, predictor(features))

    @torch.no_grad()
    def generate(
        self,
        video: Tensor,
        *,
        start: int,
        end: int,
        max_length: int = 0,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        top_p: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Generate captions for normalized clips (B, 3, T, S, S).

        Args:
            start, end: ids of the start and the end of a text.
            max_length: largest number of ids, start and end included; 0 for the text tower's context length.
            num_beams: 1 for greedy decoding, more for beam search.
            length_penalty: beams are ranked by log probability / number of tokens ** length_penalty.
            top_p: above 0 for nucleus sampling with `generator`.

        Returns:
            (B, max_length) ids from `start` to `end`, zero padded; truncated texts also end with `end`.

        Raises:
            ValueError: there is no caption decoder, `max_length` is out of range, or both beams and `top_p` are given.
        """
        context_length = self.config.text.context_length
        length = max_length or context_length
        if not 2 <= length <= context_length:
            raise ValueError(f"max_length {length}: expected 2 to {context_length}, the text tower's context length")
        decoder = self._decoder()
        if top_p and num_beams > 1:
            raise ValueError(f"num_beams {num_beams} and top_p {top_p}: use beam search or sampling, not both")
        pooled = decoder.pool(self.forward_features(video).tokens).repeat_interleave(max(num_beams, 1), dim=0)
        kv_cache = KVCache()

        def next_log_probs(ids: Tensor, _: Tensor) -> Tensor:
            text = self.text.tokens(ids[:, -1:], kv_cache=kv_cache)
            return decoder.decode(text, pooled, kv_cache)[:, -1].float().log_softmax(dim=-1)

        limits = (len(video), start, end, length)
        if top_p:
            return sample(next_log_probs, *limits, device=pooled.device, top_p=top_p, generator=generator)
        search: dict[str, Any] = {"num_beams": num_beams, "length_penalty": length_penalty, "reorder": kv_cache.reorder}
        return generate(next_log_probs, *limits, device=pooled.device, **search)

    def initial_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Map weights to (state, pattern of parameters that keep their initialization).

        The weights of a caption decoder are dropped if this model has none. The decoder of this model keeps its
        initialization if the weights have none.
        """
        has_decoder = any(name.startswith("caption_decoder.") for name in state)
        drop_decoder = self.caption_decoder is None
        used = {n: value for n, value in state.items() if not (drop_decoder and n.startswith("caption_decoder."))}
        return used, None if has_decoder else r"caption_decoder\."

    @property
    def max_layer_id(self) -> int:
        """Largest layer id."""
        return self.visual.max_layer_id

    def get_layer_id(self, name: str) -> int:
        """Return the layer id: that of the video tower for its parameters, `max_layer_id` for the others."""
        inner = name.removeprefix("visual.")
        return self.max_layer_id if inner == name else self.visual.get_layer_id(inner)


def interpolate_weights(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], alpha: float, excluded: str = r"(.*\.)?logit_scale"
) -> dict[str, Tensor]:
    r"""Weight-space ensemble (WiSE-FT): alpha * a + (1 - alpha) * b for common tensors, the other tensors of `b` as is.

    Args:
        a, b: state dicts, e.g. of the initial (CLIP) and of the fine-tuned model.
        alpha: weight of `a`, 0 to 1 (published 0.5).
        excluded: regular expression of full parameter names that are taken from `b`. The published code also excludes
            the video layers from 12 on: r"visual\.blocks\.(1[2-9]|2\d)\..*|logit_scale".

    Returns:
        A new state dict with the keys of `b`; integer tensors are those of `b`.

    Raises:
        ValueError: `alpha` is out of range, or tensors of one name have different shapes.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha {alpha}: expected 0 to 1")
    mixed = {}
    for key, tuned in b.items():
        if key not in a or not tuned.is_floating_point() or re.fullmatch(excluded, key):
            mixed[key] = tuned.clone()
            continue
        if a[key].shape != tuned.shape:
            raise ValueError(f"{key}: shapes {tuple(a[key].shape)} and {tuple(tuned.shape)} differ")
        mixed[key] = torch.lerp(tuned, a[key].to(tuned), alpha)
    return mixed
