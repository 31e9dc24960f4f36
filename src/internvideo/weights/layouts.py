"""Recognize published checkpoints by their keys and shapes, never by their file name, and load them strictly.

`layout_families` lists the layouts, `layout_sizes` derives sizes from shapes, `key_tables` maps the keys. Settings that
cannot be derived from tensors (frames of a clip, attention heads of an unusual width) are arguments of `load_layout`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from internvideo.errors import WeightsError
from internvideo.models.embeddings import resize_table
from internvideo.models.factory import BACKBONES, configure, create_model, differences
from internvideo.models.positions import resize_patches, resize_times
from internvideo.models.videomae import VideoMAEConfig
from internvideo.weights.layout_families import FAMILIES, Family, State, unsupported_model
from internvideo.weights.layout_sizes import Shapes
from internvideo.weights.state import load_pretrained, load_reference, reference_names

Overrides = Mapping[str, object]

_TRAINER_PREFIXES = re.compile(r"((module|model|backbone|_orig_mod)\.)+")
"""Prefixes that training programs add to keys."""

_COUNTERS = ("n_averaged",)
"""Counters that torch's averaged models (`swa_utils.AveragedModel`) add to the tensors."""

_ADAPTER = re.compile(r"\.(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|base_layer)(\.|$)")
"""Keys of LoRA adapters of peft and loralib."""

OVERRIDES = "overrides"
"""Metadata key of converted weights: JSON of settings that cannot be derived from the tensors."""

_SIZE_SETTINGS = ("image_size", "patch_size", "tubelet", "width", "depth", "layers", "joint_width", "local_blocks")
"""Settings that distinguish two sizes of a model."""


@dataclass(frozen=True)
class Layout:
    """The recognized layout of a state dict.

    Attributes:
        name: display name of the layout.
        model: the nearest published size, a key of BACKBONES.
        overrides: differences from that size, for `create_model`, as JSON values.
        ignored_keys: keys of layers that the model does not have (Multi-Modalities-Pretraining).
        unknown: dotted names of settings that neither the tensors nor a published size determine; `load_layout` needs
            them as arguments.
        family: row of `FAMILIES`.
    """

    name: str
    model: str
    overrides: dict[str, object]
    ignored_keys: tuple[str, ...]
    unknown: tuple[str, ...]
    family: Family = field(repr=False)


def recognize(state: State, where: object = "state dict") -> Layout | None:
    """Recognize the published layout of a state dict from keys and shapes; None for an unknown one.

    Raises:
        WeightsError: tensors that determine the size are missing or mis-shaped, or the state dict is only an adapter.
    """
    stripped = _strip_prefixes({key: torch.empty(value.shape, device="meta") for key, value in state.items()}, where)
    family = next((family for family in FAMILIES if family.fits(stripped)), None)
    if family is None:
        return None
    published, ignored_keys = family.read(stripped)
    changes = _infer_overrides(family, Shapes(published, family.name, where))
    model = min(
        changes, key=lambda name: (_width_distance(family, name, changes[name]), len(flatten_overrides(changes[name])))
    )
    unknown = tuple(path for path, value in flatten_overrides(changes[model]).items() if _is_unknown(path, value))
    ignored_keys += tuple(key for key in state if key in _COUNTERS)
    return Layout(family.name, model, _known_settings(changes[model]), ignored_keys, unknown, family)


def _width_distance(family: Family, name: str, changes: Overrides) -> float:
    """Return |log(width / published width)| of the video tower."""
    base, actual = BACKBONES[name].config, changes
    for part in family.video:
        base, actual = getattr(base, part), cast(Overrides, actual.get(part, {}))
    return abs(math.log(cast(int, actual.get("width", base.width)) / base.width))


def _known_settings(changes: Overrides) -> dict[str, object]:
    """Remove unknown heads, image sizes and frames (0): the published ones apply until `load_layout` gets others."""
    unknown = ("heads", "image_size", "frames")
    known = {name: value for name, value in changes.items() if not (name.endswith(unknown) and value == 0)}
    return {name: _known_settings(value) if isinstance(value, Mapping) else value for name, value in known.items()}


def _is_unknown(path: str, value: object) -> bool:
    """Return whether the tensors do not determine a setting: `global_layers`, and unknown heads or clip sizes (0)."""
    setting = path.rpartition(".")[2]
    counts = setting.endswith("heads") or path in ("frames", "image_size")
    return (counts and value == 0) or setting == "global_layers"


def _infer_overrides(family: Family, shapes: Shapes) -> dict[str, dict[str, object]]:
    """Return for each candidate model the settings that follow from the shapes and differ from the published ones."""
    configs = {name: BACKBONES[name].config for name in family.models}
    try:
        return {name: differences(config, family.sizes(shapes, config)) for name, config in configs.items()}
    except ValueError as error:
        actual = f"{family.name} with shapes that do not fit together: {error}"
        raise WeightsError(shapes.where, actual) from error


def require_layout(state: State, where: object = "state dict") -> Layout:
    """Recognize a layout as `recognize`, but raise WeightsError for an unknown one."""
    layout = recognize(state, where)
    if layout is None:
        stems = sorted({re.sub(r"\.\d+(?=\.|$)", ".N", key) for key in state})
        more = f" and {len(stems) - 6} more" if len(stems) > 6 else ""
        examples = f"{', '.join(stems[:6]) or 'no tensor'}{more}"
        known = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
        other = unsupported_model(state)
        reason = f"weights of {other}, which are not supported" if other else "keys of no known layout"
        raise WeightsError(where, f"{reason}: {examples}", known)
    return layout


def as_model(layout: Layout, name: str, where: object = "state dict") -> Layout:
    """Express a layout as overrides of the model `name`.

    The towers of InternVideo-MM can also be loaded from a file with a caption decoder, which is then ignored.
    Raises WeightsError: the file has another model or size.
    """
    actual, requested = BACKBONES[layout.model], BACKBONES.get(name)
    if requested is None or actual.build is not requested.build:
        pretrained = layout.model.endswith("-pretrain") and name.endswith("-classifier")
        cause = (
            "pretraining weights; ask for a fresh head with num_classes" if pretrained else "the file of another model"
        )
        raise WeightsError(where, f"{layout.name}, {layout.model}", name, f"likely cause: {cause}")
    config = configure(layout.model, layout.overrides)
    requested_decoder = getattr(requested.config, "caption", None)
    if (
        getattr(config, "caption", None) is not None
        and requested_decoder is None
        and layout.family.without_decoder is not None
    ):
        layout = replace(
            layout, family=layout.family.without_decoder, ignored_keys=(*layout.ignored_keys, "caption_decoder.*")
        )
        config = replace(config, caption=None)
    if (getattr(config, "caption", None) is None) != (requested_decoder is None):
        raise WeightsError(where, layout.name, name, f"ask for {layout.model}")
    overrides = differences(requested.config, config)
    free = "image_size" if layout.family.masked else ""  # learned positions are resized to it
    mismatches = [
        f"{path} {value}" for path, value in flatten_overrides(overrides).items() if _is_size(path) and path != free
    ]
    if mismatches:
        other = f"it is {layout.model}" if layout.model != name else "the file is incomplete, or no published size"
        raise WeightsError(
            where, f"{layout.name} with {', '.join(mismatches)}", name, f"likely cause: wrong size, {other}"
        )
    return replace(layout, model=name, overrides=overrides)


def _is_size(path: str) -> bool:
    """Return whether a setting distinguishes published sizes (the depth of a caption decoder does not)."""
    return path.rpartition(".")[2] in _SIZE_SETTINGS and path != "caption.layers"


def load_layout(
    layout: Layout,
    state: State,
    where: object = "state dict",
    num_classes: int | None = None,
    *,
    frames: int | None = None,
    image_size: int | None = None,
    overrides: Overrides | None = None,
) -> nn.Module:
    """Build the model of a layout and load all tensors of the state dict strictly.

    Args:
        layout: result of `recognize` for this state dict.
        state: published keys -> tensors.
        where: file or source, for messages.
        num_classes: replace the last layer of the classifier by a randomly initialized one with this many classes.
            Pretraining weights become a classifier (modeling_finetune.py).
        frames, image_size: clip size, by default that of the file. Positions are resized by the rule of the layout's
            publisher (`positions`); UniFormerV2 and InternVideo-MM support any number of frames.
        overrides: further settings of the model in the file, nested as in `create_model`, including `Layout.unknown`.

    Raises:
        WeightsError: missing, unused, mis-shaped or non-finite tensors, biases lost by a conversion, an argument that
            the model does not support.
        RecipeError: unknown or contradictory overrides.
    """
    family = layout.family
    published, _ = family.read(_strip_prefixes(state, where))
    missing = [path for path in layout.unknown if path not in flatten_overrides(overrides or {})]
    if missing:
        actual = f"the tensors do not determine {', '.join(missing)}, and it has no published size"
        hint = "put the publisher's config.json beside the file, give them as overrides, or write them into it: "
        raise WeightsError(where, actual, hint=f"{hint}internvideo convert --set {missing[0]}=...")
    base_settings = merge_overrides(layout.overrides, overrides or {})
    clip_overrides = _clip_settings(layout, base_settings, where, frames, image_size)
    settings = merge_overrides(base_settings, clip_overrides)
    if family.masked:
        _check_biases(published, where)
    if clip_overrides:
        published = _resize_positions(layout, published, (base_settings, settings), where)
    if num_classes is None:
        model = create_model(layout.model, settings)
        load_reference(model, published, where=where)
        return model
    if layout.model.endswith("-pretrain"):
        return _classifier_from_pretraining(layout, published, settings, num_classes, where)
    return _with_new_head(layout, published, settings, num_classes, where)


def _with_new_head(
    layout: Layout, published: dict[str, Tensor], settings: Overrides, num_classes: int, where: object
) -> nn.Module:
    """Load all tensors except the last layer of the classifier, which gets `num_classes` random outputs.

    For a file without classes all layers of the head are random.
    """
    family = layout.family
    if not family.head:
        raise WeightsError(where, f"{layout.name} has no classes", hint="leave out num_classes")
    new_layers = family.head
    if getattr(configure(layout.model, layout.overrides), family.outputs) == 0:
        new_layers = new_layers.partition(r"\.")[0] + r"\..*"
    model = create_model(layout.model, merge_overrides(settings, {family.outputs: num_classes}))
    names = reference_names(model, published)
    head_keys = {key for key in names if names[key] and all(re.fullmatch(new_layers, name) for name in names[key])}
    remaining = {key: value for key, value in published.items() if key not in head_keys}
    load_reference(model, remaining, where=where, newly_initialized=new_layers)
    return model


def _classifier_from_pretraining(
    layout: Layout, published: dict[str, Tensor], settings: Overrides, num_classes: int, where: object
) -> nn.Module:
    """Build a classifier from pretraining weights, with random norm and head (modeling_finetune.py)."""
    decoder_settings = ("decoder_", "final_norm")
    encoder_settings = {name: value for name, value in settings.items() if not name.startswith(decoder_settings)}
    name = layout.model.replace("-pretrain", "-classifier")
    table = _position_table(layout, configure(layout.model, settings))
    model = create_model(name, {"position_table": table, **encoder_settings, "num_classes": num_classes})
    load_pretrained(model, published, where)
    return model


def _clip_settings(
    layout: Layout, base_settings: Overrides, where: object, frames: int | None, image_size: int | None
) -> dict[str, object]:
    """Return the overrides for another clip size. Raises WeightsError: the model does not support it."""
    family = layout.family
    if frames is None and image_size is None:
        return {}
    config = configure(layout.model, base_settings)
    for part in family.video:
        config = getattr(config, part)
    changes: dict[str, object] = {}
    if frames is not None:
        if not family.frames:
            raise WeightsError(where, f"{layout.name} has no number of frames", hint="leave out frames")
        changes["frames"] = frames
    if image_size is not None:
        if not hasattr(config, "image_size"):
            raise WeightsError(where, f"{layout.name} has no image size", hint="leave out image_size")
        changes["image_size"] = image_size
    if family.masked and family.head and "position_table" not in base_settings:
        changes["position_table"] = _position_table(
            layout, configure(layout.model, merge_overrides(base_settings, changes))
        )
    for part in reversed(family.video):
        changes = {part: changes}
    return changes


def _position_table(layout: Layout, config: VideoMAEConfig) -> str:
    """Return `position_table` of a classifier: "resized" if it has another clip size than the pretraining."""
    clip_size = (config.image_size, config.frames)
    return "native" if layout.family.computed or clip_size == config.native_clip else "resized"


def _resize_positions(
    layout: Layout, published: dict[str, Tensor], settings: tuple[Overrides, Overrides], where: object
) -> dict[str, Tensor]:
    """Resize learned positions to another clip size."""
    config, requested = (configure(layout.model, changes) for changes in settings)
    for part in layout.family.video:
        config, requested = getattr(config, part), getattr(requested, part)
    changed = dict(published)
    for key, table in published.items():
        stem = key.removesuffix("positional_embedding")
        if layout.family.masked and key.endswith("pos_embed"):
            if table.shape[1] != config.num_tokens:
                size = f"{config.frames} frames of {config.image_size} px"
                raise WeightsError(where, f"{key} has {table.shape[1]} positions", f"{config.num_tokens}, of {size}")
            changed[key] = resize_table(table[0].float(), config.grid, requested.grid)[None]
        elif key == "pos_embed":  # InternVideo2: the first position is that of the class token
            patches = resize_table(table[0, 1:].float(), config.grid, requested.grid)
            changed[key] = torch.cat([table[:, :1].float(), patches[None]], dim=1)
        elif key == "vision_encoder.temporal_positional_embedding":
            changed[key] = resize_times(table, requested.frames)
        elif stem != key and f"{stem}class_embedding" in published:  # positions of patches, not of text tokens
            changed[key] = resize_patches(table, requested.image_size // requested.patch_size)
    return changed


def _check_biases(published: State, where: object) -> None:
    """Raise WeightsError if a VideoMAE file has trained biases but all query and value biases are zero.

    Some conversions lose these biases silently, and the model still runs, but worse.
    """
    biases = (".attn.q_bias", ".attn.v_bias")
    attention = [bool(value.any()) for key, value in published.items() if key.endswith(biases)]
    mlp = [bool(value.any()) for key, value in published.items() if key.endswith(".mlp.fc1.bias")]
    if attention and not any(attention) and any(mlp):
        expected = "a trained VideoMAE, in which they are not"
        hint = "likely cause: a conversion that lost them; take the original file"
        raise WeightsError(where, "all query and value biases are zero", expected, hint)


def _strip_prefixes(state: State, where: object) -> dict[str, Tensor]:
    """Remove prefixes and counters that training programs add to keys. Raises WeightsError for LoRA adapters."""
    adapters = [key for key in state if _ADAPTER.search(key)]
    if adapters:
        has_base = len(adapters) < len(state)
        actual = f"layers with unmerged LoRA adapters ({adapters[0]})" if has_base else "only a LoRA adapter"
        hint = "merge it where it was trained (peft: merge_and_unload) and save the resulting model"
        raise WeightsError(where, actual, "a merged model: the tensors do not determine the scale of the adapter", hint)
    stripped: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in _COUNTERS:
            continue
        name = _TRAINER_PREFIXES.sub("", key, count=1) if _TRAINER_PREFIXES.match(key) else key
        if name in stripped:
            raise WeightsError(where, f"{key} and another key are both {name}", hint="the file holds two models")
        stripped[name] = value
    return stripped


def flatten_overrides(overrides: Overrides, path: str = "") -> dict[str, Any]:
    """Flatten nested overrides to {dotted name: value}."""
    flat: dict[str, Any] = {}
    for name, value in overrides.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten_overrides(value, f"{path}{name}.")
        else:
            flat[f"{path}{name}"] = value
    return flat


def merge_overrides(first: Overrides, second: Overrides) -> dict[str, object]:
    """Merge nested overrides; values of `second` take precedence."""
    result = dict(first)
    for name, value in second.items():
        old = result.get(name)
        result[name] = merge_overrides(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
