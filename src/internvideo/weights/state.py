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
"""Model class -> table of its published checkpoint; other classes have an attribute `published_names`."""


def table_for(model: nn.Module) -> WeightTable:
    """Return the key table of the model's class. Raises ValueError: there is none."""
    table: WeightTable | None = TABLES.get(type(model), getattr(model, "published_names", None))
    if table is None:
        raise ValueError(f"no weight table for {type(model).__name__}")
    return table


def reference_names(model: nn.Module, keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Map every published key that the table of the model knows to our parameter names."""
    table = table_for(model)
    names_of = {key: rule.names(key) for key in keys if (rule := table.find(key)) is not None}
    return {key: names for key, names in names_of.items() if names is not None}


def convert_reference(
    model: nn.Module, state: Mapping[str, Tensor], table: WeightTable | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename and reshape published tensors (or gradients) to ours.

    Args:
        model: ours. state: published names -> tensors. table: of the layout, by default that of the model.

    Returns: our names -> tensors, and the keys that the table does not know.
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
    newly_initialized: str | None = None,
) -> None:
    """Load a published state dict strictly.

    Args:
        model: of a class that has a table; dtype and device do not change.
        state: published names -> tensors.
        where: file or source, for messages.
        newly_initialized: regular expression of our names that keep their random values and must not be in the file.

    Raises WeightsError: missing, unused, mis-shaped or non-finite tensors. The model is then unchanged.
    """
    ours, unused = convert_reference(model, state)
    table = table_for(model)
    optional_names = (*table.derived, *(() if newly_initialized is None else (newly_initialized,)))
    optional = [name for name in model.state_dict() if matches(optional_names, name)]
    _load(model, ours, unused=unused, optional=optional, where=where, source=f"{table.family} checkpoint")


def load_state(model: nn.Module, state: Mapping[str, Tensor], where: object = "state dict") -> None:
    """Load a state dict under our names strictly. Raises WeightsError; the model is then unchanged."""
    _load(model, dict(state), unused=(), optional=(), where=where, source=f"{type(model).__name__} weights")


def earlier_stage(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None] | None:
    """Return the tensors that weights of an earlier stage provide, and the pattern of our names that stay random.

    None if `state` holds weights of the model itself. Calls the method `initial_state` of the model, if it has one.
    """
    initial: Callable[[Mapping[str, Tensor]], Any] | None = getattr(model, "initial_state", None)
    part: tuple[dict[str, Tensor], str | None] | None = None if initial is None else initial(state)
    return part


def load_pretrained(model: nn.Module, state: Mapping[str, Tensor], where: object = "state dict") -> tuple[str, ...]:
    """Load the encoder of a classifier from pretraining weights (published or ours); norm and head stay random.

    Returns: one line per position table that was resized to the clip size of the classifier.

    Raises WeightsError: the pretraining weights lack tensors of the encoder.
    """
    tensors, newly_initialized = earlier_stage(model, state) or ({}, None)
    return load_weights_part(model, tensors, newly_initialized=newly_initialized, where=where)


def load_weights_part(
    model: nn.Module, state: Mapping[str, Tensor], *, newly_initialized: str | None = None, where: object = "state dict"
) -> tuple[str, ...]:
    """Load tensors under our names strictly, except for names that match `newly_initialized`, which stay random.

    Returns: one line per position table that was resized to the clip size of the model.

    Raises WeightsError: as `load_state`; the model is then unchanged.
    """
    optional_names = [
        name for name in model.state_dict() if newly_initialized is not None and re.match(newly_initialized, name)
    ]
    # Stems beside the patches start at zero, so that weights without them give the same outputs as before.
    optional_names += [name for name in model.state_dict() if name not in state and re.search(ADDED_STEMS, name)]
    filled, resized = fit_positions(model, {name: value for name, value in state.items() if name not in optional_names})
    _load(model, filled, unused=(), optional=optional_names, where=where, source="weights of an earlier stage")
    return resized


def select_head_rows(state: Mapping[str, Tensor], rows: Sequence[int], head: str = "head") -> dict[str, Tensor]:
    """Reduce the head of a state dict to some classes (K710 -> K400: rows 0..399; K600, K700: a label map).

    Args:
        state: with `head`.weight (C, ...) and optionally `head`.bias (C,).
        rows: indices of the classes to keep, in the new order.
        head: prefix of the names of the head.

    Raises WeightsError: there is no such head or it has fewer classes.
    """
    weight = state.get(f"{head}.weight")
    if weight is None:
        raise WeightsError(f"{head}.weight", "not in the state dict", hint="name the classification head")
    if not rows or min(rows) < 0 or max(rows) >= len(weight):
        found = f"rows {min(rows, default=0)}..{max(rows, default=0)} requested of {len(weight)}"
        raise WeightsError(f"{head}.weight", found)
    index, names = torch.tensor(list(rows)), (f"{head}.weight", f"{head}.bias")
    return {**state, **{name: state[name][index] for name in names if name in state}}


def _format_names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _likely_cause(
    model: nn.Module, ours: Mapping[str, Tensor], missing: list[str], unused: list[str], mis_shaped: list[str]
) -> str:
    """Return the likely cause of the mismatch, for the error message."""
    target = model.state_dict()
    heads = {key.partition(".")[0] + "." for key in unused}
    if len(missing) == len(target) and len(heads) == 1:
        return f"every key begins with {heads.pop()!r}, which the names of such a model do not"
    if any(key.startswith("decoder.") for key in unused) and hasattr(model, "initial_state"):
        return "these are pretraining weights: fill a classifier from them with load_pretrained"
    if missing and len(missing) == len(target):
        return "this is a checkpoint of another model"
    if mis_shaped:
        if all(re.match(r"(.*\.)?(head|proj\.linear)\.", name) for name in mis_shaped):
            fix = "set num_classes, which makes a new head, or select rows with select_head_rows"
            return f"the head has another number of classes: {fix}"
        if all("patch_embed" in name or "head" in name for name in mis_shaped):
            return "another patch size or tubelet"
        if all("pos" in name or "time_embedding" in name for name in mis_shaped):
            return "another image size or number of frames"
        return "another size of the same model: compare width, heads and depth"
    layers = re.compile(r"(blocks|layers)\.\d+\.")
    if missing and all(layers.search(name) for name in missing):
        return "the checkpoint has fewer layers, or its layers lack an option (layer scale, query and value bias)"
    if unused and all(layers.search(name) for name in unused):
        return "the checkpoint has more layers, or an option that the model lacks (layer scale, query and value bias)"
    return "a checkpoint of another variant"


def match_scalar_shapes(target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reshape scalars () to (1,) if the parameter of that name has this shape (published and earlier files).

    FSDP cannot shard a parameter without a dimension, so our gates and scales have the shape (1,).
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
    ours = match_scalar_shapes(target, ours)
    optional_names = set(optional)
    missing = [name for name in target if name not in ours and name not in optional_names]
    unknown = [*unused, *(name for name in ours if name not in target)]
    common_names = [name for name in ours if name in target]
    mis_shaped = [name for name in common_names if ours[name].shape != target[name].shape]
    dtype_mismatches = [
        name for name in common_names if ours[name].is_floating_point() != target[name].is_floating_point()
    ]
    faults = {
        "missing": missing,
        "unused": unknown,
        "mis-shaped": [f"{name} {tuple(ours[name].shape)} for {tuple(target[name].shape)}" for name in mis_shaped],
        "of another type": [f"{name} {ours[name].dtype} for {target[name].dtype}" for name in dtype_mismatches],
        "not finite": [n for n in common_names if ours[n].is_floating_point() and not bool(ours[n].isfinite().all())],
    }
    fault_kinds = [kind for kind, names in faults.items() if names]
    if not fault_kinds:
        # Not strict, because optional tensors may be missing.
        model.load_state_dict({name: ours[name] for name in common_names}, strict=False)
        return
    known_causes = {"not finite": "the file is damaged or training diverged", "of another type": _QUANTIZED}
    known_cause = known_causes.get(fault_kinds[0]) if len(fault_kinds) == 1 else None
    cause = known_cause or _likely_cause(model, ours, missing, unknown, mis_shaped)
    found = ", ".join(f"{len(faults[kind])} {kind} ({_format_names(faults[kind])})" for kind in fault_kinds)
    raise WeightsError(where, found, f"{source} for {type(model).__name__}", f"likely cause: {cause}")


_QUANTIZED = "quantized weights, which are not supported"


FORMAT_VERSION = 2
"""Version of the metadata of a saved model. Version 1, saved without this number, has the whole recipe of the run."""


def save_model(
    path: str | Path, model: nn.Module | Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write the state dict of a model with metadata and their version. Raises RunError as `write_safetensors`."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    write_safetensors(path, state, {**(metadata or {}), "format_version": str(FORMAT_VERSION)})


def read_model(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a saved model. Raises WeightsError as `read_safetensors`, and for newer versions."""
    state, metadata = read_safetensors(path)
    check_version(metadata.get("format_version", "1"), path)
    return state, metadata


def check_version(version: object, where: object) -> None:
    """Raise WeightsError for a format version that this internvideo does not read."""
    if str(version) not in map(str, range(1, FORMAT_VERSION + 1)):
        expected = f"1 to {FORMAT_VERSION}"
        raise WeightsError(where, f"format_version {str(version)[:20]}", expected, "update internvideo to open it")
