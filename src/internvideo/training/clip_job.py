"""Jobs that learn from clips of videos: rows, loader, model with its initial weights, stage."""

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
from internvideo.training.model_setup import init_model, load_init_weights, setting, training_path
from internvideo.training.recipe import Job, Recipe


def clip_job(
    recipe: Recipe,
    skipped: Path | None,
    make_stage: Callable[[Any], nn.Module],
    *,
    make_loader: Callable[[Manifest, Any], BatchSource] | None = None,
    captions: CaptionChoice = "random",
    settings: str = "settings",
) -> Job:
    """Build a job that learns from clips with labels or captions.

    Args:
        recipe: with `TrainClipData`. skipped: file that names unreadable videos.
        make_stage: model -> stage. make_loader: (rows, model) -> batches, by default `clip_loader`.
        captions: which are learned. settings: what a ValueError of the stage is about.

    Raises:
        RecipeError, ManifestError, WeightsError: what does not fit together.
    """
    manifest = training_rows(recipe, captions)
    check_flip(recipe.data_as(TrainClipData).augment.flip, manifest.classes)
    model = init_model(recipe, len(manifest.classes), *recipe.spec.models)
    check_clips(recipe, model)
    head = load_init_weights(model, recipe, manifest.classes)
    with setting(settings):
        stage = make_stage(model)
    if make_loader is None:
        loader: BatchSource = clip_loader(recipe, manifest, skipped)
    else:
        loader = make_loader(manifest, model)
    return Job(recipe, stage, loader, manifest.classes, manifest.fingerprint, head=head)


def clip_loader(recipe: Recipe, manifest: Manifest, skipped: Path | None, tokenizer: Tokenizer | None = None) -> Loader:
    """Build the loader of augmented clips. Raises RecipeError."""
    data = recipe.data_as(TrainClipData)
    sampler = data.sampling.build()
    with setting("data.augment"):
        transform = data.augment.train_transform()
    return Loader(manifest, sampler, transform, data.loader, tokenizer=tokenizer, skipped=skipped)


def training_rows(recipe: Recipe, captions: CaptionChoice = "random") -> Manifest:
    """Read the rows to train on, of one manifest or of several. Raises ManifestError, RecipeError."""
    data = recipe.data_as(SampledData)
    manifest = read_manifest(training_path(recipe)).with_notes_logged()
    if data.split is not None:
        manifest = manifest.subset(split=data.split)
    for name, other in data.extra_manifests.items():
        if other.stride is not None and not hasattr(SAMPLERS[data.sampling.kind], "stride"):
            place = f"data.extra_manifests.{name}.stride"
            raise RecipeError(
                place, f"'{data.sampling.kind}' has no stride", "data.sampling.kind: dense, dense_pretrain"
            )
        more = read_manifest(other.manifest).with_notes_logged()
        manifest = join_manifests(
            manifest, name, more if other.split is None else more.subset(split=other.split), other.stride
        )
    return with_captions(manifest, captions)


def check_flip(flip: bool, classes: tuple[str, ...], what: str = "class") -> None:
    """Raise RecipeError where clips are mirrored whose classes know left from right."""
    sides = direction_classes(classes)
    if flip and sides:
        raise RecipeError(
            "data.augment.flip", f"true, but mirroring changes the {what} '{sides[0]}'", "false for such label sets"
        )


def check_clips(recipe: Recipe, model: nn.Module) -> None:
    """Check that the recipe's clips are those that the model is made for.

    Raises:
        RecipeError: naming the settings of both.
    """
    data = recipe.data_as(SampledData)
    if data.sampling.kind == "one_per_second" and not getattr(model, "takes_frame_mask", False):
        raise RecipeError(
            "data.sampling.kind", "one_per_second, whose clips differ in length", "a fixed number of frames"
        )
    frames = 1 if data.loader.single_frame else data.sampling.frames
    check_clip(
        model, frames=frames, size=data.augment.size, temporal_stride=getattr(recipe.settings, "temporal_stride", 1)
    )
