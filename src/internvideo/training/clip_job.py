"""Build jobs that train on clips of videos: rows, loader, model with its initial weights, stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from internvideo.data.caption_choice import CaptionChoice, with_captions
from internvideo.data.loader import Loader
from internvideo.data.manifest import Manifest, read_manifest
from internvideo.data.mixture import join_manifests
from internvideo.data.sampling import SAMPLERS
from internvideo.data.settings import SampledData, TrainClipData
from internvideo.data.tokenizer import Tokenizer
from internvideo.data.transforms import direction_classes
from internvideo.errors import RecipeError
from internvideo.models.encoder import check_clip
from internvideo.training.loop import BatchSource
from internvideo.training.model_setup import init_model, load_init_weights, setting_errors, training_path
from internvideo.training.recipe import Job, Recipe


def clip_job(
    recipe: Recipe,
    skipped: Path | None,
    make_stage: Callable[[Any], nn.Module],
    *,
    make_loader: Callable[[Manifest, Any], BatchSource] | None = None,
    captions: CaptionChoice = "random",
    settings_key: str = "settings",
) -> Job:
    """Build a job that trains on clips with labels or captions.

    Args:
        recipe: of a stage with `TrainClipData`. skipped: file to list unreadable videos in.
        make_stage: model -> stage. make_loader: (rows, model) -> batches, by default `clip_loader`.
        captions: how a caption is chosen if a row has several.
        settings_key: key of the recipe that the error names if `make_stage` raises ValueError.

    Raises:
        RecipeError, ManifestError, WeightsError: recipe, rows and weights do not fit together.
    """
    manifest = read_training_rows(recipe, captions)
    refuse_flip(recipe.data_as(TrainClipData).augment.flip, manifest.classes)
    model = init_model(recipe, len(manifest.classes), *recipe.spec.models)
    check_clips(recipe, model)
    head_init_lines = load_init_weights(model, recipe, manifest.classes)
    with setting_errors(settings_key):
        stage = make_stage(model)
    loader = clip_loader(recipe, manifest, skipped) if make_loader is None else make_loader(manifest, model)
    return Job(recipe, stage, loader, manifest.classes, manifest.fingerprint, head_init_lines=head_init_lines)


def clip_loader(recipe: Recipe, manifest: Manifest, skipped: Path | None, tokenizer: Tokenizer | None = None) -> Loader:
    """Build the loader of augmented clips. Raises RecipeError."""
    data = recipe.data_as(TrainClipData)
    sampler = data.sampling.build()
    with setting_errors("data.augment"):
        transform = data.augment.train_transform()
    return Loader(manifest, sampler, transform, data.loader, tokenizer=tokenizer, skipped=skipped)


def read_training_rows(recipe: Recipe, captions: CaptionChoice = "random") -> Manifest:
    """Read and join the training manifests of a recipe. Raises ManifestError, RecipeError."""
    data = recipe.data_as(SampledData)
    manifest = read_manifest(training_path(recipe)).with_notes_logged()
    if data.split is not None:
        manifest = manifest.subset(split=data.split)
    for name, extra in data.extra_manifests.items():
        if extra.stride is not None and not hasattr(SAMPLERS[data.sampling.kind], "stride"):
            key, found = f"data.extra_manifests.{name}.stride", f"'{data.sampling.kind}' has no stride"
            raise RecipeError(key, found, "data.sampling.kind: dense, dense_pretrain")
        extra_manifest = read_manifest(extra.manifest).with_notes_logged()
        extra_manifest = extra_manifest if extra.split is None else extra_manifest.subset(split=extra.split)
        manifest = join_manifests(manifest, name, extra_manifest, extra.stride)
    return with_captions(manifest, captions)


def refuse_flip(flip: bool, classes: tuple[str, ...], what: str = "class") -> None:
    """Raise RecipeError if clips are flipped although classes distinguish left from right."""
    if flip and (directional := direction_classes(classes)):
        found = f"true, but mirroring changes the {what} '{directional[0]}'"
        raise RecipeError("data.augment.flip", found, "false for classes with left and right")


def check_clips(recipe: Recipe, model: nn.Module) -> None:
    """Raise RecipeError, naming the settings of both, unless the model takes the recipe's clips."""
    data = recipe.data_as(SampledData)
    if data.sampling.kind == "one_per_second" and not getattr(model, "takes_frame_mask", False):
        found = "one_per_second, whose clips differ in length"
        raise RecipeError("data.sampling.kind", found, "a fixed number of frames")
    frames, stride = data.sampling.frames, getattr(recipe.settings, "temporal_stride", 1)
    check_clip(model, frames=1 if data.loader.single_frame else frames, size=data.augment.size, temporal_stride=stride)
