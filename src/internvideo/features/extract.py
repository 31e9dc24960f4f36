"""Extract features of long videos for temporal localization: one vector per sliding window, one file per video.

Several processes may fill one folder at once: each leases the next video that no other process has leased.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from internvideo import __version__
from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import RecipeError, RunError, VideoError
from internvideo.features.feature_folder import INDEX, FeatureFolder, Item, Record, append_rows
from internvideo.features.feature_layers import POOLED, create_feature_extractor, encode_tiles, tiled_preprocessing
from internvideo.features.leases import LeaseQueue
from internvideo.features.parallel_windows import default_readers, parallel_clips
from internvideo.features.read_ahead import read_ahead
from internvideo.features.read_report import ReadFailure, ReadReport
from internvideo.features.window_sampling import FrameGrid, WindowRule, frame_grid
from internvideo.features.windows import open_long, past_end
from internvideo.inference.video_model import VideoModel
from internvideo.tasks.protocol import weights_hash
from internvideo.video.conversion import conversion_metadata
from internvideo.video.damage import damage_metadata
from internvideo.video.frame_folder import rate_metadata


@dataclass(frozen=True)
class ExtractSettings:
    """Settings of `extract`.

    Attributes:
        rule: window length, stride and frame rate. layer, spatial_pool_size: see `create_feature_extractor`.
        tiles: encode tiles x tiles overlapping crops of larger frames (`encode_tiles`).
        batch_size: windows per batch; None is 16 on a GPU and 4 on a CPU, whose caches hold no more.
        workers: decoders: processes, and if fewer videos are left, threads of these; 0 decodes in this process.

    Raises:
        RecipeError: a number out of range.
    """

    rule: WindowRule = field(default_factory=WindowRule)
    layer: str = POOLED
    batch_size: int | None = None
    workers: int = 0
    spatial_pool_size: int = 1
    tiles: int = 1

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("spatial_pool_size", 1), ("tiles", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(name, str(value), f"{least} or more")


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

    Finished videos are kept: an interrupted run resumes, and a later run reads only videos that are new, were changed
    or could not be read. Memory use does not grow with the length of a video.

    Args:
        items, classes: of `find_items`.
        model: any model that encodes videos.
        output: the folder.
        settings: windows, layer, batches, workers.
        overwrite: recompute the features that are there.
        progress: show a bar on stderr; by default if that is a terminal.

    Raises:
        VideoError: no video can be read. RecipeError: a setting that the model does not support.
        RunError: the folder was created with other settings, a full disk, features that are not finite.
    """
    settings = settings or ExtractSettings()
    preprocessing = tiled_preprocessing(model.preprocessing, settings.tiles)
    encode = encode_tiles(
        create_feature_extractor(model, settings.layer, settings.spatial_pool_size),
        model.preprocessing.size,
        settings.tiles,
    )
    folder = FeatureFolder(output)
    folder.begin(feature_provenance(model, settings), classes, overwrite=overwrite)
    if settings.batch_size is None:
        settings = replace(settings, batch_size=4 if model.device.type == "cpu" else 16)
    run = _Run(items, preprocessing, encode, settings, folder)
    run.local_readers = default_readers(model.device.type)
    try:
        run.run(progress)
    finally:  # also when it was interrupted
        run.release_all()
        with run.leases.exclusive(INDEX):
            folder.write_index(items)
    return run.final_report()


def feature_provenance(model: VideoModel, settings: ExtractSettings) -> dict[str, Any]:
    """Return the provenance of features (model, weights, preprocessing, settings) as JSON values."""
    config = model.config
    # Only values above 1, so that folders created before these settings existed can be resumed.
    counts = {"grid": settings.spatial_pool_size, "tiles": settings.tiles}
    return {
        "model": model.name,
        "weights_sha256": model.metadata.get("weights_sha256") or weights_hash(model.module),
        "source": model.metadata.get("source", ""),
        "overrides": config["overrides"],
        "preprocessing": config["preprocessing"],
        "precision": model.precision,
        "layer": settings.layer,
        **{name: count for name, count in counts.items() if count > 1},
        "window": settings.rule.window_frames,
        "stride": settings.rule.stride_frames,
        "fps": settings.rule.fps,
        **damage_metadata(),
        **conversion_metadata(),
        **rate_metadata(),
        "internvideo": __version__,
    }


def plan(items: Sequence[Item], output: Path, rule: WindowRule, *, overwrite: bool = False) -> Iterator[str]:
    """Yield what `extract` would do: one line per video and a total. Needs no model and decodes nothing."""
    folder = FeatureFolder(output)
    counts, vectors, seconds = {"read": 0, "done": 0, "unreadable": 0}, 0, 0.0
    for item in items:
        try:
            record = None if overwrite else folder.record(item.id)
            if record is not None and record.vectors and record.identity == item.video.identity():
                counts["done"] += 1
                yield f"done: {item.video.path}"
                continue
            with open_long(item.video.path, fps=item.video.fps) as video:
                grid = frame_grid(video.info, rule, item.video.start, item.video.end)
        except VideoError as error:
            counts["unreadable"] += 1
            yield f"unreadable: {error}"
            continue
        counts["read"] += 1
        vectors, seconds = vectors + len(grid.starts), seconds + grid.duration
        where = f"{item.id}.npy: {len(grid.starts)} vectors of {grid.duration:.1f} s at {grid.fps:g} fps"
        yield f"read: {item.video.path} -> {where}"
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    yield f"{summary}; {vectors} vectors from {seconds / 3600:.2f} h of video to be made"


class _Piece(NamedTuple):
    """A window of a video; or (clip None) its end, or the message that another process has leased it.

    `fraction_done` of the video, 0..1, ends with this window; `seconds` of it are new since the window before.
    """

    video_index: int
    clip: Tensor | None
    fraction_done: float
    seconds: float = 0.0
    grid: tuple[float, int, float] | None = None  # fps, frames, duration
    reason: str = ""
    leased: bool = True
    identity: str = ""  # of the file before it was opened: changes made meanwhile are read by the next run
    gaps: tuple[tuple[float, float], ...] = ()
    marks: tuple[str, ...] = ()


class _Reader(IterableDataset[_Piece]):
    """Iterate over the windows of videos; each worker leases the next video that is free."""

    def __init__(
        self,
        items: Sequence[Item],
        indices: list[int],
        preprocessing: Preprocessing,
        rule: WindowRule,
        folder: FeatureFolder,
        leases: LeaseQueue,
    ) -> None:
        self.items, self.indices, self.preprocessing, self.rule = items, indices, preprocessing, rule
        self.folder, self.leases, self.began, self.readers = folder, leases, time.time(), 1

    def __iter__(self) -> Iterator[_Piece]:
        worker = get_worker_info()
        for index in self.indices if worker is None else self.indices[worker.id :: worker.num_workers]:
            item = self.items[index]
            if not self.leases.acquire(item.id):
                yield _Piece(index, None, 1.0, leased=False)
            elif is_done(self.folder.record(item.id), item, self.began):
                self.leases.release(item.id)
                yield _Piece(index, None, 1.0, leased=False)
            else:
                yield from self._read(index)

    def _read(self, index: int) -> Iterator[_Piece]:
        video = self.items[index].video
        grid: FrameGrid | None = None
        reason = identity = ""
        gaps: tuple[tuple[float, float], ...] = ()
        marks: tuple[str, ...] = ()
        try:
            identity = video.identity()
            with open_long(video.path, self.preprocessing.short_side, fps=video.fps) as opened:
                marks = opened.info.properties
                grid = frame_grid(opened.info, self.rule, video.start, video.end)
                frame_indices = grid.frame_indices(self.preprocessing.frames)
                each = grid.duration / len(frame_indices)
                clips = parallel_clips(opened, self.preprocessing, frame_indices, self.readers)
                for position, clip in enumerate(clips, 1):
                    yield _Piece(index, clip, position / len(frame_indices), each)
                reason = opened.damage_report or past_end(opened.info, video.end)
                begin = video.start or 0.0
                parts = np.clip(np.array(opened.gaps).reshape(-1, 2) - begin, 0.0, grid.duration)
                gaps = tuple((start, end) for start, end in parts.tolist() if end > start)
        except VideoError as error:
            reason = str(error).removeprefix(f"{video.path}: ")
        about = (0.0, 0, 0.0) if grid is None else (grid.fps, len(grid.indices), grid.duration)
        yield _Piece(index, None, 1.0, 0.0, about, reason, identity=identity, gaps=gaps, marks=marks)


def is_done(record: Record | None, item: Item, began: float) -> bool:
    """Return whether a video needs no work; an unreadable one is tried again by a run that begins later."""
    if record is None or (not record.vectors and record.at < began):
        return False
    try:
        return record.identity == item.video.identity()
    except VideoError:
        return not record.vectors


@dataclass
class _Open:
    """State of a video in progress: windows received, vectors written, and the last piece once it has arrived."""

    rows: Path
    num_windows: int = 0
    written: int = 0
    fraction_done: float = 0.0
    last: _Piece | None = None


class _Run:
    """Encode the videos that are not done, batch by batch."""

    def __init__(
        self,
        items: Sequence[Item],
        preprocessing: Preprocessing,
        encode: Any,
        settings: ExtractSettings,
        folder: FeatureFolder,
    ) -> None:
        self.items, self.preprocessing, self.encode, self.settings, self.folder = (
            items,
            preprocessing,
            encode,
            settings,
            folder,
        )
        self.leases, self.began = LeaseQueue(folder.work), time.time()
        self.open: dict[int, _Open] = {}
        self.batch: list[_Piece] = []
        self.report = ReadReport(len(items))
        self.owned: set[int] = set()
        self.local_readers = 1  # threads per video where no worker decodes

    def _waiting(self) -> list[int]:
        """Return the indices of videos that are neither done nor leased."""
        left = []
        for index, item in enumerate(self.items):
            done = is_done(self.folder.record(item.id), item, self.began)
            if index not in self.owned and not done and not self.leases.is_leased(item.id):
                left.append(index)
        return left

    def run(self, progress: bool | None) -> None:
        """Read, encode and store every video that this process can lease."""
        began = time.perf_counter()
        indices = self._waiting()
        before = {n for n, item in enumerate(self.items) if is_done(self.folder.record(item.id), item, self.began)}
        self.report.resumed = len(before)
        form = "{l_bar}{bar}| {n:.1f}/{total} videos{postfix}, {remaining} left"
        disable = None if progress is None else not progress
        count = len(indices)
        with tqdm(total=count, bar_format=form, postfix="", disable=disable) as bar:
            while indices:  # a second round where a lease has become stale meanwhile
                workers = min(self.settings.workers, len(indices))
                reader = _Reader(self.items, indices, self.preprocessing, self.settings.rule, self.folder, self.leases)
                reader.began = self.began
                reader.readers = self.settings.workers // workers if workers else self.local_readers
                for piece in read_ahead(reader, workers):
                    bar.update(self._handle(piece))
                    self.report.seconds = time.perf_counter() - began
                    bar.set_postfix_str(f"{self.report.speed:.1f}x real time", refresh=False)
                self._encode()
                indices = self._waiting()
            bar.update(round(count - bar.n, 6))
        self.report.seconds = time.perf_counter() - began
        self.report.other_workers = len(self.items) - len(before | self.owned)

    def _handle(self, piece: _Piece) -> float:
        """Process one piece; return the fraction of a video that it adds."""
        if not piece.leased:
            return 1.0
        item = self.items[piece.video_index]
        if piece.video_index not in self.open:
            self.owned.add(piece.video_index)
            for rows in self.folder.work.glob(f"{glob.escape(item.id)}.*.rows"):  # of processes that were killed
                rows.unlink(missing_ok=True)
            self.open[piece.video_index] = _Open(self.folder.work / f"{item.id}.{os.getpid()}.rows")
        state = self.open[piece.video_index]
        advance, state.fraction_done = piece.fraction_done - state.fraction_done, piece.fraction_done
        if piece.clip is None:
            state.last = piece
            self._finalize(piece.video_index)
            return advance
        state.num_windows += 1
        self.report.video_seconds += piece.seconds
        self.batch.append(piece)
        if len(self.batch) == self.settings.batch_size:
            self._encode()
        return advance

    def _encode(self) -> None:
        if not self.batch:
            return
        values = self.encode(torch.stack([piece.clip for piece in self.batch if piece.clip is not None]))
        finite = values.isfinite().all(dim=1)
        if not finite.all():
            piece = self.batch[int(finite.int().argmin())]
            path = self.items[piece.video_index].video.path
            raise RunError(path, "a feature is not finite", "", "try precision float32, or check the weights")
        self.report.dim = values.shape[1]
        indices, self.batch = [piece.video_index for piece in self.batch], []
        for index in dict.fromkeys(indices):
            state = self.open[index]
            rows = values[[at for at, other in enumerate(indices) if other == index]]
            append_rows(state.rows, rows.numpy())
            state.written += len(rows)
        for index in [*self.open]:
            self.leases.heartbeat(self.items[index].id)
            self._finalize(index)

    def _finalize(self, index: int) -> None:
        """Store a video once its end has arrived and all its windows are encoded."""
        state, item = self.open[index], self.items[index]
        if state.last is None or state.written < state.num_windows:
            return
        del self.open[index]
        end, dim = state.last, self.report.dim if state.written else 0
        reason = end.reason or ("" if state.written else "no frame")
        gaps, marks = (end.gaps, end.marks) if state.written else ((), ())
        grid = end.grid or (0.0, 0, 0.0)
        record = Record(end.identity, item.video.path, state.written, dim, *grid, reason, self.began, gaps, marks)
        self.folder.keep(item.id, record, state.rows if state.written else None)
        state.rows.unlink(missing_ok=True)
        self.leases.release(item.id)
        self.report.read += bool(state.written)
        self.report.vectors += state.written

    def release_all(self) -> None:
        """Release the leases of unfinished videos and delete their rows."""
        for index, state in self.open.items():
            state.rows.unlink(missing_ok=True)
            self.leases.release(self.items[index].id)
        for item in self.items:  # leased by a worker that had not reported it
            self.leases.release(item.id)

    def final_report(self) -> ReadReport:
        """Complete and return the report. Raises VideoError if no video has features."""
        report, whole = self.report, 0
        for item in self.items:
            record = self.folder.record(item.id)
            if record is None:
                continue
            whole += bool(record.vectors)
            report.dim = report.dim or record.width
            if record.trouble:
                kind = report.truncated if record.vectors else report.unreadable
                kind.append(ReadFailure(record.path, record.trouble, item.id))
        if not whole and report.unreadable:
            report.raise_unreadable()
        return report
