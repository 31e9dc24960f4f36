"""Train a recipe: build data, model and stage, run the loop, write model.safetensors."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from internvideo import distributed
from internvideo.datasets.catalog import BENCHMARKS
from internvideo.distributed import choose_device
from internvideo.errors import RecipeError, RunError, WeightsError
from internvideo.models.video_language import interpolate_weights
from internvideo.pretraining.gradient_cache import ChunkSettings
from internvideo.recipe import Recipe, build_saved_recipe, read_recipe, shipped_recipes
from internvideo.storage import read_metadata, write_text
from internvideo.tasks import CATALOG, STAGES, TASKS
from internvideo.terminal import LOGGER
from internvideo.training import checkpoint, run_folder, trained
from internvideo.training.earlier_recipes import upgrade
from internvideo.training.head import check_init_head
from internvideo.training.loop import train
from internvideo.training.positions import add_position_settings
from internvideo.training.recipe import EvaluationRecipe, Job
from internvideo.training.recipe_files import RECIPE_FILE
from internvideo.training.settings import TrainingSettings
from internvideo.training.step import TrainStep
from internvideo.training.trained import Trained
from internvideo.untrusted import MAX_SETTINGS_BYTES, parse_json, read_json
from internvideo.weights.state import load_state, save_model

MAY_DIFFER = (
    "about",
    "data.train",  # its rows are compared (`_facts`), wherever they lie
    "data.shard_index",
    "data.loader.workers", "data.loader.threads", "data.loader.prefetch", "data.loader.pin_memory",
    "data.loader.cache_megabytes", "data.loader.max_unreadable",
)  # fmt: skip
"""Settings that do not affect results; a run may be resumed with other values."""


def run_recipe(
    recipe: EvaluationRecipe, folder: Path, *, device: str = "auto", title: str | None = None,
    changes: Collection[str] = (),
) -> Path:  # fmt: skip
    """Train a recipe to its end; resume an earlier run of the same recipe in `folder`.

    A finished run with its weights is not changed; with a longer schedule it is resumed.

    Args:
        recipe: recipe of a run. folder: run folder. device: training device.
        title: prefix of the progress line, by default the stage.
        changes: dotted keys whose values are changed on purpose within the run, such as optimizer.base_lr.

    Returns:
        folder/model.safetensors: weights (averaged if the recipe says so), with everything that `load_trained` needs.

    Raises:
        RunError: `folder` has another run, another process writes to it, the disk is full, a loss is not finite.
        RecipeError: contradictory settings, or settings that cannot change within a run.
        RunInterruptedError: the run was interrupted; the same call resumes it.
    """
    target, recipe = folder / "model.safetensors", training_recipe(recipe)
    check_init_head(recipe)
    with distributed.process_group(choose_device(device), recipe.loop.timeout_s) as here:
        recipe = for_processes(recipe)
        job = prepare(recipe, skipped=folder / "skipped.jsonl")
        initial = {name: value.clone() for name, value in job.model.state_dict().items()} if recipe.base_weight else {}
        if distributed.rank() == 0:
            for line in job.head_init_lines:
                LOGGER.info(f"head: {line}")
        with run_folder.locked(folder):
            _train_and_write(job, folder, target, title or recipe.stage, here, changes, initial)
    return target


def _train_and_write(
    job: Job, folder: Path, target: Path, title: str, device: torch.device, changes: Collection[str],
    initial: Mapping[str, Tensor],
) -> None:  # fmt: skip
    recipe = job.recipe
    ignore_keys = (*MAY_DIFFER, *_places(recipe))
    if recipe.loop.global_batch_size is not None:  # they follow from it and from the number of processes
        ignore_keys = (*ignore_keys, "loop.grad_accum_steps", "data.loader.batch_size")
    reached = checkpoint.newest(folder)
    result = train(
        job.stage,
        job.loader,
        TrainingSettings(optimizer=recipe.optimizer, schedule=recipe.schedule, loop=recipe.loop),
        folder,
        {**recipe.resolved(), **_facts(job)},  # a changed manifest or map of classes is another run
        batch_size=recipe.data.loader.batch_size,
        device=device,
        title=title,
        ignore_keys=ignore_keys,
        changes=changes,
        fill_defaults=lambda written: _of_today(written, job.data_fingerprints),
    )
    asked = recipe.schedule.total_steps(len(job.loader) / recipe.loop.grad_accum_steps)
    if result.step > asked and not target.is_file():
        hint = f"ask for {result.step} or more with schedule.steps or epochs"
        raise RunError(folder, f"{result.step} steps are made, without weights", "", hint)
    same = result.checkpoint == reached and _is_of(target, recipe, (*run_folder.IGNORED_KEYS, *ignore_keys))
    if distributed.rank() == 0 and not same and result.step <= asked:
        state = checkpoint.read_weights(result.checkpoint)
        if result.checkpoint.is_dir():  # of a divided model, which this process has a part of
            weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        else:
            load_state(job.stage, state, where=result.checkpoint)
            weights = job.model.state_dict()
        if initial:
            weights = interpolate_weights(initial, weights, recipe.base_weight)
        _write(target, job, weights)


def for_processes(recipe: Recipe) -> Recipe:
    """Divide `loop.global_batch_size` among the processes: by gradient accumulation, or by the batch size.

    Raises RecipeError: it is not a multiple of the clips that all processes take at once.
    """
    loop, loader = recipe.loop, recipe.data.loader
    if loop.global_batch_size is None:
        return recipe
    processes, contrastive = distributed.world_size(), isinstance(recipe.settings, ChunkSettings)
    share = processes * (loop.grad_accum_steps if contrastive else loader.batch_size)
    if loop.global_batch_size % share:
        unit = "accumulated batches" if contrastive else "clips per batch"
        found = f"{loop.global_batch_size} for {processes} processes of {share // processes} {unit}"
        raise RecipeError("loop.global_batch_size", found, f"a multiple of {share}")
    each = loop.global_batch_size // share
    if contrastive:
        data = recipe.data.model_copy(update={"loader": replace(loader, batch_size=each)})
        return recipe.model_copy(update={"data": data})
    return recipe.model_copy(update={"loop": loop.model_copy(update={"grad_accum_steps": each})})


def _facts(job: Job) -> dict[str, object]:
    return {
        "training_rows": job.fingerprint,
        **job.data_fingerprints,
        **({"head": list(job.head_init_lines)} if job.head_init_lines else {}),
    }


def _places(recipe: Recipe) -> tuple[str, ...]:
    """Return the path settings whose rows are compared instead of the paths."""
    data = recipe.data
    images = (f"data.{name}" for name in ("image_manifest", "image_shards") if getattr(data, name, None) is not None)
    return (*images, *(f"data.extra_manifests.{name}.manifest" for name in getattr(data, "extra_manifests", ())))


def _of_today(written: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Add settings that were introduced later to a recipe of an earlier version, with their former behavior.

    For image data the `facts`, which it did not store, are assumed to be the same.
    """
    written = upgrade(written, CATALOG)
    try:
        recipe = build_saved_recipe({key: value for key, value in written.items() if key in Recipe.model_fields})
    except RecipeError:
        return written  # the differing keys will be reported
    images = any(getattr(recipe.data, name, None) is not None for name in ("image_manifest", "image_shards"))
    return {**(facts or {} if images else {}), **written, **recipe.resolved()}


def _is_of(target: Path, recipe: Recipe, ignore_keys: Collection[str]) -> bool:
    """Return whether existing weights are those of this recipe, and not of a shorter schedule."""
    beside = target.with_name(RECIPE_FILE)
    try:
        inside = parse_json(read_metadata(target)["recipe"])  # the whole recipe in weights of earlier versions
        written = read_json(beside, MAX_SETTINGS_BYTES) if beside.is_file() else inside
    except (WeightsError, OSError, KeyError, ValueError):
        return False
    return not run_folder.differences(_of_today(written), recipe.resolved(), ignore_keys)


def save_trained(path: Path, job: Job) -> None:
    """Write the job's model with everything that `load_trained` needs, and the recipe beside it. Raises RunError."""
    _write(path, job, job.model.state_dict())


def _write(path: Path, job: Job, weights: Mapping[str, Tensor]) -> None:
    save_model(path, weights, trained.model_metadata(job.recipe, job.model, job.classes, job.extra_metadata))
    # After the weights: a run that is killed in between writes both again.
    write_text(path.with_name(RECIPE_FILE), json.dumps(job.recipe.resolved(), indent=1) + "\n")


def load_trained(path: Path, *, device: str = "auto") -> Trained:
    """Read a model.safetensors that `run_recipe` wrote, ready for evaluation.

    Raises WeightsError: no such file, another file, or tensors that do not match.
    """
    return trained.load_trained(path, CATALOG, device=device)


def training_recipe(recipe: EvaluationRecipe) -> Recipe:
    """Check that a recipe is one for training, and return it. Raises RecipeError: one for evaluation."""
    if isinstance(recipe, Recipe):
        return recipe
    hint = "give its file to `internvideo mix --recipe`, then `internvideo evaluate`"
    raise RecipeError("recipe", "has neither optimizer nor schedule: it is for evaluation", "both, to train", hint)


def prepare(recipe: Recipe, *, skipped: Path | None = None) -> Job:
    """Build the data, the model with its initial weights, and the stage of a recipe.

    Raises RecipeError: contradictory settings. ManifestError, WeightsError: data or weights cannot be used.
    """
    return recipe.spec.build(add_position_settings(recipe), skipped)


def seconds_per_step(recipe: Recipe, *, device: str = "auto") -> float:
    """Measure the mean time of an optimizer step on batches of a recipe, decoded before; nothing is kept."""
    here, job, steps = choose_device(device), prepare(recipe), 4
    settings = TrainingSettings(optimizer=recipe.optimizer, schedule=recipe.schedule, loop=recipe.loop)
    stage = job.stage.to(here).train()
    stepper = TrainStep(stage, settings, steps, here, torch.Generator(here).manual_seed(recipe.loop.seed))
    batches = list(islice(job.loader.epoch(0), steps))
    stepper(batches[:1], 0.0)
    began = time.perf_counter()
    read = list(islice(job.loader.epoch(1), len(batches)))  # from the cache, as in most epochs
    for batch in read:
        stepper([batch], 0.0)["loss"].item()
    return (time.perf_counter() - began) / len(read)


def listing(what: str) -> dict[str, str]:
    """List "models", "stages", "tasks", "recipes" or "benchmarks": name -> description. Raises RecipeError."""
    recipes, millions = shipped_recipes(), {name: entry.million_parameters for name, entry in CATALOG.models.items()}
    sizes = {name: "" if count is None else f"{count:.1f} M" for name, count in millions.items()}
    tables: dict[str, dict[str, str]] = {
        "models": {name: f"{sizes[name]:>10}  {entry.description}" for name, entry in CATALOG.models.items()},
        "stages": {name: entry.about for name, entry in STAGES.items()},
        "tasks": {task.name: task.about for task in TASKS},
        "recipes": {name: read_recipe(path).about for name, path in recipes.items()},
        "benchmarks": {
            name: entry.about + (f"; recipe benchmarks/{name}" if f"benchmarks/{name}" in recipes else "")
            for name, entry in BENCHMARKS.items()
        },
    }
    if what not in tables:
        raise RecipeError("list", f"found '{what}'", ", ".join(tables))
    return tables[what]
