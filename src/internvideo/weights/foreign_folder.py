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
from internvideo.weights.fetch import ENDING, check_ending
from internvideo.weights.layouts import OVERRIDES, Layout, layout_of, merged
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
NO_TENSORS = (INDEX, lora.CONFIG)
"""Files that refer to weights files."""
MODEL_TYPES = ("videomae", "clip", "vjepa2", "siglip", "siglip_vision_model")
"""Supported model types of transformers."""

RESIZE_BACKENDS: dict[int, ResizeBackend] = {2: "pil", 3: "pil_bicubic"}
"""PIL's interpolation constants -> our resize backends."""

PUBLISHED_HEADS = {
    **{("UniFormerV2", count): f"kinetics{count}" for count in (400, 600, 700, 710)},
    ("VideoMAE classifier", 174): "something_v2",
    ("transformers VideoMAE classifier", 174): "something_v2",
}
"""Layout and number of classes -> the only list of `data.published_classes` with which such heads were published."""


def weights_in(folder: Path) -> Path:
    """Find the one weights file of a folder, the index of its shards, or an adapter's config. Raises WeightsError."""
    if (folder / lora.CONFIG).exists():
        return folder / lora.CONFIG
    files = sorted(folder.glob(f"*{ENDING}"))
    named = [file for file in files if file.name == WEIGHTS]
    if not named and (folder / INDEX).exists():
        return folder / INDEX
    if len(named or files) == 1:
        return (named or files)[0]
    if files:
        raise WeightsError(folder, f"{len(files)} weights files", ", ".join(file.name for file in files), "name one")
    pickles = sorted(file for file in folder.iterdir() if file.suffix in (".pth", ".pt", ".bin", ".ckpt"))
    if pickles:
        check_ending(pickles[0].name, str(pickles[0]))
    raise WeightsError(folder, "no weights in the folder", f"{WEIGHTS}, {INDEX} or one {ENDING} file")


@dataclass(frozen=True)
class Foreign:
    """Weights, and the content of the files beside them.

    Attributes:
        state, metadata: of the weights. layout: recognized layout, with the settings of the config.
        classes: class names in the config. processor: preprocessing settings, {} for none.
        published: metadata of the model.
        place: the file. folder: folder of the config.
    """

    place: Path
    folder: Path
    state: dict[str, Tensor]
    metadata: dict[str, str]
    layout: Layout
    classes: tuple[str, ...] = ()
    processor: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, object]:
        """Return settings of the weights (`convert --set`), and mean and std of the processor. Raises WeightsError."""
        text = self.metadata.get(OVERRIDES, "{}")
        try:
            overrides: Any = untrusted.parse_json(text)
        except ValueError:
            overrides = None
        if not isinstance(overrides, dict):
            raise WeightsError(self.place, f"metadata '{OVERRIDES}' {text[:40]!r}", "settings of the model by name")
        return merged(overrides, self._colours())

    def _colours(self) -> dict[str, object]:
        if not self.processor:
            return {}
        normal = self.processor.get("do_normalize", True)
        pairs = {"mean": ("image_mean", 0.0), "std": ("image_std", 1.0)}
        found: dict[str, object] = {}
        for ours, (theirs, plain) in pairs.items():
            values = self.processor.get(theirs) if normal else [plain] * 3
            if values is None:
                continue
            each = [values] * 3 if isinstance(values, int | float) else values
            right = isinstance(each, list) and len(each) == 3 and all(type(value) in (int, float) for value in each)
            if not right or (ours == "std" and min(each) <= 0):
                raise WeightsError(self._processor, f"{theirs} {values!r}", "three numbers, one per channel")
            found[ours] = tuple(float(value) for value in each)
        return found

    @property
    def _processor(self) -> Path:
        return next(path for name in PROCESSORS if (path := self.folder / name).exists())

    def preprocessing(self, usual: Preprocessing) -> Preprocessing:
        """Return `usual` with the processor's resizing and crop, if there is a processor. Raises WeightsError."""
        if not self.processor:
            return usual
        where, processor = self._processor, self.processor
        rescale = processor.get("rescale_factor", 1 / 255)
        if not processor.get("do_rescale", True) or abs(rescale * 255 - 1) > 1e-6 or processor.get("do_pad"):
            raise WeightsError(where, "do_rescale, rescale_factor or do_pad of another kind", "1/255, no padding")
        short, square = _sides(processor.get("size", usual.size), where, "size")
        crop = processor.get("crop_size", usual.size) if processor.get("do_center_crop", True) else usual.size
        side = _sides(crop, where, "crop_size")[0]
        if not processor.get("do_resize", True) or not (square or processor.get("do_center_crop", True)):
            raise WeightsError(where, "frames that are not made square by resizing and a crop", "do_resize, a crop")
        if side != usual.size or short < side:
            raise WeightsError(where, f"a crop of {side} px of {short}", f"{usual.size} px, as the model sees them")
        resize_backend = RESIZE_BACKENDS.get(
            processor.get("resample", 2 if usual.resize_backend != "pil_bicubic" else 3)
        )
        if resize_backend is None:
            raise WeightsError(where, f"resample {processor['resample']!r}", "2 (bilinear) or 3 (bicubic)")
        return usual.with_settings(resize=short, keep_aspect=not square, resize_backend=resize_backend)


def _sides(size: object, where: Path, key: str) -> tuple[int, bool]:
    """Return the pixels of the shorter side, and whether frames are squashed to a square. Raises WeightsError."""
    values = size if isinstance(size, Mapping) else {"shortest_edge": size}
    found = [values.get(name) for name in ("shortest_edge", "height", "width") if values.get(name) is not None]
    if not found or len(set(map(str, found))) != 1 or type(found[0]) is not int or found[0] < 1:
        raise WeightsError(where, f"{key} {size!r}", "a shortest edge, or a square")
    return found[0], "shortest_edge" not in values


def read(place: Path) -> Foreign:
    """Read weights of a published layout, or those of an index of shards, with the files beside them.

    Raises WeightsError: unknown layout, damaged or missing files, or a config that contradicts the tensors.
    """
    folder = lora.base_of(place) if place.name == lora.CONFIG else place.parent
    config = read_config(folder / CONFIG)
    state, metadata = _tensors(place, folder)
    shard = re.search(r"-\d{5}-of-(\d{5})\.safetensors$", place.name)
    if shard and int(shard.group(1)) > 1:
        hint = f"name the folder, or its {INDEX}"
        raise WeightsError(place, f"one of {int(shard.group(1))} shards of a model", "all of them", hint)
    try:
        layout = layout_of(state, place)
    except WeightsError as error:
        kind, names = config.get("model_type"), config.get("architectures")
        if kind is None or kind in MODEL_TYPES:
            raise
        said = f"model type {kind!r} ({', '.join(map(str, names)) if isinstance(names, list) else 'unnamed'})"
        expected = f"{', '.join(MODEL_TYPES)}, or another published layout"
        raise WeightsError(place, f"{said}, as its {CONFIG} says, which is not read", expected) from error
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
    notes = {}
    if published.ignored:
        notes["config_not_understood"] = ", ".join(published.ignored)
    classes = published.classes
    count = getattr(configure(layout.model, layout.overrides), layout.family.outputs, 0) if layout.family.head else 0
    if not config and not classes and (known := PUBLISHED_HEADS.get((layout.name, count))):
        classes = published_classes(known)
        notes["classes"] = (
            f"those of {known}, as published heads of {count} classes have them; load(class_names=) for others"
        )
    if licence := _card_licence(folder / CARD):
        notes |= {"licence": licence, "licence_stated": "by the README.md beside the weights"}
    return Foreign(place, folder, state, metadata, published.layout, classes, processor, notes)


def _tensors(place: Path, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a file, of shards, or of an adapter on a model of `folder`. Raises WeightsError."""
    if place.name == lora.CONFIG:
        base = weights_in(folder)
        if base.name == lora.CONFIG:
            raise WeightsError(place.parent, "an adapter of an adapter", "one of a whole model", lora.MERGE)
        return lora.merged(place, _tensors(base, folder)[0]), {}
    return _shards(place) if place.name == INDEX else read_safetensors(place)


def _shards(index: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors that an index lists, each from its file. Raises WeightsError."""
    places = read_config(index).get("weight_map")
    plain = re.compile(rf"[\w.-]+{re.escape(ENDING)}")
    if not isinstance(places, Mapping) or not places or not all(plain.fullmatch(str(name)) for name in places.values()):
        raise WeightsError(index, "no weight_map of tensors to files beside it", "what transformers writes")
    files = sorted(set(map(str, places.values())))
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        shown = f"{len(missing)} of {len(files)} shards missing: {', '.join(missing[:3])}"
        raise WeightsError(index, shown, "all shards in the folder", "copy the whole folder")
    state: dict[str, Tensor] = {}
    for name in files:
        part, _ = read_safetensors(index.parent / name)
        wanted = {key for key, file in places.items() if file == name}
        if part.keys() != wanted:
            key = sorted(part.keys() ^ wanted)[0]
            found = f"{key} is {'' if key in part else 'not '}in it, which the index says otherwise"
            raise WeightsError(index.parent / name, found, "shards and index of one model", "copy the folder again")
        state |= part
    return state, {}


def _card_licence(card: Path) -> str:
    """Return `license:` of a model card's front matter, "" for none."""
    try:
        with card.open(encoding="utf-8") as file:
            head = file.read(4096)
    except (OSError, ValueError):
        return ""
    front = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
    stated = re.search(r"^license:\s*[\"']?([\w.+-]+)", front.group(1), re.MULTILINE) if front else None
    return stated.group(1) if stated else ""
