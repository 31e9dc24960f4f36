"""Our VideoMAE and CLIP as transformers has them: parameter names, config.json and preprocessor_config.json.

The other direction is `transformers_names` and `published_config`. What transformers cannot represent is refused; the
one number that it fixes in its code, the epsilon of VideoMAE's norm of the mean, is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from internvideo.errors import RecipeError
from internvideo.models.clip import Clip, ClipConfig
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig, VideoMAEPretrain
from internvideo.weights.published_config import ACTIVATIONS, HEAD_EPS

WHERE = "layout transformers"
RESAMPLE = {"pil": 2, "pil_bicubic": 3, "opencv": 2, "torch": 2}
"""Our pixel arithmetic -> PIL's number of the interpolation."""
_THEIR_ACTIVATION = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


@dataclass(frozen=True)
class TransformersModel:
    """A model as transformers reads it.

    Attributes:
        architecture: its class there.
        state: parameters under its names. config: config.json.
        mean, std: of the pixels, per channel.
        notes: what is computed otherwise there, one sentence each.
    """

    architecture: str
    state: dict[str, Tensor]
    config: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()


def to_transformers(name: str, module: nn.Module, classes: tuple[str, ...]) -> TransformersModel:
    """Translate a model.

    Args:
        name: of the model, for messages. module: built by `create_model`. classes: names, () for none.

    Raises:
        RecipeError: transformers has no such architecture, or the model a setting that it lacks.
    """
    translate = TRANSLATIONS.get(type(module))
    if translate is None:
        raise RecipeError(WHERE, f"{name} does not exist there", "VideoMAE and CLIP", "save it in its own layout")
    return translate(module, classes)


# ---------------------------------------------------------------------------------------------------------- VideoMAE

_VIDEOMAE_LAYER = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def _pretraining(module: Any, classes: tuple[str, ...]) -> TransformersModel:
    return _videomae(module, (), pretrain=True)


def _classifier(module: Any, classes: tuple[str, ...]) -> TransformersModel:
    return _videomae(module, classes, pretrain=False)


def _videomae(module: Any, classes: tuple[str, ...], *, pretrain: bool) -> TransformersModel:
    config: VideoMAEConfig = module.config
    _check_videomae(config, pretrain)
    plain = not pretrain and not config.num_classes
    trunk = "" if plain else "videomae."
    names = {
        r"(?:encoder\.)?patch_embed\.proj": f"{trunk}embeddings.patch_embeddings.projection",
        r"(?:encoder\.)?norm": f"{trunk}layernorm",
        r"fc_norm": "fc_norm",
        r"head": "classifier",
        r"decoder\.(norm|head)": r"decoder.\1",
        r"encoder_to_decoder": "encoder_to_decoder",
        r"mask_token": "mask_token",
    }
    state: dict[str, Tensor] = {}
    for key, tensor in module.state_dict().items():
        layer = re.fullmatch(r"(encoder\.|decoder\.|)blocks\.(\d+)\.(.+)", key)
        if layer is None:
            found, kernel = _named(key, names), (config.tubelet, config.patch_size, config.patch_size)
            state[found] = tensor.unflatten(1, (3, *kernel)) if found.endswith("projection.weight") else tensor
            continue
        stack, number, rest = layer.groups()
        place = f"{'decoder.decoder_layers' if stack == 'decoder.' else f'{trunk}encoder.layer'}.{number}"
        state |= _layer(place, rest, tensor, _VIDEOMAE_LAYER, "attention.attention.", ("query", "key", "value"))
    kind = "Model" if plain else "ForPreTraining" if pretrain else "ForVideoClassification"
    notes: tuple[str, ...] = ()
    if not plain and config.head_eps != HEAD_EPS:
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
    found: dict[str, Any] = {
        "model_type": "videomae",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "num_frames": config.frames,
        "tubelet_size": config.tubelet,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": int(config.width * config.mlp_ratio),
        "hidden_act": _THEIR_ACTIVATION[config.activation],
        "layer_norm_eps": config.eps,
        "qkv_bias": config.qkv_bias,
        "use_mean_pooling": not config.final_norm if pretrain else config.pooling == "mean",
        "decoder_hidden_size": config.decoder_width,
        "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_num_attention_heads": config.decoder_heads,
        "decoder_intermediate_size": int(config.decoder_width * config.mlp_ratio),
        "norm_pix_loss": True,
    }
    if classes:
        found["id2label"] = {str(number): name for number, name in enumerate(classes)}
        found["label2id"] = {name: number for number, name in enumerate(classes)}
    return found


# -------------------------------------------------------------------------------------------------------------- CLIP

_CLIP_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_CLIP_NAMES = {
    r"visual\.stem\.class_embedding": "vision_model.embeddings.class_embedding",
    r"visual\.stem\.conv": "vision_model.embeddings.patch_embedding",
    r"visual\.stem\.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    r"visual\.stem\.norm": "vision_model.pre_layrnorm",  # so spelled
    r"visual\.norm": "vision_model.post_layernorm",
    r"visual\.projection": "visual_projection.weight",
    r"text\.token_embedding": "text_model.embeddings.token_embedding",
    r"text\.positional_embedding": "text_model.embeddings.position_embedding.weight",
    r"text\.norm": "text_model.final_layer_norm",
    r"text\.projection": "text_projection.weight",
    r"logit_scale": "logit_scale",
}


def _clip(module: Any, classes: tuple[str, ...]) -> TransformersModel:
    config: ClipConfig = module.config
    text = config.text
    if text.mask_embedding:
        raise RecipeError(WHERE, "a text tower with a mask embedding", "a plain CLIP")
    state: dict[str, Tensor] = {}
    for key, tensor in module.state_dict().items():
        layer = re.fullmatch(r"(visual|text)\.blocks\.(\d+)\.(.+)", key)
        if layer is not None:
            tower, number, rest = layer.groups()
            place = f"{'vision' if tower == 'visual' else 'text'}_model.encoder.layers.{number}"
            state |= _layer(place, rest, tensor, _CLIP_LAYER, "self_attn.", ("q_proj", "k_proj", "v_proj"))
            continue
        found = _named(key, _CLIP_NAMES)
        if key.endswith("projection"):
            tensor = tensor.t()
        if key == "logit_scale":
            tensor = tensor.reshape(())
        state[found] = tensor.squeeze(2) if found.endswith("patch_embedding.weight") else tensor
    vision = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        **_tower(config.width, config.depth, config.heads, config.mlp_ratio, config.activation, config.eps),
        "projection_dim": config.joint_width,
    }
    words = {
        "vocab_size": text.vocabulary,
        "max_position_embeddings": text.context,
        **_tower(text.width, text.layers, text.heads, text.mlp_ratio, text.activation, text.eps),
        "projection_dim": config.joint_width,
        "bos_token_id": text.vocabulary - 2,
        "eos_token_id": text.vocabulary - 1,
        "pad_token_id": text.vocabulary - 1,
    }
    found_config = {
        "model_type": "clip",
        "projection_dim": config.joint_width,
        "vision_config": {"model_type": "clip_vision_model", **vision},
        "text_config": {"model_type": "clip_text_model", **words},
    }
    notes = ("images one by one: the vector of a video is the mean of those of its frames, which internvideo computes",)
    return TransformersModel("CLIPModel", state, found_config, config.mean, config.std, notes)


def _tower(width: int, depth: int, heads: int, ratio: float, activation: str, eps: float) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": int(width * ratio),
        "hidden_act": _THEIR_ACTIVATION[activation],
        "layer_norm_eps": eps,
    }


# ------------------------------------------------------------------------------------------------------------ shared


def _named(key: str, names: Mapping[str, str]) -> str:
    """A key outside of the layers under their name; the ending stays. Raises ValueError: no such key."""
    for ours, theirs in names.items():
        if match := re.fullmatch(rf"{ours}(\.weight|\.bias|)", key):
            return match.expand(theirs) + match.groups()[-1]
    raise ValueError(f"no name in transformers for {key}")


def _layer(
    place: str, rest: str, tensor: Tensor, names: Mapping[str, str], attention: str, parts: tuple[str, str, str]
) -> dict[str, Tensor]:
    """One parameter of a layer: renamed, and query, key and value taken apart. Raises ValueError: no such name."""
    if rest in ("attn.qkv.weight", "attn.qkv.bias"):
        leaf = rest.rpartition(".")[2]
        pieces = zip(parts, tensor.chunk(3), strict=True)
        return {f"{place}.{attention}{part}.{leaf}": piece.contiguous() for part, piece in pieces}
    if rest in ("attn.q_bias", "attn.v_bias"):
        return {f"{place}.{attention}{parts[0 if rest == 'attn.q_bias' else 2]}.bias": tensor}
    name, _, leaf = rest.rpartition(".")
    if name not in names:
        raise ValueError(f"no name in transformers for {rest}")
    return {f"{place}.{names[name]}.{leaf}": tensor}


TRANSLATIONS: dict[type[nn.Module], Callable[[Any, tuple[str, ...]], TransformersModel]] = {
    Clip: _clip,
    VideoMAEPretrain: _pretraining,
    VideoMAEClassifier: _classifier,
}
"""Model class -> (module, names of the classes) to what transformers reads."""
