"""Initialize a model from weights of an earlier stage, loaded strictly into the corresponding part.

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
from internvideo.models.factory import BACKBONES, configure, present_settings
from internvideo.models.positions import NATIVE_SLOTS
from internvideo.models.videomae import VideoMAEConfig
from internvideo.storage import class_names, read_metadata
from internvideo.untrusted import parse_json
from internvideo.weights import foreign_folder, layouts
from internvideo.weights.clip_import import from_clip
from internvideo.weights.published_config import check_quick_gelu
from internvideo.weights.state import earlier_stage, load_part, read_model, read_safetensors, select_head_rows


def class_layer(model: nn.Module) -> tuple[str, int]:
    """Return the name of the layer with one output per class ("" if none), and its number of additional outputs."""
    layer: tuple[str, int] = getattr(model, "class_layer", ("", 0))
    return layer


def initial_sources(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the alternative sets of `init` keys that a model supports."""
    sources: tuple[tuple[str, ...], ...] = getattr(model, "initial_sources", (("weights",),))
    return sources


class HeadInitializer(Protocol):
    """Select the rows of a file's classification head that initialize the model's head."""

    def __call__(self, known: tuple[str, ...], path: Path) -> Sequence[int] | None:
        """Return the rows to take of the head of `path` with classes `known`; None for a random head."""


def initialize(model: nn.Module, sources: Mapping[str, Path], head: HeadInitializer | None = None) -> tuple[str, ...]:
    """Load weights into `model`; learned positions of another clip size are resized.

    Args:
        model: any model of the model table.
        sources: {"weights": FILE} that `internvideo train` wrote; for a `CrossModel` {"masked": FILE,
            "multimodal": FILE}; for the encoders that start from an image-text model also {"clip": FILE}, in the public
            CLIP layout (converted by `internvideo convert`) or ours. Empty keeps the random weights; that is an error
            for a `CrossModel`, whose encoders are never trained.
        head: selects rows of a classification head; by default all are taken.

    Returns: one line per resized position table.

    Raises WeightsError: a wrong key, an absent file, or tensors that do not match; a model of one source is unchanged.
    """
    allowed = initial_sources(model)
    if not sources and ("weights",) in allowed:
        return ()
    if set(sources) not in [set(choice) for choice in allowed]:
        names = " or ".join(" and ".join(f"{name}: FILE" for name in choice) for choice in allowed)
        raise WeightsError("init", f"holds {', '.join(sources) or 'nothing'}", names, "change `init` in the recipe")
    if "weights" in sources:
        return _fill(model, sources["weights"], head)
    if "clip" in sources:
        check_quick_gelu(Path(sources["clip"]))
        return from_clip(model, read_safetensors(sources["clip"])[0], where=sources["clip"]).resized
    return tuple(line for part in sorted(sources) for line in _fill(model.get_submodule(part), sources[part], head))


def native_clip(path: Path, tubelet: int, models: Mapping[str, ModelEntry] = BACKBONES) -> tuple[int, int]:
    """Return image size (px) and frames of the clip that a masked encoder's fixed positions were computed for.

    Published weights do not contain them: InternVideo pretrains on 224 px and 16 frames, UMT, with tubelets of one
    frame, on 8 frames.

    Args:
        path: safetensors file. tubelet: frames per token. models: table of named sizes for a run's recipe.

    Raises WeightsError: an absent file, or one whose settings cannot be read.
    """
    path = weights_file(path)
    metadata = read_metadata(path) if path.name not in foreign_folder.NO_TENSORS else {}
    try:
        if "recipe" in metadata:  # of a run
            saved = parse_json(metadata["recipe"])["model"]
            config = configure(saved["name"], present_settings(saved["overrides"]), models)
        elif "internvideo" in metadata:  # of save_pretrained
            saved = parse_json(metadata["internvideo"])
            config = configure(saved["model"], present_settings(saved["overrides"]), models)
        else:
            config = None
    except (KeyError, TypeError, ValueError, RecipeError) as error:
        raise WeightsError(path, f"settings that cannot be read: {error}") from error
    found = next((one for one in masked_parts(config).values()), None)
    if found is None:
        return (NATIVE_CLIP[0], NATIVE_SLOTS) if tubelet == 1 else NATIVE_CLIP
    return found.native_clip if found.position_table == "resized" else (found.image_size, found.frames)


def masked_parts(config: object) -> dict[str, VideoMAEConfig]:
    """Return the masked encoders in a model's config by attribute; "" is the config itself."""
    if isinstance(config, VideoMAEConfig):
        return {"": config}
    return {name: value for name, value in getattr(config, "__dict__", {}).items() if isinstance(value, VideoMAEConfig)}


def _fill(model: nn.Module, path: Path, head: HeadInitializer | None) -> tuple[str, ...]:
    path = weights_file(path)
    state, metadata = read_source(path)
    part = earlier_stage(model, state)
    if part is not None:
        tensors, fresh = part
        return load_part(model, tensors, fresh=fresh, where=path)
    return _fill_classifier(model, state, metadata, path, head)


def _fill_classifier(
    model: nn.Module, state: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path, rule: HeadInitializer | None
) -> tuple[str, ...]:
    """Load all weights of a classifier, with the rows of the head that `rule` selects."""
    name, others = class_layer(model)
    weight = state.get(f"{name}.weight")
    fresh = None
    if rule is not None and name and weight is not None:
        count = len(weight) - others
        known = class_names(metadata, path) or tuple(map(str, range(count)))
        rows = rule(known, path)
        if rows is None:
            fresh = re.escape(name) + r"\."
        elif list(rows) != list(range(count)):
            state = select_head_rows(state, (*rows, *range(count, count + others)), name)
    return load_part(model, state, fresh=fresh, where=path)


def weights_file(path: Path) -> Path:
    """Return the weights file of a folder, or the path itself. Raises WeightsError."""
    return foreign_folder.weights_in(path) if path.is_dir() else path


def read_source(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors under our names, and metadata: of a run, of `save_pretrained`, or of any published layout.

    Raises WeightsError: absent or damaged.
    """
    if path.name in foreign_folder.NO_TENSORS:
        return _published(path)
    state, metadata = read_model(path)
    if "internvideo" in metadata:  # of save_pretrained
        try:
            return state, {"classes": json.dumps(parse_json(metadata["internvideo"]).get("classes", []))}
        except (AttributeError, ValueError) as error:
            raise WeightsError(path, f"settings that cannot be read: {error}") from error
    if "recipe" in metadata or layouts.recognize(state, path) is None:
        return state, metadata
    return _published(path)


def _published(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    found = foreign_folder.read(path)
    module = layouts.load_layout(found.layout, found.state, path, overrides=found.settings())
    return module.state_dict(), {"classes": json.dumps(found.classes)} if found.classes else {}
