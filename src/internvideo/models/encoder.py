"""VideoEncoder: the interface of all models of videos.

Shapes: B batch, T frames, S side, N tokens, D width, E width of the feature or of the joint space, L text tokens,
C classes (in `similarity`: texts).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.errors import RecipeError
from internvideo.models.embeddings import Normalize
from internvideo.models.module import Module

MAX_LOGIT_SCALE = math.log(100.0)


@dataclass(frozen=True)
class ClipNeeds:
    """The clip size that an encoder needs.

    Attributes:
        key: settings of the encoder within those of the model, "" for the model itself or for example ".vision".
        image_size: S, None for any.
        frames: T, None for any number from `min_frames` to `max_frames` (None: no limit).
    """

    key: str = ""
    image_size: int | None = None
    frames: int | None = None
    min_frames: int = 1
    max_frames: int | None = None


class VideoEncoder(nn.Module):
    """Base class of video models. A new backbone is one subclass and one row of `factory.BACKBONES`.

    `features`, `tokens` and `logits` take the output of `prepare`. Optional attributes are `get_layer_id(name)` and
    `max_layer_id` (for `training.optimizer`), and `class_layer`, `initial_sources` and `initial_state(state)` (for
    `weights.initialize`).

    Attributes:
        config: frozen dataclass with the sizes.
        normalize: maps pixels 0..255 to the normalized pixels that the model was trained with.
        has_logits: whether `logits` returns class scores.
        takes_temporal_stride: whether `prepare` subsamples the frames for one of several encoders.
        fixed_clip_size: whether the weights work only for clips of the size that they were trained with.
        can_caption: whether the model generates captions.
        undecayed: pattern of the parameters of two or more dimensions without weight decay, "" for none.
    """

    has_logits: ClassVar[bool] = False
    takes_temporal_stride: ClassVar[bool] = False
    fixed_clip_size: ClassVar[bool] = False
    undecayed: ClassVar[str] = ""
    config: Any
    normalize: Normalize

    @property
    def build_config(self) -> Any:
        """The config that `create_model` builds this model from."""
        return self.config

    @property
    def embed_dim(self) -> int:
        """E."""
        return int(self.config.width)

    @property
    def num_classes(self) -> int:
        """C, 0 without a classifier."""
        return 0

    @property
    def can_caption(self) -> bool:
        """Whether the model generates captions."""
        return False

    @property
    def as_dual_encoder(self) -> DualEncoder | None:
        """Return the model if it embeds texts and videos in one space, else None."""
        return None

    @property
    def default_temporal_stride(self) -> int:
        """Default `temporal_stride` of `prepare`."""
        return 1

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """The clip sizes that the encoders of the model need."""
        raise NotImplementedError  # the model's class says

    @property
    def test_clips(self) -> Mapping[str, Any]:
        """Preprocessing of published tests: arguments of `data.preprocessing.Preprocessing`."""
        raise NotImplementedError  # the model's class says

    @property
    def tower(self) -> nn.Module | None:
        """The module whose `blocks` all tokens of a clip pass through, None if there is none.

        Its optional method `to_grid(output, batch_size)` reshapes a block's output to a token grid without class
        tokens, (B, T', H, W, D), H = W.
        """
        return self

    def prepare(self, clips: Tensor, temporal_stride: int = 1) -> Any:
        """Normalize pixels 0..255 (B, 3, T, S, S) in float32, and convert them to the dtype of the weights.

        `temporal_stride` is used only by models with `takes_temporal_stride`.
        """
        return self.normalize(clips).to(next(self.parameters()).dtype)

    def features(self, video: Any) -> Tensor:
        """Compute one vector per clip (B, E), not L2-normalized, from the output of `prepare`."""
        raise NotImplementedError  # the model's class says

    def tokens(self, video: Any) -> Tensor:
        """Compute the tokens of the last layer (B, N, D) from the output of `prepare`."""
        raise NotImplementedError  # the model's class says

    def logits(self, video: Any) -> Tensor:
        """Compute class scores (B, C) from the output of `prepare`."""
        raise NotImplementedError  # the model's class says

    def no_weight_decay(self, name: str, parameter: Tensor) -> bool:
        """Return whether a parameter has no weight decay: vectors, scalars and those that `undecayed` matches."""
        return parameter.dim() < 2 or (self.undecayed != "" and re.search(self.undecayed, name) is not None)


class DualEncoder(VideoEncoder):
    """A video encoder and a text encoder with a joint embedding space.

    Attributes:
        text: the text tower.
        takes_frame_mask: whether `encode_video` takes a `frame_mask`, for clips padded to one length.
    """

    takes_frame_mask: ClassVar[bool] = False
    text: Module

    @property
    def as_dual_encoder(self) -> DualEncoder:
        """The model itself."""
        return self

    @property
    def embed_dim(self) -> int:
        """E, the dimension of the joint space."""
        return int(self.config.joint_width)

    @property
    def scale(self) -> Tensor:
        """Logit scale of the cosines."""
        raise NotImplementedError  # the model's class says

    def encode_video(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> (B, E), not L2-normalized."""
        raise NotImplementedError  # the model's class says

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) -> (B, E), not L2-normalized."""
        return self.text(ids)

    def features(self, video: Tensor) -> Tensor:
        """As `encode_video`."""
        return self.encode_video(video)

    def similarity(self, video: Tensor, text: Tensor) -> Tensor:
        """Features (B, E), (C, E) -> scaled cosines (B, C)."""
        return similarity(video, text, self.scale)


class ScaledDualEncoder(DualEncoder):
    """A dual encoder with a learned log scale of its cosines."""

    logit_scale: nn.Parameter

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale)."""
        return self.logit_scale.exp()

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamp logit_scale to [0, ln 100], in place; training does this at the start of every optimizer step."""
        self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)


class ClipClassifier(VideoEncoder, Module):
    """A video encoder with a linear classifier."""

    has_logits = True

    @property
    def num_classes(self) -> int:
        """C of the config."""
        return int(self.config.num_classes)

    @property
    def head_layer(self) -> nn.Linear:
        """The linear classifier. Raises ValueError for a model without one."""
        raise NotImplementedError  # the model's class says

    def head_input(self, video: Tensor) -> Tensor:
        """Compute the input of `head_layer` before dropout, normalized (B, 3, T, S, S) -> (B, D)."""
        raise NotImplementedError  # the model's class says

    def logits(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> (B, C)."""
        return self(video)

    def logits_and_grid(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits (B, C) and the last layer's token grid (B, D, T', H, W) of normalized (B, 3, T, S, S)."""
        raise NotImplementedError  # the model's class says


def similarity(video: Tensor, text: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Compute scaled cosines (B, C) of features (B, E) and (C, E)."""
    return scale * F.normalize(video, dim=-1) @ F.normalize(text, dim=-1).t()


def prefix_clip_needs(prefix: str, needs: tuple[ClipNeeds, ...]) -> tuple[ClipNeeds, ...]:
    """Prefix the keys of clip needs, for an encoder inside a larger model."""
    return tuple(replace(need, key=f".{prefix}{need.key}") for need in needs)


def check_clip(model: nn.Module, *, frames: int, size: int, temporal_stride: int = 1) -> None:
    """Check that a model supports a clip size.

    Args:
        model: any model; one without `clip_needs` is not checked.
        frames, size: T and S of a clip.
        temporal_stride: the loader passes on every n-th frame; a model with `takes_temporal_stride` gets all of them
            and subsamples them itself.

    Raises:
        RecipeError: a size or a number of frames that the model does not support.
    """
    # hasattr on the class, because an AttributeError inside the property must not look like a missing property.
    needs = cast(tuple[ClipNeeds, ...], model.clip_needs) if hasattr(type(model), "clip_needs") else ()
    num_frames = len(range(0, frames, 1 if getattr(model, "takes_temporal_stride", False) else temporal_stride))
    actual = f"the model gets {num_frames} frames"
    for need in needs:
        key = f"model.overrides{need.key}"
        if need.image_size not in (None, size):
            raise RecipeError("data.augment.size", str(size), f"{need.image_size}, {key}.image_size")
        if need.frames not in (None, num_frames):
            raise RecipeError("data.sampling.frames", actual, f"{need.frames}, {key}.frames")
        if need.max_frames is not None and num_frames > need.max_frames:
            raise RecipeError("data.sampling.frames", actual, f"up to {need.max_frames}, {key}.frames")
