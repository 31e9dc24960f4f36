"""Named sizes of the multimodal models (UniFormerV2 configs, Multi-Modalities-Pretraining, viclip.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from internvideo.models.caption_decoder import CaptionDecoder, CaptionDecoderConfig
from internvideo.models.clip import CLIPConfig, CLIPModel, TextConfig
from internvideo.models.cross_model import InteractionConfig, build_cross_model
from internvideo.models.entry import ModelEntry
from internvideo.models.heads import AnswerConfig, PairScoringMultipleChoice, VideoQuestionAnswering
from internvideo.models.uniformerv2 import UniFormerV2, UniFormerV2Config
from internvideo.models.viclip import ViCLIP, ViCLIPConfig
from internvideo.models.video_language import VideoLanguage, VideoLanguageConfig
from internvideo.models.videomae import VideoMAEConfig

_B16 = UniFormerV2Config(
    image_size=224, patch_size=16, width=768, depth=12, heads=12, global_layers=(8, 9, 10, 11), frames=8
)
_L14 = UniFormerV2Config(
    image_size=224, patch_size=14, width=1024, depth=24, heads=16, global_layers=(20, 21, 22, 23), frames=8
)


def _something_something(config: UniFormerV2Config, num_stages: int) -> UniFormerV2Config:
    """Return the variant for Something-Something: local blocks, more global stages, temporal downsampling."""
    layers = tuple(range(config.depth - num_stages, config.depth))
    config = replace(config, frames=16, num_classes=174, global_layers=layers, local_blocks=2)
    return replace(config, temporal_downsample=True, backbone_drop_path=0.2, drop_path=0.4)


_LOCAL = "with local temporal blocks, for classes that depend on the direction of time"
_UNIFORMERV2 = {
    "uniformerv2-b16": (_B16, 114.552, "multimodal encoder B/16 with a head"),
    "uniformerv2-l14": (_L14, 354.100, "multimodal encoder L/14 with a head"),
    "uniformerv2-l14-336": (replace(_L14, image_size=336), 354.427, "multimodal encoder L/14 at 336 px with a head"),
    "uniformerv2-b16-ssv2": (_something_something(_B16, 8), 162.993, f"multimodal encoder B/16 {_LOCAL}"),
    "uniformerv2-l14-ssv2": (_something_something(_L14, 16), 573.950, f"multimodal encoder L/14 {_LOCAL}"),
}

_TEXT = {"b16": TextConfig(width=512, heads=8, layers=12), "l14": TextConfig(width=768, heads=12, layers=12)}
_TOWERS = {"b16": replace(_B16, num_classes=0), "l14": replace(_L14, num_classes=0)}
_MM_SIZES = {
    size: VideoLanguageConfig(vision=_TOWERS[size], text=text, joint_width=text.width) for size, text in _TEXT.items()
}


def _add_caption_decoder(config: VideoLanguageConfig, layers: int) -> VideoLanguageConfig:
    """Add a caption decoder of the text tower's width."""
    width = config.text.width
    decoder = CaptionDecoderConfig(width=width, heads=width // 64, vision_width=config.vision.width, layers=layers)
    return replace(config, caption=decoder)


_MM_CAPTION = {size: _add_caption_decoder(config, layers=6) for size, config in _MM_SIZES.items()}
"""Six decoder layers as in the paper; the released code has four: `caption: {layers: 4}`."""


def build_answering(config: AnswerConfig) -> VideoQuestionAnswering:
    """Build a question answering network from its config."""
    return VideoQuestionAnswering(config.model, config.num_answers, config.dropout, config.layers, config.use_video)


_ANSWERING = {size: _add_caption_decoder(config, layers=4) for size, config in _MM_SIZES.items()}
"""Four decoder layers as in the released answering networks (multi-modalities-downstream)."""
_QA_SIZES = {size: AnswerConfig(config, 1501) for size, config in _ANSWERING.items()}

_CLIP_TEXTS = {size: replace(text, mask_embedding=False) for size, text in _TEXT.items()}
_CLIP_SIZES = {
    "b32": CLIPConfig(224, 32, 768, 12, 12, _CLIP_TEXTS["b16"], 512),
    "b16": CLIPConfig(224, 16, 768, 12, 12, _CLIP_TEXTS["b16"], 512),
    "l14": CLIPConfig(224, 14, 1024, 24, 16, _CLIP_TEXTS["l14"], 768),
    "l14-336": CLIPConfig(336, 14, 1024, 24, 16, _CLIP_TEXTS["l14"], 768),
}

_VICLIP_TEXT = {size: replace(text, context_length=32) for size, text in _CLIP_TEXTS.items()}
_VICLIP = {
    size: ViCLIPConfig(224, tower.patch_size, tower.width, tower.depth, tower.heads, text.width, text)
    for (size, tower), text in zip(_TOWERS.items(), _VICLIP_TEXT.values(), strict=True)
}

_MASKED = {
    "b": VideoMAEConfig(width=768, depth=12, heads=12, num_classes=400),
    "l": VideoMAEConfig(width=1024, depth=24, heads=16, num_classes=400),
    "h": VideoMAEConfig(width=1280, depth=32, heads=16, num_classes=400),
}
_INTERACTION = {
    "interaction-b": (InteractionConfig(_MASKED["b"], _B16), "masked ViT-B with multimodal B/16, both frozen"),
    "interaction-l": (InteractionConfig(_MASKED["l"], _L14), "masked ViT-L with multimodal L/14, both frozen"),
    "interaction-h": (InteractionConfig(_MASKED["h"], _L14), "masked ViT-H with multimodal L/14, both frozen (paper)"),
}


def _rows(
    name: str, build: Callable[[Any], nn.Module], configs: Mapping[str, Any], description: str
) -> dict[str, ModelEntry]:
    return {name.format(size): ModelEntry(build, c, None, description.format(size)) for size, c in configs.items()}


MULTIMODAL_MODELS: dict[str, ModelEntry] = {
    **{name: ModelEntry(UniFormerV2, *row) for name, row in _UNIFORMERV2.items()},
    "internvideo-mm-b16": ModelEntry(VideoLanguage, _MM_SIZES["b16"], 178.066, "video and text towers B/16"),
    "internvideo-mm-l14": ModelEntry(VideoLanguage, _MM_SIZES["l14"], 478.127, "video and text towers L/14"),
    "internvideo-mm-b16-caption": ModelEntry(
        VideoLanguage, _MM_CAPTION["b16"], 178.066 + 71.201, "video and text towers B/16 and a caption decoder"
    ),
    "internvideo-mm-l14-caption": ModelEntry(
        VideoLanguage, _MM_CAPTION["l14"], 478.127 + 140.380, "video and text towers L/14 and a caption decoder"
    ),
    "viclip-b16": ModelEntry(ViCLIP, _VICLIP["b16"], None, "joint space-time video tower and text tower B/16"),
    "viclip-l14": ModelEntry(ViCLIP, _VICLIP["l14"], None, "joint space-time video tower and text tower L/14"),
    **_rows("internvideo-mm-{}-vqa", build_answering, _QA_SIZES, "question answering on {}"),
    **_rows("internvideo-mm-{}-choice", PairScoringMultipleChoice, _ANSWERING, "multiple choice on {}"),
    "caption-decoder-b16": ModelEntry(
        CaptionDecoder, _ANSWERING["b16"].caption, 56.257, "the caption decoder of b16 alone, four layers"
    ),
    "caption-decoder-l14": ModelEntry(
        CaptionDecoder, _ANSWERING["l14"].caption, 106.953, "the caption decoder of l14 alone, four layers"
    ),
    **_rows("clip-{}", CLIPModel, _CLIP_SIZES, "image and text towers {}, frame by frame"),
    **{
        name: ModelEntry(build_cross_model, config, None, description)
        for name, (config, description) in _INTERACTION.items()
    },
}
"""Name -> entry; merged into factory.BACKBONES."""
