"""Evaluate future hand prediction: predictions, metrics, submission file, plots of true and predicted positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from internvideo.data.loader import EvalLoader, LoaderSettings
from internvideo.data.manifest import Manifest
from internvideo.errors import RecipeError, VideoError
from internvideo.plots import charts
from internvideo.plots.style import write_plot
from internvideo.storage import write_text
from internvideo.tasks.clip_evaluation import make_clip_inputs, read_split, run_evaluation
from internvideo.tasks.future_hands import predict as future_hands
from internvideo.tasks.future_hands.build import HandData, whole_frame_transforms
from internvideo.tasks.future_hands.data import make_rows_and_targets
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained
from internvideo.video.pool import borrow

NUM_PLOTTED_CLIPS = 9
"""Number of clips in the plot."""


def evaluate(trained: Trained, manifest: Path, output: Path, settings: ClipOptions, split: str | None) -> Result:
    """Write future_hands.npz and .json, submission.json and hands.svg; print the metrics.

    Raises RecipeError, ManifestError, RunError.
    """
    if settings.num_crops != 1:
        raise RecipeError("num_crops", str(settings.num_crops), "1, because clips show the whole frame")
    data, mean = trained.recipe.data_as(HandData), trained.extra_metadata.get("mean")
    rows, targets = make_rows_and_targets(read_split(manifest, split), data.hands)
    inputs = make_clip_inputs(trained, rows, settings)

    def predict() -> Predictions:
        sampler = data.preprocessing().frame_sampler(inputs.protocol.num_clips)
        loader_settings = LoaderSettings(settings.batch_size, settings.workers, short_side=data.loader.short_side)
        whole_frame_inputs = replace(
            inputs, loader=EvalLoader(rows, sampler, whole_frame_transforms(data.augment)[1], loader_settings)
        )
        return future_hands.predict(whole_frame_inputs, targets, mean=None if mean is None else np.asarray(mean))

    def write_plots(table: Predictions, folder: Path) -> None:
        write_text(folder / "submission.json", future_hands.submission(table))
        frames = plot_frames(table, rows)
        if frames:
            write_plot(folder / "hands.svg", lambda: charts.frames_with_paths(frames))

    return run_evaluation(future_hands.NAME, future_hands.score, inputs, output, predict, write_plots)


def plot_frames(table: Predictions, rows: Manifest) -> list[charts.FrameWithPaths]:
    """Return last observed frames, sampled uniformly from the split, with true and predicted paths of the hands."""
    row_of_id = {row.id: row for row in rows.rows}
    frames = []
    for index in np.unique(np.linspace(0, len(table["id"]) - 1, NUM_PLOTTED_CLIPS).round().astype(int)):
        row = row_of_id[str(table["id"][index])]
        assert row.span is not None  # set by `make_rows_and_targets`
        try:
            with borrow(rows.video_path(row), fps=row.frame_rate) as video:
                times = video.info.times
                last_frame = video.frames([int(np.flatnonzero(times < row.span[1])[-1])])[0]
        except (VideoError, IndexError):
            continue
        size, truth, predicted = table["size"][index], table["truth"][index], table["predicted"][index]
        paths = [
            (hand, truth[visible, hand_index] / size, predicted[visible, hand_index] / size)
            for hand_index, hand in enumerate(("left", "right"))
            if (visible := (truth[:, hand_index] != 0).any(axis=-1)).any()
        ]
        frames.append(charts.FrameWithPaths(last_frame, paths, row.id))
    return frames
