"""Infer the sizes of a model from the shapes of its published tensors.

Sizes that shapes do not determine come from a published model: frames and image size of a model with fixed positions,
and every setting without a tensor (drop path, dropout). The number of heads and the layers that global blocks read are
taken only from a published model of the same width and depth; otherwise the user must give them. Frames and image size
of learned positions follow from temporal positions x side^2 = number of tokens; if that is ambiguous they are 0 and the
user must give them. Source:
modeling_pretrain.py, UniFormerV2 configs, Multi-Modalities-Pretraining, multi-modalities-downstream, viclip.py,
published checkpoints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from internvideo.errors import WeightsError
from internvideo.models.caption_decoder import CaptionDecoderConfig
from internvideo.models.clip import CLIPConfig, TextConfig
from internvideo.models.external.internvideo2 import InternVideo2Config
from internvideo.models.external.siglip import SigLIPConfig
from internvideo.models.external.vjepa2 import VJEPA2Config
from internvideo.models.heads import AnswerConfig
from internvideo.models.positions import NATIVE_TIMES, infer_learned_grid
from internvideo.models.uniformerv2 import UniFormerV2Config
from internvideo.models.viclip import ViCLIPConfig
from internvideo.models.video_language import VideoLanguageConfig
from internvideo.models.videomae import VideoMAEConfig

C = TypeVar("C")


class Shapes:
    """Shapes of the tensors of a state dict under published names; `family` and `where` are for messages."""

    def __init__(self, state: Mapping[str, Tensor], family: str, where: object = "state dict") -> None:
        self.state, self.family, self.where = state, family, where

    def __contains__(self, key: str) -> bool:
        return key in self.state

    def of(self, key: str, dims: int) -> tuple[int, ...]:
        """Return the shape of a required tensor. Raises WeightsError: absent, empty, another number of dimensions."""
        tensor = self.state.get(key)
        if tensor is None:
            hint = "likely cause: the file is incomplete"
            raise WeightsError(self.where, f"{key}: missing", f"a {self.family} checkpoint", hint)
        shape = tuple(tensor.shape)
        if len(shape) != dims or 0 in shape:
            raise WeightsError(self.where, f"{key}: mis-shaped: {shape}", f"{dims} dimensions in {self.family}")
        return shape

    def layers(self, stem: str) -> int:
        """Return the number of layers: 1 + the largest index after `stem` in a key."""
        matches = [re.match(rf"{re.escape(stem)}(\d+)\.", key) for key in self.state]
        indices = [int(match.group(1)) for match in matches if match is not None]
        if not indices:
            raise WeightsError(self.where, f"{stem}0: missing", f"a {self.family} checkpoint", "the file has no layers")
        return 1 + max(indices)


def heads_of_published_size(size: tuple[int, ...], base: tuple[int, ...], base_heads: int) -> int:
    """Return the number of heads of a published size such as (width, depth); 0 (unknown) for any other."""
    return base_heads if size == base else 0


def _transformer_config(
    shapes: Shapes, base: C, layers: str, width: int, mlp_dim: int | None = None, **settings: object
) -> C:
    """Return `base` with width, depth, heads and (if `mlp_dim` is given) MLP ratio of a transformer.

    Args:
        layers: prefix of the keys of the layers. settings: further settings.
    """
    config: Any = base
    depth = shapes.layers(layers)
    if mlp_dim is not None:
        settings["mlp_ratio"] = _ratio(config.mlp_ratio, width, mlp_dim)
    heads = heads_of_published_size((width, depth), (config.width, config.depth), config.heads)
    inferred: C = replace(config, width=width, depth=depth, heads=heads, **settings)
    return inferred


def _ratio(base: float, width: int, dim: int) -> float:
    """Return r with int(r * width) = `dim`; `base` if it satisfies that."""
    if int(base * width) == dim:
        return base
    exact = dim / width
    return exact if int(exact * width) == dim else (dim + 0.5) / width


def _round_down(base: int, step: int) -> int:
    """Round `base` down to a multiple of `step`, at least `step`."""
    return max(step, base - base % step)


def _videomae(shapes: Shapes, base: VideoMAEConfig, trunk: str) -> VideoMAEConfig:
    width, _, tubelet, patch, _ = shapes.of(f"{trunk}patch_embed.proj.weight", 5)
    mlp_dim, _ = shapes.of(f"{trunk}blocks.0.mlp.fc1.weight", 2)
    native = (base.native_clip[0], NATIVE_TIMES if tubelet == 1 else base.native_clip[1])  # 8 frames: UMT
    config = _transformer_config(
        shapes, base, f"{trunk}blocks.", width, mlp_dim,
        image_size=_round_down(base.image_size, patch),
        patch_size=patch,
        frames=_round_down(native[1] if tubelet == 1 else base.frames, tubelet),
        native_clip=native,
        tubelet=tubelet,
        layer_scale=0.1 if f"{trunk}blocks.0.gamma_1" in shapes else 0.0,
        learnable_positions=f"{trunk}pos_embed" in shapes,
    )  # fmt: skip
    if not config.learnable_positions:
        return config
    grid = infer_learned_grid(shapes.of(f"{trunk}pos_embed", 3)[1], config.grid[1])
    if grid is None:  # the user must give them
        return replace(config, image_size=0, frames=0)
    return replace(config, image_size=grid[1] * patch, frames=grid[0] * tubelet)


def videomae_pretrain(shapes: Shapes, base: VideoMAEConfig) -> VideoMAEConfig:
    """Infer the sizes of encoder and decoder."""
    width, _ = shapes.of("encoder_to_decoder.weight", 2)
    return replace(
        _videomae(shapes, base, "encoder."),
        qkv_bias="encoder.blocks.0.attn.q_bias" in shapes,
        decoder_width=width,
        decoder_depth=shapes.layers("decoder.blocks."),
        decoder_heads=heads_of_published_size((width,), (base.decoder_width,), base.decoder_heads),
    )


def videomae_classifier(shapes: Shapes, base: VideoMAEConfig) -> VideoMAEConfig:
    """Infer the sizes of encoder and head; num_classes is 0 for an encoder without head."""
    pools_first_token = "norm.weight" in shapes and "fc_norm.weight" not in shapes
    return replace(
        _videomae(shapes, base, ""),
        qkv_bias="blocks.0.attn.q_bias" in shapes,
        num_classes=shapes.of("head.weight", 2)[0] if "head.weight" in shapes else 0,
        pooling="first" if pools_first_token else "mean",
    )


def of_transformers(shapes: Shapes, config: VideoMAEConfig) -> VideoMAEConfig:
    """Complete a config for the layout of transformers: query and value biases; with or without the last norm."""
    final = any(name in shapes for name in ("encoder.norm.weight", "norm.weight", "fc_norm.weight"))
    return replace(config, qkv_bias=True, final_norm=final or config.num_classes > 0)


def _frame_stem(shapes: Shapes, prefix: str) -> tuple[int, int, int, int]:
    """Infer (image size, patch, width, frames of the patch kernel) of CLIP's frame stem."""
    kernel = shapes.state.get(f"{prefix}conv1.weight")
    width, _, *time, patch, _ = shapes.of(f"{prefix}conv1.weight", 4 if kernel is not None and kernel.dim() == 4 else 5)
    tokens, _ = shapes.of(f"{prefix}positional_embedding", 2)
    side = math.isqrt(tokens - 1)
    if side * side + 1 != tokens:
        found = f"{prefix}positional_embedding: {tokens} positions"
        raise WeightsError(shapes.where, found, "1 + a square", "the image is not square")
    return side * patch, patch, width, time[0] if time else 1


def uniformerv2(shapes: Shapes, base: UniFormerV2Config, prefix: str = "") -> UniFormerV2Config:
    """Infer the sizes of the multimodal encoder, also as a video tower."""
    image, patch, width, kernel = _frame_stem(shapes, prefix)
    layers, stages = f"{prefix}transformer.resblocks.", shapes.layers(f"{prefix}transformer.dec.")
    depth = shapes.layers(layers)
    same_stages = depth == base.depth and stages == len(base.global_layers)
    local = next((n for n in (2, 1) if f"{layers}0.lmhra{n}.pos_embed.1.weight" in shapes), 0)
    reduction = base.local_reduction
    if local:
        dim = shapes.of(f"{layers}0.lmhra1.pos_embed.1.weight", 5)[0]
        reduction = reduction if int(width / reduction) == dim else width / dim
    head = f"{prefix}transformer.proj.2.weight"
    return _transformer_config(
        shapes, base, layers, width,
        image_size=image,
        patch_size=patch,
        global_layers=base.global_layers if same_stages else tuple(range(max(0, depth - stages), depth)),
        num_classes=shapes.of(head, 2)[0] if head in shapes else 0,
        mlp_ratio=_ratio(base.mlp_ratio, width, shapes.of(f"{prefix}transformer.dec.0.mlp.c_fc.weight", 2)[0]),
        local_blocks=local,
        local_reduction=reduction,
        temporal_downsample=kernel > 1,
        balance=f"{prefix}transformer.balance" in shapes,
    )  # fmt: skip


def text_tower(shapes: Shapes, base: TextConfig, prefix: str = "") -> TextConfig:
    """Infer the sizes of CLIP's text tower."""
    vocab_size, width = shapes.of(f"{prefix}token_embedding.weight", 2)
    layers = shapes.layers(f"{prefix}transformer.resblocks.")
    mlp_dim, _ = shapes.of(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)
    return replace(
        base,
        width=width,
        heads=heads_of_published_size((width, layers), (base.width, base.layers), base.heads),
        layers=layers,
        mlp_ratio=_ratio(base.mlp_ratio, width, mlp_dim),
        vocab_size=vocab_size,
        context_length=shapes.of(f"{prefix}positional_embedding", 2)[0],
        mask_embedding=f"{prefix}text_mask_embedding" in shapes,
    )


def caption_decoder(shapes: Shapes, base: CaptionDecoderConfig, prefix: str = "") -> CaptionDecoderConfig:
    """Infer the sizes of the caption decoder; all heads share one key and one value head, which gives their number."""
    num_queries, width = shapes.of(f"{prefix}visual_queries", 2)
    key_value_dim, vision = shapes.of(f"{prefix}visual_attn_pooler.to_kv.weight", 2)
    vocabulary_layer = f"{prefix}predictor.4.weight"
    return replace(
        base,
        width=width,
        heads=max(1, 2 * width // key_value_dim),
        vision_width=vision,
        layers=shapes.layers(f"{prefix}multimodal_layers."),
        vocab_size=shapes.of(vocabulary_layer, 2)[0] if vocabulary_layer in shapes else base.vocab_size,
        num_queries=num_queries,
        mlp_ratio=shapes.of(f"{prefix}multimodal_layers.0.0.fn.ff_out.1.weight", 2)[1] // width,
    )


def video_language(shapes: Shapes, base: VideoLanguageConfig, prefix: str = "") -> VideoLanguageConfig:
    """Infer the sizes of video and text towers, with a caption decoder where `base` has one."""
    joint = f"{prefix}visual_proj"
    return replace(
        base,
        vision=uniformerv2(shapes, base.vision, f"{prefix}visual."),
        text=text_tower(shapes, base.text, prefix),
        joint_width=shapes.of(joint, 2)[1] if joint in shapes else 0,
        caption=caption_decoder(shapes, base.caption, "caption_decoder.") if base.caption else None,
    )


def multiple_choice(shapes: Shapes, base: VideoLanguageConfig) -> VideoLanguageConfig:
    """Infer the sizes of towers and caption decoder; the vocabulary layer is absent."""
    return replace(video_language(shapes, base, "clip."), joint_width=base.joint_width)


def question_answering(shapes: Shapes, base: AnswerConfig) -> AnswerConfig:
    """Infer the sizes of towers and caption decoder, and the number of answers; the vocabulary layer is absent."""
    return replace(
        base, model=multiple_choice(shapes, base.model), num_answers=shapes.of("vqa_classifier.5.weight", 2)[0]
    )


def viclip(shapes: Shapes, base: ViCLIPConfig) -> ViCLIPConfig:
    """Infer the sizes of the joint space-time video tower and the text tower."""
    image, patch, width, _ = _frame_stem(shapes, "vision_encoder.")
    return _transformer_config(
        shapes, base, "vision_encoder.transformer.resblocks.", width,
        image_size=image,
        patch_size=patch,
        joint_width=shapes.of("vision_encoder.proj", 2)[1],
        text=text_tower(shapes, base.text, "text_encoder."),
        frames=shapes.of("vision_encoder.temporal_positional_embedding", 3)[1],
    )  # fmt: skip


def vjepa2(shapes: Shapes, base: VJEPA2Config) -> VJEPA2Config:
    """Infer the sizes of the encoder; image size and frames are only in config.json."""
    width, _, tubelet, patch, _ = shapes.of("encoder.embeddings.patch_embeddings.proj.weight", 5)
    mlp_dim, _ = shapes.of("encoder.layer.0.mlp.fc1.weight", 2)
    bias = "encoder.layer.0.attention.query.bias" in shapes
    return _transformer_config(
        shapes, base, "encoder.layer.", width, mlp_dim, patch_size=patch, tubelet=tubelet, qkv_bias=bias
    )


def internvideo2(shapes: Shapes, base: InternVideo2Config) -> InternVideo2Config:
    """Infer the sizes of the video encoder; frames and image size follow from its positions."""
    width, _, tubelet, patch, _ = shapes.of("patch_embed.proj.weight", 5)
    if tubelet != 1:
        raise WeightsError(shapes.where, f"InternVideo2 with tubelets of {tubelet} frames", "1", "take another file")
    depth, (_, tokens, _) = shapes.layers("blocks."), shapes.of("pos_embed", 3)
    mlp_dim, _ = shapes.of("blocks.0.mlp.fc1.weight", 2)
    frames, side = infer_learned_grid(tokens - 1, base.grid[1]) or (0, 0)
    align = "vision_align.1.weight"
    return _transformer_config(
        shapes, base, "blocks.", width, mlp_dim,
        image_size=side * patch,
        patch_size=patch,
        frames=frames,
        pool_heads=heads_of_published_size((width, depth), (base.width, base.depth), base.pool_heads),
        joint_width=shapes.of("clip_projector.cross_attn.proj.weight", 2)[0],
        align_width=shapes.of(align, 2)[0] if align in shapes else 0,
    )  # fmt: skip


def siglip(shapes: Shapes, base: SigLIPConfig) -> SigLIPConfig:
    """Infer the sizes of the image encoder."""
    kernel = "embeddings.patch_embedding.weight"
    if kernel in shapes and shapes.state[kernel].dim() == 2:
        found, hint = "SigLIP 2 for images of any aspect (NaFlex)", "take siglip2-base-patch16-224 or the like"
        raise WeightsError(shapes.where, found, "SigLIP or SigLIP 2 of one image size", hint)
    width, _, patch, _ = shapes.of(kernel, 4)
    tokens, _ = shapes.of("embeddings.position_embedding.weight", 2)
    mlp_dim, _ = shapes.of("transformer.resblocks.0.mlp.c_fc.weight", 2)
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise WeightsError(shapes.where, f"{tokens} positions of patches", "a square", "the image is not square")
    return _transformer_config(
        shapes, base, "transformer.resblocks.", width, mlp_dim, image_size=side * patch, patch_size=patch
    )


def clip(shapes: Shapes, base: CLIPConfig) -> CLIPConfig:
    """Infer the sizes of image and text towers."""
    image, patch, width, _ = _frame_stem(shapes, "visual.")
    mlp_dim, _ = shapes.of("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)
    return _transformer_config(
        shapes, base, "visual.transformer.resblocks.", width, mlp_dim,
        image_size=image,
        patch_size=patch,
        joint_width=shapes.of("visual.proj", 2)[1],
        text=text_tower(shapes, base.text),
    )  # fmt: skip
