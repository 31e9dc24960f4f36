"""Set the fixed positions of a fine-tuned masked encoder: those of the weights' clip, resized.

Fixed positions are not in the weights file, so the recipe states them, also the one saved with the weights.
Source: run_class_finetuning.py.
"""

from __future__ import annotations

import copy

from internvideo.models.factory import configure
from internvideo.models.videomae import VideoMAEPretrain
from internvideo.training.recipe import Recipe
from internvideo.weights.initialize import masked_encoder_configs, native_clip


def with_positions(recipe: Recipe) -> Recipe:
    """Add `position_table` and `native_clip` for every masked encoder that starts from another clip size.

    Explicit settings of the recipe stay; pretraining builds the table of its own clip.

    Raises:
        WeightsError: a file of `init` that cannot be read. RecipeError: overrides that do not fit.
    """
    if not recipe.init or recipe.catalog.models[recipe.model.name].build is VideoMAEPretrain:
        return recipe
    overrides = copy.deepcopy(recipe.model.overrides)
    for part, config in masked_encoder_configs(configure(recipe.model.name, overrides, recipe.catalog.models)).items():
        path = recipe.init.get(part) or recipe.init.get("weights")
        settings = overrides.get(part, {}) if part else overrides
        table = settings.get("position_table")
        if path is None or config.learnable_positions or "native_clip" in settings or table == "native":
            continue
        clip = native_clip(path, config.tubelet, recipe.catalog.models)
        if table is not None or clip != (config.image_size, config.frames):
            settings = {**settings, "position_table": "resized", "native_clip": list(clip)}
            overrides |= {part: settings} if part else settings
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"overrides": overrides})})


def summary(recipe: Recipe) -> tuple[str, ...]:
    """Return one line per masked encoder whose fixed positions are resized."""
    lines = []
    parts = masked_encoder_configs(configure(recipe.model.name, recipe.model.overrides, recipe.catalog.models))
    for part, config in parts.items():
        (size, frames), clip = config.native_clip, (config.image_size, config.frames)
        if config.position_table == "resized" and not config.learnable_positions and (size, frames) != clip:
            name = f"{part}.pos_embed" if part else "pos_embed"
            lines.append(f"{name} resized from {size} px, {frames} frames to {clip[0]} px, {clip[1]} frames")
    return tuple(lines)
