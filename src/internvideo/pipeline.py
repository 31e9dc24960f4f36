"""From a recipe to weights: data, model and stage are built, the loop trains, model.safetensors is written."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from internvideo.data.batch import Batch, FeatureBatch
from internvideo.data.catalog import BENCHMARKS
from internvideo.data.feature_sequences import SequenceLoader, read_feature_set
from internvideo.data.key_frames import ClipForm, KeyFrameLoader
from internvideo.data.loader import Loader
from internvideo.data.manifest import Manifest, read_manifest
from internvideo.data.mixture import AlternatingLoader, MixedLoader, joined
from internvideo.data.tokenizer import Tokenizer
from internvideo.data.transforms import direction_classes
from internvideo.errors import RecipeError, WeightsError
from internvideo.models.action_detector import ActionDetector
from internvideo.models.actionformer import ActionFormer
from internvideo.models.cross_model import CrossModel
from internvideo.models.factory import create_model
from internvideo.models.initialise import initialise
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.video_language import VideoLanguage, interpolate_weights
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEPretrain
from internvideo.models.weights import load_state, save_model
from internvideo.recipe import (
    MODELS,
    SAMPLERS,
    STAGES,
    TASKS,
    Recipe,
    build_recipe,
    choose_device,
    read_recipe,
    shipped_recipes,
)
from internvideo.stages.multimodal import MultimodalStage
from internvideo.storage import read_safetensors
from internvideo.training import checkpoint, distributed
from internvideo.training.loop import BatchSource, train
from internvideo.training.memory import MIB, counted_activations, tensor_bytes
from internvideo.training.settings import TrainingSettings
from internvideo.training.step import Stepper

MAY_DIFFER = ("data.loader.workers", "data.loader.prefetch", "data.loader.pin_memory", "data.loader.cache_megabytes")
"""Settings that change nothing in what is computed: a run may be resumed with others."""


@dataclass(frozen=True)
class Job:
    """A recipe with everything that it names built; `fingerprint` is that of the training rows and their classes.

    `features` tells how the features were made that a localisation learns from; it is empty elsewhere.
    """

    recipe: Recipe
    stage: nn.Module
    loader: BatchSource
    classes: tuple[str, ...]
    fingerprint: str
    features: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The model that the stage trains."""
        model = self.stage.model
        if not isinstance(model, nn.Module):
            raise TypeError(f"{type(self.stage).__name__}.model is no module")
        return model


def prepare(recipe: Recipe, *, rank: int = 0, world_size: int = 1, skipped: Path | None = None) -> Job:
    """Build manifest, loader, model (with its initial weights) and stage.

    Raises:
        RecipeError: settings that do not fit together. ManifestError, WeightsError: what they name cannot be used.
    """
    data = recipe.data
    if data.train is None:
        raise RecipeError("data.train", "is missing", "a manifest or a folder of videos", "add data.train=PATH")
    if recipe.stage == "localisation":
        return _prepare_localisation(recipe, data.train, rank, world_size)
    manifest = _rows(recipe, data.train)
    _check_flip(recipe, manifest)
    torch.manual_seed(recipe.loop.seed)  # of the initial weights; the loop seeds its own generators
    model = build_model(recipe, len(manifest.classes))
    _check_clips(recipe, model)
    initialise(model, recipe.init)
    if recipe.loop.activation_checkpointing:
        _recompute_activations(model)
    entry = STAGES[recipe.stage]
    if not isinstance(model, entry.trains):
        names = ", ".join(kind.__name__ for kind in entry.trains)
        raise RecipeError("model.name", f"'{recipe.model.name}' is a {type(model).__name__}", f"{names} for this stage")
    with _setting({"masked": "settings.ratio", "multimodal": "settings.caption_weight"}.get(recipe.stage, "settings")):
        if entry.stage is MultimodalStage and isinstance(model, VideoLanguage):
            stage: nn.Module = MultimodalStage(model, recipe.settings, distributed.gather_with_gradient)  # type: ignore[arg-type]  # the recipe's validator chose the stage's settings
        else:
            stage = entry.stage(model, recipe.settings)
    loader = _loader(recipe, manifest, model, rank, world_size, skipped)
    return Job(recipe, stage, loader, manifest.classes, manifest.fingerprint)


def _rows(recipe: Recipe, train: Path) -> Manifest:
    """The rows to train on, of one manifest or of several."""
    data = recipe.data
    manifest = read_manifest(train)
    if data.split is not None:
        manifest = manifest.subset(split=data.split)
    for name, other in data.also.items():
        if other.stride is not None and not hasattr(SAMPLERS[data.sampling.kind], "stride"):
            place = f"data.also.{name}.stride"
            raise RecipeError(
                place, f"'{data.sampling.kind}' has no stride", "data.sampling.kind: dense, dense_pretrain"
            )
        more = read_manifest(other.manifest)
        manifest = joined(manifest, name, more if other.split is None else more.subset(split=other.split), other.stride)
    return manifest


def _prepare_localisation(recipe: Recipe, train: Path, rank: int, world_size: int) -> Job:
    """The same for a detector, which learns from a folder of features. Raises as `prepare`."""
    data = recipe.data
    features = read_feature_set(train, data.features)
    if data.split is not None:
        features = features.subset(data.split)
    torch.manual_seed(recipe.loop.seed)
    model = build_model(recipe, len(features.classes))
    if not isinstance(model, ActionFormer):
        raise RecipeError("model.name", f"'{recipe.model.name}' is a {type(model).__name__}", "an ActionFormer")
    if features.width != model.config.input_width:
        found = f"{model.config.input_width}, but the features have {features.width} channels"
        do = f"add model.overrides.input_width={features.width}"
        raise RecipeError("model.overrides.input_width", found, str(features.width), do)
    initialise(model, recipe.init)
    stage = STAGES[recipe.stage].stage(model, recipe.settings)
    loader = SequenceLoader(
        features, data.features, model.config.max_length, data.loader, rank=rank, world_size=world_size
    )
    # The loop asks a batch for its length, its ids and to move; both kinds answer.
    return Job(recipe, stage, cast(BatchSource, loader), features.classes, features.fingerprint, features.protocol)


def build_model(recipe: Recipe, classes: int) -> nn.Module:
    """The recipe's model; a classifier without a number of classes gets that of the manifest.

    Raises:
        RecipeError: the recipe's number of classes is not that of the manifest.
    """
    overrides = copy.deepcopy(recipe.model.overrides)
    if recipe.stage == "localisation":
        classes = 1 if recipe.data.features.class_agnostic else classes
    if recipe.stage in {"supervised", "open_set", "interaction", "localisation", "regions"}:
        if not classes:
            raise RecipeError("data.train", "has no labels", "a label in every row")
        heads = {"model.overrides": overrides}
        if recipe.stage == "interaction":
            heads = {f"model.overrides.{part}": overrides.setdefault(part, {}) for part in ("masked", "multimodal")}
        for place, settings in heads.items():
            asked = settings.setdefault("classes", classes)
            if asked != classes:
                raise RecipeError(f"{place}.classes", f"{asked}, but the manifest has {classes} classes", str(classes))
    return create_model(recipe.model.name, overrides)


def _check_flip(recipe: Recipe, manifest: Manifest) -> None:
    sides = direction_classes(manifest.classes)
    if recipe.data.augment.flip and sides:
        raise RecipeError(
            "data.augment.flip", f"true, but mirroring changes the class '{sides[0]}'", "false for such label sets"
        )


@contextmanager
def _setting(place: str) -> Iterator[None]:
    """What a class says of an argument becomes the mistake in the setting that it came from."""
    try:
        yield
    except ValueError as error:
        raise RecipeError(place, str(error)) from error


def _check_clips(recipe: Recipe, model: nn.Module) -> None:
    """The clips of the recipe are those that the model is made for; encoders on CLIP take any number of frames."""
    data, step = recipe.data, 1
    if isinstance(model, CrossModel):  # its frame_step is of the multimodal encoder alone
        parts: dict[str, nn.Module] = {".masked": model.masked, ".multimodal": model.multimodal}
    elif isinstance(model, VideoLanguage):
        parts = {".vision": model.visual}
    else:
        parts, step = {"": model}, getattr(recipe.settings, "frame_step", 1)
    frames = len(range(0, 1 if data.loader.single_frame else data.sampling.frames, step))
    for part, encoder in parts.items():
        if not isinstance(encoder, VideoMAEPretrain | VideoMAEClassifier | UniFormerV2 | ActionDetector):
            continue
        config, place = encoder.config, f"model.overrides{part}"
        if data.augment.size != config.image_size and not isinstance(encoder, ActionDetector):
            raise RecipeError("data.augment.size", str(data.augment.size), f"{config.image_size}, {place}.image_size")
        if frames != config.frames and not isinstance(encoder, UniFormerV2):
            raise RecipeError(
                "data.sampling.frames", f"the model sees {frames} frames", f"{config.frames}, {place}.frames"
            )


def _recompute_activations(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "checkpointing"):
            setattr(module, "checkpointing", True)  # noqa: B010  # a plain attribute, unknown to nn.Module's types


def _loader(
    recipe: Recipe, manifest: Manifest, model: nn.Module, rank: int, world_size: int, skipped: Path | None
) -> BatchSource:
    data = recipe.data
    if isinstance(model, ActionDetector):
        form = clip_form(recipe, model.config.classes)
        return KeyFrameLoader(manifest, form, data.loader, rank=rank, world_size=world_size, skipped=skipped)
    tokenizer = Tokenizer(context=model.config.text.context) if isinstance(model, VideoLanguage) else None
    sampler = data.sampling.build()
    with _setting("data.augment"):
        transform = data.augment.train_transform()
        mixup = data.augment.mix(len(manifest.classes)) if recipe.stage == "supervised" else None

    def make(rows: Manifest, **changes: Any) -> Loader:
        return Loader(
            rows,
            sampler,
            transform,
            replace(data.loader, **changes),
            tokenizer=tokenizer,
            rank=rank,
            world_size=world_size,
            skipped=skipped,
        )

    videos = make(manifest)
    if data.images is not None:
        size = data.image_batch_size or data.loader.batch_size
        return AlternatingLoader(videos, make(read_manifest(data.images), single_frame=True, batch_size=size))
    if mixup is not None:
        return MixedLoader(videos, mixup, seed=data.loader.seed, rank=rank)
    return videos


def clip_form(recipe: Recipe, classes: int) -> ClipForm:
    """How a recipe of the stage `regions` cuts the clip around a key frame."""
    data = recipe.data
    transform = data.key_frames.transform(data.augment.size, flip=data.augment.flip)
    return ClipForm(data.sampling.frames, data.sampling.stride or 1, transform, classes)


def run_recipe(recipe: Recipe, folder: Path, *, device: str = "auto", title: str | None = None) -> Path:
    """Train a recipe to its end, from where an earlier run of the same recipe in `folder` stopped.

    A run that has come to its end, and has its weights, is left as it is.

    Returns:
        folder/model.safetensors: weights (averaged ones where the recipe averages), with all that `load_trained` needs.

    Raises:
        RunError: `folder` holds another run, the disk is full, a loss is not finite.
        RunInterruptedError: asked to stop; the same call goes on.
    """
    target = folder / "model.safetensors"
    with distributed.process_group(choose_device(device)) as here:
        job = prepare(
            recipe, rank=distributed.rank(), world_size=distributed.world_size(), skipped=folder / "skipped.jsonl"
        )
        initial = (
            {name: value.clone() for name, value in job.model.state_dict().items()} if recipe.initial_share else {}
        )
        reached = checkpoint.newest(folder)
        settings = TrainingSettings(optimizer=recipe.optimizer, schedule=recipe.schedule, loop=recipe.loop)
        result = train(
            job.stage,
            job.loader,
            settings,
            folder,
            {**recipe.resolved(), "training_rows": job.fingerprint},  # a changed manifest is another run
            batch_size=recipe.data.loader.batch_size,
            device=here,
            title=title or recipe.stage,
            may_differ=MAY_DIFFER,
        )
        made = target.is_file() and result.checkpoint == reached  # nothing was left to learn
        if distributed.rank() == 0 and not made:
            state = checkpoint.read_weights(result.checkpoint)
            load_state(job.stage, state, where=result.checkpoint)
            if initial:
                mixed = interpolate_weights(initial, job.model.state_dict(), recipe.initial_share)
                load_state(job.model, mixed, where=result.checkpoint)
            save_model(target, job.model, _metadata(recipe, job))
    return target


def _metadata(recipe: Recipe, job: Job) -> dict[str, str]:
    told = {"recipe": json.dumps(recipe.resolved()), "classes": json.dumps(job.classes)}
    return {**told, "features": json.dumps(dict(job.features))} if job.features else told


@dataclass(frozen=True)
class Trained:
    """A trained model and what it was trained with; `features` as in `Job`."""

    model: nn.Module
    recipe: Recipe
    classes: tuple[str, ...]
    features: Mapping[str, Any] = field(default_factory=dict)


def load_trained(path: Path, *, device: str = "auto") -> Trained:
    """Read a model.safetensors that `run_recipe` wrote, ready for evaluation.

    Raises:
        WeightsError: no such file, not written here, or tensors that do not fit.
    """
    state, metadata = read_safetensors(path)
    if "recipe" not in metadata or "classes" not in metadata:
        raise WeightsError(path, "carries no recipe", "a model.safetensors written by `internvideo train`")
    recipe = build_recipe(json.loads(metadata["recipe"]), where=path)
    classes = tuple(json.loads(metadata["classes"]))
    model = build_model(recipe, len(classes))
    load_state(model, state, where=path)
    features = json.loads(metadata.get("features", "{}"))
    return Trained(model.to(choose_device(device)).eval(), recipe, classes, features)


def describe(recipe: Recipe, *, device: str = "auto") -> str:
    """What a run would do: parameters, steps, memory, and one step on the first batch of its data; nothing is kept."""
    here = choose_device(device)
    job = prepare(recipe)
    per_epoch = len(job.loader) / recipe.loop.accumulate
    steps = recipe.schedule.total_steps(per_epoch)
    counts = {kind: sum(p.numel() for p in job.model.parameters() if p.requires_grad == kind) for kind in (True, False)}
    loop = recipe.loop.model_copy(update={"compile": False})
    settings = TrainingSettings(optimizer=recipe.optimizer, schedule=recipe.schedule, loop=loop)
    stage = job.stage.to(here).train()
    stepper = Stepper(stage, settings, steps, here, torch.Generator(here).manual_seed(loop.seed))
    batch = next(iter(job.loader.epoch(0))).to(here)
    with stepper.autocast, counted_activations(stage) as activations:
        losses: dict[str, Tensor] = stage(batch, stepper.generator)
    torch.autograd.backward(losses["loss"])
    stepper.optimizer.step()  # only now does the optimizer have its state
    states = [entry for state in stepper.optimizer.state.values() for entry in state.values()]
    memory = {
        "parameters": tensor_bytes((*stage.parameters(), *stage.buffers())),
        "gradients": tensor_bytes(p.grad for p in stage.parameters() if p.grad is not None),
        "optimizer": tensor_bytes(entry for entry in states if torch.is_tensor(entry)),
        "averages": tensor_bytes(stepper.ema.averages.values()) if stepper.ema is not None else 0,
        "activations": activations.bytes,
    }
    lines = [
        f"recipe    {recipe.about or recipe.stage}",
        f"model     {recipe.model.name} ({type(job.model).__name__})",
        f"learning  {counts[True] / 1e6:.3f} M parameters in {len(stepper.optimizer.param_groups)} groups",
        f"frozen    {counts[False] / 1e6:.3f} M parameters",
        f"steps     {steps} ({per_epoch:.1f} an epoch, {len(batch)} clips a batch of {_form(batch)})",
        f"memory    {sum(memory.values()) / MIB:.1f} MiB on each process, passing results not counted:",
        *(f"          {size / MIB:10.1f} MiB {name}" for name, size in memory.items()),
        "first batch, forward and backward: "
        + ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items()),
    ]
    if here.type == "cuda":
        lines.append(f"peak      {torch.cuda.max_memory_allocated(here) / MIB:.0f} MiB on the device in that step")
    return "\n".join(lines)


def _form(batch: Batch | FeatureBatch) -> tuple[int, ...]:
    return tuple((batch.features if isinstance(batch, FeatureBatch) else batch.video).shape[1:])


def _millions(parameters: float | None) -> str:
    return "          " if parameters is None else f"{parameters:8.1f} M"


def listing(what: str) -> str:
    """What there is of "models", "stages", "tasks", "recipes" or "benchmarks", one line each. Raises RecipeError."""
    tables: dict[str, dict[str, str]] = {
        "models": {name: f"{_millions(entry.parameters)}  {entry.about}" for name, entry in MODELS.items()},
        "stages": {name: entry.about for name, entry in STAGES.items()},
        "tasks": TASKS,
        "recipes": {name: read_recipe(path).about for name, path in shipped_recipes().items()},
        "benchmarks": {name: entry.about for name, entry in BENCHMARKS.items()},
    }
    if what not in tables:
        raise RecipeError("list", f"found '{what}'", ", ".join(tables))
    width = max(map(len, tables[what]))
    return "\n".join(f"{name:{width}}  {about}" for name, about in tables[what].items())
