"""Run the full pipeline in one command: sample world or videos, four training stages, a report.

An interrupted run resumes. Each step is an ordinary recipe of recipes/sample, which `internvideo train` can repeat.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from internvideo.apps.demo_budget import Budget, VideoSetStatistics
from internvideo.apps.demo_clock import DemoClock
from internvideo.apps.demo_report import DemoData, write_demo_report
from internvideo.apps.demo_steps import DemoStage, run_in_parallel, run_sequentially
from internvideo.data.manifest import Manifest, Sample, read_manifest, write_manifest
from internvideo.distributed import choose_device
from internvideo.errors import ManifestError, RecipeError, RunError
from internvideo.extras import require
from internvideo.inference.loading import load
from internvideo.pipeline import training_recipe
from internvideo.recipe import Recipe, read_recipe
from internvideo.sample_world.generate import WorldSettings, generate
from internvideo.search.collection import Collection
from internvideo.search.indexing import IndexSettings
from internvideo.storage import folder_lock, write_text
from internvideo.system import cores
from internvideo.terminal import LOGGER, say

MINUTES = 15.0
WORLD_SEED = 2026  # the world's design was tuned on other seeds; its held-out clips are for evaluation only


@dataclass(frozen=True)
class Columns:
    """Names of a csv manifest's columns for class, path and split."""

    label: str = "label"
    video: str = "path"
    split: str = "split"


@dataclass(frozen=True)
class Profile:
    """Size of a demo: clips of the sample world, and a factor on every recipe's epochs."""

    clips: int
    epochs: float


PROFILES = {"full": Profile(4200, 1.0), "short": Profile(420, 0.25)}


def run_demo(
    output: Path,
    *,
    data: Path | None = None,
    profile: str = "full",
    columns: Columns | None = None,
    seed: int = 0,
    device: str = "auto",
    minutes: float = MINUTES,
) -> Path:
    """Run all unfinished steps and write report.html and report.json.

    Args:
        output: folder of this demo. data: labeled videos of the user; None for the sample world.
        profile: a key of `PROFILES`. columns: of a csv manifest. seed: for world, models and batches.
        device: auto, cpu, cuda. minutes: time budget with `data`, which determines the numbers of training steps.

    Returns:
        output/report.html.

    Raises:
        RecipeError: unknown profile. RunError: `output` holds another demo. Others: see `run_recipe`.
    """
    require("report", "internvideo demo")
    if profile not in PROFILES:
        raise RecipeError("--profile", f"found '{profile}'", ", ".join(PROFILES))
    if not 0 < minutes <= 10_000:
        raise RecipeError("--minutes", f"{minutes:g}", "above 0, at most 10000")
    with folder_lock(output):
        budget = Budget(output / "plan.json", minutes * min(1.0, PROFILES[profile].epochs), device)
        return _steps(output, data, PROFILES[profile], columns or Columns(), seed, budget)


def _steps(output: Path, data: Path | None, profile: Profile, columns: Columns, seed: int, budget: Budget) -> Path:
    """Run all unfinished steps; returns the report."""
    device = budget.device
    clock = DemoClock(output / "seconds.json")
    with clock.timed("data", already_done=(output / "world" / "train.jsonl").is_file()):
        clips = _generate_world(output, profile, seed) if data is None else _prepare_videos(output, data, columns)

    def recipe_of(step: DemoStage) -> Recipe:
        recipe = step_recipe(step, output, clips, profile, seed)
        return recipe if clips.facts is None else budget.set_num_steps(step.name, recipe, clips.facts)

    if clips.facts is None and choose_device(device).type == "cpu" and cores() > 1:  # a budget counts on whole machines
        run_in_parallel(recipe_of, output, clock)
    else:
        run_sequentially(recipe_of, output, clock, device)
    LOGGER.info("[report] measuring on the held-out clips")
    with clock.timed("report", already_done=(output / "report.json").is_file()):
        short = profile == PROFILES["short"]
        report = write_demo_report(output, replace(clips, short=short), device, clock)
    LOGGER.info("[search] indexing the held-out clips")
    with clock.timed("search", already_done=(output / "collection").is_dir()):
        _index(output, clips, device)
    say(_next_commands(output, clips))
    return report


def _index(output: Path, data: DemoData, device: str) -> None:
    """Index the held-out clips with the multimodal encoder, which embeds texts and clips in one space."""
    model = load(output / "multimodal_pretrained" / "model.safetensors", device=device)
    with Collection.create(output / "collection", model) as collection:
        collection.add([data.test], IndexSettings(progress=False))


def step_recipe(step: DemoStage, output: Path, data: DemoData, profile: Profile, seed: int) -> Recipe:
    """Build a step's recipe: the shipped one with paths, seed and length filled in."""
    recipe = training_recipe(read_recipe(f"sample/{step.recipe}"))
    if data.facts is not None:  # user videos: possibly few, possibly some unreadable (listed in skipped.jsonl)
        recipe = data.facts.fit_recipe(recipe)
    epochs = max(1.0, (recipe.schedule.epochs or 1.0) * profile.epochs)
    schedule = recipe.schedule.model_copy(update={"epochs": epochs, "warmup": min(recipe.schedule.warmup, epochs / 4)})
    loader = replace(recipe.data.loader, seed=seed)
    # Masked pretraining needs no labels: it uses every video.
    train = data.unlabelled if step.recipe == "masked" and data.unlabelled is not None else data.train
    data_changes: dict[str, Any] = {"train": train, "loader": loader}
    recipe_changes = {
        "schedule": schedule,
        "loop": recipe.loop.model_copy(update={"seed": seed}),
        "data": recipe.data.model_copy(update=data_changes),
        "init": {part: output / name / "model.safetensors" for part, name in step.init.items()},
    }
    return recipe.model_copy(update=recipe_changes)


def _generate_world(output: Path, profile: Profile, seed: int) -> DemoData:
    LOGGER.info("[data] the sample world")
    settings = WorldSettings(clips=profile.clips, size=64, seed=WORLD_SEED + seed, difficulty=0.15, long_videos=0)
    found = generate(output / "world", settings)
    return DemoData(found["train"], found["test"], True, found["zero_shot"])


def _prepare_videos(output: Path, path: Path, columns: Columns) -> DemoData:
    """Split the user's labeled videos into train and test and caption each."""
    manifest = read_manifest(path, path_column=columns.video, label_column=columns.label)
    rows = [_with_captions(row, manifest) for row in manifest.rows if row.label is not None]
    if len(manifest.classes) < 2:
        raise ManifestError(path, f"{len(manifest.classes)} classes", "at least 2", "give every video a label")
    train, test, split_method = _split_rows(path, rows, columns)
    if len(train) < 8:
        raise ManifestError(path, f"{len(train)} training videos", "at least 8", "add videos")
    claim = {
        "source": str(path.resolve()),
        "classes": manifest.classes,
        "train": Manifest(tuple(train), manifest.classes, manifest.root, path).fingerprint,
        "test": Manifest(tuple(test), manifest.classes, manifest.root, path).fingerprint,
    }
    _bind_to_data(output / "data" / "source.json", claim)
    paths = {}
    for name, split in (("train", train), ("test", test)):
        paths[name] = output / "data" / f"{name}.jsonl"
        write_manifest(paths[name], split, manifest.classes)
    unlabelled = [row.model_copy(update={"path": str(manifest.video_path(row).resolve()), "label": None})
                  for row in manifest.rows]  # fmt: skip
    paths["unlabelled"] = output / "data" / "unlabelled.jsonl"
    write_manifest(paths["unlabelled"], unlabelled, ())
    num_left_out = len(manifest.rows) - len(train) - len(test)
    for note in (*manifest.notes, f"{num_left_out} rows without a label or of another split left out"):
        LOGGER.info(f"[data] {note}")
    LOGGER.info(
        f"[data] {len(train)} training and {len(test)} test videos ({split_method}), {len(manifest.classes)} classes, "
        f"{len({row.label for row in test})} of them in the test videos"
    )
    facts = VideoSetStatistics.measure(read_manifest(paths["train"]))
    summary = f"{facts.seconds:.1f} s and {facts.side} px in the middle"
    LOGGER.info(f"[data] {summary}; masked pretraining sees all {len(unlabelled)} videos, without labels")
    return DemoData(paths["train"], paths["test"], False, unlabelled=paths["unlabelled"], facts=facts)


def _bind_to_data(file: Path, claim: dict[str, Any]) -> None:
    """Save the identity of the data in a new folder. Raises RunError: the folder holds a demo on other data."""
    text = json.dumps(claim, indent=1)
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        found = "holds a demo on other videos, labels or splits"
        raise RunError(file.parent.parent, found, "", "choose another --output")
    write_text(file, text)


def _split_rows(path: Path, rows: list[Sample], columns: Columns) -> tuple[list[Sample], list[Sample], str]:
    """Split rows into (training, test, method): by the split column, else one group in five of each class."""
    named = [row.split if columns.split == "split" else row.attributes.get(columns.split) for row in rows]
    names = [(name or "").lower() for name in named]
    if not any(names):
        if columns.split != "split":
            known = sorted({name for row in rows for name in row.attributes})
            raise ManifestError(path, f"no column '{columns.split}'", ", ".join(["split", *known]))
        train, test = _hold_out_groups(rows)
        return train, test, "one group in five of every class held out"
    held_out = next((name for name in ("test", "validation", "val", "valid") if name in names), None)
    fit = next((name for name in ("train", "training") if name in names), None)
    if held_out is None or fit is None:
        found = ", ".join(sorted(set(names) - {""}))
        raise ManifestError(path, f"column '{columns.split}' has {found}", "train, and test or validation")
    train, test = ([row for row, name in zip(rows, names, strict=True) if name == part] for part in (fit, held_out))
    return train, test, f"column {columns.split}: {fit}, {held_out}"


def _with_captions(row: Sample, manifest: Manifest) -> Sample:
    label = manifest.classes[row.label or 0].replace("_", " ")
    captions = row.captions or (f"a video of {label}", label, f"this is {label}")
    return row.model_copy(update={"path": str(manifest.video_path(row).resolve()), "captions": captions})


def _hold_out_groups(rows: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Hold out about one group in five (without groups: one video in five) of every class for testing.

    Every class keeps training videos. Every class of two or more groups also has test videos, unless each of its groups
    is the last one of another class.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.array([row.label for row in rows])
    groups = np.unique([row.group or row.id for row in rows], return_inverse=True)[1]
    size = np.bincount(groups)
    class_has_group = np.zeros((labels.max() + 1, len(size)), dtype=bool)  # class, group
    class_has_group[labels, groups] = True
    if class_has_group.sum(axis=1).max() < 2:
        raise ManifestError("--data", f"{len(rows)} videos, those of each class of one group", "2 groups", "add videos")
    num_folds = int(min(5, len(size), np.bincount(labels).max()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # classes with too few videos are handled below
        divided = StratifiedGroupKFold(num_folds, shuffle=True, random_state=0).split(labels, labels, groups)
        _, test = next(divided)
    held_out = np.zeros(len(size), dtype=bool)
    held_out[groups[test]] = True
    for groups_of in class_has_group:
        if groups_of.any() and held_out[groups_of].all():
            held_out[min(np.flatnonzero(groups_of), key=size.__getitem__)] = False
    for groups_of in class_has_group:
        if groups_of.sum() > 1 and not held_out[groups_of].any():
            trained = (class_has_group & ~held_out).sum(axis=1)
            spare = [group for group in np.flatnonzero(groups_of) if trained[class_has_group[:, group]].min() > 1]
            if spare:
                held_out[min(spare, key=size.__getitem__)] = True
    tests_row = held_out[groups]
    train, tested = ([row for row, held in zip(rows, tests_row, strict=True) if held == part] for part in (0, 1))
    return train, tested


def _next_commands(output: Path, data: DemoData) -> str:
    return f"""
What to try next:
  open {output / "report.html"}
  internvideo serve {output / "collection"}
  internvideo search {output / "collection"} "a red circle moves to the right"
  internvideo evaluate recognition {output / "interaction" / "model.safetensors"} {data.test}
  internvideo evaluate retrieval {output / "multimodal_pretrained" / "model.safetensors"} {data.test}
  internvideo train sample/masked data.train={data.train} --output runs/mine
  internvideo demo --data YOUR_FOLDER_OF_CLASS_FOLDERS --output runs/yours"""
