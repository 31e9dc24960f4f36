"""Export our VideoMAE and CLIP to transformers: state dict and config.json.

The tables of names and fields are those of the import, `transformers_names` and `published_config`. Settings that
transformers cannot represent raise an error, except the epsilon of the norm of VideoMAE's mean, which is a constant in
its code: a note reports the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from internvideo.errors import RecipeError
from internvideo.models.clip import CLIPConfig, CLIPModel
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig, VideoMAEPretrain
from internvideo.weights import transformers_names
from internvideo.weights.key_tables import CLIP
from internvideo.weights.published_config import (
    CLIP_TEXT,
    CLIP_VISION,
    HEAD_EPS,
    VIDEOMAE,
    VIDEOMAE_DECODER,
    config_fields,
)

WHERE = "layout transformers"
RESAMPLE = {"pil": 2, "pil_bicubic": 3, "opencv": 2, "torch": 2}
"""Resize backend -> PIL's interpolation constant."""


@dataclass(frozen=True)
class TransformersModel:
    """A model in the format of transformers.

    Attributes:
        architecture: class in transformers.
        state: parameters under the names of transformers. config: content of config.json.
        mean, std: of the pixels, per channel.
        notes: differences in the computation of transformers, one sentence each.
    """

    architecture: str
    state: dict[str, Tensor]
    config: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()


def to_transformers(name: str, module: nn.Module, classes: tuple[str, ...]) -> TransformersModel:
    """Convert a model.

    Args:
        name: of the model, for messages. module: built by `create_model`. classes: class names, () for none.

    Raises RecipeError: transformers has no such architecture or not a setting of the model.
    """
    converter = CONVERTERS.get(type(module))
    if converter is None:
        fields = f"{name} does not exist in transformers"
        raise RecipeError(WHERE, fields, "VideoMAE or CLIP", "save it in the layout internvideo")
    return converter(module, classes)


# ---------------------------------------------------------------------------------------------------------- VideoMAE


def _videomae(module: Any, classes: tuple[str, ...], *, pretrain: bool) -> TransformersModel:
    config: VideoMAEConfig = module.config
    _check_videomae(config, pretrain)
    encoder_only = not pretrain and not config.num_classes
    kernel = (3, config.tubelet, config.patch_size, config.patch_size)
    published = {
        key: tensor.unflatten(1, kernel) if key.endswith("patch_embed.proj.weight") else tensor
        for key, tensor in module.state_dict().items()
    }
    table = transformers_names.VIDEOMAE_PRETRAIN if pretrain else transformers_names.VIDEOMAE_CLASSIFIER
    backbone = () if encoder_only else ("embeddings.", "encoder.", "layernorm.")
    state = {
        f"videomae.{key}" if key.startswith(backbone) else key: tensor
        for key, tensor in transformers_names.to_transformers(published, table).items()
    }
    kind = "Model" if encoder_only else "ForPreTraining" if pretrain else "ForVideoClassification"
    notes: tuple[str, ...] = ()
    if not encoder_only and config.head_eps != HEAD_EPS:
        what = "the decoder's last norm" if pretrain else "the norm of the mean"
        notes = (f"epsilon of {what}: {config.head_eps:g} in internvideo, {HEAD_EPS:g} in transformers' code",)
    return TransformersModel(
        f"VideoMAE{kind}", state, _videomae_config(config, pretrain, classes), config.mean, config.std, notes
    )


def _check_videomae(config: VideoMAEConfig, pretrain: bool) -> None:
    native = (config.image_size, config.frames) == config.native_clip
    for setting, fits, expected in (
        ("layer_scale", not config.layer_scale, "0"),
        ("learnable_positions", not config.learnable_positions, "false"),
        ("position_table", config.position_table == "native" or native, "native: it computes positions for the clip"),
    ):
        if not fits:
            raise RecipeError(WHERE, f"{setting} {getattr(config, setting)}", expected)
    if not pretrain and config.num_classes and not config.final_norm:
        raise RecipeError(WHERE, "a classifier without a norm", "final_norm true")
    if not pretrain and not config.num_classes and config.pooling == "mean" and config.final_norm:
        hint = "save the classifier: VideoMAEModel.from_pretrained reads its encoder"
        raise RecipeError(WHERE, "an encoder with a norm of the mean", "final_norm false", hint)


def _videomae_config(config: VideoMAEConfig, pretrain: bool, classes: tuple[str, ...]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model_type": "videomae",
        "num_channels": 3,
        **config_fields(config, {**VIDEOMAE, **VIDEOMAE_DECODER}),
        "intermediate_size": int(config.width * config.mlp_ratio),
        "use_mean_pooling": not config.final_norm if pretrain else config.pooling == "mean",
        "decoder_intermediate_size": int(config.decoder_width * config.mlp_ratio),
        "norm_pix_loss": True,
    }
    if classes:
        fields["id2label"] = {str(index): name for index, name in enumerate(classes)}
        fields["label2id"] = {name: index for index, name in enumerate(classes)}
    return fields


# -------------------------------------------------------------------------------------------------------------- CLIP


def _clip(module: Any, classes: tuple[str, ...]) -> TransformersModel:
    config: CLIPConfig = module.config
    text = config.text
    if text.mask_embedding:
        raise RecipeError(WHERE, "a text tower with a mask embedding", "a plain CLIP")
    published = {CLIP.published_key(key): tensor for key, tensor in module.state_dict().items()}
    published["visual.conv1.weight"] = published["visual.conv1.weight"].squeeze(2)
    published["logit_scale"] = published["logit_scale"].reshape(())
    state = transformers_names.to_transformers(published, transformers_names.CLIP)
    vision_config = {
        **config_fields(config, CLIP_VISION),
        "intermediate_size": int(config.width * config.mlp_ratio),
        "projection_dim": config.joint_width,
    }
    text_config = {
        **config_fields(text, CLIP_TEXT),
        "intermediate_size": int(text.width * text.mlp_ratio),
        "projection_dim": config.joint_width,
        "bos_token_id": text.vocab_size - 2,
        "eos_token_id": text.vocab_size - 1,
        "pad_token_id": text.vocab_size - 1,
    }
    full_config = {
        "model_type": "clip",
        "projection_dim": config.joint_width,
        "vision_config": {"model_type": "clip_vision_model", **vision_config},
        "text_config": {"model_type": "clip_text_model", **text_config},
    }
    notes = ("transformers encodes images one by one; internvideo averages the vectors of the frames of a video",)
    return TransformersModel("CLIPModel", state, full_config, config.mean, config.std, notes)


CONVERTERS: dict[type[nn.Module], Callable[[Any, tuple[str, ...]], TransformersModel]] = {
    CLIPModel: _clip,
    VideoMAEPretrain: partial(_videomae, pretrain=True),
    VideoMAEClassifier: partial(_videomae, pretrain=False),
}
"""Model class -> function of (module, class names)."""
