"""Extract features of long videos for temporal localization: one vector per sliding window, one file per video.

Several processes may fill one folder at once: each leases the next video that no other process has leased.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from internvideo.errors import VideoError
from internvideo.features.engine import (
    FrameWindows,
    VectorWriter,
    VideoEnd,
    Window,
    check_minimum,
    vector_provenance,
)
from internvideo.features.feature_folder import INDEX, FeatureFolder, Item, Record, append_rows
from internvideo.features.feature_layers import (
    POOLED,
    Encode,
    create_feature_extractor,
    encode_tiles,
    tiled_preprocessing,
)
from internvideo.features.leases import LeaseQueue
from internvideo.features.parallel_windows import default_readers
from internvideo.features.ray_engine import run_on
from internvideo.features.read_report import ReadFailure, ReadReport
from internvideo.features.window_sampling import WindowRule, frame_grid
from internvideo.features.windows import open_long_video
from internvideo.inference.video_model import VideoModel


@dataclass(frozen=True)
class ExtractSettings:
    """Settings of `extract`.

    Attributes:
        rule: window length, stride and frame rate. layer, spatial_pool_size: see `create_feature_extractor`.
        tiles: encode tiles x tiles overlapping crops of larger frames (`encode_tiles`).
        batch_size: windows per batch; None for 16 on a GPU and 4 on a CPU, where larger batches exceed the caches.
        ray: address of a Ray cluster to run on, "local" to start one on this machine (see `ray_engine`).
        workers: decoding processes; the last videos are each decoded by several threads. 0 decodes in this process.

    Raises:
        RecipeError: a number out of range.
    """

    rule: WindowRule = field(default_factory=WindowRule)
    layer: str = POOLED
    batch_size: int | None = None
    workers: int = 0
    spatial_pool_size: int = 1
    tiles: int = 1
    ray: str | None = None

    def __post_init__(self) -> None:
        check_minimum(self, batch_size=1, workers=0, spatial_pool_size=1, tiles=1)


def extract(
    items: Sequence[Item],
    model: VideoModel,
    output: Path,
    settings: ExtractSettings | None = None,
    *,
    classes: tuple[str, ...] = (),
    overwrite: bool = False,
    progress: bool | None = None,
) -> ReadReport:
    """Write the features of videos into a folder (see `feature_folder`).

    An interrupted run resumes; a later run reads only videos that are new, were changed or could not be read. Memory
    use does not grow with the length of a video.

    Args:
        items, classes: of `find_items`. model: any model that encodes videos.
        output: the folder. settings: windows, layer, batches, workers.
        overwrite: recompute existing features.
        progress: show a bar on stderr; by default if that is a terminal.

    Raises:
        VideoError: no video can be read. RecipeError: a setting that the model does not support.
        RunError: the folder was created with other settings, a full disk, features that are not finite.
    """
    settings = settings or ExtractSettings()
    preprocessing = tiled_preprocessing(model.preprocessing, settings.tiles)
    make_encode = partial(_encoder, settings)
    make_encode(model)  # checks the settings
    folder = FeatureFolder(output)
    folder.create_or_resume(feature_provenance(model, settings), classes, overwrite=overwrite)
    writer = FolderWriter(items, folder)
    windows = FrameWindows(preprocessing, settings.rule)
    batch_size = settings.batch_size or (4 if model.device.type == "cpu" else 16)
    readers = default_readers(model.device.type)
    run_on(
        settings.ray, writer, windows, model, make_encode,
        batch_size=batch_size, workers=settings.workers, readers=readers, progress=progress,
    )  # fmt: skip
    return writer.final_report()


def _encoder(settings: ExtractSettings, model: VideoModel) -> Encode:
    layer = create_feature_extractor(model, settings.layer, settings.spatial_pool_size)
    return encode_tiles(layer, model.preprocessing.size, settings.tiles)


def feature_provenance(model: VideoModel, settings: ExtractSettings) -> dict[str, Any]:
    """Return the provenance of features (model, weights, preprocessing, settings) as JSON values."""
    # Only values above 1, so that folders of versions without these settings can be resumed.
    spatial = {"grid": settings.spatial_pool_size, "tiles": settings.tiles}
    layer = {"layer": settings.layer, **{name: value for name, value in spatial.items() if value > 1}}
    rule = settings.rule
    placement = {"window": rule.window_frames, "stride": rule.stride_frames, "fps": rule.fps}
    return vector_provenance(model, {**layer, **placement})


def plan(items: Sequence[Item], output: Path, rule: WindowRule, *, overwrite: bool = False) -> Iterator[str]:
    """Yield what `extract` would do: one line per video and a total. Needs no model and decodes nothing."""
    folder = FeatureFolder(output)
    counts, vectors, seconds = {"read": 0, "done": 0, "unreadable": 0}, 0, 0.0
    for item in items:
        try:
            record = None if overwrite else folder.load_record(item.id)
            if record is not None and record.num_vectors and record.identity == item.video.identity():
                counts["done"] += 1
                yield f"done: {item.video.path}"
                continue
            with open_long_video(item.video.path, fps=item.video.fps) as video:
                grid = frame_grid(video.info, rule, item.video.start, item.video.end)
        except VideoError as error:
            counts["unreadable"] += 1
            yield f"unreadable: {error}"
            continue
        counts["read"] += 1
        vectors, seconds = vectors + len(grid.starts), seconds + grid.duration
        target = f"{item.id}.npy: {len(grid.starts)} vectors of {grid.duration:.1f} s at {grid.fps:g} fps"
        yield f"read: {item.video.path} -> {target}"
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    yield f"{summary}; {vectors} vectors from {seconds / 3600:.2f} h of video to compute"


class FolderWriter(VectorWriter):
    """Append the vectors of leased videos to files of raw float32; complete ones become feature files."""

    def __init__(self, items: Sequence[Item], folder: FeatureFolder) -> None:
        self.items, self.folder, self.started_at, self.leases = items, folder, time.time(), LeaseQueue(folder.work)
        super().__init__([item.video for item in items], AcquireVideo(items, folder, self.leases, self.started_at))
        self.owned: set[int] = set()
        self.raw_files: dict[int, Path] = {}
        self.resumed = {index for index in range(len(items)) if self._is_done(index)}
        self.report.resumed = len(self.resumed)

    def _is_done(self, index: int) -> bool:
        item = self.items[index]
        return is_done(self.folder.load_record(item.id), item, self.started_at)

    def pending(self) -> list[int]:
        """Return the videos that are neither done nor leased."""
        others = [index for index in range(len(self.items)) if index not in self.owned]
        return [i for i in others if not self._is_done(i) and not self.leases.is_leased(self.items[i].id)]

    def begin(self, index: int) -> None:
        """Name the file of raw values, and delete those of processes that were killed."""
        self.owned.add(index)
        name = self.items[index].id
        for stale in self.folder.work.glob(f"{glob.escape(name)}.*.rows"):
            stale.unlink(missing_ok=True)
        self.raw_files[index] = self.folder.work / f"{name}.{os.getpid()}.rows"

    def write(self, index: int, windows: Sequence[Window], values: Tensor) -> None:
        """Append the vectors; their times follow from the window rule and are not stored."""
        append_rows(self.raw_files[index], values.numpy())

    def after_batch(self, unfinished: Collection[int]) -> None:
        """Renew the leases of the unfinished videos."""
        for index in unfinished:
            self.leases.heartbeat(self.items[index].id)

    def finish(self, index: int, end: VideoEnd, num_vectors: int) -> None:
        """Write the file and the record of a video, and release its lease."""
        item, raw_file, extent = self.items[index], self.raw_files.pop(index), end.extent
        reason = end.reason or ("" if num_vectors else "no frame")
        gaps = np.clip(np.array(end.gaps).reshape(-1, 2) - (item.video.start or 0.0), 0.0, extent.duration)
        record = Record(end.identity, item.video.path, num_vectors, 0, *extent, reason, self.started_at)
        if num_vectors:
            spans = tuple((start, stop) for start, stop in gaps.tolist() if stop > start)
            properties = tuple(end.info.properties) if end.info else ()
            record = replace(record, dim=self.report.dim, gaps=spans, properties=properties)
        self.folder.commit_video(item.id, record, raw_file if num_vectors else None)
        raw_file.unlink(missing_ok=True)
        self.leases.release(item.id)
        self.report.vectors += num_vectors

    def close(self) -> None:
        """Release the leases of unfinished videos, delete their raw values and write the index."""
        for raw_file in self.raw_files.values():
            raw_file.unlink(missing_ok=True)
        for item in self.items:  # also those that a worker leased and did not report
            self.leases.release(item.id)
        with self.leases.exclusive(INDEX):
            self.folder.write_index(self.items)

    def final_report(self) -> ReadReport:
        """Complete and return the report. Raises VideoError if no video has features."""
        report, num_readable = self.report, 0
        report.other_workers = len(self.items) - len(self.resumed | self.owned)
        for item in self.items:
            record = self.folder.load_record(item.id)
            if record is None:
                continue
            num_readable += bool(record.num_vectors)
            report.dim = report.dim or record.dim
            if record.failure:
                failures = report.truncated if record.num_vectors else report.unreadable
                failures.append(ReadFailure(record.path, record.failure, item.id))
        if not num_readable and report.unreadable:
            report.raise_unreadable()
        return report


@dataclass(frozen=True)
class AcquireVideo:
    """Callable that leases a video, in the process that reads it, unless it is done or leased by another process."""

    items: Sequence[Item]
    folder: FeatureFolder
    leases: LeaseQueue
    started_at: float

    def __call__(self, index: int) -> bool:
        """Return whether this process acquired the lease."""
        item = self.items[index]
        if not self.leases.acquire(item.id):
            return False
        if not is_done(self.folder.load_record(item.id), item, self.started_at):
            return True
        self.leases.release(item.id)
        return False


def is_done(record: Record | None, item: Item, started_at: float) -> bool:
    """Return whether a video is finished; an unreadable one is so only for runs that began before it was tried."""
    if record is None or (not record.num_vectors and record.started_at < started_at):
        return False
    try:
        return record.identity == item.video.identity()
    except VideoError:
        return not record.num_vectors
