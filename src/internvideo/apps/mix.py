"""Interpolate weights: average several runs, and interpolate between them and the weights they started from (WiSE-FT).

Source: Video-Text-Retrieval (w x CLIP + (1 - w) x tuned, per tower; several checkpoints averaged before), and
multi-modalities-downstream (the logit scale stays that of the tuned model).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from internvideo.errors import RecipeError, WeightsError
from internvideo.inference.trained_model import open_trained
from internvideo.models.video_language import interpolate_weights
from internvideo.recipe import read_recipe
from internvideo.storage import class_names, read_metadata
from internvideo.tasks.protocol import weights_hash
from internvideo.training.model_setup import build_model
from internvideo.training.trained import model_metadata
from internvideo.weights.clip_import import from_clip
from internvideo.weights.initialize import initial_sources
from internvideo.weights.state import load_state, read_model, save_model

Tower = Literal["both", "text", "video"]
State = dict[str, Tensor]
TOWERS = {"both": r".*", "text": r"text\..*", "video": r"visual.*"}
SCALE = r"(.*\.)?logit_scale"
DECODER = "caption_decoder."


@dataclass(frozen=True)
class Mixture:
    """The written file, the number of tensors interpolated with `base`, and the number of all other tensors."""

    file: Path
    mixed: int
    kept: int


def mix(
    tuned: Sequence[Path], output: Path, *, base: Path | None = None, base_weight: float = 0.5, tower: Tower = "both",
    recipe: str | None = None,
) -> Mixture:  # fmt: skip
    """Average `tuned`, interpolate with `base`, and write a file that `internvideo evaluate` reads.

    Args:
        tuned: model.safetensors of runs of one model; they are averaged.
        output: safetensors file to write, with the recipe of the first and the provenance of all.
        base: weights from which `tuned` were trained: CLIP in the layout of OpenAI, transformers or ours, or a
            model.safetensors of an earlier run of the same model. None to write only the mean.
        base_weight: w of `base`, 0 to 1, in every tensor of `tower` that both have, except the logit scale:
            w x base + (1 - w) x tuned. WiSE-FT's alpha is the weight of the tuned model, 1 - w.
        tower: interpolate both towers, or only the text or video tower.
        recipe: name or file of a recipe to store instead, with its model and test preprocessing; a caption decoder that
            its model does not have is omitted.

    Raises:
        RecipeError: a base_weight or a tower that is not allowed.
        WeightsError: a file that is none of these, or files of different models.
    """
    if not 0.0 <= base_weight <= 1.0:
        raise RecipeError("--base-weight", f"{base_weight:g}", "0 to 1")
    if tower not in get_args(Tower):
        raise RecipeError("--tower", repr(tower), ", ".join(get_args(Tower)))
    if os.path.realpath(output) in {os.path.realpath(path) for path in (*tuned, *([base] if base else []))}:
        raise RecipeError("--output", f"{output} is one of the files that are mixed", "a new file")
    model, state, metadata, provenance = _mean(tuned)
    if recipe is not None:
        other_recipe, classes = read_recipe(recipe), class_names(metadata, tuned[0])
        model = build_model(other_recipe, len(classes))
        metadata = {**metadata, **model_metadata(other_recipe, model, classes, {})}
        drops_decoder = not any(name.startswith(DECODER) for name in model.state_dict())
        state = {name: value for name, value in state.items() if not (drops_decoder and name.startswith(DECODER))}
        load_state(model, state, where=tuned[0])
    mixed: list[str] = []
    if base is not None:
        base_state = _read_base(model, base)
        for name, value in base_state.items():
            if value.shape != state[name].shape:
                expected = f"{tuple(state[name].shape)}, as in {tuned[0]}"
                raise WeightsError(base, f"{name} {tuple(value.shape)}", expected)
        base_tensors = {name: value for name, value in base_state.items() if re.fullmatch(TOWERS[tower], name)}
        mixed = [name for name in base_tensors if state[name].is_floating_point() and not re.fullmatch(SCALE, name)]
        if not mixed:
            raise WeightsError(base, f"no tensor of the tower '{tower}'", f"weights that {tuned[0]} can be mixed with")
        state = interpolate_weights(base_tensors, state, base_weight, SCALE)
        origin = {"file": str(base), "sha256": weights_hash(base_state)}
        provenance |= {"base": origin, "share_of_base": base_weight, "tower": tower}
    load_state(model, state, where=output)  # strict, so that the written model is complete
    save_model(output, state, {**metadata, "mixed": json.dumps(provenance)})
    return Mixture(output, len(mixed), len(state) - len(mixed))


def _mean(paths: Sequence[Path]) -> tuple[nn.Module, State, dict[str, str], dict[str, Any]]:
    """Return an uninitialized model, the mean of the files, the metadata of the first, and the names of all."""
    model, first, metadata = _read(paths[0])
    files = [{"file": str(paths[0]), "sha256": weights_hash(first)}]
    total = {name: value.double() if value.is_floating_point() else value for name, value in first.items()}
    for path in paths[1:]:
        _, other_recipe, _ = _read(path)
        shapes = [{(name, value.shape) for name, value in state.items()} for state in (first, other_recipe)]
        if shapes[0] != shapes[1]:
            name = min(shapes[0] ^ shapes[1])[0]
            raise WeightsError(path, f"{name} differs from {paths[0]}", "weights of the same model")
        files.append({"file": str(path), "sha256": weights_hash(other_recipe)})
        for name, value in other_recipe.items():
            if value.is_floating_point():
                total[name] = total[name] + value
    mean = {
        name: (value / len(paths)).to(first[name].dtype) if value.is_floating_point() else value
        for name, value in total.items()
    }
    return model, mean, metadata, {"mean_of": files}


def _read(path: Path) -> tuple[nn.Module, State, dict[str, str]]:
    trained = open_trained(path, device="cpu")
    file = path / "model.safetensors" if path.is_dir() else path
    metadata = read_metadata(file) if file.suffix == ".safetensors" and file.is_file() else {}
    metadata = metadata if "recipe" in metadata else {}
    metadata |= model_metadata(trained.recipe, trained.model, trained.classes, trained.extra_metadata)
    state = {name: value.detach() for name, value in trained.model.state_dict().items()}
    return trained.model, state, metadata


def _read_base(model: nn.Module, base: Path) -> State:
    """Return the tensors of `base` that the model has too, under the names of the model."""
    state, metadata = read_model(base)
    if "recipe" in metadata:
        base_state = {name: value for name, value in state.items() if name in model.state_dict()}
        if not base_state:
            raise WeightsError(base, "no tensor that the tuned model has", "weights of the same model")
        return base_state
    if ("clip",) not in initial_sources(model):
        raise WeightsError(base, "carries no recipe", "a model.safetensors written by `internvideo train`")
    with torch.no_grad():
        filled = from_clip(model, state, where=base).filled
    return {name: value.clone() for name, value in model.state_dict().items() if name in filled}
