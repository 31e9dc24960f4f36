"""Save a model as a folder of transformers: config.json, model.safetensors, preprocessor_config.json, model card."""

from __future__ import annotations

import json
from pathlib import Path

from internvideo.inference.hub_folder import CARD, CONFIG, WEIGHTS, Savable, card, metadata_to_save, whole_folder
from internvideo.storage import write_safetensors, write_text
from internvideo.terminal import LOGGER
from internvideo.weights.fetch import sha256_of
from internvideo.weights.transformers_export import RESAMPLE, to_transformers

PROCESSOR = "preprocessor_config.json"


def save(model: Savable, folder: Path) -> Path:
    """Write a model in the layout of transformers; `internvideo.load` reads such folders too.

    Differences of transformers' computation are reported on stderr and in the model card.

    Raises:
        RecipeError: transformers has no such architecture. RunError: the folder cannot be written.
    """
    theirs = to_transformers(model.name, model.module, model.class_names)
    rule, metadata = model.preprocessing, metadata_to_save(model)
    config = {"architectures": [theirs.architecture], "dtype": model.precision, **theirs.config}
    processor_type = "CLIPImageProcessor" if theirs.architecture == "CLIPModel" else "VideoMAEImageProcessor"
    size = {"height": rule.resize, "width": rule.resize}
    if rule.keep_aspect:
        size = {"shortest_edge": rule.resize or rule.size}
    processor = {
        "image_processor_type": processor_type,
        "do_resize": True,
        "size": size,
        "resample": RESAMPLE[rule.resize_backend],
        "do_center_crop": True,
        "crop_size": {"height": rule.size, "width": rule.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(theirs.mean),
        "image_std": list(theirs.std),
    }
    notes = theirs.notes
    if rule.resize_backend not in ("pil", "pil_bicubic"):
        notes = (*notes, f"pixels are resized by '{rule.resize_backend}' in internvideo, by PIL in transformers")
    with whole_folder(folder, (WEIGHTS, PROCESSOR, CARD, CONFIG)) as partial:
        state = {name: tensor.contiguous() for name, tensor in theirs.state.items()}
        write_safetensors(partial / WEIGHTS, state, {"format": "pt"})
        write_text(partial / PROCESSOR, _json(processor))
        write_text(partial / CARD, card(model, sha256_of(partial / WEIGHTS), metadata, theirs.architecture, notes))
        write_text(partial / CONFIG, _json(config))
    for note in theirs.notes:
        LOGGER.warning(f"{folder}: {note}")
    return folder


def _json(settings: object) -> str:
    return json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
