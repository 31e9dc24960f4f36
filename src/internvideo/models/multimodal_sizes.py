"""The named sizes of the multimodal family (UniFormerV2 configs, Multi-Modalities-Pretraining, viclip.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from internvideo.models.caption_decoder import CaptionDecoder, CaptionDecoderConfig
from internvideo.models.clip import Clip, ClipConfig, TextConfig
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


def _something_something(config: UniFormerV2Config, stages: int) -> UniFormerV2Config:
    """Return the variant with local blocks, twice the global stages and halved frames."""
    layers = tuple(range(config.depth - stages, config.depth))
    config = replace(config, frames=16, num_classes=174, global_layers=layers, local_blocks=2)
    return replace(config, temporal_downsample=True, backbone_drop_path=0.2, drop_path=0.4)


_DIRECTED = "with local temporal blocks, for time-directed classes"
_UNIFORMERV2 = {
    "uniformerv2-b16": (_B16, 114.552, "multimodal encoder B/16 with a head"),
    "uniformerv2-l14": (_L14, 354.100, "multimodal encoder L/14 with a head"),
    "uniformerv2-l14-336": (replace(_L14, image_size=336), 354.427, "multimodal encoder L/14 at 336 px with a head"),
    "uniformerv2-b16-ssv2": (_something_something(_B16, 8), 162.993, f"multimodal encoder B/16 {_DIRECTED}"),
    "uniformerv2-l14-ssv2": (_something_something(_L14, 16), 573.950, f"multimodal encoder L/14 {_DIRECTED}"),
}

_TEXT = {"b16": TextConfig(width=512, heads=8, layers=12), "l14": TextConfig(width=768, heads=12, layers=12)}
_TOWERS = {"b16": replace(_B16, num_classes=0), "l14": replace(_L14, num_classes=0)}
_MM = {
    size: VideoLanguageConfig(vision=_TOWERS[size], text=text, joint_width=text.width) for size, text in _TEXT.items()
}


def _captioner(config: VideoLanguageConfig, layers: int) -> VideoLanguageConfig:
    """Add a caption decoder of the text tower's width."""
    width = config.text.width
    decoder = CaptionDecoderConfig(width=width, heads=width // 64, vision_width=config.vision.width, layers=layers)
    return replace(config, caption=decoder)


_MM_CAPTION = {size: _captioner(config, layers=6) for size, config in _MM.items()}
"""Six decoder layers as in the paper; the released code has four: `caption: {layers: 4}`."""


def build_answering(config: AnswerConfig) -> VideoQuestionAnswering:
    """Build the network of a config."""
    return VideoQuestionAnswering(config.model, config.answers, config.dropout, config.layers, config.video)


_ANSWERING = {size: _captioner(config, layers=4) for size, config in _MM.items()}
"""Four decoder layers as in the released answering networks (multi-modalities-downstream)."""
_QA = {size: AnswerConfig(config, 1501) for size, config in _ANSWERING.items()}

_CLIP_TEXT = {size: replace(text, mask_embedding=False) for size, text in _TEXT.items()}
_CLIP = {
    "b32": ClipConfig(224, 32, 768, 12, 12, _CLIP_TEXT["b16"], 512),
    "b16": ClipConfig(224, 16, 768, 12, 12, _CLIP_TEXT["b16"], 512),
    "l14": ClipConfig(224, 14, 1024, 24, 16, _CLIP_TEXT["l14"], 768),
    "l14-336": ClipConfig(336, 14, 1024, 24, 16, _CLIP_TEXT["l14"], 768),
}

_VICLIP_TEXT = {size: replace(text, context=32) for size, text in _CLIP_TEXT.items()}
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
    name: str, build: Callable[[Any], nn.Module], configs: Mapping[str, Any], about: str
) -> dict[str, ModelEntry]:
    return {name.format(size): ModelEntry(build, c, None, about.format(size)) for size, c in configs.items()}


MULTIMODAL_MODELS: dict[str, ModelEntry] = {
    **{name: ModelEntry(UniFormerV2, *row) for name, row in _UNIFORMERV2.items()},
    "internvideo-mm-b16": ModelEntry(VideoLanguage, _MM["b16"], 178.066, "video and text towers B/16"),
    "internvideo-mm-l14": ModelEntry(VideoLanguage, _MM["l14"], 478.127, "video and text towers L/14"),
    "internvideo-mm-b16-caption": ModelEntry(
        VideoLanguage, _MM_CAPTION["b16"], 178.066 + 71.201, "video and text towers B/16 and a caption decoder"
    ),
    "internvideo-mm-l14-caption": ModelEntry(
        VideoLanguage, _MM_CAPTION["l14"], 478.127 + 140.380, "video and text towers L/14 and a caption decoder"
    ),
    "viclip-b16": ModelEntry(ViCLIP, _VICLIP["b16"], None, "joint space-time video tower and text tower B/16"),
    "viclip-l14": ModelEntry(ViCLIP, _VICLIP["l14"], None, "joint space-time video tower and text tower L/14"),
    **_rows("internvideo-mm-{}-vqa", build_answering, _QA, "question answering on {}"),
    **_rows("internvideo-mm-{}-choice", PairScoringMultipleChoice, _ANSWERING, "multiple choice on {}"),
    "caption-decoder-b16": ModelEntry(
        CaptionDecoder, _ANSWERING["b16"].caption, 56.257, "the caption decoder of b16 alone, four layers"
    ),
    "caption-decoder-l14": ModelEntry(
        CaptionDecoder, _ANSWERING["l14"].caption, 106.953, "the caption decoder of l14 alone, four layers"
    ),
    **_rows("clip-{}", Clip, _CLIP, "image and text towers {}, frame by frame"),
    **{name: ModelEntry(build_cross_model, config, None, about) for name, (config, about) in _INTERACTION.items()},
}
"""Name -> entry; merged into factory.BACKBONES."""
