"""Collections of videos to vectors: resumable, every unreadable file named."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from internvideo import __version__
from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import RecipeError, RunError, VideoError
from internvideo.features.read_ahead import stream_of
from internvideo.features.read_report import Coverage, Trouble
from internvideo.features.vector_files import Parts, Vectors, check_output, write_table
from internvideo.features.video_files import VideoFile
from internvideo.features.windows import behind, check_window, open_long, windows_of
from internvideo.inference.video_model import VideoModel
from internvideo.storage import alone_in, write_text
from internvideo.tasks.protocol import weights_hash
from internvideo.video.conversion import conversion_metadata
from internvideo.video.damage import damage_metadata
from internvideo.video.frame_folder import rate_metadata

Read = TypeVar("Read")


@dataclass(frozen=True)
class EmbeddingSettings:
    """How videos become vectors.

    Attributes:
        window: s, one vector for each; None is one for the whole video. stride: s between windows, `window` by default.
        normalize: vectors of length one.
        batch_size: clips at once. workers: processes that decode; 0 decodes in this one.

    Raises:
        RecipeError: a number out of range.
    """

    window: float | None = None
    stride: float | None = None
    normalize: bool = True
    batch_size: int = 8
    workers: int = 0

    def __post_init__(self) -> None:
        check_window(self.window, self.stride)
        for name, least in (("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise RecipeError(name, str(getattr(self, name)), f"{least} or more")


def embed(
    videos: Sequence[VideoFile],
    model: VideoModel,
    output: Path,
    settings: EmbeddingSettings | None = None,
    *,
    fresh: bool = False,
    progress: bool | None = None,
) -> Coverage:
    """Write the vectors of videos as OUTPUT, a table of exactly these videos (see `vector_files`).

    Finished videos are kept in OUTPUT.parts: an interrupted run goes on, and a later one reads only what is new or was
    changed. What could not be read, or only in part, is named in NAME.skipped.jsonl.

    Args:
        videos: of `find_videos`.
        model: any that sees videos.
        output: .parquet or .npy.
        settings: windows, batches, workers.
        fresh: forget what is in OUTPUT.parts.
        progress: a bar on the error stream; by default where that is a terminal.

    Raises:
        VideoError: not one video can be read. RecipeError: a setting or name that does not fit.
        RunError: OUTPUT.parts has other settings or another writer, a full disk, numbers that are not finite.
    """
    settings = settings or EmbeddingSettings()
    check_output(output)
    model.preprocessing.rule(1)
    parts, protocol = Parts(output), protocol_of(model, settings)
    with alone_in(parts.folder):
        return _embed(videos, model, output, settings, parts, protocol, fresh=fresh, progress=progress)


def _embed(
    videos: Sequence[VideoFile],
    model: VideoModel,
    output: Path,
    settings: EmbeddingSettings,
    parts: Parts,
    protocol: dict[str, Any],
    *,
    fresh: bool,
    progress: bool | None,
) -> Coverage:
    parts.begin({name: protocol[name] for name in protocol if name not in ("source", "internvideo")}, fresh=fresh)
    coverage = Coverage(len(videos), model.width)
    identities: list[str] = []
    waiting: list[int] = []
    for number, video in enumerate(videos):
        try:
            identities.append(video.identity())
        except VideoError as error:
            identities.append("")
            coverage.unreadable.append(Trouble(video.path, _reason(error, video)))
            continue
        if parts.read(identities[-1], video.path) is None:
            waiting.append(number)
        else:
            coverage.earlier += 1
    run = _Run(videos, identities, model, settings, parts, coverage)
    run.go(waiting, progress)
    _finish(videos, identities, output, parts, protocol, coverage)
    return coverage


def plan(videos: Sequence[VideoFile], output: Path, *, fresh: bool = False) -> Iterator[str]:
    """What `embed` would do, a line a video. Raises RecipeError for an output that cannot be written here."""
    check_output(output)
    parts, counts = Parts(output), {"read": 0, "done": 0, "absent": 0}
    for video in videos:
        try:
            kind = "done" if not fresh and parts.has(video.identity()) else "read"
        except VideoError:
            kind = "absent"
        counts[kind] += 1
        piece = "" if video.start is None else f" from {video.start:g} to {video.end:g} s"
        yield f"{kind}: {video.path}{piece}"
    yield f"{counts['read']} to read, {counts['done']} done before, {counts['absent']} absent"


def protocol_of(model: VideoModel, settings: EmbeddingSettings) -> dict[str, Any]:
    """How vectors were made, as plain values."""
    config = model.config
    return {
        "model": model.name,
        "weights_sha256": model.metadata.get("weights_sha256") or weights_hash(model.module),
        "source": model.metadata.get("source", ""),
        "overrides": config["overrides"],
        "preprocessing": config["preprocessing"],
        "precision": model.precision,
        "window": settings.window,
        "stride": settings.window if settings.stride is None else settings.stride,
        "normalized": settings.normalize,
        **damage_metadata(),
        **conversion_metadata(),
        **rate_metadata(),
        "width": model.width,
        "internvideo": __version__,
    }


def _reason(error: VideoError, video: VideoFile) -> str:
    return str(error).removeprefix(f"{video.path}: ")


class _Piece(NamedTuple):
    """A window of video `number`, or (clip None) the end of it. `share` of the video is behind us, 0..1."""

    number: int
    start: float
    end: float
    share: float
    clip: Tensor | None
    trouble: str = ""


class _Reader(IterableDataset[_Piece]):
    """Windows of videos, whole videos shared out among the workers."""

    def __init__(
        self, videos: Sequence[VideoFile], numbers: list[int], clips: Preprocessing, settings: EmbeddingSettings
    ) -> None:
        self.videos, self.numbers, self.clips, self.settings = videos, numbers, clips, settings

    def __iter__(self) -> Iterator[_Piece]:
        worker = get_worker_info()
        for number in self.numbers if worker is None else self.numbers[worker.id :: worker.num_workers]:
            trouble = ""
            try:
                trouble = yield from self._read(number)
            except VideoError as error:
                trouble = _reason(error, self.videos[number])
            yield _Piece(number, 0.0, 0.0, 1.0, None, trouble)

    def _read(self, number: int) -> Generator[_Piece, None, str]:
        """The windows of a video; returns why nothing follows, "" when it is whole."""
        video, size = self.videos[number], {"window": self.settings.window, "stride": self.settings.stride}
        with open_long(video.path, self.clips.short_side, fps=video.fps) as opened:
            first, last = max(0.0, video.start or 0.0), min(opened.info.duration, video.end or opened.info.duration)
            for start, end, clip in windows_of(opened, self.clips, video.start, video.end, **size):
                yield _Piece(number, start, end, min((end - first) / max(last - first, 1e-9), 1.0), clip)
            return opened.damage_report or behind(opened.info, video.end)


@dataclass
class _Open:
    """A video on its way."""

    spans: list[tuple[float, float]] = field(default_factory=list)
    values: list[NDArray[np.float32]] = field(default_factory=list)
    share: float = 0.0
    trouble: str | None = None  # None until its end has come


class _Run:
    """The videos that are still to be read, batch by batch."""

    def __init__(
        self,
        videos: Sequence[VideoFile],
        identities: list[str],
        model: VideoModel,
        settings: EmbeddingSettings,
        parts: Parts,
        coverage: Coverage,
    ) -> None:
        self.videos, self.identities, self.model, self.settings = videos, identities, model, settings
        self.parts, self.coverage = parts, coverage
        self.open: dict[int, _Open] = {}
        self.batch: list[_Piece] = []

    def go(self, numbers: list[int], progress: bool | None) -> None:
        """Read, encode and keep them all."""
        reader = _Reader(self.videos, numbers, self.model.preprocessing, self.settings)
        began = time.perf_counter()
        form = "{l_bar}{bar}| {n:.1f}/{total} videos{postfix}, {remaining} left"
        disable = None if progress is None else not progress
        with tqdm(total=len(numbers), bar_format=form, postfix="", disable=disable) as bar:
            for piece in stream_of(reader, min(self.settings.workers, len(numbers))) if numbers else ():
                bar.update(self._take(piece))
                self.coverage.seconds = time.perf_counter() - began
                bar.set_postfix_str(f"{self.coverage.speed:.1f}x real time", refresh=False)
            self._encode()
            bar.update(round(len(numbers) - bar.n, 6))
        self.coverage.seconds = time.perf_counter() - began

    def _take(self, piece: _Piece) -> float:
        """One piece; returns how much of a video it is."""
        state = self.open.setdefault(piece.number, _Open())
        gone = piece.share - state.share
        state.share = piece.share
        if piece.clip is None:
            state.trouble = piece.trouble
            self._settle(piece.number)
            return gone
        behind = state.spans[-1][1] if state.spans else piece.start
        self.coverage.video_seconds += piece.end - max(behind, piece.start)
        state.spans.append((piece.start, piece.end))
        self.batch.append(piece)
        if len(self.batch) == self.settings.batch_size:
            self._encode()
        return gone

    def _encode(self) -> None:
        if not self.batch:
            return
        values = self.model.encode_clips(torch.stack([piece.clip for piece in self.batch if piece.clip is not None]))
        if self.settings.normalize:
            values = torch.nn.functional.normalize(values, dim=1)
        finite = values.isfinite().all(dim=1)
        if not finite.all():
            piece = self.batch[int(finite.int().argmin())]
            path = self.videos[piece.number].path
            raise RunError(path, f"vector at {piece.start:g} s is not finite", "", "try precision float32")
        for piece, value in zip(self.batch, values.numpy(), strict=True):
            self.open[piece.number].values.append(value)
        done, self.batch = {piece.number for piece in self.batch}, []
        for number in sorted(done):
            self._settle(number)

    def _settle(self, number: int) -> None:
        """Keep a video once it has ended and all of it is encoded."""
        state, video = self.open[number], self.videos[number]
        if state.trouble is None or len(state.values) < len(state.spans):
            return
        del self.open[number]
        if not state.values:
            self.coverage.unreadable.append(Trouble(video.path, state.trouble))
            return
        self.coverage.read += 1
        spans = np.array(state.spans, np.float64)
        self.parts.write(self.identities[number], Vectors(video.path, spans, np.stack(state.values), state.trouble))


def _finish(
    videos: Sequence[VideoFile],
    identities: list[str],
    output: Path,
    parts: Parts,
    protocol: dict[str, Any],
    coverage: Coverage,
) -> None:
    """Write the table and the list of what is not, or not wholly, in it."""

    def finished() -> Iterator[Vectors]:
        for video, identity in zip(videos, identities, strict=True):
            part = parts.read(identity, video.path) if identity else None
            if part is not None:
                yield part

    for part in finished():
        coverage.vectors += len(part.values)
        if part.trouble:
            coverage.partly.append(Trouble(part.path, part.trouble))
    skipped = output.with_suffix(".skipped.jsonl")
    kinds = {"in part": coverage.partly, "nothing": coverage.unreadable}
    rows = [{"path": lost.path, "read": kind, "reason": lost.reason} for kind in kinds for lost in kinds[kind]]
    if rows:
        write_text(skipped, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        skipped.unlink(missing_ok=True)
    if not coverage.vectors:
        coverage.refuse()
    write_table(output, finished(), coverage.vectors, coverage.width, protocol)
