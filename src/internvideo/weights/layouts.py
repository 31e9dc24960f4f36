"""Recognize published checkpoints by their keys and shapes, never by their file name, and load them strictly.

`layout_families` lists the layouts, `layout_sizes` derives sizes from shapes, `key_tables` maps the keys. Settings that
cannot be derived from tensors (frames of a clip, attention heads of an unusual width) are arguments of `load_layout`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from internvideo.errors import WeightsError
from internvideo.models.embeddings import resize_table
from internvideo.models.factory import BACKBONES, configure, create_model, differences
from internvideo.models.positions import resize_patches, resize_times
from internvideo.models.videomae import VideoMAEConfig
from internvideo.weights.layout_families import FAMILIES, Family, State, other_model
from internvideo.weights.layout_sizes import Shapes
from internvideo.weights.state import load_pretrained, load_reference, reference_names

Overrides = Mapping[str, object]

_WRAPPERS = re.compile(r"((module|model|backbone|_orig_mod)\.)+")
"""Prefixes that training programs add to keys."""

_COUNTERS = ("n_averaged",)
"""Counters that torch's averaged models (`swa_utils.AveragedModel`) add to the tensors."""

_ADAPTER = re.compile(r"\.(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|base_layer)(\.|$)")
"""Keys of LoRA adapters of peft and loralib."""

OVERRIDES = "overrides"
"""Metadata key of converted weights: JSON of settings that cannot be derived from the tensors."""

_STRUCTURE = ("image_size", "patch_size", "tubelet", "width", "depth", "layers", "joint_width", "local_blocks")
"""Settings that distinguish two sizes of a model."""


@dataclass(frozen=True)
class Layout:
    """The recognized layout of a state dict.

    Attributes:
        name: display name of the layout.
        model: key of BACKBONES, the nearest published size.
        overrides: differences from that size for `create_model`, as JSON values.
        left_out: keys that the model has no part for; they are not read (Multi-Modalities-Pretraining).
        unknown: settings (dotted) that follow neither from the tensors nor from a published size; `load_layout` needs
            them as arguments.
        family: row of the table of families.
    """

    name: str
    model: str
    overrides: dict[str, object]
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]
    family: Family = field(repr=False)


def recognize(state: State, where: object = "state dict") -> Layout | None:
    """Recognize the published layout of a state dict from keys and shapes; None for an unknown one.

    Raises:
        WeightsError: tensors that determine the size are missing or mis-shaped, or the state dict is a part of a model,
            such as an adapter.
    """
    bare = _unwrapped({key: torch.empty(value.shape, device="meta") for key, value in state.items()}, where)
    family = next((family for family in FAMILIES if family.fits(bare)), None)
    if family is None:
        return None
    published, left_out = family.read(bare)
    changes = _changes(family, Shapes(published, family.name, where))
    model = min(changes, key=lambda name: (_width_distance(family, name, changes[name]), len(leaves(changes[name]))))
    unknown = tuple(path for path, value in leaves(changes[model]).items() if _is_unknown(path, value))
    left_out += tuple(key for key in state if key in _COUNTERS)
    return Layout(family.name, model, _known_settings(changes[model]), left_out, unknown, family)


def _width_distance(family: Family, name: str, changes: Overrides) -> float:
    """Return the difference between the width of the video tower and that of a published size."""
    base, found = BACKBONES[name].config, configure(name, _known_settings(changes))
    for part in family.video:
        base, found = getattr(base, part), getattr(found, part)
    return abs(math.log(found.width / base.width))


def _known_settings(changes: Overrides) -> dict[str, object]:
    """Remove unknown heads and image sizes, for which those of the published size are used until they are given."""
    unknown = ("heads", "image_size", "frames")
    known = {name: value for name, value in changes.items() if not (name.endswith(unknown) and value == 0)}
    return {name: _known_settings(value) if isinstance(value, Mapping) else value for name, value in known.items()}


def _is_unknown(path: str, value: object) -> bool:
    """Return whether a setting does not follow from the tensors: the layers that global blocks read, heads of no
    published size, and ambiguous clip sizes of learned positions (both 0)."""
    setting = path.rpartition(".")[2]
    counts = setting.endswith("heads") or path in ("frames", "image_size")
    return (counts and value == 0) or setting == "global_layers"


def _changes(family: Family, shapes: Shapes) -> dict[str, dict[str, object]]:
    """Return, per candidate model, the settings from the shapes that differ from its published size."""
    configs = {name: BACKBONES[name].config for name in family.models}
    try:
        return {name: differences(config, family.sizes(shapes, config)) for name, config in configs.items()}
    except ValueError as error:
        found = f"{family.name} with shapes that do not fit together: {error}"
        raise WeightsError(shapes.where, found) from error


def layout_of(state: State, where: object = "state dict") -> Layout:
    """Recognize a layout as `recognize`. Raises WeightsError also for an unknown layout, with the known ones."""
    layout = recognize(state, where)
    if layout is None:
        stems = sorted({re.sub(r"\.\d+(?=\.|$)", ".N", key) for key in state})
        more = f" and {len(stems) - 6} more" if len(stems) > 6 else ""
        examples = f"{', '.join(stems[:6]) or 'no tensor'}{more}"
        known = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
        other = other_model(state)
        reason = f"weights of {other}, which are not read" if other else "keys of no known layout"
        raise WeightsError(where, f"{reason}: {examples}", known)
    return layout


def as_model(layout: Layout, name: str, where: object = "state dict") -> Layout:
    """Express a layout as overrides of the model `name`.

    The towers of InternVideo-MM can also be loaded from a file with a caption decoder, which is then left out.
    Raises WeightsError: the file is of another model or size.
    """
    found, asked = BACKBONES[layout.model], BACKBONES.get(name)
    if asked is None or found.build is not asked.build:
        pretrained = layout.model.endswith("-pretrain") and name.endswith("-classifier")
        cause = (
            "pretraining weights; ask for a fresh head with num_classes" if pretrained else "the file of another model"
        )
        raise WeightsError(where, f"{layout.name}, {layout.model}", name, f"likely cause: {cause}")
    config = configure(layout.model, layout.overrides)
    wanted = getattr(asked.config, "caption", None)
    if getattr(config, "caption", None) is not None and wanted is None and layout.family.plain is not None:
        layout = replace(layout, family=layout.family.plain, left_out=(*layout.left_out, "caption_decoder.*"))
        config = replace(config, caption=None)
    if (getattr(config, "caption", None) is None) != (wanted is None):
        raise WeightsError(where, layout.name, name, f"ask for {layout.model}")
    overrides = differences(asked.config, config)
    free = "image_size" if layout.family.masked else ""  # of learned positions
    wrong = [f"{path} {value}" for path, value in leaves(overrides).items() if _is_size(path) and path != free]
    if wrong:
        other = f"it is {layout.model}" if layout.model != name else "the file is incomplete, or no published size"
        raise WeightsError(where, f"{layout.name} with {', '.join(wrong)}", name, f"likely cause: wrong size, {other}")
    return replace(layout, model=name, overrides=overrides)


def _is_size(path: str) -> bool:
    """Return whether a setting distinguishes published sizes; the depth of a decoder does not."""
    return path.rpartition(".")[2] in _STRUCTURE and path != "caption.layers"


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
        num_classes: replace the classifier's last layer by a random one with this many classes. Pretraining weights
            become a classifier (modeling_finetune.py).
        frames, image_size: clip size, by default that of the file. Positions are resized by the rule of the layout's
            publisher (`positions`); UniFormerV2 and InternVideo-MM support any number of frames.
        overrides: further settings of the file's model, nested as in `create_model`, including `Layout.unknown`.

    Raises:
        WeightsError: missing, unused, mis-shaped or non-finite tensors, biases lost by a conversion, an argument that
            the model does not support.
        RecipeError: unknown or contradictory overrides.
    """
    family = layout.family
    published, _ = family.read(_unwrapped(state, where))
    lacking = [path for path in layout.unknown if path not in leaves(overrides or {})]
    if lacking:
        found = f"the tensors do not determine {', '.join(lacking)}, and it has no published size"
        hint = "put the publisher's config.json beside it, give them as overrides, or write them into the file: "
        raise WeightsError(where, found, hint=f"{hint}internvideo convert --set {lacking[0]}=...")
    base_settings = merged(layout.overrides, overrides or {})
    clip = _clip_settings(layout, base_settings, where, frames, image_size)
    settings = merged(base_settings, clip)
    if family.masked:
        _check_biases(published, where)
    if clip:
        published = _resized(layout, published, (base_settings, settings), where)
    if num_classes is None:
        model = create_model(layout.model, settings)
        load_reference(model, published, where=where)
        return model
    if layout.model.endswith("-pretrain"):
        return _classifier_from(layout, published, settings, num_classes, where)
    return _with_new_head(layout, published, settings, num_classes, where)


def _with_new_head(
    layout: Layout, published: dict[str, Tensor], settings: Overrides, num_classes: int, where: object
) -> nn.Module:
    """Load everything but the classifier's last layer, or but the classifier if the file has none."""
    family = layout.family
    if not family.head:
        raise WeightsError(where, f"{layout.name} has no classes", hint="leave out num_classes")
    fresh = family.head
    if getattr(configure(layout.model, layout.overrides), family.outputs) == 0:
        fresh = fresh.partition(r"\.")[0] + r"\..*"
    model = create_model(layout.model, merged(settings, {family.outputs: num_classes}))
    names = reference_names(model, published)
    head_keys = {key for key in names if names[key] and all(re.fullmatch(fresh, name) for name in names[key])}
    remaining = {key: value for key, value in published.items() if key not in head_keys}
    load_reference(model, remaining, where=where, fresh=fresh)
    return model


def _classifier_from(
    layout: Layout, published: dict[str, Tensor], settings: Overrides, num_classes: int, where: object
) -> nn.Module:
    """Build a classifier from pretraining weights, with random norm and head (modeling_finetune.py)."""
    of_decoder = ("decoder_", "final_norm")
    encoder_settings = {name: value for name, value in settings.items() if not name.startswith(of_decoder)}
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
        changes["position_table"] = _position_table(layout, configure(layout.model, merged(base_settings, changes)))
    for part in reversed(family.video):
        changes = {part: changes}
    return changes


def _position_table(layout: Layout, config: VideoMAEConfig) -> str:
    """Return the setting for classifiers that resize the pretraining's position table (modeling_finetune.py)."""
    clip = (config.image_size, config.frames)
    return "native" if layout.family.computed or clip == config.native_clip else "resized"


def _resized(
    layout: Layout, published: dict[str, Tensor], settings: tuple[Overrides, Overrides], where: object
) -> dict[str, Tensor]:
    """Resize learned positions to another clip size."""
    config, asked = (configure(layout.model, changes) for changes in settings)
    for part in layout.family.video:
        config, asked = getattr(config, part), getattr(asked, part)
    changed = dict(published)
    for key, table in published.items():
        stem = key.removesuffix("positional_embedding")
        if layout.family.masked and key.endswith("pos_embed"):
            if table.shape[1] != config.tokens:
                size = f"{config.frames} frames of {config.image_size} px"
                raise WeightsError(where, f"{key} has {table.shape[1]} positions", f"{config.tokens}, of {size}")
            changed[key] = resize_table(table[0].float(), config.grid, asked.grid)[None]
        elif key == "pos_embed":  # InternVideo2: the class token's comes first
            patches = resize_table(table[0, 1:].float(), config.grid, asked.grid)
            changed[key] = torch.cat([table[:, :1].float(), patches[None]], dim=1)
        elif key == "vision_encoder.temporal_positional_embedding":
            changed[key] = resize_times(table, asked.frames)
        elif stem != key and f"{stem}class_embedding" in published:  # of patches, not of words
            changed[key] = resize_patches(table, asked.image_size // asked.patch_size)
    return changed


def _check_biases(published: State, where: object) -> None:
    """Raise WeightsError if a VideoMAE file has trained biases but all query and value biases are zero.

    Some conversions lose these biases silently, and the model still runs, but worse.
    """
    biases = (".attn.q_bias", ".attn.v_bias")
    attention = [bool(value.any()) for key, value in published.items() if key.endswith(biases)]
    mlp = [bool(value.any()) for key, value in published.items() if key.endswith(".mlp.fc1.bias")]
    if attention and not any(attention) and any(mlp):
        found, expected = "all query and value biases are zero", "a trained VideoMAE, whose biases are not"
        hint = "likely cause: a conversion that lost them; take the original file"
        raise WeightsError(where, found, expected, hint)


def _unwrapped(state: State, where: object) -> dict[str, Tensor]:
    """Remove prefixes and counters that training programs add. Raises WeightsError."""
    adapters = [key for key in state if _ADAPTER.search(key)]
    if adapters:
        whole = len(adapters) < len(state)
        found = f"layers with LoRA adapters not merged into them ({adapters[0]})" if whole else "a LoRA adapter alone"
        hint = "merge it where it was trained (peft: merge_and_unload) and save the model that this gives"
        raise WeightsError(where, found, "a whole model: the tensors do not determine the adapter's scale", hint)
    bare: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in _COUNTERS:
            continue
        name = _WRAPPERS.sub("", key, count=1) if _WRAPPERS.match(key) else key
        if name in bare:
            raise WeightsError(where, f"{key} and another key are both {name}", hint="the file holds two models")
        bare[name] = value
    return bare


def leaves(overrides: Overrides, path: str = "") -> dict[str, Any]:
    """Flatten nested overrides to dotted name -> value."""
    found: dict[str, Any] = {}
    for name, value in overrides.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{path}{name}.")
        else:
            found[f"{path}{name}"] = value
    return found


def merged(first: Overrides, second: Overrides) -> dict[str, object]:
    """Merge nested overrides; the second ones take precedence."""
    both = dict(first)
    for name, value in second.items():
        old = both.get(name)
        both[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both
