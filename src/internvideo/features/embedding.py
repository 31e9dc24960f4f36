"""Embed collections of videos: one table of vectors, resumable, with a list of the unreadable files."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from internvideo import __version__
from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import RecipeError, RunError, VideoError
from internvideo.features.read_ahead import read_ahead
from internvideo.features.read_report import ReadFailure, ReadReport
from internvideo.features.vector_files import Parts, VideoVectors, check_output, write_table
from internvideo.features.video_files import VideoFile
from internvideo.features.windows import check_window, open_long, past_end, windows_of
from internvideo.inference.video_model import VideoModel
from internvideo.storage import alone_in, write_text
from internvideo.tasks.protocol import weights_hash
from internvideo.video.conversion import conversion_metadata
from internvideo.video.damage import damage_metadata
from internvideo.video.frame_folder import rate_metadata


@dataclass(frozen=True)
class EmbeddingSettings:
    """Settings of `embed`.

    Attributes:
        window: seconds; one vector per window, None for one per video. stride: seconds between the starts of windows,
            `window` by default.
        normalize: L2-normalize the vectors.
        batch_size: clips per batch. workers: decoding processes; 0 decodes in this one.

    Raises:
        RecipeError: a number out of range.
    """

    window_seconds: float | None = None
    stride_seconds: float | None = None
    normalize: bool = True
    batch_size: int = 8
    workers: int = 0

    def __post_init__(self) -> None:
        check_window(self.window_seconds, self.stride_seconds)
        for name, least in (("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise RecipeError(name, str(getattr(self, name)), f"{least} or more")


def embed(
    videos: Sequence[VideoFile],
    model: VideoModel,
    output: Path,
    settings: EmbeddingSettings | None = None,
    *,
    overwrite: bool = False,
    progress: bool | None = None,
) -> ReadReport:
    """Write the vectors of videos as OUTPUT, a table of exactly these videos (see `vector_files`).

    Finished videos are kept in OUTPUT.parts: an interrupted run resumes, and a later run reads only videos that are new
    or were changed. Unreadable and truncated videos are listed in NAME.skipped.jsonl.

    Args:
        videos: of `find_videos`.
        model: any model that encodes videos.
        output: .parquet or .npy.
        settings: windows, batches, workers.
        overwrite: recompute what is in OUTPUT.parts.
        progress: show a bar on stderr; by default if that is a terminal.

    Raises:
        VideoError: no video can be read. RecipeError: a setting or an output name that is not supported.
        RunError: OUTPUT.parts has other settings or another writer, a full disk, vectors that are not finite.
    """
    settings = settings or EmbeddingSettings()
    check_output(output)
    model.preprocessing.frame_sampler(1)
    parts, protocol = Parts(output), feature_provenance(model, settings)
    with alone_in(parts.folder):
        return _embed(videos, model, output, settings, parts, protocol, overwrite=overwrite, progress=progress)


def _embed(
    videos: Sequence[VideoFile],
    model: VideoModel,
    output: Path,
    settings: EmbeddingSettings,
    parts: Parts,
    protocol: dict[str, Any],
    *,
    overwrite: bool,
    progress: bool | None,
) -> ReadReport:
    parts.begin(
        {name: protocol[name] for name in protocol if name not in ("source", "internvideo")}, overwrite=overwrite
    )
    report = ReadReport(len(videos), model.embed_dim)
    identities: list[str] = []
    waiting: list[int] = []
    for index, video in enumerate(videos):
        try:
            identities.append(video.identity())
        except VideoError as error:
            identities.append("")
            report.unreadable.append(ReadFailure(video.path, _reason(error, video)))
            continue
        if parts.read(identities[-1], video.path) is None:
            waiting.append(index)
        else:
            report.resumed += 1
    run = _Run(videos, identities, model, settings, parts, report)
    run.run(waiting, progress)
    _finish(videos, identities, output, parts, protocol, report)
    return report


def plan(videos: Sequence[VideoFile], output: Path, *, overwrite: bool = False) -> Iterator[str]:
    """Yield what `embed` would do, one line per video. Raises RecipeError for an output that cannot be written."""
    check_output(output)
    parts, counts = Parts(output), {"read": 0, "done": 0, "absent": 0}
    for video in videos:
        try:
            kind = "done" if not overwrite and parts.has(video.identity()) else "read"
        except VideoError:
            kind = "absent"
        counts[kind] += 1
        piece = "" if video.start is None else f" from {video.start:g} to {video.end:g} s"
        yield f"{kind}: {video.path}{piece}"
    yield f"{counts['read']} to read, {counts['done']} done before, {counts['absent']} absent"


def feature_provenance(model: VideoModel, settings: EmbeddingSettings) -> dict[str, Any]:
    """Return the provenance of vectors (model, weights, preprocessing, settings) as JSON values."""
    config = model.config
    return {
        "model": model.name,
        "weights_sha256": model.metadata.get("weights_sha256") or weights_hash(model.module),
        "source": model.metadata.get("source", ""),
        "overrides": config["overrides"],
        "preprocessing": config["preprocessing"],
        "precision": model.precision,
        "window": settings.window_seconds,
        "stride": settings.window_seconds if settings.stride_seconds is None else settings.stride_seconds,
        "normalized": settings.normalize,
        **damage_metadata(),
        **conversion_metadata(),
        **rate_metadata(),
        "width": model.embed_dim,
        "internvideo": __version__,
    }


def _reason(error: VideoError, video: VideoFile) -> str:
    return str(error).removeprefix(f"{video.path}: ")


class _Piece(NamedTuple):
    """A window of a video, or (clip None) its end; `fraction_done` of the video, 0..1, ends with it."""

    video_index: int
    start: float
    end: float
    fraction_done: float
    clip: Tensor | None
    reason: str = ""


class _Reader(IterableDataset[_Piece]):
    """Iterate over the windows of videos; each worker reads every n-th video."""

    def __init__(
        self, videos: Sequence[VideoFile], indices: list[int], preprocessing: Preprocessing, settings: EmbeddingSettings
    ) -> None:
        self.videos, self.indices, self.preprocessing, self.settings = videos, indices, preprocessing, settings

    def __iter__(self) -> Iterator[_Piece]:
        worker = get_worker_info()
        for index in self.indices if worker is None else self.indices[worker.id :: worker.num_workers]:
            reason = ""
            try:
                reason = yield from self._read(index)
            except VideoError as error:
                reason = _reason(error, self.videos[index])
            yield _Piece(index, 0.0, 0.0, 1.0, None, reason)

    def _read(self, index: int) -> Generator[_Piece, None, str]:
        """Yield the windows of a video; return why it ends early, "" if it does not."""
        video, size = (
            self.videos[index],
            {"window_seconds": self.settings.window_seconds, "stride_seconds": self.settings.stride_seconds},
        )
        with open_long(video.path, self.preprocessing.short_side, fps=video.fps) as opened:
            first, last = max(0.0, video.start or 0.0), min(opened.info.duration, video.end or opened.info.duration)
            for start, end, clip in windows_of(opened, self.preprocessing, video.start, video.end, **size):
                yield _Piece(index, start, end, min((end - first) / max(last - first, 1e-9), 1.0), clip)
            return opened.damage_report or past_end(opened.info, video.end)


@dataclass
class _Open:
    """State of a video in progress."""

    spans: list[tuple[float, float]] = field(default_factory=list)
    values: list[NDArray[np.float32]] = field(default_factory=list)
    fraction_done: float = 0.0
    reason: str | None = None  # None until its end has arrived


class _Run:
    """Encode the videos that are not done, batch by batch."""

    def __init__(
        self,
        videos: Sequence[VideoFile],
        identities: list[str],
        model: VideoModel,
        settings: EmbeddingSettings,
        parts: Parts,
        report: ReadReport,
    ) -> None:
        self.videos, self.identities, self.model, self.settings = videos, identities, model, settings
        self.parts, self.report = parts, report
        self.open: dict[int, _Open] = {}
        self.batch: list[_Piece] = []

    def run(self, indices: list[int], progress: bool | None) -> None:
        """Read, encode and store the videos with these indices."""
        reader = _Reader(self.videos, indices, self.model.preprocessing, self.settings)
        began = time.perf_counter()
        form = "{l_bar}{bar}| {n:.1f}/{total} videos{postfix}, {remaining} left"
        disable = None if progress is None else not progress
        with tqdm(total=len(indices), bar_format=form, postfix="", disable=disable) as bar:
            for piece in read_ahead(reader, min(self.settings.workers, len(indices))) if indices else ():
                bar.update(self._handle(piece))
                self.report.seconds = time.perf_counter() - began
                bar.set_postfix_str(f"{self.report.speed:.1f}x real time", refresh=False)
            self._encode()
            bar.update(round(len(indices) - bar.n, 6))
        self.report.seconds = time.perf_counter() - began

    def _handle(self, piece: _Piece) -> float:
        """Process one piece; return the fraction of a video that it adds."""
        state = self.open.setdefault(piece.video_index, _Open())
        advance = piece.fraction_done - state.fraction_done
        state.fraction_done = piece.fraction_done
        if piece.clip is None:
            state.reason = piece.reason
            self._finalize(piece.video_index)
            return advance
        behind = state.spans[-1][1] if state.spans else piece.start
        self.report.video_seconds += piece.end - max(behind, piece.start)
        state.spans.append((piece.start, piece.end))
        self.batch.append(piece)
        if len(self.batch) == self.settings.batch_size:
            self._encode()
        return advance

    def _encode(self) -> None:
        if not self.batch:
            return
        values = self.model.encode_clips(torch.stack([piece.clip for piece in self.batch if piece.clip is not None]))
        if self.settings.normalize:
            values = torch.nn.functional.normalize(values, dim=1)
        finite = values.isfinite().all(dim=1)
        if not finite.all():
            piece = self.batch[int(finite.int().argmin())]
            path = self.videos[piece.video_index].path
            raise RunError(path, f"vector at {piece.start:g} s is not finite", "", "try precision float32")
        for piece, value in zip(self.batch, values.numpy(), strict=True):
            self.open[piece.video_index].values.append(value)
        done, self.batch = {piece.video_index for piece in self.batch}, []
        for index in sorted(done):
            self._finalize(index)

    def _finalize(self, index: int) -> None:
        """Store a video once its end has arrived and all its windows are encoded."""
        state, video = self.open[index], self.videos[index]
        if state.reason is None or len(state.values) < len(state.spans):
            return
        del self.open[index]
        if not state.values:
            self.report.unreadable.append(ReadFailure(video.path, state.reason))
            return
        self.report.read += 1
        spans = np.array(state.spans, np.float64)
        self.parts.write(self.identities[index], VideoVectors(video.path, spans, np.stack(state.values), state.reason))


def _finish(
    videos: Sequence[VideoFile],
    identities: list[str],
    output: Path,
    parts: Parts,
    protocol: dict[str, Any],
    report: ReadReport,
) -> None:
    """Write the table and the list of unreadable and truncated videos."""

    def finished() -> Iterator[VideoVectors]:
        for video, identity in zip(videos, identities, strict=True):
            part = parts.read(identity, video.path) if identity else None
            if part is not None:
                yield part

    for part in finished():
        report.vectors += len(part.values)
        if part.reason:
            report.truncated.append(ReadFailure(part.path, part.reason))
    skipped = output.with_suffix(".skipped.jsonl")
    kinds = {"in part": report.truncated, "nothing": report.unreadable}
    rows = [{"path": lost.path, "read": kind, "reason": lost.reason} for kind in kinds for lost in kinds[kind]]
    if rows:
        write_text(skipped, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        skipped.unlink(missing_ok=True)
    if not report.vectors:
        report.raise_unreadable()
    write_table(output, finished(), report.vectors, report.dim, protocol)
