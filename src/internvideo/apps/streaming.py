"""Classify or embed the sliding windows of a running video, with the measured latency of each.

A file or a pipe is read at the speed of the model, and no window is dropped. A live source does not wait: when the
model is slower, late windows are dropped and counted, and the newest is processed.
"""

from __future__ import annotations

import math
import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo.apps.classify import Scorer
from internvideo.data.preprocessing import SLACK
from internvideo.errors import RecipeError, VideoError
from internvideo.features.windows import check_window, windows
from internvideo.inference.video_model import VideoModel
from internvideo.probing.probe import Probe
from internvideo.video.live import RECONNECT, LiveFrame, LiveVideo

RING_BYTES = 2 * 2**30
"""Maximum memory of buffered frames."""

Source = str | os.PathLike[str] | BinaryIO
Value = NDArray[np.float32] | dict[str, float]


class Moment(NamedTuple):
    """The result for a window.

    Attributes:
        time, start: end and start of the window in the stream, s.
        value: L2-normalized embedding (E,), or label -> probability, by falling probability.
        latency: s from the completion of the window (the first later frame, or the end, was decoded) to the result.
    """

    time: float
    start: float
    value: Value
    latency: float


class PendingWindow(NamedTuple):
    """A complete window: its decoded frames, and `perf_counter()` of its completion."""

    start: float
    end: float
    frames: list[Any]
    complete: float


def stream(
    source: Source,
    model: VideoModel,
    *,
    window_seconds: float = 2.0,
    stride_seconds: float = 1.0,
    on: Literal["embedding", "classes"] | Sequence[str] | Probe = "embedding",
    live: bool | None = None,
    allow_urls: bool = False,
    reconnect: float = RECONNECT,
) -> Stream:
    """Classify or embed a video while it is received.

    Args:
        source: a file; "-" (standard input), a named pipe or an open binary file; "camera", "camera:N" or a device
            file; with `allow_urls` an address.
        model: any model of videos.
        window_seconds, stride_seconds: see `features.windows.spans`.
        on: "embedding"; "classes" of the model; labels, at least two, for a model with a text tower; a `Probe`.
        live: the source does not wait, so late windows are dropped. By default true for cameras and addresses; set it
            for a pipe from a running recorder. A file is then played at its own speed.
        allow_urls: accept addresses.
        reconnect: seconds during which a camera or address that stopped is reopened.

    Returns:
        An iterable of `Moment` with counters and latencies.

    Raises:
        RecipeError: a length that is not above 0, or an `on` that the model does not support. WeightsError: a probe of
            another encoder.
    """
    check_window(window_seconds, stride_seconds)
    scorer = None
    if isinstance(on, Probe):
        scorer = Scorer(model, None, on)
    elif on == "classes" or not isinstance(on, str):
        scorer = Scorer(model, None if isinstance(on, str) else on)
    elif on != "embedding":
        raise RecipeError("on", repr(on), '"embedding", "classes", a list of labels or a Probe')
    return Stream(source, model, window_seconds, stride_seconds, scorer, live, allow_urls, reconnect)


class Stream:
    """The iterable that `stream` returns; iterate it once.

    Attributes:
        dropped: windows of a live source that were skipped because the model was late.
        damaged: frames that could not be decoded (pipes and live sources).
        reconnects: number of reconnections to a camera or address.
        latencies: latencies of the results so far, s.
    """

    def __init__(
        self, source: Source, model: VideoModel, window_seconds: float, stride_seconds: float, scorer: Scorer | None,
        live: bool | None, allow_urls: bool, reconnect: float,
    ) -> None:  # fmt: skip
        self.model, self.window_seconds, self.stride_seconds = model, window_seconds, stride_seconds
        self.dropped = self.damaged = self.reconnects = 0
        self.latencies = array("d")
        self._source, self._scorer, self._live, self._allow_urls = source, scorer, live, allow_urls
        self._reconnect = reconnect

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latencies (s); 0 before the first result."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else 0.0

    def __iter__(self) -> Iterator[Moment]:
        """Yield results by rising time. Raises VideoError: the source cannot be read or stops."""
        source, clips = self._source, self.model.preprocessing
        if self._scorer is not None:  # the texts are encoded before the first picture
            self._scorer(clips.from_frames(np.zeros((1, clips.size, clips.size, 3), np.uint8))[None])
        if not self._live and isinstance(source, str | os.PathLike) and _is_at_rest(source):
            for start, end, clip in windows(
                Path(source), clips, window_seconds=self.window_seconds, stride_seconds=self.stride_seconds
            ):
                yield self._answer(start, end, clip, time.perf_counter())
            return
        video = LiveVideo(source, allow_urls=self._allow_urls, short_side=clips.short_side, reconnect=self._reconnect)
        plan = Plan(self.window_seconds, self.stride_seconds)
        live = video.kind in ("camera", "address") if self._live is None else self._live
        for turn in self._newest(video, plan) if live else _in_turn(video, plan):
            self.damaged, self.reconnects = video.damaged, video.reconnects
            yield self._answer(turn.start, turn.end, self._clip(video, turn.frames), turn.complete)
        self.damaged, self.reconnects = video.damaged, video.reconnects

    def _answer(self, start: float, end: float, clip: Tensor, complete: float) -> Moment:
        value: Value
        if self._scorer is None:
            value = torch.nn.functional.normalize(self.model.encode_clips(clip[None]), dim=1)[0].numpy()
        else:
            value = self._scorer(clip[None])[0]
        latency = time.perf_counter() - complete
        self.latencies.append(latency)
        return Moment(end, start, value, latency)

    def _clip(self, video: LiveVideo, frames: list[Any]) -> Tensor:
        """Preprocess a window's frames to a clip; only the sampled frames are converted."""
        (chosen,) = self.model.preprocessing.indices(len(frames))
        transform = self.model.preprocessing.transform_frames
        squares = {index: transform(video.rgb(frames[index])[None]) for index in set(chosen.tolist())}
        return torch.cat([squares[index] for index in chosen.tolist()], dim=1)

    def _newest(self, video: LiveVideo, plan: Plan) -> Iterator[PendingWindow]:
        """Yield the newest complete window of a live source, while another thread reads it."""
        reader = _Reader(video, plan, paced=video.kind == "file")
        try:
            while (found := reader.next()) is not None:
                turn, late = found
                self.dropped += late
                yield turn
        finally:
            reader.stop()


def _is_at_rest(source: str | os.PathLike[str]) -> bool:
    return os.path.isfile(source) or os.path.isdir(source)


class Plan:
    """Track the next window: window k starts at origin + k stride."""

    def __init__(self, window_seconds: float, stride_seconds: float) -> None:
        self.window_seconds, self.stride_seconds, self.number = window_seconds, stride_seconds, 0
        self.origin: float | None = None

    @property
    def start(self) -> float:
        """Of the next window, s."""
        return (self.origin or 0.0) + self.number * self.stride_seconds

    @property
    def end(self) -> float:
        """Of the next window, s."""
        return self.start + self.window_seconds

    def newest(self, time: float) -> int:
        """Return the index of the last window that is complete at a time, below 0 for none."""
        return math.floor((time + SLACK - self.window_seconds - (self.origin or 0.0)) / self.stride_seconds)


class Ring:
    """Buffer the latest frames of a stream. Raises VideoError: they exceed the memory limit."""

    def __init__(self, name: str, limit: int = RING_BYTES) -> None:
        self.name, self.limit, self.bytes = name, limit, 0
        self.frames: deque[LiveFrame] = deque()

    @property
    def latest(self) -> float:
        """Time of the last frame, s; there must be one."""
        return self.frames[-1].time

    def add(self, frame: LiveFrame) -> None:
        """Add a frame."""
        self.frames.append(frame)
        self.bytes += _bytes(frame)
        if self.bytes > self.limit:
            found = f"{len(self.frames)} pictures of a window take more than {self.limit / 2**20:.0f} MB"
            raise VideoError(self.name, found, "", "take a shorter window, or smaller pictures")

    def forget(self, start: float) -> None:
        """Drop frames that end before `start`; the frame visible at `start` is kept."""
        while len(self.frames) > 1 and self.frames[1].time <= start + SLACK:
            self.bytes -= _bytes(self.frames.popleft())

    def turn(self, start: float, end: float) -> PendingWindow:
        """Return the frames with start <= time < end, or the one visible then."""
        inside = [frame.frame for frame in self.frames if start - SLACK <= frame.time < end - SLACK]
        if not inside:
            before = [frame.frame for frame in self.frames if frame.time < start + SLACK]
            inside = before[-1:] or [self.frames[0].frame]
        complete = next((frame for frame in self.frames if frame.time >= end - SLACK), self.frames[-1])
        return PendingWindow(start, end, inside, complete.arrived)


def _bytes(frame: LiveFrame) -> int:
    return sum(plane.buffer_size for plane in frame.frame.planes)


def _in_turn(video: LiveVideo, plan: Plan) -> Iterator[PendingWindow]:
    """Yield every window of a source that waits; at its end as `windows.spans`."""
    ring = Ring(video.name)
    with video:
        for frame in video:
            plan.origin = plan.origin or 0.0
            ring.add(frame)
            while plan.end <= frame.time + SLACK:
                yield ring.turn(plan.start, plan.end)
                plan.number += 1
                ring.forget(plan.start)
        stop = ring.latest + video.last_step
        while plan.start < stop - SLACK and (not plan.number or plan.end - plan.stride_seconds < stop - SLACK):
            yield ring.turn(plan.start, min(plan.end, stop))
            plan.number += 1


class _Reader:
    """A thread that reads a live source, and keeps the frames of the newest complete window."""

    def __init__(self, video: LiveVideo, plan: Plan, *, paced: bool) -> None:
        self._video, self._plan, self._paced = video, plan, paced
        self._ring, self._changed = Ring(video.name), threading.Condition()
        self._ended = self._stopping = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="internvideo stream", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.perf_counter()
        try:
            with self._video:
                for frame in self._video:
                    if self._plan.origin is None:
                        self._plan.origin = 0.0
                    if self._paced:
                        time.sleep(max(began + frame.time - self._plan.origin - time.perf_counter(), 0.0))
                        frame = frame._replace(arrived=time.perf_counter())
                    with self._changed:
                        self._ring.add(frame)
                        self._ring.forget(frame.time - self._plan.window_seconds - self._plan.stride_seconds)
                        self._changed.notify()
                    if self._stopping:
                        return
        except Exception as error:  # raised again in the consuming thread
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _due(self) -> bool:
        return bool(self._ring.frames) and self._plan.newest(self._ring.latest) >= self._plan.number

    def next(self) -> tuple[PendingWindow, int] | None:
        """Return the newest complete window and the number of skipped ones; None at the end of the stream."""
        with self._changed:
            # With a timeout, so that Ctrl-C works on every platform.
            while not self._changed.wait_for(lambda: self._ended or self._due(), timeout=0.5):
                pass
            if not self._due():
                if self._error is not None:
                    raise self._error
                return None
            late = self._plan.newest(self._ring.latest) - self._plan.number
            self._plan.number += late
            turn = self._ring.turn(self._plan.start, self._plan.end)
            self._plan.number += 1
            return turn, late

    def stop(self) -> None:
        """Ask the thread to end; a thread that waits for a frame ends with the process."""
        self._stopping = True
        self._video.abandon()
        self._thread.join(timeout=1.0)
