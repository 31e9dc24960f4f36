"""Index videos: what is new or changed is read and committed video by video, what was deleted is forgotten."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from internvideo.errors import RecipeError, RunError, VideoError
from internvideo.features.read_ahead import read_ahead
from internvideo.features.read_report import ReadFailure, ReadReport
from internvideo.features.video_files import VideoFile, find_videos
from internvideo.inference.video_model import VideoModel
from internvideo.search.reading import Piece, WindowReader
from internvideo.search.records import VideoRecord
from internvideo.search.store import OVERLAP, Store
from internvideo.storage import alone_in

REVERSED_WINDOWS = 32
"""Windows that are also encoded backwards, to measure whether the model is sensitive to the order of time."""


@dataclass(frozen=True)
class IndexSettings:
    """Settings of `index_videos`.

    Attributes:
        batch_size: clips per batch. workers: decoding processes; 0 decodes in a thread.
        recursive: search the subfolders of folders too.
        progress: show a bar on stderr; by default if that is a terminal.

    Raises:
        RecipeError: a number out of range.
    """

    batch_size: int = 8
    workers: int = 0
    recursive: bool = True
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise RecipeError(name, str(getattr(self, name)), f"{least} or more")


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
    with alone_in(store.folder):
        report = IndexReport(len(videos), model.embed_dim)
        store.records.set_fact("roots", sorted({*store.records.fact("roots", []), *map(_root, inputs)}))
        run = _Run(store, model, videos, settings, report)
        waiting = run.compare(inputs)
        run.run(waiting)
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
    """Return the video with an absolute path, so that a collection can be used from any folder."""
    return VideoFile(os.path.abspath(video.path), video.start, video.end, video.fps)


def _root(given: Path) -> str:
    """Return the folder that an input lies in or is."""
    path = os.path.abspath(given)
    return path if os.path.isdir(path) else os.path.dirname(path)


@dataclass
class _Open:
    """A video in progress."""

    windows: list[tuple[float, float, float]] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    pictures: dict[float, bytes] = field(default_factory=dict)
    fraction_done: float = 0.0
    covered: float = 0.0
    end: Piece | None = None


class _Run:
    """Read, encode and commit the videos that are not in the collection, batch by batch."""

    def __init__(
        self, store: Store, model: VideoModel, videos: list[VideoFile], settings: IndexSettings, report: IndexReport
    ) -> None:
        self.store, self.model, self.videos, self.settings, self.report = store, model, videos, settings, report
        self.identities = [""] * len(videos)
        self.replaces: dict[int, list[int]] = {}
        self.open: dict[int, _Open] = {}
        self.batch: list[Piece] = []
        self.order = _TimeOrder(store)

    def compare(self, inputs: Sequence[Path]) -> list[int]:
        """Remove what is gone; return the indices of the videos to read."""
        known = {record.key: record for record in self.store.snapshot().videos}
        waiting, gone = [], []
        for index, video in enumerate(self.videos):
            record = known.pop((video.path, video.start, video.end), None)
            try:
                self.identities[index] = video.identity()
            except VideoError as error:
                self.report.unreadable.append(ReadFailure(video.path, _reason(error, video)))
                gone += [record] if record else []
                continue
            if record and record.identity == self.identities[index]:
                self.report.resumed += 1
                if record.damage:
                    self.report.truncated.append(ReadFailure(video.path, record.damage))
                continue
            self.replaces[index] = [record.id] if record else []
            waiting.append(index)
        roots = [os.path.join(os.path.abspath(given), "") for given in inputs if os.path.isdir(given)]
        gone += [record for record in known.values() if any(record.path.startswith(root) for root in roots)]
        self.store.remove([record.id for record in gone])
        self.report.removed = [record.path for record in gone]
        return waiting

    def run(self, indices: list[int]) -> None:
        """Read, encode and commit the videos with these indices."""
        store, settings = self.store, self.settings
        reader = WindowReader(self.videos, indices, self.model.preprocessing, store.scales, OVERLAP)
        began, told = time.perf_counter(), 0
        form = "{l_bar}{bar}| {n:.1f}/{total} videos{postfix}, {remaining} left"
        disable = None if settings.progress is None else not settings.progress
        with tqdm(total=len(indices), bar_format=form, postfix="", disable=disable) as bar:
            for piece in read_ahead(reader, min(settings.workers, len(indices))) if indices else ():
                bar.update(self._handle(piece))
                self.report.seconds = time.perf_counter() - began
                bar.set_postfix_str(f"{self.report.speed:.1f}x real time", refresh=False)
                if told != (told := self.report.read + len(self.report.unreadable)):
                    done = self.report.resumed + told
                    store.records.set_fact("progress", {"done": done, "total": len(self.videos)})
            self._encode()
        self.report.seconds = time.perf_counter() - began
        self.order.save()

    def _handle(self, piece: Piece) -> float:
        """Process one piece; return the fraction of a video that it adds."""
        state = self.open.setdefault(piece.video, _Open())
        advance = piece.fraction_done - state.fraction_done
        state.fraction_done = piece.fraction_done
        if piece.clip is None:
            state.end = piece
            self._finalize(piece.video)
            return advance
        if piece.scale == self.store.scales[0] or piece.end - piece.start < piece.scale:
            self.report.video_seconds += max(0.0, piece.end - max(state.covered, piece.start))
            state.covered = max(state.covered, piece.end)
        state.windows.append((piece.start, piece.end, piece.scale))
        state.pictures.update(piece.pictures or {})
        self.batch.append(piece)
        if len(self.batch) == self.settings.batch_size:
            self._encode()
        return advance

    def _encode(self) -> None:
        if not self.batch:
            return
        clips = torch.stack([piece.clip for piece in self.batch if piece.clip is not None])
        values = self.model.encode_clips(clips)
        finite = values.isfinite().all(dim=1)
        if not finite.all():
            piece = self.batch[int(finite.int().argmin())]
            found = f"vector at {piece.start:g} s is not finite"
            raise RunError(self.videos[piece.video].path, found, "", "try precision float32")
        self.order.measure(self.model, clips, values, [piece.video for piece in self.batch])
        for piece, value in zip(self.batch, values.numpy(), strict=True):
            self.open[piece.video].vectors.append(value)
        done, self.batch = {piece.video for piece in self.batch}, []
        for index in sorted(done):
            self._finalize(index)

    def _finalize(self, index: int) -> None:
        """Commit a video once its end has arrived and all its windows are encoded."""
        state, video = self.open[index], self.videos[index]
        if state.end is None or len(state.vectors) < len(state.windows):
            return
        del self.open[index]
        info, reason = state.end.info, state.end.reason
        if info is None or not state.windows:
            self.report.unreadable.append(ReadFailure(video.path, reason))
            self.store.remove(self.replaces[index])
            self.report.removed += [video.path] if self.replaces[index] else []
            return
        vectors = np.stack(state.vectors)
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        windows = np.column_stack([np.array(state.windows, np.float64), norms])
        order = np.lexsort((windows[:, 0], windows[:, 2]))
        unit = (vectors / np.maximum(norms, 1e-12)[:, None]).astype(np.float32)
        record = VideoRecord(
            0, video.path, video.start, video.end, self.identities[index], info.duration, info.fps, info.width,
            info.height, _modified(video.path), reason, 0, 0, windows[order],
        )  # fmt: skip
        self.store.add(record, unit[order], state.pictures, self.replaces[index])
        self.report.read += 1
        self.report.changed += [video.path] if self.replaces[index] else []
        if reason:
            self.report.truncated.append(ReadFailure(video.path, reason))


class _TimeOrder:
    """Measure how far the vectors of some windows are from those of the same windows played backwards."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.done = (store.records.fact("time_order") or {}).get("windows", 0) >= REVERSED_WINDOWS
        self.seen: dict[int, tuple[NDArray[np.float32], float]] = {}

    def measure(self, model: VideoModel, clips: torch.Tensor, values: torch.Tensor, videos: list[int]) -> None:
        """Encode one window of each new video backwards, until there are enough."""
        fresh = {video: place for place, video in enumerate(videos) if video not in self.seen}
        if self.done or len(self.seen) >= REVERSED_WINDOWS or not fresh or clips.shape[2] < 2:
            return
        places = list(fresh.values())
        forward = torch.nn.functional.normalize(values[places], dim=1)
        backward = torch.nn.functional.normalize(model.encode_clips(clips[places].flip(2)), dim=1)
        distances = 1 - (forward * backward).sum(dim=1)
        for video, vector, distance in zip(fresh, forward.numpy(), distances.tolist(), strict=True):
            self.seen[video] = (vector, distance)

    def save(self) -> None:
        """Store the means: distance to the window backwards, and to windows of other videos (1 - cosine)."""
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


def _reason(error: VideoError, video: VideoFile) -> str:
    return str(error).removeprefix(f"{video.path}: ")
