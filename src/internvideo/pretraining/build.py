"""Jobs that learn from clips: the paper's four stages, evidential learning, actions in boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from internvideo import distributed
from internvideo.data.caption_choice import with_captions
from internvideo.data.loader import Loader
from internvideo.data.manifest import Manifest, read_manifest
from internvideo.data.mixture import AlternatingLoader, MixedLoader, join_manifests
from internvideo.data.shards import ShardLoader, read_shards
from internvideo.data.tokenizer import Tokenizer
from internvideo.data.transforms import direction_classes
from internvideo.errors import RecipeError
from internvideo.models.clip import Clip
from internvideo.models.cross_model import CrossModel
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEPretrain
from internvideo.recipe import SAMPLERS, STAGES, Recipe
from internvideo.tasks.anticipation.objects import learned, object_frames, of_frame, read_detections
from internvideo.tasks.spatiotemporal.data import ClipForm, KeyFrameLoader
from internvideo.tasks.spatiotemporal.model import ActionDetector
from internvideo.training.build import Job, draw_model, setting, start_model, training_path
from internvideo.training.loop import BatchSource

TOGETHER: dict[str, dict[str, Any]] = {
    "multimodal": {"gather": distributed.gather_with_gradient, "divisor": distributed.divisor},
    "retrieval": {"gather": distributed.gather_with_gradient},
    "supervised": {"divisor": distributed.divisor},
    "interaction": {"divisor": distributed.divisor},
}
"""What stages need to learn from the batch of all processes as from one."""


def prepare(recipe: Recipe, *, skipped: Path | None) -> Job:
    """Manifest, loader, model and stage. Raises RecipeError, ManifestError, WeightsError."""
    manifest = training_rows(recipe)
    _check_flip(recipe, manifest)
    model = draw_model(recipe, len(manifest.classes))
    _check_clips(recipe, model)
    head = start_model(model, recipe, manifest.classes)
    with setting({"masked": "settings.ratio", "multimodal": "settings.caption_weight"}.get(recipe.stage, "settings")):
        stage = STAGES[recipe.stage].stage(model, recipe.settings, **TOGETHER.get(recipe.stage, {}))
    loader = _loader(recipe, manifest, model, skipped)
    facts = {"image_rows": loader.images.sample_index.fingerprint} if isinstance(loader, AlternatingLoader) else {}
    return Job(recipe, stage, loader, manifest.classes, manifest.fingerprint, head=head, facts=facts)


def training_rows(recipe: Recipe) -> Manifest:
    """The rows to train on, of one manifest or of several."""
    data = recipe.data
    manifest = read_manifest(training_path(recipe)).with_notes_logged()
    if data.split is not None:
        manifest = manifest.subset(split=data.split)
    for name, other in data.also.items():
        if other.stride is not None and not hasattr(SAMPLERS[data.sampling.kind], "stride"):
            place = f"data.also.{name}.stride"
            raise RecipeError(
                place, f"'{data.sampling.kind}' has no stride", "data.sampling.kind: dense, dense_pretrain"
            )
        more = read_manifest(other.manifest).with_notes_logged()
        manifest = join_manifests(
            manifest, name, more if other.split is None else more.subset(split=other.split), other.stride
        )
    return with_captions(manifest, data.captions)


def _check_flip(recipe: Recipe, manifest: Manifest) -> None:
    sides = direction_classes(manifest.classes)
    if recipe.data.augment.flip and sides:
        raise RecipeError(
            "data.augment.flip", f"true, but mirroring changes the class '{sides[0]}'", "false for such label sets"
        )


def _check_clips(recipe: Recipe, model: nn.Module) -> None:
    """The clips of the recipe are those that the model is made for; encoders on CLIP take any number of frames."""
    data, step = recipe.data, 1
    if data.sampling.kind == "one_per_second" and not isinstance(model, VideoLanguage | Clip):
        raise RecipeError(
            "data.sampling.kind", "one_per_second, whose clips differ in length", "a fixed number of frames"
        )
    if isinstance(model, CrossModel):  # its frame_step is of the multimodal encoder alone
        parts: dict[str, nn.Module] = {".masked": model.masked, ".multimodal": model.multimodal}
    elif isinstance(model, VideoLanguage):
        parts = {".vision": model.visual}
    else:
        parts, step = {"": model}, getattr(recipe.settings, "frame_step", 1)
    frames = len(range(0, 1 if data.loader.single_frame else data.sampling.frames, step))
    for part, encoder in parts.items():
        if not isinstance(encoder, VideoMAEPretrain | VideoMAEClassifier | UniFormerV2 | ActionDetector | Clip):
            continue
        config, place = encoder.config, f"model.overrides{part}"
        if data.augment.size != config.image_size and not isinstance(encoder, ActionDetector):
            raise RecipeError("data.augment.size", str(data.augment.size), f"{config.image_size}, {place}.image_size")
        if not isinstance(encoder, UniFormerV2 | Clip) and frames != encoder.config.frames:
            raise RecipeError(
                "data.sampling.frames", f"the model sees {frames} frames", f"{encoder.config.frames}, {place}.frames"
            )


def _loader(recipe: Recipe, manifest: Manifest, model: nn.Module, skipped: Path | None) -> BatchSource:
    data = recipe.data
    if isinstance(model, ActionDetector):
        form = clip_form(recipe, model.config.classes)
        frames = None
        if data.key_frames.candidates is not None:
            found = read_detections(data.key_frames.candidates)
            frames = [learned(frame, of_frame(frame, found)) for frame in object_frames(manifest)]
        return KeyFrameLoader(manifest, form, data.loader, skipped=skipped, frames=frames)
    tokenizer = Tokenizer(context_length=model.config.text.context) if isinstance(model, VideoLanguage | Clip) else None
    sampler = data.sampling.build()
    with setting("data.augment"):
        transform = data.augment.eval_transform() if data.augment.as_tested else data.augment.train_transform()
        mixup = data.augment.mix(len(manifest.classes)) if recipe.stage == "supervised" else None

    chosen: Any = {"tokenizer": tokenizer, "skipped": skipped}
    videos = Loader(manifest, sampler, transform, data.loader, **chosen)
    pictures = replace(data.loader, single_frame=True, batch_size=data.image_batch_size or data.loader.batch_size)
    if data.image_shards is not None:
        if data.images is not None:
            raise RecipeError("data.image_shards", "data.images is given too", "one of them")
        shards = read_shards(data.image_shards, data.shard_index)
        return AlternatingLoader(videos, ShardLoader(shards, sampler, transform, pictures, **chosen))
    if data.images is not None:
        images = read_manifest(data.images).with_notes_logged()
        return AlternatingLoader(videos, Loader(images, sampler, transform, pictures, **chosen))
    if mixup is not None:
        return MixedLoader(videos, mixup, seed=data.loader.seed)
    return videos


def clip_form(recipe: Recipe, classes: int) -> ClipForm:
    """How a recipe of the stage `regions` cuts the clip around a key frame."""
    data = recipe.data
    transform = data.key_frames.transform(data.augment.size, flip=data.augment.flip)
    return ClipForm(data.sampling.frames, data.sampling.stride or 1, transform, classes)
