"""What each family of models gives: features, tokens, scores, the clips it was published with, and its settings.

Shapes: B batch, T frames, S side, N tokens, D width, E width of the features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import RecipeError
from internvideo.model_table import MODELS
from internvideo.models.clip import Clip
from internvideo.models.cross_model import CrossModel, InteractionConfig
from internvideo.models.factory import differences
from internvideo.models.heads import FusedAnswer, VideoQuestionAnswering
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.viclip import ViCLIP
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEPretrain, run_blocks
from internvideo.tasks.spatiotemporal.model import ActionDetector

SOMETHING_SOMETHING = 174
"""Classes of the data set whose classifiers were trained on sparse frames (run_class_finetuning.py)."""

Features = Callable[[Any, Tensor, int], Tensor]

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Family:
    """One kind of model. `features`, `tokens` and `scores` take (module, clips 0..255 (B, 3, T, S, S), frame step).

    Attributes:
        kind: the class.
        width: module -> E. features: -> (B, E). tokens: -> (B, N, D) of the last layer.
        clips: module -> how its published tests cut clips.
        config: module -> the config that `create_model` built it from.
        classes: module -> C, 0 without a classifier. scores: -> logits (B, C).
    """

    kind: type[nn.Module]
    width: Callable[[Any], int]
    features: Features
    tokens: Features
    clips: Callable[[Any], Preprocessing]
    config: Callable[[Any], Any] = lambda module: module.config
    classes: Callable[[Any], int] = lambda module: 0
    scores: Features | None = None


def seen(module: Any, clips: Tensor) -> Tensor:
    """Pixels 0..255 (B, 3, T, S, S) normalised in float32, then in the precision of the module."""
    video: Tensor = module.normalize(clips)
    return video.to(next(module.parameters()).dtype)


# ------------------------------------------------------------------------------------------------- masked encoders


def _pretrain_features(module: VideoMAEPretrain, clips: Tensor, step: int) -> Tensor:
    return _pretrain_tokens(module, clips, step).mean(dim=1)


def _pretrain_tokens(module: VideoMAEPretrain, clips: Tensor, step: int) -> Tensor:
    return module.encoder(seen(module, clips))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def _classifier_tokens(module: VideoMAEClassifier, clips: Tensor, step: int) -> Tensor:
    return run_blocks(module.blocks, module.embed(seen(module, clips)), module.checkpointing)


def _detector_tokens(module: ActionDetector, clips: Tensor, step: int) -> Tensor:
    return module.tokens(seen(module, clips)).flatten(1, 3)


def _masked_clips(module: VideoMAEPretrain | VideoMAEClassifier | ActionDetector) -> Preprocessing:
    """Centre clip of stride 4, or sparse middles for Something-Something; OpenCV resize (run_class_finetuning.py)."""
    config = module.config
    sparse = config.classes == SOMETHING_SOMETHING
    return Preprocessing(
        config.frames,
        config.image_size,
        sampler="sparse_two_view" if sparse else "dense",
        stride=None if sparse else 4,
        style="opencv",
    )


# --------------------------------------------------------------------------------------------- multimodal encoders


def _uniformer_clips(module: UniFormerV2) -> Preprocessing:
    """UniFormerV2 configs: sparse frames, torch's bilinear resize without antialiasing."""
    return Preprocessing(module.config.frames, module.config.image_size, sampler="sparse", style="torch")


def _demo_clips(frames: int, size: int) -> Preprocessing:
    """First frame to last, short side 256 for 224 px, PIL's bilinear, centre crop (Multi-Modalities-Pretraining)."""
    return Preprocessing(frames, size, sampler="linspace", resize=round(size * 256 / 224), style="pil")


def _language_clips(module: VideoLanguage) -> Preprocessing:
    return _demo_clips(module.config.vision.frames, module.config.vision.image_size)


def _viclip_clips(module: ViCLIP) -> Preprocessing:
    """viclip.py: squashed to the square, bicubic. The frame rule is not in the paper: middles of equal pieces."""
    config = module.config
    return Preprocessing(config.frames, config.image_size, sampler="segment_middle", squash=True, style="pil_bicubic")


def _clip_clips(module: Clip) -> Preprocessing:
    """Video-Text-Retrieval: bicubic, centre crop; eight frames."""
    return Preprocessing(8, module.config.image_size, sampler="linspace", style="pil_bicubic")


def _encoded(module: VideoLanguage | ViCLIP | Clip, clips: Tensor, step: int) -> Tensor:
    return module.encode_video(seen(module, clips))


def _clip_tokens(module: Clip, clips: Tensor, step: int) -> Tensor:
    return module.visual.class_tokens(seen(module, clips))


def _answer_config(module: FusedAnswer) -> Any:
    return module.config if isinstance(module, VideoQuestionAnswering) else module.model.config


def _joint_width(module: VideoLanguage) -> int:
    return module.config.joint_width or module.config.vision.width


# ------------------------------------------------------------------------------------------------- two encoders


def _interaction_config(module: CrossModel) -> InteractionConfig:
    return InteractionConfig(module.masked.config, module.multimodal.config, module.config)


def _both(module: CrossModel, clips: Tensor, step: int) -> tuple[Tensor, Tensor]:
    return seen(module.masked, clips), seen(module.multimodal, clips[:, :, ::step])


def _interaction_features(module: CrossModel, clips: Tensor, step: int) -> Tensor:
    """Both encoders' features, each of length one, side by side: neither drowns the other."""
    tokens, feature = module.interact(*_both(module, clips, step))
    parts = [module.masked.pool(tokens), feature]
    return torch.cat([nn.functional.normalize(part.float(), dim=1) for part in parts], dim=1)


def _interaction_tokens(module: CrossModel, clips: Tensor, step: int) -> Tensor:
    return module.interact(*_both(module, clips, step))[0]


def _interaction_scores(module: CrossModel, clips: Tensor, step: int) -> Tensor:
    return module(*_both(module, clips, step)).fused  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def _interaction_clips(module: CrossModel) -> Preprocessing:
    """As UniFormerV2 (paper 3.3), with the frames of the masked encoder."""
    return Preprocessing(module.masked.config.frames, module.masked.config.image_size, sampler="sparse", style="torch")


def _scores(module: nn.Module, clips: Tensor, step: int) -> Tensor:
    return module(seen(module, clips))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


FAMILIES: tuple[Family, ...] = (
    Family(VideoMAEPretrain, lambda m: m.config.width, _pretrain_features, _pretrain_tokens, _masked_clips),
    Family(
        VideoMAEClassifier,
        lambda m: m.config.width,
        lambda m, clips, step: m.features(seen(m, clips)),
        _classifier_tokens,
        _masked_clips,
        classes=lambda m: m.config.classes,
        scores=_scores,
    ),
    Family(  # an encoder whose tokens learned from boxes; what is done in a box is `evaluate spatio_temporal`'s
        ActionDetector,
        lambda m: m.config.width,
        lambda m, clips, step: _detector_tokens(m, clips, step).mean(dim=1),
        _detector_tokens,
        _masked_clips,
    ),
    Family(
        UniFormerV2,
        lambda m: m.config.width,
        lambda m, clips, step: m.features(seen(m, clips)),
        lambda m, clips, step: m.stages(seen(m, clips)).all_tokens.flatten(1, 2),
        _uniformer_clips,
        classes=lambda m: m.config.classes,
        scores=_scores,
    ),
    Family(
        VideoLanguage,
        _joint_width,
        _encoded,
        lambda m, clips, step: m.see(seen(m, clips)).tokens,
        _language_clips,
    ),
    Family(
        ViCLIP, lambda m: m.config.joint_width, _encoded, lambda m, c, step: m.visual.tokens(seen(m, c)), _viclip_clips
    ),
    Family(Clip, lambda m: m.config.joint_width, _encoded, _clip_tokens, _clip_clips),
    Family(
        FusedAnswer,
        lambda m: _joint_width(m.model),
        lambda m, clips, step: _encoded(m.model, clips, step),
        lambda m, clips, step: m.model.see(seen(m.model, clips)).tokens,
        lambda m: _language_clips(m.model),
        config=_answer_config,
        classes=lambda m: m.config.answers if isinstance(m, VideoQuestionAnswering) else 0,
    ),
    Family(
        CrossModel,
        lambda m: m.masked.config.width + m.multimodal.config.width,
        _interaction_features,
        _interaction_tokens,
        _interaction_clips,
        config=_interaction_config,
        classes=lambda m: m.multimodal.config.classes,
        scores=_interaction_scores,
    ),
)
"""Every kind of model that looks at videos."""


def family_of(module: nn.Module, name: str) -> Family:
    """The family of a model. Raises RecipeError for a part that sees no video by itself."""
    for family in FAMILIES:
        if isinstance(module, family.kind):
            return family
    raise RecipeError(f"model {name}", f"a {type(module).__name__} sees no video by itself", "a whole model")


def text_towers(module: nn.Module) -> VideoLanguage | ViCLIP | Clip | None:
    """The module as a model with videos and texts in one space, None when it has none."""
    return module if isinstance(module, VideoLanguage | ViCLIP | Clip) else None


def overrides_of(name: str, module: nn.Module) -> dict[str, object]:
    """What `create_model(name, ...)` needs to build this module again, as plain values."""
    return differences(MODELS[name].config, family_of(module, name).config(module))
