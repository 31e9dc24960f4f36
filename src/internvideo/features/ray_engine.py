"""Run the engine here or on a Ray cluster: decode tasks on CPUs, a model on each GPU, the writer in this process.

Ray Data moves the windows of videos from the tasks that decode them to the actors that hold the model, with a bounded
number in flight, and repeats the work of a lost node. The results of each video are put in order in this process and
written once, so a folder or table equals that of a run without Ray, and resumes in the same way.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from internvideo.errors import RunError
from internvideo.extras import require
from internvideo.features.engine import (
    VectorWriter,
    VideoEnd,
    Window,
    Windows,
    check_finite,
    read_windows,
    run_engine,
)
from internvideo.features.feature_layers import Encode
from internvideo.inference.video_model import VideoModel
from internvideo.terminal import bars_disabled

LOCAL = "local"
"""Address of a cluster that is started on this machine."""
MAX_TASKS = 10_000
"""Maximum number of decoding tasks; if there are more videos, a task reads several."""


@dataclass(frozen=True)
class _Item:
    """A video, or a window or end of one, as an object that Ray Data does not convert to arrays.

    Attributes:
        content: `VideoFile`, `Window` or `VideoEnd`. keeps_clip: the writer reads the clips of the video.
        vector: of an encoded window.
    """

    content: Any
    keeps_clip: bool = False
    vector: Tensor | None = None


def _decode(windows: Windows, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Read the windows of a video in a task: one row per window, and one for the end of the video."""
    torch.set_num_threads(1)
    for position, content in enumerate(read_windows(row["item"].content, windows, readers=1)):
        yield {"index": row["index"], "position": position, "item": _Item(content, row["item"].keeps_clip)}


class _Model:
    """Encode windows in an actor; clips that the writer does not read are not sent back."""

    def __init__(self, model: VideoModel, make_encode: Callable[[VideoModel], Encode]) -> None:
        if torch.cuda.is_available() and model.device.type == "cpu":
            model.module.to("cuda")
            model.device = torch.device("cuda")
        self.encode = make_encode(model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        column = batch["item"].copy()
        rows = [row for row, item in enumerate(column) if isinstance(item.content, Window)]
        if rows:
            vectors = self.encode(torch.stack([column[row].content.clip for row in rows]))
            for row, vector in zip(rows, vectors, strict=True):
                window, keeps_clip = column[row].content, column[row].keeps_clip
                window = window if keeps_clip else window._replace(clip=torch.empty(3, 0))
                column[row] = _Item(window, keeps_clip, vector.clone())
        return {**batch, "item": column}


def run_on(
    ray: str | None,
    writer: VectorWriter,
    windows: Windows,
    model: VideoModel,
    make_encode: Callable[[VideoModel], Encode],
    *,
    batch_size: int,
    workers: int = 0,
    readers: int = 1,
    progress: bool | None = None,
) -> None:
    """Call `run_on_ray` with the address `ray`, or `run_engine` if that is None; see there for arguments and errors."""
    if ray is not None:
        run_on_ray(writer, windows, model, make_encode, ray, batch_size=batch_size, progress=progress)
        return
    run_engine(
        writer, windows, make_encode(model), model,
        batch_size=batch_size, workers=workers, readers=readers, progress=progress,
    )  # fmt: skip


def run_on_ray(
    writer: VectorWriter,
    windows: Windows,
    model: VideoModel,
    make_encode: Callable[[VideoModel], Encode],
    address: str,
    *,
    batch_size: int,
    progress: bool | None = None,
) -> None:
    """Read, encode and store the videos that a writer selects, on a Ray cluster.

    Every node needs this version of internvideo, and the videos under the same paths; the model is sent to the nodes.

    Args:
        writer, windows, batch_size, progress: as for `run_engine`.
        model: on the CPU; actors move it to their GPU. make_encode: returns the `encode` of `run_engine` for a model.
        address: of the cluster ("auto", HOST:PORT, ray://HOST:PORT), or "local".

    Raises:
        ExtraError: Ray is not installed. RunError: no cluster at the address, a lost cluster, a vector that is not
        finite.
    """
    require("ray", "--ray")
    import ray

    started_at = time.perf_counter()
    try:
        indices = [index for index in writer.pending() if writer.acquire(index)]
        if indices:
            connected = _connect(address)
            try:
                _run(writer, windows, model, make_encode, indices, batch_size, progress, started_at)
            except (ray.exceptions.RayError, ConnectionError) as error:
                found = f"the cluster stopped ({' '.join(str(error).split())[:160]})"
                raise RunError(f"--ray {address}", found, "", "the same command resumes") from error
            finally:
                if connected:
                    ray.shutdown()
        writer.report.seconds = time.perf_counter() - started_at
    finally:
        writer.close()


def _connect(address: str) -> bool:
    """Connect to a cluster, or start one; return False if this process was connected before."""
    import ray

    if ray.is_initialized():
        return False
    if address not in (LOCAL, "auto"):
        _check_reachable(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    options |= {"address": address}  # "local" starts a cluster, even if another one runs on this machine
    options |= {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        found = f"no Ray cluster answers ({' '.join(str(error).split())[:120]})"
        raise RunError(f"--ray {address}", found, "local, auto, HOST:PORT or ray://HOST:PORT") from error
    return True


def _check_reachable(address: str) -> None:
    """Raise RunError if nothing listens at HOST:PORT; Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    expected = "local, auto, HOST:PORT or ray://HOST:PORT"
    if not host or not (port.isascii() and port.isdecimal()):
        raise RunError(f"--ray {address}", "is not an address", expected)
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"--ray {address}", f"no Ray cluster answers ({error})", expected) from error


def _run(
    writer: VectorWriter,
    windows: Windows,
    model: VideoModel,
    make_encode: Callable[[VideoModel], Encode],
    indices: Sequence[int],
    batch_size: int,
    progress: bool | None,
    started_at: float,
) -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # without types in Ray
    num_gpus = int(resources.get("GPU", 0))
    num_actors = max(1, num_gpus)
    writer.report.devices = num_actors
    needing_clips = writer.reads_clips(indices)
    items = [{"index": index, "item": _Item(writer.videos[index], index in needing_clips)} for index in indices]
    rows = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_TASKS))
    decoded = rows.flat_map(partial(_decode, windows))
    encoded = decoded.map_batches(
        _Model, fn_constructor_args=(model, make_encode), batch_size=batch_size, batch_format="numpy",
        num_gpus=1 if num_gpus else 0, concurrency=num_actors,
    )  # fmt: skip
    videos = _ReorderBuffer(writer, indices)
    bar_format = "{l_bar}{bar}| {n:.0f}/{total} videos{postfix}, {remaining} left"
    with tqdm(total=len(indices), bar_format=bar_format, disable=bars_disabled(progress)) as bar:
        for row in encoded.iter_rows():
            bar.update(videos.add(int(row["index"]), int(row["position"]), row["item"]))
            writer.report.seconds = time.perf_counter() - started_at
            bar.set_postfix_str(f"{writer.report.speed:.1f}x real time", refresh=False)


class _ReorderBuffer:
    """Pass the windows of each video to the writer in order; they arrive in any order."""

    def __init__(self, writer: VectorWriter, indices: Sequence[int]) -> None:
        self.writer, self.unfinished = writer, set(indices)
        self._next: dict[int, int] = {}
        self._waiting: dict[tuple[int, int], _Item] = {}

    def add(self, index: int, position: int, item: _Item) -> int:
        """Add the window or end at a position of a video; return 1 if that completes the video. Raises RunError."""
        if index not in self._next:
            self._next[index] = 0
            self.writer.begin(index)
        self._waiting[index, position] = item
        ready: list[_Item] = []
        while (following := self._waiting.pop((index, self._next[index]), None)) is not None:
            if isinstance(following.content, VideoEnd):
                self._write(index, ready)
                self._finish(index, following.content)
                return 1
            self._next[index] += 1
            ready.append(following)
        self._write(index, ready)
        return 0

    def _write(self, index: int, ready: Sequence[_Item]) -> None:
        if not ready:
            return
        windows: list[Window] = [item.content for item in ready]
        values = torch.stack([item.vector for item in ready if item.vector is not None])
        check_finite(self.writer.videos[index], values, [window.start for window in windows])
        self.writer.report.dim = values.shape[-1]
        self.writer.report.video_seconds += sum(window.new_seconds for window in windows)
        self.writer.write(index, windows, values)
        self.writer.after_batch(self.unfinished)

    def _finish(self, index: int, end: VideoEnd) -> None:
        self.unfinished.discard(index)
        self.writer.report.read += bool(self._next[index])
        self.writer.finish(index, end, self._next[index])
