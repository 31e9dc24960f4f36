"""Read the config of a published model: config.json of transformers, open_clip_config.json.

Every field that changes the computation either maps to a setting of our model or must equal the fixed value of our
model; fields that the tensors also determine must agree with them. Absent fields have the default of the package that
wrote the file. Sources: configuration classes of github.com/huggingface/transformers (VideoMAE, CLIP), and
`model_configs` of github.com/mlfoundations/open_clip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from internvideo import untrusted
from internvideo.errors import WeightsError
from internvideo.models.factory import configure
from internvideo.weights.layouts import Layout, flatten_overrides, merge_overrides

ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_tanh"),
    **dict.fromkeys(("silu", "swish"), "silu"),
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
"""Activation in transformers -> ours; the variants of "gelu_tanh" differ only by rounding."""

_TRANSFORMERS_ACTIVATION = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}

HEAD_EPS = 1e-5
"""Epsilon of the norms that transformers' VideoMAE creates with PyTorch's default."""


@dataclass(frozen=True)
class Parsed:
    """The result of reading a config.

    Attributes:
        layout: with the settings of the config.
        classes: class names, () for none.
        ignored: unknown keys.
    """

    layout: Layout
    classes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Field:
    """A field of a config: its default, our setting, and whether the tensors determine the value too."""

    default: object
    ours: str
    in_tensors: bool = False


def _transformer(
    width: int, depth: int, heads: int, activation: str, eps: float, *, depth_name: str = "depth"
) -> dict[str, _Field]:
    """Return the fields that all these configs have, with their defaults."""
    return {
        "hidden_size": _Field(width, "width", True),
        "num_hidden_layers": _Field(depth, depth_name, True),
        "num_attention_heads": _Field(heads, "heads"),
        "hidden_act": _Field(activation, "activation"),
        "layer_norm_eps": _Field(eps, "eps"),
    }


VIDEOMAE = {
    "image_size": _Field(224, "image_size"),
    "num_frames": _Field(16, "frames"),
    "patch_size": _Field(16, "patch_size", True),
    "tubelet_size": _Field(2, "tubelet", True),
    **_transformer(768, 12, 12, "gelu", 1e-12),
    "qkv_bias": _Field(True, "qkv_bias"),
}
VIDEOMAE_DECODER = {
    "decoder_hidden_size": _Field(384, "decoder_width", True),
    "decoder_num_hidden_layers": _Field(4, "decoder_depth", True),
    "decoder_num_attention_heads": _Field(6, "decoder_heads"),
}
_VJEPA2 = {
    "crop_size": _Field(256, "image_size"),
    "frames_per_clip": _Field(64, "frames"),
    "patch_size": _Field(16, "patch_size", True),
    "tubelet_size": _Field(2, "tubelet", True),
    **_transformer(1024, 24, 16, "gelu", 1e-6),
    "qkv_bias": _Field(True, "qkv_bias", True),
}
_SIGLIP = {
    "image_size": _Field(224, "image_size"),
    "patch_size": _Field(16, "patch_size", True),
    **_transformer(768, 12, 12, "gelu_pytorch_tanh", 1e-6),
}
_PREDICTOR = re.compile(r"pred_\w+|in_chans|mlp_ratio|num_pooler_layers").fullmatch
MODEL_TYPES = {
    "transformers CLIP": ("clip",),
    "transformers V-JEPA 2": ("vjepa2",),
    "transformers SigLIP": ("siglip", "siglip_vision_model"),
}
"""Layout -> values of model_type in transformers; ("videomae",) for the other layouts."""
CLIP_VISION = {
    "image_size": _Field(224, "image_size", True),
    "patch_size": _Field(32, "patch_size", True),
    **_transformer(768, 12, 12, "quick_gelu", 1e-5),
}
CLIP_TEXT = {
    "vocab_size": _Field(49408, "vocab_size", True),
    "max_position_embeddings": _Field(77, "context_length", True),
    **_transformer(512, 12, 8, "quick_gelu", 1e-5, depth_name="layers"),
}

_IGNORABLE = re.compile(
    r"_\w+|architectures|auto_map|dtype|torch_dtype|transformers_version|model_type|(bos|eos|pad)_token_id|tie_\w+"
    r"|\w*drop\w*|initializer_\w+|logit_scale_init_value|norm_pix_loss|num_channels|num_labels|finetuning_task|id2label"
    r"|label2id|(decoder_)?intermediate_size|problem_type|projection_dim|pruned_heads|q(k)?v_bias|use_mean_pooling|use_cache"
    r"|vision_use_head"
    r"|output_\w+|return_dict|(text|vision)_config(_dict)?"
)
"""Fields that are read elsewhere in this module, or do not affect the output of a trained model."""


def with_transformers_config(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    """Complete a layout of transformers with config.json.

    Raises WeightsError: the config is of another model, contradicts the tensors, or has an unsupported value.
    """
    model_types = MODEL_TYPES.get(layout.name, ("videomae",))
    model_type, found = model_types[0], config.get("model_type")
    if found not in model_types:
        raise WeightsError(
            where, f"model type {found!r} beside weights of {layout.name}", " or ".join(model_types), _MISMATCH
        )
    for key in ("pruned_heads", "quantization_config"):
        if config.get(key):
            raise WeightsError(where, f"{key} {config[key]!r}", f"no {key}", "save the model without")
    if model_type == "vjepa2":
        return _vjepa2(layout, config, where)
    if model_type == "siglip":
        return _siglip(layout, _subconfig(config, "vision_config", where) if found == model_type else config, where)
    parsed = _clip(layout, config, where) if model_type == "clip" else _videomae(layout, config, where)
    supported = {**VIDEOMAE, **VIDEOMAE_DECODER} if model_type == "videomae" else {}
    return replace(parsed, ignored=parsed.ignored + _unknown_keys(config, supported))


def _unknown_keys(config: Mapping[str, Any], fields: Mapping[str, _Field]) -> tuple[str, ...]:
    """List the keys that are neither in `fields` nor ignorable."""
    return tuple(sorted(key for key in config if key not in fields and not _IGNORABLE.fullmatch(key)))


_MISMATCH = "if this config belongs to other weights, move one of the two files"


def _videomae(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    config = {**config, "qkv_bias": config.get("qkv_bias", config.get("qv_bias", True))}
    ours = configure(layout.model, layout.overrides)
    pretrain = layout.model.endswith("-pretrain")
    settings = _read_settings(config, VIDEOMAE, ours, where)
    _require_equal(config, where, num_channels=(3, 3), intermediate_size=(3072, int(ours.width * ours.mlp_ratio)))
    mean = config.get("use_mean_pooling", True)
    if pretrain:
        settings |= _read_settings(config, VIDEOMAE_DECODER, ours, where)
        _require_equal(config, where, decoder_intermediate_size=(1536, int(ours.decoder_width * ours.mlp_ratio)))
    else:
        _require_equal(config, where, use_mean_pooling=(True, ours.pooling == "mean"))
    if (pretrain or not ours.num_classes) and mean is ours.final_norm:
        mismatch = f"use_mean_pooling {mean}, the tensors have {'a' if ours.final_norm else 'no'} final norm"
        raise WeightsError(where, mismatch, hint=_MISMATCH)
    names = _class_names(config, ours.num_classes, where) if ours.num_classes else ()
    if ours.num_classes and config.get("problem_type") not in (None, "single_label_classification"):
        found = f"problem_type {config['problem_type']!r}: not a softmax over the classes"
        raise WeightsError(where, found, "single_label_classification", "set num_classes, or load its VideoMAEModel")
    return Parsed(_complete(layout, {**settings, "head_eps": HEAD_EPS}), names)


def _inferred(layout: Layout) -> Any:
    """Return the config of the tensors, with one head where these do not say: those of a published size may not fit."""
    unknown = {"heads": 1} if "heads" in layout.unknown else {}
    return configure(layout.model, {**layout.overrides, **unknown})


def _vjepa2(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    ours = _inferred(layout)
    _require_equal(config, where, in_chans=(3, 3))
    settings = _read_settings(config, _VJEPA2, ours, where)
    ratio = config.get("mlp_ratio", 4.0)
    if int(ours.width * ratio) != int(ours.width * ours.mlp_ratio):
        raise WeightsError(where, f"mlp_ratio {ratio!r}", f"{ours.mlp_ratio:g}, as in the tensors", _MISMATCH)
    ignored = tuple(key for key in _unknown_keys(config, _VJEPA2) if not _PREDICTOR(key))
    return Parsed(_complete(layout, settings), ignored=ignored)


def _siglip(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    ours = _inferred(layout)
    hidden = (3072, int(ours.width * ours.mlp_ratio))
    _require_equal(config, where, num_channels=(3, 3), vision_use_head=(True, True), intermediate_size=hidden)
    settings = _read_settings(config, _SIGLIP, ours, where)
    side = int(str(settings["image_size"]))
    if side // ours.patch_size != ours.image_size // ours.patch_size:
        raise WeightsError(where, f"image_size {side}", f"{ours.image_size}, as in the position table", _MISMATCH)
    return Parsed(_complete(layout, settings), ignored=_unknown_keys(config, _SIGLIP))


def _clip(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    ours = configure(layout.model, layout.overrides)
    vision, text = _subconfig(config, "vision_config", where), _subconfig(config, "text_config", where)
    settings = _read_settings(vision, CLIP_VISION, ours, where)
    _require_equal(vision, where, num_channels=(3, 3), intermediate_size=(3072, int(ours.width * ours.mlp_ratio)))
    text_settings = _read_settings(text, CLIP_TEXT, ours.text, where)
    _require_equal(text, where, intermediate_size=(2048, int(ours.text.width * ours.text.mlp_ratio)))
    _require_equal(config, where, projection_dim=(512, ours.joint_width))
    end, last = text.get("eos_token_id", 49407), ours.text.vocab_size - 1
    if end not in (2, last):  # with 2 transformers reads the text feature at the largest token id, as we do
        raise WeightsError(where, f"eos_token_id {end!r}", f"{last}, the last token id: the text feature is read there")
    ignored = (*_unknown_keys(vision, CLIP_VISION), *_unknown_keys(text, CLIP_TEXT))
    return Parsed(_complete(layout, {**settings, "text": text_settings}), ignored=ignored)


def _subconfig(config: Mapping[str, Any], key: str, where: object) -> dict[str, Any]:
    """Return the nested config of a tower; in older files fields of KEY_dict take precedence over those of KEY."""
    nested = (config.get(key) or {}, config.get(f"{key}_dict") or {})
    if not all(isinstance(mapping, Mapping) for mapping in nested):
        raise WeightsError(where, f"{key} is not a mapping", "the settings of one tower")
    return {**nested[0], **nested[1]}


def _read_settings(
    config: Mapping[str, Any], fields: Mapping[str, _Field], ours: Any, where: object
) -> dict[str, object]:
    """Map fields to our settings. Raises WeightsError if one that the tensors determine differs from `ours`."""
    settings: dict[str, object] = {}
    for key, field in fields.items():
        value = _parse_value(config, key, field.default, where)
        if field.in_tensors:
            _require_equal({key: value}, where, **{key: (None, getattr(ours, field.ours))})
        else:
            settings[field.ours] = ACTIVATIONS[str(value)] if key == "hidden_act" else value
    return settings


def config_fields(config: Any, fields: Mapping[str, _Field]) -> dict[str, Any]:
    """Return the fields of transformers' config.json for our config: the inverse of `_read_settings`."""
    values = {key: getattr(config, field.ours) for key, field in fields.items()}
    return {key: _TRANSFORMERS_ACTIVATION[value] if key == "hidden_act" else value for key, value in values.items()}


def _parse_value(config: Mapping[str, Any], key: str, default: object, where: object) -> object:
    """Return the value of a field, or its default, in the type of the default. Raises WeightsError."""
    value = config.get(key, default)
    if value is None and key not in ("qkv_bias",):
        value = default
    if key in ("image_size", "patch_size") and isinstance(value, list):
        if len(value) != 2 or value[0] != value[1]:
            raise WeightsError(where, f"{key} {value}", "two equal numbers")
        value = value[0]
    if isinstance(default, bool):
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, str):
        fits, expected = value in ACTIVATIONS, ", ".join(ACTIVATIONS)
    elif isinstance(default, float):
        fits, expected = type(value) in (int, float) and 0 <= float(str(value)) < 1, "a number from 0 to below 1"
        value = float(str(value)) if fits else value
    else:
        fits, expected = type(value) is int and 0 < value < 2**31, "an integer above 0"
    if not fits:
        raise WeightsError(where, f"{key} {value!r}", expected)
    return value


def _require_equal(config: Mapping[str, Any], where: object, **fields: tuple[object, object]) -> None:
    """Raise WeightsError if a field, or its default, differs from the tensors; `fields`: key=(default, expected)."""
    for key, (default, expected) in fields.items():
        if (value := config.get(key, default)) != expected:
            raise WeightsError(where, f"{key} {value!r}", f"{expected!r}, as in the tensors", _MISMATCH)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} for an absent file. Raises WeightsError."""
    if not path.is_file():
        return {}
    try:
        config = untrusted.read_json(path, untrusted.MAX_SETTINGS_BYTES)
    except (OSError, ValueError) as error:
        raise WeightsError(path, f"cannot be read: {error}", "JSON") from error
    if not isinstance(config, dict):
        raise WeightsError(path, f"a {type(config).__name__}", "a JSON object")
    return config


def check_quick_gelu(weights: Path) -> None:
    """Raise WeightsError if a config beside the weights of a CLIP has another activation than QuickGELU (OpenAI's)."""
    config = read_config(weights.parent / "config.json")
    towers = ("vision_config", "text_config") if "text_config" in config else ()
    activations = {str(_subconfig(config, key, weights).get("hidden_act", "quick_gelu")) for key in towers}
    found = activations - {"quick_gelu"}
    unsupported = read_config(weights.parent / "open_clip_config.json").get("model_cfg")
    if isinstance(unsupported, Mapping) and not unsupported.get("quick_gelu"):
        found.add("gelu")
    if found:
        hint = "take OpenAI's weights, or others that were trained with QuickGELU"
        raise WeightsError(weights, f"layers with {', '.join(sorted(found))}", "QuickGELU, as in this encoder", hint)


def _class_names(config: Mapping[str, Any], count: int, where: object) -> tuple[str, ...]:
    """Return the class names in order of their indices; () for none or for placeholders (LABEL_0, ...)."""
    labels = config.get("id2label")
    if not labels:
        return ()
    if not isinstance(labels, Mapping) or set(map(str, labels)) != set(map(str, range(count))):
        found, expected = f"id2label names {len(labels)} classes", f"0 to {count - 1}, as the head has {count}"
        raise WeightsError(where, found, expected, "correct it, or set num_classes")
    names = tuple(str({str(key): name for key, name in labels.items()}[str(index)]) for index in range(count))
    if names == tuple(f"LABEL_{index}" for index in range(count)):
        return ()
    if len(set(names)) != count:
        duplicate = next(name for name in names if names.count(name) > 1)
        raise WeightsError(where, f"id2label calls two classes {duplicate!r}", "each name once", "correct it")
    return names


def _complete(layout: Layout, settings: Mapping[str, object]) -> Layout:
    """Add settings to a layout and remove them from its unknown settings."""
    given = flatten_overrides(settings)
    unknown = tuple(path for path in layout.unknown if path not in given)
    return replace(layout, overrides=merge_overrides(layout.overrides, settings), unknown=unknown)


_VIDEOMAE_V2 = {
    "img_size": _Field(224, "image_size"),
    "num_frames": _Field(16, "frames"),
    "patch_size": _Field(16, "patch_size", True),
    "tubelet_size": _Field(2, "tubelet", True),
    "embed_dim": _Field(768, "width", True),
    "depth": _Field(12, "depth", True),
    "num_heads": _Field(12, "heads"),
}
"""Fields of `model_config` in the hub repositories of github.com/OpenGVLab/VideoMAEv2."""


def with_videomae_v2_config(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    """Complete VideoMAE's original layout with VideoMAE V2's config.json. Raises WeightsError."""
    model = config["model_config"]
    if not isinstance(model, Mapping):
        raise WeightsError(where, "model_config is not a mapping", "the settings of the model")
    if model.get("cos_attn"):
        raise WeightsError(where, "cos_attn true", "false: cosine attention is not supported")
    _require_equal(model, where, in_chans=(3, 3))
    settings = _read_settings(model, _VIDEOMAE_V2, configure(layout.model, layout.overrides), where)
    return Parsed(_complete(layout, settings))


_OPEN_CLIP_VISION = {
    "image_size": _Field(224, "image_size", True),
    "patch_size": _Field(16, "patch_size", True),
    "width": _Field(768, "width", True),
    "layers": _Field(12, "depth", True),
}
_OPEN_CLIP_TEXT = {
    "context_length": _Field(77, "context_length", True),
    "vocab_size": _Field(49408, "vocab_size", True),
    "width": _Field(512, "width", True),
    "layers": _Field(12, "layers", True),
}


def with_open_clip_config(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    """Complete the layout of OpenAI's CLIP with open_clip's config: activation (default GELU), width of the heads.

    Raises WeightsError: the config is of another model, contradicts the tensors, or has an unsupported setting.
    """
    model = config.get("model_cfg")
    if not isinstance(model, Mapping):
        raise WeightsError(where, "no model_cfg", "what open_clip writes")
    ours = configure(layout.model, layout.overrides)
    vision, text = _subconfig(model, "vision_cfg", where), _subconfig(model, "text_cfg", where)
    _require_equal(model, where, embed_dim=(512, ours.joint_width))
    _read_settings(vision, _OPEN_CLIP_VISION, ours, where)
    _read_settings(text, _OPEN_CLIP_TEXT, ours.text, where)
    for part, fields in ((vision, {*_OPEN_CLIP_VISION, "head_width"}), (text, {*_OPEN_CLIP_TEXT, "heads"})):
        supported = {*fields, "mlp_ratio"}
        unsupported = [key for key, value in part.items() if value and key not in supported and "drop" not in key]
        if unsupported:
            raise WeightsError(where, f"{unsupported[0]} {part[unsupported[0]]!r}", "plain CLIP towers")
    head = _parse_value(vision, "head_width", 64, where)
    heads, text_settings = ours.width // int(str(head)), _parse_value(text, "heads", 8, where)
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    settings: dict[str, object] = {"heads": heads, "activation": activation}
    pixels = config.get("preprocess_cfg") or {}
    for name in ("mean", "std"):
        values = pixels.get(name)
        if isinstance(values, list) and len(values) == 3 and all(type(value) in (int, float) for value in values):
            settings[name] = tuple(map(float, values))
    settings["text"] = {"heads": text_settings, "activation": activation}
    ignored = set(model) - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    return Parsed(_complete(layout, settings), ignored=tuple(sorted(ignored)))
