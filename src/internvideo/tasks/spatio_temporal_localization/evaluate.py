"""Evaluate an action detector at key frames: predictions, metrics, results file, plots of frames with boxes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import numpy as np

from internvideo import distributed
from internvideo.data.loader import LoaderSettings
from internvideo.data.manifest import Manifest
from internvideo.datasets.ava import read_person_boxes
from internvideo.datasets.reading import read_text
from internvideo.distributed import choose_device
from internvideo.errors import ManifestError, VideoError
from internvideo.plots import charts as figures
from internvideo.plots.style import write_plot
from internvideo.storage import write_text
from internvideo.tasks.class_rows import under_classes
from internvideo.tasks.clip_evaluation import split_rows
from internvideo.tasks.protocol import weights_hash
from internvideo.tasks.spatio_temporal_localization import predict as spatio_temporal
from internvideo.tasks.spatio_temporal_localization.build import KeyFrameData, clip_form
from internvideo.tasks.spatio_temporal_localization.data import (
    KeyFrame,
    KeyFrameViews,
    Persons,
    key_frames,
    video_name,
    with_persons,
)
from internvideo.tasks.spatio_temporal_localization.model import ActionDetector
from internvideo.tasks.spatio_temporal_localization.stage import RegionSettings
from internvideo.tasks.table import Predictions, Result, check_overwrite, print_result, save_result
from internvideo.tasks.task import EvaluateOptions
from internvideo.training.trained import Trained
from internvideo.video.pool import borrow
from internvideo.video.reader import read_video_info

SHOWN = 12
"""Number of key frames in the plot."""

MAX_ACTIONS_SHOWN = 3
"""Maximum number of actions per box in the plot."""

MIN_SCORE_SHOWN = 0.2
"""Actions of lower scores are not in the plot."""


@dataclass(frozen=True, kw_only=True)
class PersonOptions(EvaluateOptions):
    """Options of action detection evaluation."""

    persons: Annotated[Path | None, "Boxes of a person detector, CSV or JSON; by default the annotated boxes."] = None


def evaluate(trained: Trained, manifest: Path, output: Path, settings: PersonOptions, split: str | None) -> Result:
    """Write spatio_temporal_localization.npz and .json, results.csv (AVA's format) and frames.svg; print the metrics.

    `manifest` has rows with boxes at key frames. Raises RecipeError, ManifestError, RunError.
    """
    rows = under_classes(split_rows(manifest, split), trained.classes)
    return evaluate_rows(trained, rows, output, settings)


def evaluate_rows(trained: Trained, manifest: Manifest, output: Path, settings: PersonOptions) -> Result:
    """Evaluate rows whose labels are indices into the model's classes; see `evaluate`."""
    model, stage = cast(ActionDetector, trained.model), trained.recipe.settings_as(RegionSettings)
    tested = truths = key_frames(manifest)
    persons = settings.persons
    if persons is not None:
        tested = with_persons(truths, read_persons(persons, manifest), stage.min_person)
        if not tested:
            expected = f"boxes of score {stage.min_person:g} or more in the videos of {manifest.source}"
            raise ManifestError(persons, "no matching box", expected)
    target = output / f"{spatio_temporal.NAME}.npz"
    protocol = {"weights_sha256": weights_hash(model), "split_sha256": manifest.fingerprint}
    distributed.on_rank_zero(lambda: check_overwrite(target, protocol))
    form = clip_form(trained.recipe.data_as(KeyFrameData), model.config.num_classes)
    loader = LoaderSettings(batch_size=1, workers=settings.workers, short_side=trained.recipe.data.loader.short_side)
    table = spatio_temporal.predict(
        model,
        manifest,
        truths,
        KeyFrameViews(manifest, tested, form, loader),
        choose_device(settings.device),
        model_name=trained.recipe.model.name,
        persons="ground truth" if persons is None else persons.name,
        scored=scored_classes(manifest),
    )
    result = spatio_temporal.score(table)

    def write() -> None:
        save_result(result, table.save(target).with_suffix(".json"))
        write_text(output / "results.csv", spatio_temporal.results_csv(table))
        draw(table, manifest, tested, output / "frames.svg")
        print_result(result)

    distributed.on_rank_zero(write)
    return result


def scored_classes(manifest: Manifest) -> tuple[str, ...]:
    """Read the names in `scored_classes.txt` beside a manifest (`internvideo prepare` writes AVA's 60); () without it.

    Raises:
        ManifestError: a name that is no class, or an unreadable file.
    """
    path = manifest.root / "scored_classes.txt"
    if not path.is_file():
        return ()
    names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    unknown = [name for name in names if name not in manifest.classes]
    if unknown:
        raise ManifestError(path, f"'{unknown[0]}' is no class", f"the {len(manifest.classes)} classes of the weights")
    return names


def read_persons(path: Path, manifest: Manifest) -> Persons:
    """Read boxes of a person detector; for JSON, in pixels, the videos give the frame sizes. Raises ManifestError."""
    if path.suffix.lower() != ".json":
        return read_person_boxes(path)
    sizes: dict[str, tuple[int, int]] = {}
    for row in manifest.rows:
        if video_name(row) not in sizes:
            try:
                info = read_video_info(manifest.video_path(row), fps=row.frame_rate)
            except VideoError:  # reported when its clips are read
                continue
            sizes[video_name(row)] = (info.width, info.height)
    return read_person_boxes(path, sizes)


def draw(table: Predictions, manifest: Manifest, tested: list[KeyFrame], target: Path) -> None:
    """Draw key frames, sampled uniformly from the split, with boxes and their top actions. Raises RunError."""
    classes = table["classes"].tolist()
    actions: dict[tuple[object, ...], list[tuple[float, str]]] = defaultdict(list)
    sampled = [tested[index] for index in np.unique(np.linspace(0, len(tested) - 1, SHOWN).round().astype(int))]
    sampled_keys = {(frame.video, frame.time) for frame in sampled}
    frames = list(zip(table["frame_video"].tolist(), table["frame_time"].tolist(), strict=True))
    shown = np.asarray([key in sampled_keys for key in frames])[table["frame"]]
    for row in np.flatnonzero(shown & (table["score"] >= MIN_SCORE_SHOWN)):
        key = (*frames[table["frame"][row]], *table["box"][row].tolist())
        actions[key].append((float(table["score"][row]), classes[table["label"][row]]))
    panels = []
    for frame in sampled:
        try:
            with borrow(manifest.video_path(frame.row), fps=frame.row.frame_rate) as video:
                picture = video.frames_at([min(frame.seconds, video.info.duration)])[0]
        except VideoError:
            continue
        boxes = []
        for corners in frame.boxes.tolist():
            best = sorted(actions[frame.video, frame.time, *corners], reverse=True)[:MAX_ACTIONS_SHOWN]
            boxes.append((corners, [f"{name} {score:.2f}" for score, name in best]))
        truth = [", ".join(classes[label] for label in labels) for labels in frame.labels]
        panels.append(figures.BoxedFrame(picture, boxes, truth, f"{frame.video}, {frame.time:g} s"))
    if panels:
        write_plot(target, lambda: figures.frames_with_boxes(panels))
