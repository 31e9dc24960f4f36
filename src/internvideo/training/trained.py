"""Load the weights of a run with its recipe and classes, ready for evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from internvideo.data.preprocessing import Preprocessing
from internvideo.data.settings import SampledData
from internvideo.distributed import choose_device
from internvideo.errors import WeightsError
from internvideo.models.declared import limit_model_size
from internvideo.storage import class_names
from internvideo.training.model_setup import build_model, model_overrides
from internvideo.training.recipe import Catalog, EvaluationRecipe, Recipe
from internvideo.training.recipe_files import read_metadata_recipe, read_recipe_beside
from internvideo.untrusted import parse_json_entry
from internvideo.weights.initialize import weights_file
from internvideo.weights.state import load_state, read_model


@dataclass(frozen=True)
class Trained:
    """A trained model with its recipe and classes.

    Attributes:
        recipe: for evaluation. run: the recipe of the training run, if known.
        extra_metadata: see `Job`. ensemble_members: further models, whose predictions a task averages with this one's.
        preprocessing: of test clips, for a model that takes clips.
    """

    model: nn.Module
    recipe: EvaluationRecipe
    classes: tuple[str, ...]
    extra_metadata: Mapping[str, Any] = field(default_factory=dict)
    ensemble_members: tuple[Trained, ...] = ()
    run: Recipe | None = None
    clips: Preprocessing | None = None


def model_metadata(
    recipe: EvaluationRecipe, model: nn.Module, classes: Sequence[str], extra_metadata: Mapping[str, Any]
) -> dict[str, str]:
    """Return the metadata of a weights file, which `load_trained` reads.

    Args:
        recipe: of a stage or for evaluation; a training recipe is reduced to the settings for evaluation.
        model, classes, extra_metadata: see `Job`.
    """
    if isinstance(recipe, Recipe):
        recipe = recipe.for_evaluation(model_overrides(recipe, len(classes)))
    metadata: dict[str, Any] = {"recipe": recipe.resolved(), "classes": list(classes)}
    if (clips := test_preprocessing(recipe, model)) is not None:
        metadata["preprocessing"] = clips.to_json()
    if extra_metadata:
        metadata["context"] = dict(extra_metadata)
    return {name: json.dumps(value) for name, value in metadata.items()}


def test_preprocessing(recipe: EvaluationRecipe, model: nn.Module) -> Preprocessing | None:
    """Return the preprocessing of a recipe's test clips, None for a recipe without clips."""
    if not isinstance(recipe.data, SampledData):
        return None
    # A model of two encoders gets all frames, and subsamples them for one encoder.
    subsamples = getattr(model, "takes_temporal_stride", False)
    return recipe.data.preprocessing().for_model(1 if subsamples else getattr(recipe.settings, "temporal_stride", 1))


def load_trained(path: Path, catalog: Catalog, *, device: str = "auto") -> Trained:
    """Load the weights that `internvideo train` wrote, or those in a run folder, in evaluation mode.

    Raises:
        WeightsError: there is no such file, it was not written by `internvideo train`, or its tensors do not fit.
    """
    path = weights_file(path)
    state, metadata = read_model(path)
    if "recipe" not in metadata or "classes" not in metadata:
        raise WeightsError(path, "contains no recipe", "a model.safetensors written by `internvideo train`")
    recipe = read_metadata_recipe(metadata, path, catalog)
    classes = class_names(metadata, path)
    with limit_model_size(state):
        model = build_model(recipe, len(classes))
    load_state(model, state, where=path)
    extra_metadata = parse_json_entry(metadata, "context", path, WeightsError, "an object", "{}")
    clips = test_preprocessing(recipe, model)
    if "preprocessing" in metadata:
        clips = Preprocessing.from_json(
            parse_json_entry(metadata, "preprocessing", path, WeightsError, "an object"), path
        )
    run = recipe if isinstance(recipe, Recipe) else read_recipe_beside(path, catalog)
    return Trained(model.to(choose_device(device)).eval(), recipe, classes, extra_metadata, run=run, clips=clips)
