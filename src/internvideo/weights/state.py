"""Load and save weights: published checkpoints by key tables, our own files as safetensors.

Loading is strict: a missing, unused, mis-shaped or non-finite tensor raises an error with its name and likely cause.
Source: published checkpoints (keys), modeling_finetune.py (classifier from pretraining weights).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from internvideo.errors import WeightsError
from internvideo.models.embeddings import ADDED_STEMS
from internvideo.models.positions import fit_positions
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEPretrain
from internvideo.storage import read_safetensors as read_safetensors
from internvideo.storage import write_safetensors
from internvideo.weights.key_rules import VIDEOMAE_CLASSIFIER, VIDEOMAE_PRETRAIN, WeightTable, matches
from internvideo.weights.key_tables import MULTIMODAL_TABLES

TABLES: dict[type[nn.Module], WeightTable] = {
    VideoMAEPretrain: VIDEOMAE_PRETRAIN,
    VideoMAEClassifier: VIDEOMAE_CLASSIFIER,
    **MULTIMODAL_TABLES,
}
"""Which table reads the published checkpoint of which model; others have an attribute `published_names`."""


def table_for(model: nn.Module) -> WeightTable:
    """Return the key table of the model's class. Raises ValueError: there is none."""
    table: WeightTable | None = TABLES.get(type(model), getattr(model, "published_names", None))
    if table is None:
        raise ValueError(f"no weight table for {type(model).__name__}")
    return table


def reference_names(model: nn.Module, keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Map every published key that the model's table knows to our parameter names."""
    table = table_for(model)
    found = {key: rule.names(key) for key in keys if (rule := table.find(key)) is not None}
    return {key: names for key, names in found.items() if names is not None}


def convert_reference(
    model: nn.Module, state: Mapping[str, Tensor], table: WeightTable | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename and reshape published tensors (or gradients) to ours.

    Args:
        model: ours. state: published names -> tensors. table: of the layout, by default the model's.

    Returns: our tensors, and the keys that the table does not know.
    """
    table = table or table_for(model)
    ours: dict[str, Tensor] = {}
    unused = []
    for key, tensor in state.items():
        rule = table.find(key)
        if rule is not None:
            ours.update(zip(rule.names(key) or (), rule.apply(tensor, model), strict=True))
        elif not table.ignores(key):
            unused.append(key)
    return ours, unused


def load_reference(
    model: nn.Module,
    state: Mapping[str, Tensor],
    where: object = "state dict",
    fresh: str | None = None,
) -> None:
    """Load a published state dict, all of it and nothing else.

    Args:
        model: of a class that has a table; keeps its dtype and device.
        state: published names -> tensors.
        where: file or source, for messages.
        fresh: regular expression of our names that keep their random values and must not be in the file.

    Raises WeightsError: missing, unused, mis-shaped or non-finite tensors. The model is then unchanged.
    """
    ours, unused = convert_reference(model, state)
    table = table_for(model)
    spare = (*table.derived, *(() if fresh is None else (fresh,)))
    optional = [name for name in model.state_dict() if matches(spare, name)]
    _load(model, ours, unused=unused, optional=optional, where=where, source=f"{table.family} checkpoint")


def load_state(model: nn.Module, state: Mapping[str, Tensor], where: object = "state dict") -> None:
    """Load our own state dict, strictly. Raises WeightsError; the model is then unchanged."""
    _load(model, dict(state), unused=(), optional=(), where=where, source=f"{type(model).__name__} weights")


def earlier_stage(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None] | None:
    """Return the part of a model that weights of an earlier stage fill, and the pattern of the names they do not.

    None for weights of the model itself. Asks the model's method `initial_state`, where it has one.
    """
    initial: Callable[[Mapping[str, Tensor]], Any] | None = getattr(model, "initial_state", None)
    part: tuple[dict[str, Tensor], str | None] | None = None if initial is None else initial(state)
    return part


def load_pretrained(model: nn.Module, state: Mapping[str, Tensor], where: object = "state dict") -> tuple[str, ...]:
    """Load a classifier's embedding and layers from pretraining weights (published or ours); the rest stays random.

    Returns: which learned positions were resized to the classifier's clip.

    Raises WeightsError: the pretraining weights do not fill the whole encoder.
    """
    found, fresh = earlier_stage(model, state) or ({}, None)
    return load_part(model, found, fresh=fresh, where=where)


def load_part(
    model: nn.Module, state: Mapping[str, Tensor], *, fresh: str | None = None, where: object = "state dict"
) -> tuple[str, ...]:
    """Load our own tensors, strictly except for names that match the pattern `fresh`, which stay random.

    Returns: which learned positions were resized to the model's clip.

    Raises WeightsError: as `load_state`; the model is then unchanged.
    """
    spare = [name for name in model.state_dict() if fresh is not None and re.match(fresh, name)]
    # Stems beside the patches start at zero, so that weights made without them give what they gave.
    spare += [name for name in model.state_dict() if name not in state and re.search(ADDED_STEMS, name)]
    used, resized = fit_positions(model, {name: value for name, value in state.items() if name not in spare})
    _load(model, used, unused=(), optional=spare, where=where, source="weights of an earlier stage")
    return resized


def select_head_rows(state: Mapping[str, Tensor], rows: Sequence[int], head: str = "head") -> dict[str, Tensor]:
    """Reduce the head of a state dict to some classes (K710 -> K400: rows 0..399; K600, K700: a label map).

    Args:
        state: with `head`.weight (C, ...) and, where it has one, `head`.bias (C,).
        rows: class indices to keep, in the order wanted.
        head: the head's name.

    Raises WeightsError: there is no such head or it has fewer classes.
    """
    weight = state.get(f"{head}.weight")
    if weight is None:
        raise WeightsError(f"{head}.weight", "not in the state dict", hint="name the classification head")
    if not rows or min(rows) < 0 or max(rows) >= len(weight):
        found = f"rows {min(rows, default=0)}..{max(rows, default=0)} asked of {len(weight)}"
        raise WeightsError(f"{head}.weight", found)
    index, names = torch.tensor(list(rows)), (f"{head}.weight", f"{head}.bias")
    return {**state, **{name: state[name][index] for name in names if name in state}}


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _cause(
    model: nn.Module, ours: Mapping[str, Tensor], missing: list[str], unused: list[str], shapes: list[str]
) -> str:
    """Describe the likeliest cause."""
    target = model.state_dict()
    heads = {key.partition(".")[0] + "." for key in unused}
    if len(missing) == len(target) and len(heads) == 1:
        return f"every key begins with {heads.pop()!r}, which the names of such a model do not"
    if any(key.startswith("decoder.") for key in unused) and hasattr(model, "initial_state"):
        return "these are pretraining weights: fill a classifier from them with load_pretrained"
    if missing and len(missing) == len(target):
        return "this is a checkpoint of another model"
    if shapes:
        if all(re.match(r"(.*\.)?(head|proj\.linear)\.", name) for name in shapes):
            fix = "set num_classes, which makes a new head, or select rows with select_head_rows"
            return f"the head has another number of classes: {fix}"
        if all("patch_embed" in name or "head" in name for name in shapes):
            return "another patch size or tubelet"
        if all("pos" in name or "time_embedding" in name for name in shapes):
            return "another image size or number of frames"
        return "another size of the same model: compare width, heads and depth"
    layers = re.compile(r"(blocks|layers)\.\d+\.")
    if missing and all(layers.search(name) for name in missing):
        return "the checkpoint has fewer layers, or its layers lack an option (layer scale, query and value bias)"
    if unused and all(layers.search(name) for name in unused):
        return "the checkpoint has more layers, or an option that the model lacks (layer scale, query and value bias)"
    return "a checkpoint of another variant"


def with_shapes_of(target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give numbers () of published and earlier files the shape (1,) that the parameters of these names have.

    A parameter without a dimension cannot be divided among processes, so gates and scales are vectors of one.
    """
    vectors = {name for name, tensor in state.items() if tensor.dim() == 0 and name in target}
    return {
        name: tensor.reshape(1) if name in vectors and target[name].shape == (1,) else tensor
        for name, tensor in state.items()
    }


def _load(
    model: nn.Module,
    ours: dict[str, Tensor],
    *,
    unused: Iterable[str],
    optional: Iterable[str],
    where: object,
    source: str,
) -> None:
    target = model.state_dict()
    ours = with_shapes_of(target, ours)
    spare = set(optional)
    missing = [name for name in target if name not in ours and name not in spare]
    unknown = [*unused, *(name for name in ours if name not in target)]
    shared = [name for name in ours if name in target]
    shapes = [name for name in shared if ours[name].shape != target[name].shape]
    kinds = [name for name in shared if ours[name].is_floating_point() != target[name].is_floating_point()]
    faults = {
        "missing": missing,
        "unused": unknown,
        "mis-shaped": [f"{name} {tuple(ours[name].shape)} for {tuple(target[name].shape)}" for name in shapes],
        "of another type": [f"{name} {ours[name].dtype} for {target[name].dtype}" for name in kinds],
        "not finite": [n for n in shared if ours[n].is_floating_point() and not bool(ours[n].isfinite().all())],
    }
    kinds_of_faults = [kind for kind, names in faults.items() if names]
    if not kinds_of_faults:
        model.load_state_dict({name: ours[name] for name in shared}, strict=False)  # what is optional may be missing
        return
    alone = {"not finite": "the file is damaged or training diverged", "of another type": _QUANTIZED}
    known_cause = alone.get(kinds_of_faults[0]) if len(kinds_of_faults) == 1 else None
    cause = known_cause or _cause(model, ours, missing, unknown, shapes)
    found = ", ".join(f"{len(faults[kind])} {kind} ({_names(faults[kind])})" for kind in kinds_of_faults)
    raise WeightsError(where, found, f"{source} for {type(model).__name__}", f"likely cause: {cause}")


_QUANTIZED = "quantised weights, which are not read"


FORMAT_VERSION = 2
"""Of what a saved model says of itself. Version 1, without a number, had the whole recipe of its run inside."""


def save_model(
    path: str | Path, model: nn.Module | Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model's own state dict, with the version of its metadata. Raises RunError as `write_safetensors`."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    write_safetensors(path, state, {**(metadata or {}), "format_version": str(FORMAT_VERSION)})


def read_model(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a saved model. Raises WeightsError as `read_safetensors`; a newer version."""
    state, metadata = read_safetensors(path)
    check_version(metadata.get("format_version", "1"), path)
    return state, metadata


def check_version(found: object, where: object) -> None:
    """Raise WeightsError for a version of another internvideo that this one does not read."""
    if str(found) not in map(str, range(1, FORMAT_VERSION + 1)):
        expected = f"1 to {FORMAT_VERSION}"
        raise WeightsError(where, f"format_version {str(found)[:20]}", expected, "update internvideo to open it")
