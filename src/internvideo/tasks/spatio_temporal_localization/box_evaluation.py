"""Shared parts of evaluations of object boxes: options, choice of the tested boxes, plots."""

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
from internvideo.plots import charts as figures
from internvideo.plots.style import write_plot
from internvideo.tasks.protocol import weights_hash
from internvideo.tasks.spatio_temporal_localization import object_boxes
from internvideo.tasks.spatio_temporal_localization.data import ClipForm, KeyFrameViews
from internvideo.tasks.task import EvaluateOptions
from internvideo.training.trained import Trained
from internvideo.video.pool import borrow

SHOWN = 9
"""Number of key frames that an evaluation plots."""
CHECKED = ("weights_sha256", "split_sha256", "boxes")
"""Protocol entries that must agree for a table to be overwritten."""


@dataclass(frozen=True, kw_only=True)
class BoxOptions(EvaluateOptions):
    """Options of evaluations of object boxes."""

    boxes: Annotated[Path | None, "Boxes of an object detector, JSON; by default the annotated boxes."] = None


@dataclass(frozen=True)
class Tested:
    """Rows, their key frames, and the views with the tested boxes, one entry per key frame each."""

    frames: list[object_boxes.ObjectFrame]
    views: KeyFrameViews
    protocol: Mapping[str, Any]


def boxes_to_test(trained: Trained, rows: Manifest, form: ClipForm, settings: BoxOptions) -> Tested:
    """Select the tested boxes: those of `settings.boxes`, else the annotated ones.

    Raises:
        RecipeError: several processes. ManifestError: boxes of none of the rows.
    """
    distributed.require_one_process("boxes of objects")
    frames = object_boxes.object_frames(rows)
    if settings.boxes is None:
        chosen = [object_boxes.annotated(frame) for frame in frames]
    else:
        found = object_boxes.read_detections(settings.boxes)
        chosen = [object_boxes.detected(frame, object_boxes.of_frame(frame, found)) for frame in frames]
        if not any(len(frame.boxes) for frame in chosen):
            raise ManifestError(settings.boxes, f"no box of a row of {rows.source}", "rows by their id or uid")
    data = trained.recipe.data
    loader = LoaderSettings(batch_size=1, workers=settings.workers, short_side=data.loader.short_side)
    protocol = {
        "model": trained.recipe.model.name,
        "weights_sha256": weights_hash(trained.model),
        "split_sha256": rows.fingerprint,
        "source": str(rows.source),
        "frames": form.frames,
        "stride": form.stride,
        "short": form.transform.short,
        "boxes": "ground truth" if settings.boxes is None else settings.boxes.name,
    }
    return Tested(frames, KeyFrameViews(rows, chosen, form, loader), protocol)


def draw(
    tested: Tested,
    rows: Manifest,
    box_labels: Callable[[int], Sequence[str]],
    truth: Callable[[object_boxes.ObjectFrame], str],
    target: Path,
) -> None:
    """Plot key frames, spread evenly over the split, with every tested box.

    Args:
        box_labels: key frame -> label of each of its boxes. truth: ground truth of a frame as text, for its title.
    """
    panels = []
    for index in np.unique(np.linspace(0, len(tested.frames) - 1, SHOWN).round().astype(int)).tolist():
        frame, boxes = tested.frames[index], tested.views.frames[index].boxes
        try:
            with borrow(rows.video_path(frame.row), fps=frame.row.frame_rate) as video:
                picture = video.frames_at([min(frame.time, video.info.duration)])[0]
        except VideoError:
            continue
        lines = box_labels(index)
        labeled = [(corners, [line]) for corners, line in zip(boxes.tolist(), lines, strict=False)]
        panels.append(figures.BoxedFrame(picture, labeled, [], f"{frame.row.id}: {truth(frame)}"))
    if panels:
        write_plot(target, lambda: figures.frames_with_boxes(panels))
