"""Steps that evaluations of object boxes share: options, selection of the test boxes, plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from internvideo import distributed
from internvideo.data.loader import LoaderSettings
from internvideo.data.manifest import Manifest
from internvideo.errors import ManifestError, VideoError
from internvideo.plots import charts
from internvideo.plots.style import write_plot
from internvideo.tasks.protocol import weights_hash
from internvideo.tasks.spatio_temporal_localization import object_boxes
from internvideo.tasks.spatio_temporal_localization.data import KeyFrameClipSettings, KeyFrameViews
from internvideo.tasks.task import EvaluateOptions
from internvideo.training.trained import Trained
from internvideo.video.pool import borrow

NUM_PLOTTED_FRAMES = 9
"""Number of key frames in the plot."""
PROTOCOL_KEYS = ("weights_sha256", "split_sha256", "boxes")
"""Protocol entries that must be equal for a table to be overwritten."""


@dataclass(frozen=True, kw_only=True)
class BoxOptions(EvaluateOptions):
    """Options of evaluations of object boxes."""

    boxes: Annotated[Path | None, "Boxes of an object detector, JSON; by default the annotated boxes."] = None


@dataclass(frozen=True)
class BoxInputs:
    """Annotated key frames, views with the test boxes of the same key frames, and the protocol."""

    frames: list[object_boxes.ObjectFrame]
    views: KeyFrameViews
    protocol: Mapping[str, Any]


def read_test_boxes(
    trained: Trained, rows: Manifest, clip_settings: KeyFrameClipSettings, settings: BoxOptions
) -> BoxInputs:
    """Read the test boxes: those of the file `settings.boxes`, else the annotated ones.

    Raises:
        RecipeError: run by more than one process. ManifestError: the file has no box of any row.
    """
    distributed.require_one_process("boxes of objects")
    frames = object_boxes.object_frames(rows)
    if settings.boxes is None:
        test_frames = [object_boxes.with_annotated_boxes(frame) for frame in frames]
    else:
        detections = object_boxes.read_detections(settings.boxes)
        test_frames = [
            object_boxes.with_detected_boxes(frame, object_boxes.detections_of(frame, detections)) for frame in frames
        ]
        if not any(len(frame.boxes) for frame in test_frames):
            raise ManifestError(settings.boxes, f"no box of a row of {rows.source}", "rows by their id or uid")
    data = trained.recipe.data
    loader_settings = LoaderSettings(batch_size=1, workers=settings.workers, short_side=data.loader.short_side)
    protocol = {
        "model": trained.recipe.model.name,
        "weights_sha256": weights_hash(trained.model),
        "split_sha256": rows.fingerprint,
        "source": str(rows.source),
        "frames": clip_settings.frames,
        "stride": clip_settings.stride,
        "short": clip_settings.transform.short,
        "boxes": "ground truth" if settings.boxes is None else settings.boxes.name,
    }
    return BoxInputs(frames, KeyFrameViews(rows, test_frames, clip_settings, loader_settings), protocol)


def plot_frames(
    box_inputs: BoxInputs,
    rows: Manifest,
    box_labels: Callable[[int], Sequence[str]],
    truth_text: Callable[[object_boxes.ObjectFrame], str],
    target: Path,
) -> None:
    """Plot evenly spaced key frames of the split with their test boxes.

    Args:
        box_labels: index of a key frame -> label of each box. truth_text: ground truth of a frame, for its title.
        target: file to write.
    """
    plotted = []
    for index in np.unique(np.linspace(0, len(box_inputs.frames) - 1, NUM_PLOTTED_FRAMES).round().astype(int)).tolist():
        frame, boxes = box_inputs.frames[index], box_inputs.views.frames[index].boxes
        try:
            with borrow(rows.video_path(frame.row), fps=frame.row.frame_rate) as video:
                image = video.frames_at([min(frame.time, video.info.duration)])[0]
        except VideoError:
            continue
        lines = box_labels(index)
        labeled = [(corners, [line]) for corners, line in zip(boxes.tolist(), lines, strict=False)]
        plotted.append(charts.BoxedFrame(image, labeled, [], f"{frame.row.id}: {truth_text(frame)}"))
    if plotted:
        write_plot(target, lambda: charts.frames_with_boxes(plotted))
