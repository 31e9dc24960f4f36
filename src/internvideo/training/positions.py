"""Settings of fixed position tables for fine-tuning a masked encoder with another clip size than its weights.

The weights file has no fixed positions, so the recipe says how to compute them, also the recipe saved with the weights.
Source: run_class_finetuning.py.
"""

from __future__ import annotations

import copy

from internvideo.models.factory import configure
from internvideo.models.videomae import VideoMAEPretrain
from internvideo.training.recipe import Recipe
from internvideo.weights.initialize import masked_encoder_configs, native_clip


def add_position_settings(recipe: Recipe) -> Recipe:
    """Add `position_table` and `native_clip` for every masked encoder that starts from another clip size.

    Explicit settings in the recipe stay unchanged. Recipes of masked pretraining are returned unchanged, because its
    table is always computed for its own clip size.

    Raises:
        WeightsError: a file of `init` that cannot be read. RecipeError: overrides that do not fit.
    """
    if not recipe.init or recipe.catalog.models[recipe.model.name].build is VideoMAEPretrain:
        return recipe
    overrides = copy.deepcopy(recipe.model.overrides)
    for name, config in masked_encoder_configs(configure(recipe.model.name, overrides, recipe.catalog.models)).items():
        path = recipe.init.get(name) or recipe.init.get("weights")
        settings = overrides.get(name, {}) if name else overrides
        table = settings.get("position_table")
        if path is None or config.learnable_positions or "native_clip" in settings or table == "native":
            continue
        clip = native_clip(path, config.tubelet, recipe.catalog.models)
        if table is not None or clip != (config.image_size, config.frames):
            settings = {**settings, "position_table": "resized", "native_clip": list(clip)}
            overrides |= {name: settings} if name else settings
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"overrides": overrides})})


def summary(recipe: Recipe) -> tuple[str, ...]:
    """Return one log line per masked encoder whose fixed positions are resized."""
    lines = []
    encoders = masked_encoder_configs(configure(recipe.model.name, recipe.model.overrides, recipe.catalog.models))
    for name, config in encoders.items():
        (size, frames), clip = config.native_clip, (config.image_size, config.frames)
        if config.position_table == "resized" and not config.learnable_positions and (size, frames) != clip:
            table = f"{name}.pos_embed" if name else "pos_embed"
            lines.append(f"{table} resized from {size} px, {frames} frames to {clip[0]} px, {clip[1]} frames")
    return tuple(lines)
