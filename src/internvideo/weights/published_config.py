"""Read the config of a published model: config.json of transformers, open_clip_config.json.

Every field that changes the computation either maps to a setting of our model or must equal our model's fixed value;
fields that the tensors also determine must agree with them. Absent fields have the default of the package that wrote
the file. Sources: configuration classes of github.com/huggingface/transformers (VideoMAE, CLIP), `model_configs` of
github.com/mlfoundations/open_clip.
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
from internvideo.weights.layouts import Layout, leaves, merged

ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_tanh"),
    **dict.fromkeys(("silu", "swish"), "silu"),
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
"""Names in transformers -> ours; the formulas called "gelu_tanh" differ by rounding alone."""

_TRANSFORMERS_ACTIVATION = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}

HEAD_EPS = 1e-5
"""Epsilon of the norms that transformers' VideoMAE creates with PyTorch's default."""


@dataclass(frozen=True)
class Parsed:
    """The result of reading a config.

    Attributes:
        layout: completed by the config's settings.
        classes: names of the classes, () for none.
        ignored: unknown keys.
    """

    layout: Layout
    classes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Field:
    """A config field: its default, our setting, and whether the tensors determine it too."""

    default: object
    ours: str
    in_tensors: bool = False


def _transformer(
    width: int, depth: int, heads: int, activation: str, eps: float, *, depth_name: str = "depth"
) -> dict[str, _Field]:
    """Return the fields that all transformers have, with their defaults."""
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
KINDS = {
    "transformers CLIP": ("clip",),
    "transformers V-JEPA 2": ("vjepa2",),
    "transformers SigLIP": ("siglip", "siglip_vision_model"),
}
"""Layout -> its model_type in transformers, "videomae" for the others."""
CLIP_VISION = {
    "image_size": _Field(224, "image_size", True),
    "patch_size": _Field(32, "patch_size", True),
    **_transformer(768, 12, 12, "quick_gelu", 1e-5),
}
CLIP_TEXT = {
    "vocab_size": _Field(49408, "vocabulary", True),
    "max_position_embeddings": _Field(77, "context", True),
    **_transformer(512, 12, 8, "quick_gelu", 1e-5, depth_name="layers"),
}

_HARMLESS = re.compile(
    r"_\w+|architectures|auto_map|dtype|torch_dtype|transformers_version|model_type|(bos|eos|pad)_token_id|tie_\w+"
    r"|\w*drop\w*|initializer_\w+|logit_scale_init_value|norm_pix_loss|num_channels|num_labels|finetuning_task|id2label"
    r"|label2id|(decoder_)?intermediate_size|problem_type|projection_dim|pruned_heads|q(k)?v_bias|use_mean_pooling|use_cache"
    r"|vision_use_head"
    r"|output_\w+|return_dict|(text|vision)_config(_dict)?"
)
"""Fields read elsewhere below or without effect on a trained model's output."""


def with_transformers_config(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    """Complete a layout of transformers with its config.json.

    Raises WeightsError: the config of another model, in conflict with the tensors, or with an unsupported value.
    """
    kinds = KINDS.get(layout.name, ("videomae",))
    kind, found = kinds[0], config.get("model_type")
    if found not in kinds:
        raise WeightsError(where, f"model type {found!r} beside weights of {layout.name}", " or ".join(kinds), _MOVE)
    for key in ("pruned_heads", "quantization_config"):
        if config.get(key):
            raise WeightsError(where, f"{key} {config[key]!r}", "none", "save the model without")
    if kind == "vjepa2":
        return _vjepa2(layout, config, where)
    if kind == "siglip":
        return _siglip(layout, _part(config, "vision_config", where) if found == kind else config, where)
    parsed = _clip(layout, config, where) if kind == "clip" else _videomae(layout, config, where)
    known = {**VIDEOMAE, **VIDEOMAE_DECODER} if kind == "videomae" else {}
    return replace(parsed, ignored=parsed.ignored + _unknown(config, known))


def _unknown(config: Mapping[str, Any], fields: Mapping[str, _Field]) -> tuple[str, ...]:
    """List the keys that are neither known fields nor known to be harmless."""
    return tuple(sorted(key for key in config if key not in fields and not _HARMLESS.fullmatch(key)))


_MOVE = "if it is not about these weights, move one of the two"


def _videomae(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    config = {**config, "qkv_bias": config.get("qkv_bias", config.get("qv_bias", True))}
    built = configure(layout.model, layout.overrides)
    pretrain = layout.model.endswith("-pretrain")
    settings = _settings(config, VIDEOMAE, built, where)
    _same(config, where, num_channels=(3, 3), intermediate_size=(3072, int(built.width * built.mlp_ratio)))
    mean = config.get("use_mean_pooling", True)
    if pretrain:
        settings |= _settings(config, VIDEOMAE_DECODER, built, where)
        _same(config, where, decoder_intermediate_size=(1536, int(built.decoder_width * built.mlp_ratio)))
    else:
        _same(config, where, use_mean_pooling=(True, built.pooling == "mean"))
    if (pretrain or not built.num_classes) and mean is built.final_norm:
        says = f"use_mean_pooling {mean}, the tensors have {'a' if built.final_norm else 'no'} final norm"
        raise WeightsError(where, says, hint=_MOVE)
    names = _classes(config, built.num_classes, where) if built.num_classes else ()
    if built.num_classes and config.get("problem_type") not in (None, "single_label_classification"):
        found = f"problem_type {config['problem_type']!r}: its scores are no probabilities of one class among others"
        raise WeightsError(where, found, "single_label_classification", "take num_classes, or its VideoMAEModel alone")
    return Parsed(_completed(layout, {**settings, "head_eps": HEAD_EPS}), names)


def _vjepa2(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    built = configure(layout.model, layout.overrides)
    _same(config, where, in_chans=(3, 3))
    settings = _settings(config, _VJEPA2, built, where)
    ratio = config.get("mlp_ratio", 4.0)
    if int(built.width * ratio) != int(built.width * built.mlp_ratio):
        raise WeightsError(where, f"mlp_ratio {ratio!r}", f"{built.mlp_ratio:g}, as its tensors have it", _MOVE)
    ignored = tuple(key for key in _unknown(config, _VJEPA2) if not _PREDICTOR(key))
    return Parsed(_completed(layout, settings), ignored=ignored)


def _siglip(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    built = configure(layout.model, layout.overrides)
    hidden = (3072, int(built.width * built.mlp_ratio))
    _same(config, where, num_channels=(3, 3), vision_use_head=(True, True), intermediate_size=hidden)
    settings = _settings(config, _SIGLIP, built, where)
    side = int(str(settings["image_size"]))
    if side // built.patch_size != built.image_size // built.patch_size:
        raise WeightsError(where, f"image_size {side}", f"{built.image_size}, as its positions have it", _MOVE)
    return Parsed(_completed(layout, settings), ignored=_unknown(config, _SIGLIP))


def _clip(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    built = configure(layout.model, layout.overrides)
    vision, text = _part(config, "vision_config", where), _part(config, "text_config", where)
    settings = _settings(vision, CLIP_VISION, built, where)
    _same(vision, where, num_channels=(3, 3), intermediate_size=(3072, int(built.width * built.mlp_ratio)))
    words = _settings(text, CLIP_TEXT, built.text, where)
    _same(text, where, intermediate_size=(2048, int(built.text.width * built.text.mlp_ratio)))
    _same(config, where, projection_dim=(512, built.joint_width))
    end, last = text.get("eos_token_id", 49407), built.text.vocabulary - 1
    if end not in (2, last):  # with 2 transformers takes the largest number too
        raise WeightsError(where, f"eos_token_id {end!r}", f"{last}, the last word piece: texts are read there")
    ignored = (*_unknown(vision, CLIP_VISION), *_unknown(text, CLIP_TEXT))
    return Parsed(_completed(layout, {**settings, "text": words}), ignored=ignored)


def _part(config: Mapping[str, Any], key: str, where: object) -> dict[str, Any]:
    """Read a nested config; older files repeat some fields in a second one, which takes precedence."""
    parts = (config.get(key) or {}, config.get(f"{key}_dict") or {})
    if not all(isinstance(part, Mapping) for part in parts):
        raise WeightsError(where, f"{key} is no mapping", "the settings of one tower")
    return {**parts[0], **parts[1]}


def _settings(config: Mapping[str, Any], fields: Mapping[str, _Field], built: Any, where: object) -> dict[str, object]:
    """Map fields to our settings; compare the ones that the tensors determine with `built`."""
    found: dict[str, object] = {}
    for key, field in fields.items():
        value = _value(config, key, field.default, where)
        if field.in_tensors:
            _same({key: value}, where, **{key: (None, getattr(built, field.ours))})
        else:
            found[field.ours] = ACTIVATIONS[str(value)] if key == "hidden_act" else value
    return found


def config_fields(config: Any, fields: Mapping[str, _Field]) -> dict[str, Any]:
    """Return the fields of a config.json of transformers for our config: the inverse of reading them."""
    found = {key: getattr(config, field.ours) for key, field in fields.items()}
    return {key: _TRANSFORMERS_ACTIVATION[value] if key == "hidden_act" else value for key, value in found.items()}


def _value(config: Mapping[str, Any], key: str, default: object, where: object) -> object:
    """Convert a field's value to the type of our setting. Raises WeightsError."""
    value = config.get(key, default)
    if value is None and key not in ("qkv_bias",):
        value = default
    if key in ("image_size", "patch_size") and isinstance(value, list):
        if len(value) != 2 or value[0] != value[1]:
            raise WeightsError(where, f"{key} {value}", "squares")
        value = value[0]
    if isinstance(default, bool):
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, str):
        fits, expected = value in ACTIVATIONS, ", ".join(ACTIVATIONS)
    elif isinstance(default, float):
        fits, expected = type(value) in (int, float) and 0 <= float(str(value)) < 1, "a small number"
        value = float(str(value)) if fits else value
    else:
        fits, expected = type(value) is int and 0 < value < 2**31, "a whole number over 0"
    if not fits:
        raise WeightsError(where, f"{key} {value!r}", expected)
    return value


def _same(config: Mapping[str, Any], where: object, **fields: tuple[object, object]) -> None:
    """Compare fields, given as key=(default, value of the tensors). Raises WeightsError."""
    for key, (default, expected) in fields.items():
        if (value := config.get(key, default)) != expected:
            raise WeightsError(where, f"{key} {value!r}", f"{expected!r}, as its tensors have it", _MOVE)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON mapping; {} for an absent file. Raises WeightsError."""
    if not path.is_file():
        return {}
    try:
        found = untrusted.read_json(path, untrusted.MAX_SETTINGS_BYTES)
    except (OSError, ValueError) as error:
        raise WeightsError(path, f"cannot be read: {error}", "JSON") from error
    if not isinstance(found, dict):
        raise WeightsError(path, f"a {type(found).__name__}", "a JSON mapping")
    return found


def check_quick_gelu(weights: Path) -> None:
    """Check that a config next to CLIP's weights names OpenAI's activation (QuickGELU), which our encoders use.

    Raises WeightsError: another activation.
    """
    config = read_config(weights.parent / "config.json")
    parts = [_part(config, f"{name}_config", weights) for name in ("vision", "text")] if "text_config" in config else []
    found = {str(part.get("hidden_act", "quick_gelu")) for part in parts} - {"quick_gelu"}
    other = read_config(weights.parent / "open_clip_config.json").get("model_cfg")
    if isinstance(other, Mapping) and not other.get("quick_gelu"):
        found.add("gelu")
    if found:
        hint = "take CLIP's weights of OpenAI, or of others that were trained with it"
        raise WeightsError(weights, f"layers with {', '.join(sorted(found))}", "QuickGELU, as this encoder has", hint)


def _classes(config: Mapping[str, Any], count: int, where: object) -> tuple[str, ...]:
    """List the class names in order; () for none or for placeholders (LABEL_0, ...)."""
    labels = config.get("id2label")
    if not labels:
        return ()
    if not isinstance(labels, Mapping) or set(map(str, labels)) != set(map(str, range(count))):
        found, expected = f"id2label names {len(labels)} classes", f"0 to {count - 1}, as the head has {count}"
        raise WeightsError(where, found, expected, "correct it, or take num_classes")
    names = tuple(str({str(key): name for key, name in labels.items()}[str(index)]) for index in range(count))
    if names == tuple(f"LABEL_{index}" for index in range(count)):
        return ()
    if len(set(names)) != count:
        double = next(name for name in names if names.count(name) > 1)
        raise WeightsError(where, f"id2label calls two classes {double!r}", "each name once", "correct it")
    return names


def _completed(layout: Layout, settings: Mapping[str, object]) -> Layout:
    """Add settings to a layout and remove them from its unknown ones."""
    given = leaves(settings)
    unknown = tuple(path for path in layout.unknown if path not in given)
    return replace(layout, overrides=merged(layout.overrides, settings), unknown=unknown)


_VIDEOMAE_V2 = {
    "img_size": _Field(224, "image_size"),
    "num_frames": _Field(16, "frames"),
    "patch_size": _Field(16, "patch_size", True),
    "tubelet_size": _Field(2, "tubelet", True),
    "embed_dim": _Field(768, "width", True),
    "depth": _Field(12, "depth", True),
    "num_heads": _Field(12, "heads"),
}
"""`model_config` of github.com/OpenGVLab/VideoMAEv2's folders on the hub."""


def with_videomae_v2_config(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    """Complete VideoMAE's original layout with VideoMAE V2's config.json. Raises WeightsError."""
    model = config["model_config"]
    if not isinstance(model, Mapping):
        raise WeightsError(where, "model_config is no mapping", "the settings of the model")
    if model.get("cos_attn"):
        raise WeightsError(where, "cos_attn true", "false: attention by cosines is not built")
    _same(model, where, in_chans=(3, 3))
    settings = _settings(model, _VIDEOMAE_V2, configure(layout.model, layout.overrides), where)
    return Parsed(_completed(layout, settings))


_OPEN_CLIP_VISION = {
    "image_size": _Field(224, "image_size", True),
    "patch_size": _Field(16, "patch_size", True),
    "width": _Field(768, "width", True),
    "layers": _Field(12, "depth", True),
}
_OPEN_CLIP_TEXT = {
    "context_length": _Field(77, "context", True),
    "vocab_size": _Field(49408, "vocabulary", True),
    "width": _Field(512, "width", True),
    "layers": _Field(12, "layers", True),
}


def with_open_clip_config(layout: Layout, config: Mapping[str, Any], where: object) -> Parsed:
    """Complete CLIP in OpenAI's layout with open_clip's config: activation (default GELU), width of the heads.

    Raises WeightsError: the config of another model, in conflict with the tensors, or with an unsupported setting.
    """
    model = config.get("model_cfg")
    if not isinstance(model, Mapping):
        raise WeightsError(where, "no model_cfg", "what open_clip writes")
    built = configure(layout.model, layout.overrides)
    vision, text = _part(model, "vision_cfg", where), _part(model, "text_cfg", where)
    _same(model, where, embed_dim=(512, built.joint_width))
    _settings(vision, _OPEN_CLIP_VISION, built, where)
    _settings(text, _OPEN_CLIP_TEXT, built.text, where)
    for part, fields in ((vision, {*_OPEN_CLIP_VISION, "head_width"}), (text, {*_OPEN_CLIP_TEXT, "heads"})):
        known = {*fields, "mlp_ratio"}
        other = [key for key, value in part.items() if value and key not in known and "drop" not in key]
        if other:
            raise WeightsError(where, f"{other[0]} {part[other[0]]!r}", "plain CLIP towers")
    head = _value(vision, "head_width", 64, where)
    heads, words = built.width // int(str(head)), _value(text, "heads", 8, where)
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    settings: dict[str, object] = {"heads": heads, "activation": activation}
    pixels = config.get("preprocess_cfg") or {}
    for ours in ("mean", "std"):
        values = pixels.get(ours)
        if isinstance(values, list) and len(values) == 3 and all(type(value) in (int, float) for value in values):
            settings[ours] = tuple(map(float, values))
    settings["text"] = {"heads": words, "activation": activation}
    ignored = set(model) - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    return Parsed(_completed(layout, settings), ignored=tuple(sorted(ignored)))
