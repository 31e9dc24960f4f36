"""Initialize a model from weights of an earlier stage, loaded strictly into the corresponding modules.

Source: paper 3.2, 3.3; modeling_finetune.py (classifier from pretraining), uniformerv2_model.py, viclip.py (CLIP).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from internvideo.errors import RecipeError, WeightsError
from internvideo.models.embeddings import NATIVE_CLIP
from internvideo.models.entry import ModelEntry
from internvideo.models.factory import BACKBONES, configure
from internvideo.models.positions import NATIVE_TIMES
from internvideo.models.videomae import VideoMAEConfig
from internvideo.storage import class_names, read_metadata
from internvideo.untrusted import parse_json
from internvideo.weights import foreign_folder, layouts
from internvideo.weights.clip_import import from_clip
from internvideo.weights.published_config import check_quick_gelu
from internvideo.weights.state import earlier_stage, load_weights_part, read_model, read_safetensors, select_head_rows


def class_layer(model: nn.Module) -> tuple[str, int]:
    """Return the name of the classification layer ("" if none), and how many of its outputs are no classes."""
    layer: tuple[str, int] = getattr(model, "class_layer", ("", 0))
    return layer


def initial_sources(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the alternative sets of `init` keys that a model supports."""
    sources: tuple[tuple[str, ...], ...] = getattr(model, "initial_sources", (("weights",),))
    return sources


class HeadInitializer(Protocol):
    """Select the rows of the classification head of a file that initialize the head of the model."""

    def __call__(self, classes: tuple[str, ...], path: Path, /) -> Sequence[int] | None:
        """Return the row of the head of `path`, a file with `classes`, per class of the model; None: a random head."""


def initialize(model: nn.Module, sources: Mapping[str, Path], head: HeadInitializer | None = None) -> tuple[str, ...]:
    """Load weights into `model`; learned positions of another clip size are resized.

    Args:
        model: any model of the model table.
        sources: {"weights": FILE} written by `internvideo train`; for a `CrossModel` {"masked": FILE,
            "multimodal": FILE}; for the encoders that start from an image-text model also {"clip": FILE}, in the layout
            of OpenAI's CLIP (converted by `internvideo convert`) or ours. Empty keeps the random weights, except for a
            `CrossModel`, whose encoders are not trained: there it is an error.
        head: selects rows of the classification head; by default all are used.

    Returns: one line per resized position table.

    Raises WeightsError: a wrong key, an absent file, or tensors that do not match; a model of one source is unchanged.
    """
    alternatives = initial_sources(model)
    if not sources and ("weights",) in alternatives:
        return ()
    if set(sources) not in [set(choice) for choice in alternatives]:
        names = " or ".join(" and ".join(f"{name}: FILE" for name in choice) for choice in alternatives)
        raise WeightsError("init", f"holds {', '.join(sources) or 'nothing'}", names, "change `init` in the recipe")
    if "weights" in sources:
        return _load_source(model, sources["weights"], head)
    if "clip" in sources:
        check_quick_gelu(Path(sources["clip"]))
        return from_clip(model, read_safetensors(sources["clip"])[0], where=sources["clip"]).resized
    return tuple(
        line for part in sorted(sources) for line in _load_source(model.get_submodule(part), sources[part], head)
    )


def native_clip(path: Path, tubelet: int, models: Mapping[str, ModelEntry] = BACKBONES) -> tuple[int, int]:
    """Return image size (px) and frames of the clips for which the fixed positions of a masked encoder were computed.

    Published weights do not contain them: InternVideo pretrains on 224 px and 16 frames, UMT, with tubelets of one
    frame, on 8 frames.

    Args:
        path: safetensors file. tubelet: frames per token. models: table of the models that a recipe may name.

    Raises WeightsError: an absent file, or one whose settings cannot be read.
    """
    path = weights_file(path)
    metadata = read_metadata(path) if path.name not in foreign_folder.REFERENCE_FILES else {}
    try:
        if "recipe" in metadata:  # written by a training run
            saved = parse_json(metadata["recipe"])["model"]
            config = configure(saved["name"], saved["overrides"], models)
        elif "internvideo" in metadata:  # written by save_pretrained
            saved = parse_json(metadata["internvideo"])
            config = configure(saved["model"], saved["overrides"], models)
        else:
            config = None
    except (KeyError, TypeError, ValueError, RecipeError) as error:
        raise WeightsError(path, f"settings that cannot be read: {error}") from error
    encoder = next(iter(masked_encoder_configs(config).values()), None)
    if encoder is None:
        return (NATIVE_CLIP[0], NATIVE_TIMES) if tubelet == 1 else NATIVE_CLIP
    return encoder.native_clip if encoder.position_table == "resized" else (encoder.image_size, encoder.frames)


def masked_encoder_configs(config: object) -> dict[str, VideoMAEConfig]:
    """Return {attribute: config} of the masked encoders in a model config; "" if it is that of one itself."""
    if isinstance(config, VideoMAEConfig):
        return {"": config}
    return {name: value for name, value in getattr(config, "__dict__", {}).items() if isinstance(value, VideoMAEConfig)}


def _load_source(model: nn.Module, path: Path, head: HeadInitializer | None) -> tuple[str, ...]:
    path = weights_file(path)
    state, metadata = read_source(path)
    part = earlier_stage(model, state)
    if part is not None:
        tensors, newly_initialized = part
        return load_weights_part(model, tensors, newly_initialized=newly_initialized, where=path)
    return _load_classifier(model, state, metadata, path, head)


def _load_classifier(
    model: nn.Module, state: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path, head: HeadInitializer | None
) -> tuple[str, ...]:
    """Load the weights of a classifier, with the rows of the classification layer that `head` selects."""
    name, num_extra_outputs = class_layer(model)
    weight = state.get(f"{name}.weight")
    newly_initialized = None
    if head is not None and name and weight is not None:
        num_classes = len(weight) - num_extra_outputs
        classes = class_names(metadata, path) or tuple(map(str, range(num_classes)))
        rows = head(classes, path)
        if rows is None:
            newly_initialized = re.escape(name) + r"\."
        elif list(rows) != list(range(num_classes)):
            state = select_head_rows(state, (*rows, *range(num_classes, num_classes + num_extra_outputs)), name)
    return load_weights_part(model, state, newly_initialized=newly_initialized, where=path)


def weights_file(path: Path) -> Path:
    """Return the weights file of a folder, or the path itself. Raises WeightsError."""
    return foreign_folder.find_weights_file(path) if path.is_dir() else path


def read_source(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors under our names and metadata from a file of a run, of `save_pretrained` or of a published layout.

    Raises WeightsError: absent or damaged.
    """
    if path.name in foreign_folder.REFERENCE_FILES:
        return _read_published(path)
    state, metadata = read_model(path)
    if "internvideo" in metadata:  # of save_pretrained
        try:
            return state, {"classes": json.dumps(parse_json(metadata["internvideo"]).get("classes", []))}
        except (AttributeError, ValueError) as error:
            raise WeightsError(path, f"settings that cannot be read: {error}") from error
    if "recipe" in metadata or layouts.recognize(state, path) is None:
        return state, metadata
    return _read_published(path)


def _read_published(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    published = foreign_folder.read(path)
    module = layouts.load_layout(published.layout, published.state, path, overrides=published.settings())
    return module.state_dict(), {"classes": json.dumps(published.classes)} if published.classes else {}
