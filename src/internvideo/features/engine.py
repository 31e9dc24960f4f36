"""Run an encoder over the windows of many videos: read ahead, batch across videos, and hand the vectors to a writer.

A writer selects the videos to read and stores their vectors; there are four: for a table, a feature folder, the cache
of `internvideo fit` and a searchable collection. A new kind implements `pending`, `write` and `finish`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from internvideo import __version__
from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import RecipeError, RunError, VideoError
from internvideo.features.feature_layers import Encode
from internvideo.features.parallel_windows import parallel_clips, threads_beside_reader
from internvideo.features.read_ahead import read_ahead
from internvideo.features.read_report import ReadReport
from internvideo.features.remote_files import local_copy
from internvideo.features.video_files import VideoFile
from internvideo.features.window_sampling import WindowRule, frame_grid
from internvideo.features.windows import open_long_video, past_end_message, windows_of
from internvideo.inference.hub_folder import model_hash
from internvideo.inference.video_model import VideoModel
from internvideo.terminal import bars_disabled
from internvideo.video.conversion import conversion_metadata
from internvideo.video.damage import damage_metadata
from internvideo.video.frame_folder import rate_metadata
from internvideo.video.reader import Video, VideoInfo


class Window(NamedTuple):
    """A window of a video.

    Attributes:
        clip: (3, T, S, S). start, end: seconds from the start of the video.
        new_seconds: seconds of the window that no earlier window of the video covers.
        fraction_done: fraction of the video, 0..1, before the end of the window.
        detail: further data for the writer.
    """

    clip: Tensor
    start: float
    end: float
    new_seconds: float
    fraction_done: float
    detail: Any = None


class Extent(NamedTuple):
    """Frames per second, number of frames and seconds covered by a video's windows."""

    fps: float = 0.0
    frames: int = 0
    duration: float = 0.0


class VideoEnd(NamedTuple):
    """Result of reading all windows of a video.

    Attributes:
        reason: why reading failed or stopped early; "" for success.
        identity: of the file before it was opened, so that the next run notices later changes.
        extent: zeros if the file cannot be opened. gaps: (start, end) in seconds without a decodable frame.
        info: of the file; None if it cannot be opened.
    """

    reason: str = ""
    identity: str = ""
    extent: Extent = Extent()
    gaps: tuple[tuple[float, float], ...] = ()
    info: VideoInfo | None = None


class Windows(Protocol):
    """Placement of a video's windows and preprocessing of their clips."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the clips."""

    def place(self, video: Video, source: VideoFile, readers: int) -> tuple[Extent, Iterator[Window]]:
        """Return the extent of an open video, or of the span `source` of it, and an iterator of its windows.

        The caller must not use the video meanwhile; at most `readers` threads decode. Raises VideoError.
        """


@dataclass(frozen=True)
class TimedWindows:
    """Windows of `window_seconds` (see `windows.windows`); None for one window per video."""

    preprocessing: Preprocessing
    window_seconds: float | None = None
    stride_seconds: float | None = None

    def place(self, video: Video, source: VideoFile, readers: int) -> tuple[Extent, Iterator[Window]]:
        """Place the windows; one thread decodes."""
        first, last = max(0.0, source.start or 0.0), min(video.info.duration, source.end or video.info.duration)
        duration = max(last - first, 1e-9)
        size = {"window_seconds": self.window_seconds, "stride_seconds": self.stride_seconds}

        def read() -> Iterator[Window]:
            previous_end: float | None = None
            for start, end, clip in windows_of(video, self.preprocessing, source.start, source.end, **size):
                new_seconds = end - (start if previous_end is None else max(previous_end, start))
                yield Window(clip, start, end, new_seconds, min((end - first) / duration, 1.0))
                previous_end = end

        return Extent(video.info.fps, video.info.frames, duration), read()


@dataclass(frozen=True)
class FrameWindows:
    """Windows of a number of frames (see `window_sampling`)."""

    preprocessing: Preprocessing
    rule: WindowRule

    def place(self, video: Video, source: VideoFile, readers: int) -> tuple[Extent, Iterator[Window]]:
        """Place the windows; several threads decode if the video allows it."""
        grid = frame_grid(video.info, self.rule, source.start, source.end)
        indices = grid.frame_indices(self.preprocessing.frames)

        def read() -> Iterator[Window]:
            clips = parallel_clips(video, self.preprocessing, indices, readers)
            for count, (position, clip) in enumerate(zip(grid.starts, clips, strict=True), 1):
                start = (source.start or 0.0) + position / grid.fps
                end = start + self.rule.window_frames / grid.fps
                yield Window(clip, start, end, grid.duration / len(indices), count / len(indices))

        return Extent(grid.fps, len(grid.indices), grid.duration), read()


def read_every_video(index: int) -> bool:
    """Return True: no other process reads this video."""
    return True


class VectorWriter(ABC):
    """Select the videos to read, and store their vectors.

    Calls for one video: `acquire`, `begin`, `write` once or more, `finish`; those of several videos are interleaved.

    Attributes:
        videos: of the run; the methods identify a video by its index in this sequence.
        report: counts of the run, of which the engine updates some and the writer others.
        acquire: called before a video is read, in the process that reads it (worker processes get a copy of it);
            returns False if another process reads the video.
    """

    def __init__(self, videos: Sequence[VideoFile], acquire: Callable[[int], bool] = read_every_video) -> None:
        self.videos, self.acquire = videos, acquire
        self.report = ReadReport(len(videos))

    @abstractmethod
    def pending(self) -> Sequence[int]:
        """Return the indices of the videos to read. Called once per round; videos of earlier rounds are skipped."""

    def begin(self, index: int) -> None:  # noqa: B027  # optional
        """Prepare for the vectors of a video."""

    @abstractmethod
    def write(self, index: int, windows: Sequence[Window], values: Tensor) -> None:
        """Store or buffer the next vectors of a video: values (n, ...) on the CPU, of n windows."""

    @abstractmethod
    def finish(self, index: int, end: VideoEnd, num_vectors: int) -> None:
        """Finish a video after all its `num_vectors` vectors were written."""

    def reads_clips(self, pending: Sequence[int]) -> Collection[int]:
        """Return the videos whose clips `write` reads; on a Ray cluster other clips are not sent to this process."""
        return ()

    def after_batch(self, unfinished: Collection[int]) -> None:  # noqa: B027  # optional
        """Do periodic work while these videos are being read."""

    def close(self) -> None:  # noqa: B027  # optional
        """Clean up; called at the end and after an error or interruption."""


def run_engine(
    writer: VectorWriter,
    windows: Windows,
    encode: Encode,
    model: VideoModel,
    *,
    batch_size: int,
    workers: int = 0,
    readers: int = 1,
    in_order: bool = False,
    progress: bool | None = None,
) -> None:
    """Read, encode and store the videos that a writer selects.

    Args:
        writer, windows: see there. encode: clips (B, 3, T, S, S) -> (B, ...) on the CPU, with `model`.
        batch_size: clips per batch, which may belong to several videos.
        workers: decoding processes, which use several threads when fewer videos are left; 0 decodes in this process.
        readers: decoding threads per video if `workers` is 0.
        in_order: make the composition of batches independent of the speed of the workers.
        progress: show a bar on stderr; by default if that is a terminal.

    Raises:
        RunError: a vector that is not finite, a worker that died. Also the errors of the writer.
    """
    run, start_time = _Run(writer, encode, batch_size), time.perf_counter()
    bar_format = "{l_bar}{bar}| {n:.1f}/{total} videos{postfix}, {remaining} left"
    try:
        indices = run.remaining()
        total = len(indices)
        bar = tqdm(total=total, bar_format=bar_format, postfix="", disable=bars_disabled(progress))
        with threads_beside_reader(model), bar:
            while indices:  # a second round where a lease has become stale meanwhile
                processes = min(workers, len(indices))
                threads = workers // processes if processes else readers
                reader = _Reader(writer.videos, indices, windows, writer.acquire, threads)
                for item in read_ahead(reader, processes, in_order=in_order):
                    bar.update(run.handle(*item))
                    writer.report.seconds = time.perf_counter() - start_time
                    bar.set_postfix_str(f"{writer.report.speed:.1f}x real time", refresh=False)
                run.encode_batch()
                indices = run.remaining()
            bar.update(round(total - bar.n, 6))
        writer.report.seconds = time.perf_counter() - start_time
    finally:
        writer.close()


_Item = tuple[int, Window | VideoEnd | None]
"""Index of a video, and one of its windows, its end, or None if another process reads it."""


class _Reader(IterableDataset[_Item]):
    """Iterate over the windows of videos; each worker reads every n-th video."""

    def __init__(
        self,
        videos: Sequence[VideoFile],
        indices: Sequence[int],
        windows: Windows,
        acquire: Callable[[int], bool],
        readers: int,
    ) -> None:
        self.videos, self.indices, self.windows, self.acquire, self.readers = videos, indices, windows, acquire, readers

    def __iter__(self) -> Iterator[_Item]:
        worker = get_worker_info()
        for index in self.indices if worker is None else self.indices[worker.id :: worker.num_workers]:
            if not self.acquire(index):
                yield index, None
                continue
            for item in read_windows(self.videos[index], self.windows, self.readers):
                yield index, item


def read_windows(source: VideoFile, windows: Windows, readers: int) -> Iterator[Window | VideoEnd]:
    """Yield the windows of a video, then a `VideoEnd` with the reason of any failure."""
    end = VideoEnd()
    try:
        end = end._replace(identity=source.identity())
        side = windows.preprocessing.short_side
        with local_copy(source.path) as path, open_long_video(path, side, fps=source.fps) as video:
            end = end._replace(info=video.info)
            extent, video_windows = windows.place(video, source, readers)
            end = end._replace(extent=extent)
            yield from video_windows
            reason = video.damage_report or past_end_message(video.info, source.end)
            end = end._replace(reason=reason, gaps=tuple(video.gaps))
    except VideoError as error:
        end = end._replace(reason=str(error).removeprefix(f"{source.path}: "))
    yield end


def check_finite(video: VideoFile, values: Tensor, starts: Sequence[float]) -> None:
    """Raise RunError if any of the vectors (n, ...) is not finite; `starts`: of their windows, in seconds."""
    finite = values.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        start = starts[int(finite.int().argmin())]
        hint = "try precision float32, or check the weights"
        raise RunError(video.path, f"vector at {start:g} s is not finite", "", hint)


@dataclass
class _VideoState:
    """State of a video in progress."""

    num_windows: int = 0
    num_encoded: int = 0
    fraction_done: float = 0.0
    end: VideoEnd | None = None  # None until all windows were read


@dataclass
class _Run:
    """The batch that is being filled, and the videos that are being read."""

    writer: VectorWriter
    encode: Encode
    batch_size: int
    started: set[int] = field(default_factory=set)
    in_progress: dict[int, _VideoState] = field(default_factory=dict)
    batch: list[tuple[int, Window]] = field(default_factory=list)

    def remaining(self) -> list[int]:
        """Return the videos to read that this run has not started."""
        return [index for index in self.writer.pending() if index not in self.started]

    def handle(self, index: int, item: Window | VideoEnd | None) -> float:
        """Process one item; return by how much it increases the number of finished videos (a fraction of one)."""
        if item is None:
            return 1.0
        if index not in self.started:
            self.started.add(index)
            self.in_progress[index] = _VideoState()
            self.writer.begin(index)
        state = self.in_progress[index]
        fraction_before = state.fraction_done
        if isinstance(item, VideoEnd):
            state.end = item
            self._finish_complete(index)
            return 1.0 - fraction_before
        state.num_windows, state.fraction_done = state.num_windows + 1, item.fraction_done
        self.writer.report.video_seconds += item.new_seconds
        self.batch.append((index, item))
        if len(self.batch) == self.batch_size:
            self.encode_batch()
        return state.fraction_done - fraction_before

    def encode_batch(self) -> None:
        """Encode the windows that were read. Raises RunError."""
        if not self.batch:
            return
        values = self.encode(torch.stack([window.clip for _, window in self.batch]))
        for (index, window), value in zip(self.batch, values, strict=True):
            check_finite(self.writer.videos[index], value[None], [window.start])
        self.writer.report.dim = values.shape[-1]
        batch, self.batch = self.batch, []
        logit_indices = defaultdict[int, list[int]](list)
        for row, (index, _) in enumerate(batch):
            logit_indices[index].append(row)
        for index, rows in logit_indices.items():
            self.writer.write(index, [batch[row][1] for row in rows], values[rows])
            self.in_progress[index].num_encoded += len(rows)
        self.writer.after_batch(self.in_progress)
        for index in [*self.in_progress]:
            self._finish_complete(index)

    def _finish_complete(self, index: int) -> None:
        """Finish a video if all its windows were read and encoded."""
        state = self.in_progress[index]
        if state.end is not None and state.num_encoded == state.num_windows:
            del self.in_progress[index]
            self.writer.report.read += bool(state.num_encoded)
            self.writer.finish(index, state.end, state.num_encoded)


def vector_provenance(model: VideoModel, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the provenance of vectors (model, weights, preprocessing, settings, video reader) as JSON values.

    Vectors may be mixed in one collection if their provenance agrees in all keys but IGNORED_PROVENANCE_KEYS.
    """
    return {
        "model": model.name,
        "weights_sha256": model_hash(model),
        "source": model.metadata.get("source", ""),
        **{name: model.config[name] for name in ("overrides", "preprocessing")},
        "precision": model.precision,
        **settings,
        **damage_metadata(),
        **conversion_metadata(),
        **rate_metadata(),
        "internvideo": __version__,
    }


IGNORED_PROVENANCE_KEYS = ("source", "internvideo")
"""Provenance that does not affect a vector: path of the weights, and version of internvideo."""


def check_minimum(settings: object, **minimum: int) -> None:
    """Raise RecipeError if a setting that is not None is below its minimum."""
    for name, smallest in minimum.items():
        value = getattr(settings, name)
        if value is not None and value < smallest:
            raise RecipeError(name, str(value), f"{smallest} or more")
