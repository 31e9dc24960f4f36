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
from internvideo.plots import charts
from internvideo.plots.style import write_plot
from internvideo.storage import write_text
from internvideo.tasks.class_rows import map_labels_to_classes
from internvideo.tasks.clip_evaluation import read_split
from internvideo.tasks.protocol import weights_hash
from internvideo.tasks.spatio_temporal_localization import predict as spatio_temporal
from internvideo.tasks.spatio_temporal_localization.build import KeyFrameData, make_clip_settings
from internvideo.tasks.spatio_temporal_localization.data import (
    KeyFrame,
    KeyFrameViews,
    PersonBoxes,
    key_frames,
    video_name,
    with_detected_persons,
)
from internvideo.tasks.spatio_temporal_localization.model import ActionDetector
from internvideo.tasks.spatio_temporal_localization.stage import RegionSettings
from internvideo.tasks.table import Predictions, Result, check_overwrite, print_result, save_result
from internvideo.tasks.task import EvaluateOptions
from internvideo.training.trained import Trained
from internvideo.video.pool import borrow
from internvideo.video.reader import read_video_info

NUM_PLOTTED_FRAMES = 12
"""Number of key frames in the plot."""

MAX_PLOTTED_ACTIONS = 3
"""Maximum number of actions per box in the plot."""

MIN_PLOTTED_SCORE = 0.2
"""Smallest score of an action in the plot."""


@dataclass(frozen=True, kw_only=True)
class PersonOptions(EvaluateOptions):
    """Options of action detection evaluation."""

    persons: Annotated[Path | None, "Boxes of a person detector, CSV or JSON; by default the annotated boxes."] = None


def evaluate(trained: Trained, manifest: Path, output: Path, settings: PersonOptions, split: str | None) -> Result:
    """Write spatio_temporal_localization.npz and .json, results.csv (AVA's format) and frames.svg; print the metrics.

    `manifest` has rows with boxes at key frames. Raises RecipeError, ManifestError, RunError.
    """
    rows = map_labels_to_classes(read_split(manifest, split), trained.classes)
    return evaluate_rows(trained, rows, output, settings)


def evaluate_rows(trained: Trained, manifest: Manifest, output: Path, settings: PersonOptions) -> Result:
    """Evaluate rows whose labels are indices into the model's classes; see `evaluate`."""
    model, stage = cast(ActionDetector, trained.model), trained.recipe.settings_as(RegionSettings)
    test_frames = annotated_frames = key_frames(manifest)
    persons = settings.persons
    if persons is not None:
        test_frames = with_detected_persons(annotated_frames, read_persons(persons, manifest), stage.min_person)
        if not test_frames:
            expected = f"boxes of score {stage.min_person:g} or more in the videos of {manifest.source}"
            raise ManifestError(persons, "no matching box", expected)
    target = output / f"{spatio_temporal.NAME}.npz"
    protocol = {"weights_sha256": weights_hash(model), "split_sha256": manifest.fingerprint}
    distributed.on_rank_zero(lambda: check_overwrite(target, protocol))
    clip_settings = make_clip_settings(trained.recipe.data_as(KeyFrameData), model.config.num_classes)
    loader_settings = LoaderSettings(
        batch_size=1, workers=settings.workers, short_side=trained.recipe.data.loader.short_side
    )
    table = spatio_temporal.predict(
        model,
        manifest,
        annotated_frames,
        KeyFrameViews(manifest, test_frames, clip_settings, loader_settings),
        choose_device(settings.device),
        model_name=trained.recipe.model.name,
        persons="ground truth" if persons is None else persons.name,
        scored=read_scored_classes(manifest),
    )
    result = spatio_temporal.score(table)

    def write() -> None:
        save_result(result, table.save(target).with_suffix(".json"))
        write_text(output / "results.csv", spatio_temporal.results_csv(table))
        plot_frames(table, manifest, test_frames, output / "frames.svg")
        print_result(result)

    distributed.on_rank_zero(write)
    return result


def read_scored_classes(manifest: Manifest) -> tuple[str, ...]:
    """Read the classes to evaluate from `scored_classes.txt` in the folder of a manifest; () without that file.

    `internvideo prepare` writes it for AVA, with 60 classes.

    Raises:
        ManifestError: a name that is not a class, or an unreadable file.
    """
    path = manifest.root / "scored_classes.txt"
    if not path.is_file():
        return ()
    names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    unknown = [name for name in names if name not in manifest.classes]
    if unknown:
        raise ManifestError(path, f"'{unknown[0]}' is no class", f"the {len(manifest.classes)} classes of the weights")
    return names


def read_persons(path: Path, manifest: Manifest) -> PersonBoxes:
    """Read the boxes of a person detector. Raises ManifestError.

    JSON files have pixels, which are divided by the frame size of the videos.
    """
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


def plot_frames(table: Predictions, manifest: Manifest, test_frames: list[KeyFrame], target: Path) -> None:
    """Plot evenly spaced key frames of the split with their test boxes and top actions. Raises RunError."""
    classes = table["classes"].tolist()
    actions: dict[tuple[object, ...], list[tuple[float, str]]] = defaultdict(list)
    sampled = [
        test_frames[index]
        for index in np.unique(np.linspace(0, len(test_frames) - 1, NUM_PLOTTED_FRAMES).round().astype(int))
    ]
    sampled_keys = {(frame.video, frame.time) for frame in sampled}
    frames = list(zip(table["frame_video"].tolist(), table["frame_time"].tolist(), strict=True))
    is_plotted = np.asarray([key in sampled_keys for key in frames])[table["frame"]]
    for row in np.flatnonzero(is_plotted & (table["score"] >= MIN_PLOTTED_SCORE)):
        key = (*frames[table["frame"][row]], *table["box"][row].tolist())
        actions[key].append((float(table["score"][row]), classes[table["label"][row]]))
    plotted = []
    for frame in sampled:
        try:
            with borrow(manifest.video_path(frame.row), fps=frame.row.frame_rate) as video:
                image = video.frames_at([min(frame.seconds, video.info.duration)])[0]
        except VideoError:
            continue
        boxes = []
        for corners in frame.boxes.tolist():
            top_actions = sorted(actions[frame.video, frame.time, *corners], reverse=True)[:MAX_PLOTTED_ACTIONS]
            boxes.append((corners, [f"{name} {score:.2f}" for score, name in top_actions]))
        truth = [", ".join(classes[label] for label in labels) for labels in frame.labels]
        plotted.append(charts.BoxedFrame(image, boxes, truth, f"{frame.video}, {frame.time:g} s"))
    if plotted:
        write_plot(target, lambda: charts.frames_with_boxes(plotted))
