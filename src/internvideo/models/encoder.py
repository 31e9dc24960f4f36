"""VideoEncoder: what the package asks of a model that sees videos, whatever its class.

Shapes: B batch, T frames, S side, N tokens, D width, E width of the feature or of the joint space, L words, C classes
(of texts in `similarity`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.errors import RecipeError
from internvideo.models.embeddings import Normalize
from internvideo.models.module import Module


@dataclass(frozen=True)
class ClipNeeds:
    """The clips that an encoder takes.

    Attributes:
        part: where its sizes are in the settings of the whole model, "" or such as ".vision".
        image_size: S, None for any.
        frames: T, None for any number from `min_frames` to `max_frames` (None: no limit).
    """

    part: str = ""
    image_size: int | None = None
    frames: int | None = None
    min_frames: int = 1
    max_frames: int | None = None


class VideoEncoder(nn.Module):
    """A model that sees videos. A new backbone is one class of this kind and one row of `factory.BACKBONES`.

    `features`, `tokens` and `logits` take what `prepare` makes of clips. Training asks for more where a model has it:
    `no_weight_decay(name, parameter)`, `get_layer_id(name)` and `max_layer_id` (`training.optimizer`); weights for
    `class_layer`, `initial_sources` and `initial_state(state)` (`weights.initialize`).

    Attributes:
        config: frozen dataclass with the sizes.
        normalize: pixels 0..255 to the scale that the weights were trained with.
        has_logits: whether `logits` gives scores of classes.
        takes_temporal_stride: whether `prepare` leaves frames out for a part of the model.
        fixed_clip_size: whether the weights work for clips of their own size alone.
        can_caption: whether it writes captions.
    """

    has_logits: ClassVar[bool] = False
    takes_temporal_stride: ClassVar[bool] = False
    fixed_clip_size: ClassVar[bool] = False
    config: Any
    normalize: Normalize

    @property
    def build_config(self) -> Any:
        """The config that `create_model` builds this model from."""
        return self.config

    @property
    def embed_dim(self) -> int:
        """E."""
        width: int = self.config.width
        return width

    @property
    def num_classes(self) -> int:
        """C, 0 without a classifier."""
        return 0

    @property
    def can_caption(self) -> bool:
        """See the class."""
        return False

    @property
    def as_dual_encoder(self) -> DualEncoder | None:
        """The model itself where it has texts in the space of its videos, else None."""
        return None

    @property
    def default_temporal_stride(self) -> int:
        """Of `prepare`, where nobody says."""
        return 1

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """The clips that each encoder of the model takes."""
        raise NotImplementedError  # the model's class says

    @property
    def test_clips(self) -> Mapping[str, Any]:
        """How published tests cut clips: arguments of `data.preprocessing.Preprocessing`."""
        raise NotImplementedError  # the model's class says

    @property
    def tower(self) -> nn.Module | None:
        """The part with `blocks` that every token of a clip goes through, None where there is no such part.

        Its method `to_grid(output, clips)`, where it has one, gives a block's output as tokens with places, without
        class tokens: (B, T', H, W, D), the frames square.
        """
        return self

    def prepare(self, clips: Tensor, temporal_stride: int = 1) -> Any:
        """Pixels 0..255 (B, 3, T, S, S) normalized in float32, then in the dtype of the weights.

        `temporal_stride` concerns models with `takes_temporal_stride` alone.
        """
        return self.normalize(clips).to(next(self.parameters()).dtype)

    def features(self, video: Any) -> Tensor:
        """What `prepare` gives -> one vector per clip (B, E), not L2-normalized."""
        raise NotImplementedError  # the model's class says

    def tokens(self, video: Any) -> Tensor:
        """What `prepare` gives -> tokens of the last layer (B, N, D)."""
        raise NotImplementedError  # the model's class says

    def logits(self, video: Any) -> Tensor:
        """What `prepare` gives -> scores of the classes (B, C)."""
        raise NotImplementedError  # the model's class says


class DualEncoder(VideoEncoder):
    """A video encoder with a text tower, both in one space.

    Attributes:
        text: the text tower.
        takes_frame_mask: whether `encode_video` takes a mask of the real frames, for clips that differ in length.
    """

    takes_frame_mask: ClassVar[bool] = False
    text: Module

    @property
    def as_dual_encoder(self) -> DualEncoder:
        """The model itself."""
        return self

    @property
    def embed_dim(self) -> int:
        """E of the space."""
        width: int = self.config.joint_width
        return width

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines."""
        raise NotImplementedError  # the model's class says

    def encode_video(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> (B, E), not L2-normalized."""
        raise NotImplementedError  # the model's class says

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Ids (B, L) -> (B, E), not L2-normalized."""
        return self.text(tokens)

    def features(self, video: Tensor) -> Tensor:
        """As `encode_video`."""
        return self.encode_video(video)

    def similarity(self, video: Tensor, text: Tensor) -> Tensor:
        """Features (B, E), (C, E) -> scaled cosines (B, C)."""
        return similarity(video, text, self.scale)


class ClipClassifier(VideoEncoder, Module):
    """An encoder of one clip with a linear layer of classes behind it."""

    has_logits = True

    @property
    def num_classes(self) -> int:
        """C of the config."""
        num_classes: int = self.config.num_classes
        return num_classes

    @property
    def head_layer(self) -> nn.Linear:
        """The linear layer of the classes. Raises ValueError without one."""
        raise NotImplementedError  # the model's class says

    def head_input(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> (B, D), what `head_layer` reads, before the dropout."""
        raise NotImplementedError  # the model's class says

    def logits(self, video: Tensor) -> Tensor:
        """Normalized (B, 3, T, S, S) -> (B, C)."""
        return self(video)

    def logits_and_grid(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized (B, 3, T, S, S) -> logits (B, C) and patches of the last layer (B, D, T', H, W), in one pass."""
        raise NotImplementedError  # the model's class says


def similarity(video: Tensor, text: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Scaled cosines of features (B, E) and (C, E) -> (B, C)."""
    return scale * F.normalize(video, dim=-1) @ F.normalize(text, dim=-1).t()


def in_part(part: str, needs: tuple[ClipNeeds, ...]) -> tuple[ClipNeeds, ...]:
    """What an encoder needs whose settings are a part of those of a larger model."""
    return tuple(replace(need, part=f".{part}{need.part}") for need in needs)


def check_clip(model: nn.Module, *, frames: int, size: int, temporal_stride: int = 1) -> None:
    """Refuse clips that a model is not made for.

    Args:
        model: one without `clip_needs` sees no clips.
        frames, size: T and S of a clip. temporal_stride: the model sees every n-th frame of it.

    Raises:
        RecipeError: another side, or another number of frames.
    """
    # Asked of the class: an AttributeError inside the property must not read as "sees no clips".
    needs = cast(tuple[ClipNeeds, ...], model.clip_needs) if hasattr(type(model), "clip_needs") else ()
    seen = len(range(0, frames, 1 if getattr(model, "takes_temporal_stride", False) else temporal_stride))
    for need in needs:
        place = f"model.overrides{need.part}"
        if need.image_size not in (None, size):
            raise RecipeError("data.augment.size", str(size), f"{need.image_size}, {place}.image_size")
        if need.frames not in (None, seen):
            raise RecipeError("data.sampling.frames", f"the model sees {seen} frames", f"{need.frames}, {place}.frames")
        if need.max_frames is not None and seen > need.max_frames:
            expected = f"up to {need.max_frames}, {place}.frames"
            raise RecipeError("data.sampling.frames", f"the model sees {seen} frames", expected)
