"""Index videos: read new and changed files, commit video by video, and remove deleted ones."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo.data.lists import VIDEO_EXTENSIONS
from internvideo.errors import VideoError
from internvideo.features.engine import VectorWriter, VideoEnd, Window, check_minimum
from internvideo.features.ray_engine import run_on
from internvideo.features.read_report import ReadFailure, ReadReport
from internvideo.features.remote_files import url_of, url_or_path
from internvideo.features.video_files import VideoFile, find_videos
from internvideo.inference.video_model import VideoModel
from internvideo.search.reading import ScaledWindows
from internvideo.search.records import VideoRecord
from internvideo.search.store import STRIDE_RATIO, Store
from internvideo.storage import folder_lock

REVERSED_WINDOWS = 32
"""Windows that are also encoded backwards, to measure whether the model is sensitive to the order of time."""

PROGRESS_SECONDS = 0.5
REVERSED_BATCH = 8
"""Of these, encoded at a time."""


@dataclass(frozen=True)
class IndexSettings:
    """Settings of `index_videos`.

    Attributes:
        batch_size: clips per batch. workers: decoding processes; 0 decodes in a thread.
        recursive: search the subfolders of folders too.
        ray: run on this Ray cluster, "local" for one in this machine (see `ray_engine`).
        progress: show a bar on stderr; by default if that is a terminal.

    Raises:
        RecipeError: a number out of range.
    """

    batch_size: int = 8
    workers: int = 0
    recursive: bool = True
    progress: bool | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        check_minimum(self, batch_size=1, workers=0)


@dataclass
class IndexReport(ReadReport):
    """What a run did: `read` of new videos and of changed ones; `resumed` counts those indexed before.

    Attributes:
        changed: videos that were indexed again because their file changed. removed: videos whose file is gone, or can
            no longer be read.
    """

    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def index_videos(
    store: Store, model: VideoModel, inputs: Sequence[Path], settings: IndexSettings | None = None
) -> IndexReport:
    """Bring a collection up to date with files, folders and manifests.

    Each video is committed for itself, so that an interrupted run resumes. Videos that lie in a folder of `inputs` and
    are no longer found there are removed; videos of other folders stay.

    Raises:
        VideoError: no video can be read. RunError: another process writes there, a full disk, vectors that are not
            finite, another model.
    """
    settings = settings or IndexSettings()
    store.check_model(model)
    videos = [absolute(video) for video in find_videos(inputs, recursive=settings.recursive)]
    with folder_lock(store.folder):
        store.records.set_fact("roots", sorted({*store.records.fact("roots", []), *map(_root, inputs)}))
        writer = CollectionWriter(store, model, videos, inputs)
        windows = ScaledWindows(model.preprocessing, store.scales, STRIDE_RATIO)
        run_on(
            settings.ray, writer, windows, model, attrgetter("encode_clips"),
            batch_size=settings.batch_size, workers=settings.workers, progress=settings.progress,
        )  # fmt: skip
        writer.order.save()
        report = writer.report
        unreadable = {failure.path: failure.reason for failure in report.unreadable}
        with store.records.transaction():
            store.records.set_unreadable(unreadable)
            store.records.set_fact("progress", {"done": len(videos), "total": len(videos)})
        store.compact()
        report.vectors = sum(len(video.windows) for video in store.snapshot().videos)
    if not report.vectors:
        report.raise_unreadable()
    return report


def absolute(video: VideoFile) -> VideoFile:
    """Return the video with an absolute path or its address, so that a collection can be used from any folder."""
    return VideoFile(url_or_path(video.path), video.start, video.end, video.fps)


def _root(given: Path) -> str:
    """Return the folder that an input lies in or is."""
    path = url_or_path(given)
    is_folder = not path.endswith(tuple(VIDEO_EXTENSIONS)) if url_of(path) else os.path.isdir(path)
    return path if is_folder else os.path.dirname(path)


@dataclass
class _Read:
    """What was encoded of a video in progress."""

    windows: list[tuple[float, float, float]] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    thumbnails: dict[float, bytes] = field(default_factory=dict)


class CollectionWriter(VectorWriter):
    """Commit each video for itself.

    Args:
        store: of the collection. model: that encodes. videos: with absolute paths. inputs: where they were found.
    """

    report: IndexReport

    def __init__(self, store: Store, model: VideoModel, videos: Sequence[VideoFile], inputs: Sequence[Path]) -> None:
        super().__init__(videos)
        self.store = store
        self.report = IndexReport(len(videos), model.embed_dim)
        self.order = _TimeOrder(store, model)
        self._identities = [""] * len(videos)
        self._replaces: dict[int, list[int]] = {}
        self._open: defaultdict[int, _Read] = defaultdict(_Read)
        self._pending = self._compare(inputs)
        self._told = -PROGRESS_SECONDS

    def _compare(self, inputs: Sequence[Path]) -> list[int]:
        """Remove what is gone; return the indices of the videos to read."""
        known = {record.key: record for record in self.store.snapshot().videos}
        waiting, gone = [], []
        for index, video in enumerate(self.videos):
            record = known.pop((video.path, video.start, video.end), None)
            try:
                self._identities[index] = video.identity()
            except VideoError as error:
                self.report.unreadable.append(ReadFailure(video.path, str(error).removeprefix(f"{video.path}: ")))
                gone += [record] if record else []
                continue
            if record and record.identity == self._identities[index]:
                self.report.resumed += 1
                if record.damage:
                    self.report.truncated.append(ReadFailure(video.path, record.damage))
                continue
            self._replaces[index] = [record.id] if record else []
            waiting.append(index)
        folders = (url_or_path(given) for given in inputs if url_of(given) or os.path.isdir(given))
        roots = [os.path.join(folder, "") for folder in folders]
        gone += [record for record in known.values() if any(record.path.startswith(root) for root in roots)]
        if waiting or gone:  # until what follows from the videos is brought up to date too (`Collection.add`)
            self.store.records.set_fact("unsettled", True)
        self.store.remove([record.id for record in gone])
        self.report.removed = [record.path for record in gone]
        return waiting

    def pending(self) -> list[int]:
        """Return the videos that are new or changed."""
        return self._pending

    def write(self, index: int, windows: Sequence[Window], values: Tensor) -> None:
        """Hold the vectors until the video is finished."""
        state = self._open[index]
        for window in windows:
            state.windows.append((window.start, window.end, window.detail.scale))
            state.thumbnails.update(window.detail.thumbnails)
        state.vectors.append(values.numpy())
        self.order.take(index, windows[-1].clip, values[-1])

    def reads_clips(self, pending: Sequence[int]) -> Collection[int]:
        """Return the first videos, twice as many as are needed to measure the order of time: some may be unreadable."""
        return () if self.order.done else pending[: 2 * REVERSED_WINDOWS]

    def after_batch(self, unfinished: Collection[int]) -> None:
        """Encode windows backwards."""
        self.order.measure()

    def finish(self, index: int, end: VideoEnd, num_vectors: int) -> None:
        """Commit a video, in place of its earlier state; forget that state where nothing can be read."""
        path, report = self.videos[index].path, self.report
        replaced = [path] if self._replaces[index] else []
        if num_vectors:
            self._add(index, end)
            report.changed += replaced
            if end.reason:
                report.truncated.append(ReadFailure(path, end.reason))
        else:
            report.unreadable.append(ReadFailure(path, end.reason))
            self.store.remove(self._replaces[index])
            report.removed += replaced
        if time.monotonic() >= self._told + PROGRESS_SECONDS:  # each is a transaction of its own
            done = report.resumed + report.read + len(report.unreadable)
            self.store.records.set_fact("progress", {"done": done, "total": len(self.videos)})
            self._told = time.monotonic()

    def _add(self, index: int, end: VideoEnd) -> None:
        state, video, info = self._open.pop(index), self.videos[index], end.info
        assert info is not None
        vectors = np.concatenate(state.vectors)
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        windows = np.column_stack([np.array(state.windows, np.float64), norms])
        order = np.lexsort((windows[:, 0], windows[:, 2]))
        unit = (vectors / np.maximum(norms, 1e-12)[:, None]).astype(np.float32)
        record = VideoRecord(
            0, video.path, video.start, video.end, self._identities[index], info.duration, info.fps, info.width,
            info.height, _modified(video.path), end.reason, 0, 0, windows[order],
        )  # fmt: skip
        self.store.add(record, unit[order], state.thumbnails, self._replaces[index])


class _TimeOrder:
    """Measure how far the vectors of some windows are from those of the same windows played backwards."""

    def __init__(self, store: Store, model: VideoModel) -> None:
        self.store, self.model = store, model
        self.done = (store.records.fact("time_order") or {}).get("windows", 0) >= REVERSED_WINDOWS
        self.seen: dict[int, tuple[NDArray[np.float32], float]] = {}
        self._next: dict[int, tuple[Tensor, Tensor]] = {}

    def take(self, video: int, clip: Tensor, value: Tensor) -> None:
        """Keep a window of a new video for `measure`, until there are enough."""
        if (
            not self.done
            and len(self.seen) + len(self._next) < REVERSED_WINDOWS
            and video not in self.seen
            and clip.shape[1] > 1
        ):
            self._next[video] = clip, value

    def measure(self, at_least: int = REVERSED_BATCH) -> None:
        """Encode the windows that were kept backwards, if there are enough for a batch."""
        if len(self._next) < at_least:
            return
        clips, values = (torch.stack(parts) for parts in zip(*self._next.values(), strict=True))
        forward = torch.nn.functional.normalize(values, dim=1)
        backward = torch.nn.functional.normalize(self.model.encode_clips(clips.flip(2)), dim=1)
        distances = 1 - (forward * backward).sum(dim=1)
        self.seen |= zip(self._next, zip(forward.numpy(), distances.tolist(), strict=True), strict=True)
        self._next = {}

    def save(self) -> None:
        """Store the means: distance to the window backwards, and to windows of other videos (1 - cosine)."""
        self.measure(at_least=1)
        if self.done or len(self.seen) < 2:
            return
        vectors = np.stack([vector for vector, _ in self.seen.values()])
        n = len(vectors)
        others = 1 - ((vectors @ vectors.T).sum() - n) / (n * (n - 1))
        reversed_ = float(np.mean([distance for _, distance in self.seen.values()]))
        self.store.records.set_fact("time_order", {"windows": n, "reversed": reversed_, "others": float(others)})


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:  # deleted while it was read
        return 0.0
