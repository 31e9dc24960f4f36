"""Save a model as a folder of transformers: config.json, model.safetensors, preprocessor_config.json, model card."""

from __future__ import annotations

import json
from pathlib import Path

from internvideo.inference.hub_folder import CARD, CONFIG, WEIGHTS, Savable, atomic_folder, metadata_to_save, model_card
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
    converted = to_transformers(model.name, model.module, model.class_names)
    preprocessing, metadata = model.preprocessing, metadata_to_save(model)
    config = {"architectures": [converted.architecture], "dtype": model.precision, **converted.config}
    processor_type = "CLIPImageProcessor" if converted.architecture == "CLIPModel" else "VideoMAEImageProcessor"
    size = {"height": preprocessing.resize, "width": preprocessing.resize}
    if preprocessing.keep_aspect:
        size = {"shortest_edge": preprocessing.resize or preprocessing.size}
    processor = {
        "image_processor_type": processor_type,
        "do_resize": True,
        "size": size,
        "resample": RESAMPLE[preprocessing.resize_backend],
        "do_center_crop": True,
        "crop_size": {"height": preprocessing.size, "width": preprocessing.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(converted.mean),
        "image_std": list(converted.std),
    }
    notes = converted.notes
    if preprocessing.resize_backend not in ("pil", "pil_bicubic"):
        notes = (
            *notes,
            f"pixels are resized by '{preprocessing.resize_backend}' in internvideo, by PIL in transformers",
        )
    with atomic_folder(folder, (WEIGHTS, PROCESSOR, CARD, CONFIG)) as partial:
        state = {name: tensor.contiguous() for name, tensor in converted.state.items()}
        write_safetensors(partial / WEIGHTS, state, {"format": "pt"})
        write_text(partial / PROCESSOR, _json(processor))
        write_text(
            partial / CARD, model_card(model, sha256_of(partial / WEIGHTS), metadata, converted.architecture, notes)
        )
        write_text(partial / CONFIG, _json(config))
    for note in converted.notes:
        LOGGER.warning(f"{folder}: {note}")
    return folder


def _json(settings: object) -> str:
    return json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
