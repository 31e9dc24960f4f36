"""One entry of the catalog from end to end: annotation sample, recipe, model, measuring command, table, figures.

The sample world's clips lie where the official videos would, the recipe is made small and its weights are drawn, and
the command of its line "# Measure:" runs as it stands, with the paths of here.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_samples import PREFIX, RECIPES, sample_of, shrunk
from PIL import Image
from small_world import world
from typer.main import get_command

from internvideo.cli.evaluate import task_command, task_function
from internvideo.cli.main import app
from internvideo.data.manifest import Manifest, read_manifest
from internvideo.data.preprocessing import Preprocessing
from internvideo.data.sample import Sample
from internvideo.datasets.catalog import BENCHMARKS
from internvideo.datasets.prepare import prepare
from internvideo.evaluation import find_task, score_table
from internvideo.features.extract import ExtractSettings, extract
from internvideo.features.feature_folder import find_items
from internvideo.features.window_sampling import WindowRule
from internvideo.inference.video_model import VideoModel
from internvideo.model_table import create_model
from internvideo.pipeline import prepare as prepare_job
from internvideo.pipeline import save_trained
from internvideo.recipe import Recipe, read_recipe
from internvideo.tasks.navigation.world.episodes import read_episodes
from internvideo.tasks.protocol import weights_hash
from internvideo.training.model_setup import build_model
from internvideo.training.trained import model_metadata
from internvideo.video.reader import read_frames
from internvideo.video.writer import write_video
from internvideo.weights.state import save_model

LANGUAGE = ("retrieval", "zero_shot", "multiple_choice", "question_answering")
"""Evaluations of models that know texts; the others are walked in another file, to share the work out."""

WALKED = [name for name in BENCHMARKS if name in RECIPES]
"""The paper's 39, zero-shot Kinetics-400, and TGIF-QA's choices."""

SCENE = 0.5
"""Seconds that a frame of a long film lasts."""

TRIMMED = ("ava_kinetics",)
"""Benchmarks whose films come in parts of ten seconds, their seconds in the name."""

WITHOUT_BANK = ("activitynet_captions", "didemo", "vatex")
"""Benchmarks whose sample has no training captions."""


@dataclass(frozen=True)
class WalkResult:
    """What came out, and what it is to be compared with."""

    result: dict[str, Any]
    again: Mapping[str, Any]
    weights_sha256: str
    asked: int


def measuring(name: str) -> dict[str, Any]:
    """The arguments of the measuring command in a recipe."""
    told = re.search(r"^# Measure: internvideo evaluate (.*)$", RECIPES[name], re.M)
    assert told is not None
    task, *arguments = shlex.split(told[1])
    found: dict[str, Any] = task_command(find_task(task)).make_context(task, arguments).params
    return {"task": task, **found}


def walk(name: str, folder: Path) -> WalkResult:
    """Walk one entry. Everything is written below `folder`."""
    arguments = measuring(name)
    source, manifest = _sources(name, arguments, folder)
    return measured(name, arguments, folder, source, manifest)


def measured(
    name: str,
    arguments: dict[str, Any],
    folder: Path,
    source: Path,
    manifest: Manifest | None,
    *,
    overrides: Sequence[str] = (),
) -> WalkResult:
    """Build the small recipe's model on `source`, measure it there, score the saved table again.

    Args:
        arguments: of the measuring command. manifest: the rows, where there are videos. overrides: of the recipe.
    """
    recipe = read_recipe(PREFIX + name, [*shrunk(name, source, manifest), *overrides])
    weights, output = folder / "model.safetensors", folder / "test"
    if isinstance(recipe, Recipe):
        job = prepare_job(recipe)
        save_trained(weights, job)
        model = job.model
    else:
        torch.manual_seed(0)
        model = build_model(recipe, 0)
        save_model(weights, model, model_metadata(recipe, model, (), {}))
    arguments |= {"weights": str(weights), "manifest": source, "output": output, "device": "cpu"}
    placed = _placed(name, arguments, folder, manifest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("internvideo.plots.charts.timeline", lambda *_: "")  # slow to draw, and tested elsewhere
        patch.setattr("internvideo.tasks.open_set.evaluate.write_plot", lambda *_: None)
        task_function(find_task(placed.pop("task")))(**placed)
    saved = output / arguments["task"]
    result = json.loads(saved.with_suffix(".json").read_text(encoding="utf-8"))
    asked = len(read_episodes(source, arguments["split"]) if manifest is None else manifest.rows)
    if placed.get("unknown_manifest") is not None:
        asked += len(read_manifest(placed["unknown_manifest"]).rows)
    return WalkResult(result, score_table(saved.with_suffix(".npz")), weights_hash(model), asked)


def _sources(name: str, arguments: dict[str, Any], folder: Path) -> tuple[Path, Manifest | None]:
    """What is tested on, and its rows; None for what has no videos."""
    given: Path = arguments["manifest"]
    if given.name == "ANNOTATIONS":
        return sample_of(name), None
    split = arguments["split"] or given.stem
    videos = folder / "videos"
    made = prepare(name, sample_of(name), folder / "names")
    for one in made.splits:
        for row in read_manifest(folder / "names" / f"{one}.jsonl").rows:
            _put_video(name, row, videos, whole=one == split)
    report = prepare(name, sample_of(name), folder / "data", videos=videos, check_videos=True)
    assert all(not found.missing and not found.unreadable for found in report.splits.values())
    assert {one: found.fingerprint for one, found in report.splits.items()} == {
        one: found.fingerprint for one, found in made.splits.items()
    }
    manifest = read_manifest(folder / "data" / f"{split}.jsonl")
    if given.name == "features":
        return _features(name, manifest.source, folder / "features"), manifest
    if arguments["task"] == "grounding":  # one row a query, features of the videos beside them
        _features(name, videos, folder / "data" / "features")
    return manifest.source, manifest


# --- videos -----------------------------------------------------------------------------------------------------------


@cache
def _clips() -> list[Path]:
    """Four clips of the sample world."""
    rows = read_manifest(world())
    return [rows.video_path(row) for row in rows.rows[:4]]


@cache
def _frames() -> list[np.ndarray[Any, Any]]:
    return [frame for path in _clips() for frame in read_frames(path, range(12))]


def _seconds(row: Sample) -> float:
    """How long a video must be to hold all that is told of it; 0 where a clip will do."""
    ends = [float(row.attributes.get("duration", 0.0)), *(segment.end for segment in row.segments)]
    ends += [row.span[1]] if row.span else []
    ends += [box.time + 2 for box in row.boxes]
    return max(*ends, 10.0 if "hands" in row.attributes else 0.0)


def _put_video(name: str, row: Sample, videos: Path, *, whole: bool) -> None:
    """A clip, a film or a picture under the official name; a film only where `whole`."""
    path, seconds = videos / row.path, _seconds(row)
    if name in TRIMMED:
        start = math.floor(seconds - 2) - 5
        path, seconds = path.with_name(f"{path.stem}_{start:06d}_{start + 10:06d}.mp4"), 10.0
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    number = sum(1 for _ in videos.rglob("*.*"))
    if path.suffix == ".jpg":
        Image.fromarray(_frames()[number]).save(path)
    elif whole and seconds > 1.0:
        frames = itertools.islice(itertools.cycle(_frames()), math.ceil(seconds / SCENE))
        write_video(path, frames, 1 / SCENE)
    else:
        shutil.copy(_clips()[number % 4], path)


# --- features ---------------------------------------------------------------------------------------------------------


@cache
def _encoder() -> VideoModel:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "frames": 2, "width": 4, "depth": 1, "heads": 1, "num_classes": 2}
    module = create_model("videomae-s-classifier", sizes)
    return VideoModel("videomae-s-classifier", module, preprocessing=Preprocessing(2, 16, short_side=16))


def _features(name: str, videos: Path, folder: Path) -> Path:
    """Windows as the recipe's line "# Features:" tells."""
    told = re.search(r"^# Features: internvideo extract (.*)$", RECIPES[name], re.M)
    assert told is not None
    group: Any = get_command(app)
    given = group.commands["extract"].make_context("extract", shlex.split(told[1])).params
    items, classes = find_items([videos])
    rule = WindowRule(given["window_frames"], given["stride_frames"], given["fps"])
    extract(items, _encoder(), folder, ExtractSettings(rule, batch_size=64), classes=classes, progress=False)
    return folder


# --- other files that a command names ---------------------------------------------------------------------------------


def _placed(name: str, arguments: dict[str, Any], folder: Path, manifest: Manifest | None) -> dict[str, Any]:
    """The arguments with the files of here."""
    placed = dict(arguments)
    for option in ("unknown_manifest", "querybank", "train_manifest"):
        if placed.get(option) is not None:
            placed[option] = folder / "data" / placed[option].name
    if placed.get("querybank") is not None:
        assert placed["querybank"].is_file() == (name not in WITHOUT_BANK), "WITHOUT_BANK shrinks"
        placed["querybank"] = placed["querybank"] if placed["querybank"].is_file() else None
    if manifest is None:
        return placed
    if placed.get("persons") is not None:
        placed["persons"] = _persons(name, manifest, folder)
    if placed.get("boxes") is not None:
        placed["boxes"] = _boxes(manifest, folder)
    if placed.get("class_scores") is not None:
        placed["class_scores"] = _class_scores(name, manifest, folder)
    return placed


def _persons(name: str, manifest: Manifest, folder: Path) -> Path:
    """The sample's boxes of persons; it has none for the key frames of Kinetics."""
    if name == "ava":
        return sample_of(name) / "person_boxes.csv"
    path = folder / "persons.csv"
    lines = [f"{row.group},{row.attributes['timestamp']},0.3,0.2,0.6,0.9,,0.95\n" for row in manifest.rows]
    path.write_text("".join(lines))
    return path


def _boxes(manifest: Manifest, folder: Path) -> Path:
    """Two boxes a frame, one of them right, in pixels, under the row's uid or id."""
    results = {}
    for row in manifest.rows:
        if not row.boxes:
            continue  # nothing changes there, and nothing is found
        width, height = map(int, row.attributes["size"].split("x"))
        box = row.boxes[0]
        right = [box.x1 * width, box.y1 * height, box.x2 * width, box.y2 * height]
        corners = (right, [0.5 * width, 0.5 * height, width, height])
        results[row.attributes.get("uid", row.id)] = [
            {"box": one, "noun_category_id": 0, "score": score} for one, score in zip(corners, (0.6, 0.9), strict=True)
        ]
    path = folder / "boxes.json"
    path.write_text(json.dumps({"results": results}))
    return path


def _class_scores(name: str, manifest: Manifest, folder: Path) -> Path:
    """The sample's scores of whole videos; without them uniform ones."""
    path = sample_of(name) / "external_class_scores.json"
    if not path.is_file():
        path = folder / "scores.json"
        classes = manifest.classes
        results = {row.id: [1 / len(classes)] * len(classes) for row in manifest.rows}
        path.write_text(json.dumps({"results": results, "class": classes}))
    return path


def check(name: str, walked: WalkResult) -> None:
    """The contract of every entry."""
    entry, result = BENCHMARKS[name], walked.result
    assert result["task"] == entry.measure.evaluation
    assert set(entry.measure.metrics) <= set(result["figures"])
    assert all(math.isfinite(value) for value in result["figures"].values())
    assert result == json.loads(json.dumps(walked.again)), "a saved table gives the same figures"
    assert result["coverage"] == {"asked": walked.asked, "read": walked.asked, "unreadable": []}
    protocol = result["protocol"]
    assert protocol["weights_sha256"] == walked.weights_sha256
    assert re.fullmatch(r"[0-9a-f]{16,64}", protocol["split_sha256"])
    assert protocol["model"] == read_recipe(PREFIX + name).model.name
