"""Read weights of other programs with their shards, config.json, preprocessor_config.json and model card.

Supported are folders of transformers' `save_pretrained` and of open_clip, and single files of any published layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from internvideo import untrusted
from internvideo.data.preprocessing import Preprocessing
from internvideo.data.resize import ResizeBackend
from internvideo.errors import WeightsError
from internvideo.models.factory import configure
from internvideo.storage import read_safetensors
from internvideo.weights import lora
from internvideo.weights.fetch import SUFFIX, require_safetensors
from internvideo.weights.layouts import OVERRIDES, Layout, merge_overrides, require_layout
from internvideo.weights.published_classes import published_classes
from internvideo.weights.published_config import (
    Parsed,
    read_config,
    with_open_clip_config,
    with_transformers_config,
    with_videomae_v2_config,
)

CONFIG, OPEN_CLIP, CARD = "config.json", "open_clip_config.json", "README.md"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
REFERENCE_FILES = (INDEX, lora.ADAPTER_CONFIG)
"""Files that contain no tensors but name the files that do."""
MODEL_TYPES = ("videomae", "clip", "vjepa2", "siglip", "siglip_vision_model")
"""Supported model types of transformers."""

RESIZE_BACKENDS: dict[int, ResizeBackend] = {2: "pil", 3: "pil_bicubic"}
"""PIL's interpolation constants -> our resize backends."""

PUBLISHED_HEADS = {
    **{("UniFormerV2", count): f"kinetics{count}" for count in (400, 600, 700, 710)},
    ("VideoMAE classifier", 174): "something_v2",
    ("transformers VideoMAE classifier", 174): "something_v2",
}
"""(layout, number of classes) -> name of the only class list in `published_classes` that such heads have."""


def find_weights_file(folder: Path) -> Path:
    """Find the only weights file of a folder, the index of its shards, or the config of an adapter. WeightsError."""
    if (folder / lora.ADAPTER_CONFIG).exists():
        return folder / lora.ADAPTER_CONFIG
    files = sorted(folder.glob(f"*{SUFFIX}"))
    named = [file for file in files if file.name == WEIGHTS]
    if not named and (folder / INDEX).exists():
        return folder / INDEX
    if len(named or files) == 1:
        return (named or files)[0]
    if files:
        raise WeightsError(folder, f"{len(files)} weights files", ", ".join(file.name for file in files), "name one")
    pickles = sorted(file for file in folder.iterdir() if file.suffix in (".pth", ".pt", ".bin", ".ckpt"))
    if pickles:
        require_safetensors(pickles[0].name, str(pickles[0]))
    raise WeightsError(folder, "no weights in the folder", f"{WEIGHTS}, {INDEX} or one {SUFFIX} file")


@dataclass(frozen=True)
class ForeignWeights:
    """Weights of another program, and the content of the files beside them.

    Attributes:
        path: the weights file. folder: of the config.
        state, metadata: tensors and metadata of the weights. layout: with the settings of the config.
        classes: class names in the config. processor: content of the preprocessor config, {} for none.
        published: metadata for the loaded model (license, ignored settings).
    """

    path: Path
    folder: Path
    state: dict[str, Tensor]
    metadata: dict[str, str]
    layout: Layout
    classes: tuple[str, ...] = ()
    processor: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, object]:
        """Return the settings in the weights (`convert --set`), and mean and std of the processor. WeightsError."""
        text = self.metadata.get(OVERRIDES, "{}")
        try:
            overrides: Any = untrusted.parse_json(text)
        except ValueError:
            overrides = None
        if not isinstance(overrides, dict):
            raise WeightsError(self.path, f"metadata '{OVERRIDES}' {text[:40]!r}", "settings of the model by name")
        return merge_overrides(overrides, self._mean_and_std())

    def _mean_and_std(self) -> dict[str, object]:
        if not self.processor:
            return {}
        normalizes = self.processor.get("do_normalize", True)
        pairs = {"mean": ("image_mean", 0.0), "std": ("image_std", 1.0)}
        found: dict[str, object] = {}
        for ours, (theirs, plain) in pairs.items():
            values = self.processor.get(theirs) if normalizes else [plain] * 3
            if values is None:
                continue
            per_channel = [values] * 3 if isinstance(values, int | float) else values
            is_valid = (
                isinstance(per_channel, list)
                and len(per_channel) == 3
                and all(type(value) in (int, float) for value in per_channel)
            )
            if not is_valid or (ours == "std" and min(per_channel) <= 0):
                raise WeightsError(self._processor, f"{theirs} {values!r}", "three numbers, one per channel")
            found[ours] = tuple(float(value) for value in per_channel)
        return found

    @property
    def _processor(self) -> Path:
        return next(path for name in PROCESSORS if (path := self.folder / name).exists())

    def preprocessing(self, default: Preprocessing) -> Preprocessing:
        """Return `default` with resizing and crop of the preprocessor config, if there is one. Raises WeightsError."""
        if not self.processor:
            return default
        where, processor = self._processor, self.processor
        rescale = processor.get("rescale_factor", 1 / 255)
        if not processor.get("do_rescale", True) or abs(rescale * 255 - 1) > 1e-6 or processor.get("do_pad"):
            found = "another do_rescale, rescale_factor or do_pad"
            raise WeightsError(where, found, "rescaling by 1/255, no padding")
        short, square = _parse_size(processor.get("size", default.size), where, "size")
        crop = processor.get("crop_size", default.size) if processor.get("do_center_crop", True) else default.size
        side = _parse_size(crop, where, "crop_size")[0]
        if not processor.get("do_resize", True) or not (square or processor.get("do_center_crop", True)):
            raise WeightsError(where, "frames that are not made square by resizing and a crop", "do_resize, a crop")
        if side != default.size or short < side:
            raise WeightsError(
                where, f"a crop of {side} px of {short}", f"{default.size} px, the input size of the model"
            )
        resize_backend = RESIZE_BACKENDS.get(
            processor.get("resample", 2 if default.resize_backend != "pil_bicubic" else 3)
        )
        if resize_backend is None:
            raise WeightsError(where, f"resample {processor['resample']!r}", "2 (bilinear) or 3 (bicubic)")
        return default.with_settings(resize=short, keep_aspect=not square, resize_backend=resize_backend)


def _parse_size(size: object, where: Path, key: str) -> tuple[int, bool]:
    """Return the shorter side in pixels, and whether frames are resized to a square. Raises WeightsError."""
    values = size if isinstance(size, Mapping) else {"shortest_edge": size}
    found = [values.get(name) for name in ("shortest_edge", "height", "width") if values.get(name) is not None]
    if not found or len(set(map(str, found))) != 1 or type(found[0]) is not int or found[0] < 1:
        raise WeightsError(where, f"{key} {size!r}", "a shortest edge, or a square")
    return found[0], "shortest_edge" not in values


def read(path: Path) -> ForeignWeights:
    """Read weights of a published layout with the config files beside them.

    Args:
        path: a weights file, an index of shards, or the config of an adapter.

    Raises WeightsError: unknown layout, damaged or missing files, or a config that contradicts the tensors.
    """
    folder = lora.find_base_folder(path) if path.name == lora.ADAPTER_CONFIG else path.parent
    config = read_config(folder / CONFIG)
    state, metadata = _read_weights(path, folder)
    shard = re.search(r"-\d{5}-of-(\d{5})\.safetensors$", path.name)
    if shard and int(shard.group(1)) > 1:
        hint = f"name the folder, or its {INDEX}"
        raise WeightsError(path, f"one of {int(shard.group(1))} shards of a model", "all shards", hint)
    try:
        layout = require_layout(state, path)
    except WeightsError as error:
        kind, names = config.get("model_type"), config.get("architectures")
        if kind is None or kind in MODEL_TYPES:
            raise
        description = f"model type {kind!r} ({', '.join(map(str, names)) if isinstance(names, list) else 'unnamed'})"
        expected = f"{', '.join(MODEL_TYPES)}, or another published layout"
        raise WeightsError(path, f"{description}, as its {CONFIG} says, which is not read", expected) from error
    published = Parsed(layout)
    processor: Mapping[str, Any] = {}
    if layout.name.startswith("transformers "):
        if config:
            published = with_transformers_config(layout, config, folder / CONFIG)
        processor = next((found for name in PROCESSORS if (found := read_config(folder / name))), {})
        processor = processor.get("image_processor", processor)
    elif layout.name == "CLIP" and (other := read_config(folder / OPEN_CLIP)):
        published = with_open_clip_config(layout, other, folder / OPEN_CLIP)
    elif layout.family.masked and "model_config" in config:
        published = with_videomae_v2_config(layout, config, folder / CONFIG)
    elif config.get("model_type"):
        published = Parsed(layout, ignored=(f"{CONFIG} of model type {config['model_type']!r}",))
    metadata_notes = {}
    if published.ignored:
        metadata_notes["config_not_understood"] = ", ".join(published.ignored)
    classes = published.classes
    count = getattr(configure(layout.model, layout.overrides), layout.family.outputs, 0) if layout.family.head else 0
    if not config and not classes and (known := PUBLISHED_HEADS.get((layout.name, count))):
        classes = published_classes(known)
        metadata_notes["classes"] = (
            f"assumed to be those of {known}, as in published heads of {count} classes; load(class_names=) sets others"
        )
    if license_name := _license_of_card(folder / CARD):
        metadata_notes |= {"licence": license_name, "licence_stated": "by the README.md beside the weights"}
    return ForeignWeights(path, folder, state, metadata, published.layout, classes, processor, metadata_notes)


def _read_weights(path: Path, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a file, of shards, or of an adapter on a model of `folder`. Raises WeightsError."""
    if path.name == lora.ADAPTER_CONFIG:
        base = find_weights_file(folder)
        if base.name == lora.ADAPTER_CONFIG:
            raise WeightsError(path.parent, "an adapter of an adapter", "an adapter of a model", lora.MERGE_HINT)
        return lora.merge_adapter(path, _read_weights(base, folder)[0]), {}
    return _read_shards(path) if path.name == INDEX else read_safetensors(path)


def _read_shards(index: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors that an index lists, each from its file. Raises WeightsError."""
    weight_map = read_config(index).get("weight_map")
    plain = re.compile(rf"[\w.-]+{re.escape(SUFFIX)}")
    if (
        not isinstance(weight_map, Mapping)
        or not weight_map
        or not all(plain.fullmatch(str(name)) for name in weight_map.values())
    ):
        raise WeightsError(index, "no weight_map of tensors to files beside it", "what transformers writes")
    files = sorted(set(map(str, weight_map.values())))
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        found = f"{len(missing)} of {len(files)} shards missing: {', '.join(missing[:3])}"
        raise WeightsError(index, found, "all shards in the folder", "copy the whole folder")
    state: dict[str, Tensor] = {}
    for name in files:
        shard, _ = read_safetensors(index.parent / name)
        expected = {key for key, file in weight_map.items() if file == name}
        if shard.keys() != expected:
            key = sorted(shard.keys() ^ expected)[0]
            found = f"{key} is {'' if key in shard else 'not '}in it, contrary to the index"
            raise WeightsError(index.parent / name, found, "shards and index of one model", "copy the folder again")
        state |= shard
    return state, {}


def _license_of_card(card: Path) -> str:
    """Return `license:` of a model card's front matter, "" for none."""
    try:
        with card.open(encoding="utf-8") as file:
            head = file.read(4096)
    except (OSError, ValueError):
        return ""
    front = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
    stated = re.search(r"^license:\s*[\"']?([\w.+-]+)", front.group(1), re.MULTILINE) if front else None
    return stated.group(1) if stated else ""
