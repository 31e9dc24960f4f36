"""Embed collections of videos: one table of vectors, resumable, with a list of the unreadable files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from internvideo.errors import VideoError
from internvideo.features.engine import (
    IGNORED_PROVENANCE_KEYS,
    TimedWindows,
    VectorWriter,
    VideoEnd,
    Window,
    check_minimum,
    vector_provenance,
)
from internvideo.features.feature_layers import Encode
from internvideo.features.ray_engine import run_on
from internvideo.features.read_report import ReadFailure, ReadReport
from internvideo.features.vector_files import PartsFolder, VideoVectors, check_output, write_table
from internvideo.features.video_files import VideoFile
from internvideo.features.windows import check_window
from internvideo.inference.video_model import VideoModel
from internvideo.storage import folder_lock, write_text


@dataclass(frozen=True)
class EmbeddingSettings:
    """Settings of `embed`.

    Attributes:
        window_seconds: length of a window; None for one vector per video. stride_seconds: from the start of a window to
            that of the next, `window_seconds` by default.
        normalize: L2-normalize the vectors.
        batch_size: clips per batch. workers: decoding processes; 0 decodes in a thread of this process.
        ray: address of a Ray cluster to run on, "local" to start one on this machine (see `ray_engine`).

    Raises:
        RecipeError: a number out of range.
    """

    window_seconds: float | None = None
    stride_seconds: float | None = None
    normalize: bool = True
    batch_size: int = 8
    workers: int = 0
    ray: str | None = None

    def __post_init__(self) -> None:
        check_window(self.window_seconds, self.stride_seconds)
        check_minimum(self, batch_size=1, workers=0)


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

    The vectors of finished videos are kept in OUTPUT.parts: an interrupted run resumes, and a later run reads only
    videos that are new or were changed. Unreadable and truncated videos are listed in NAME.skipped.jsonl.

    Args:
        videos: from `find_videos`. model: any model that encodes videos.
        output: .parquet, .lance or .npy. settings: windows, batches, workers.
        overwrite: recompute the vectors in OUTPUT.parts.
        progress: show a bar on stderr; by default if that is a terminal.

    Raises:
        VideoError: no video can be read. RecipeError: a setting or an output name that is not supported.
        RunError: OUTPUT.parts has other settings or is in use by another process, a full disk, vectors that are not
        finite.
    """
    settings = settings or EmbeddingSettings()
    check_output(output)
    model.preprocessing.frame_sampler(1)
    provenance = feature_provenance(model, settings)
    windows = TimedWindows(model.preprocessing, settings.window_seconds, settings.stride_seconds)
    make_encode = partial(_encoder, settings.normalize)
    with folder_lock(PartsFolder(output).folder):
        writer = TableWriter(videos, output, provenance, overwrite=overwrite)
        size, workers = settings.batch_size, settings.workers
        run_on(settings.ray, writer, windows, model, make_encode, batch_size=size, workers=workers, progress=progress)
        return writer.write_table()


def _encoder(normalized: bool, model: VideoModel) -> Encode:
    def encode(clips: Tensor) -> Tensor:
        values = model.encode_clips(clips)
        return normalize(values, dim=1) if normalized else values

    return encode


def plan(videos: Sequence[VideoFile], output: Path, *, overwrite: bool = False) -> Iterator[str]:
    """Yield what `embed` would do, one line per video. Raises RecipeError for an output that cannot be written."""
    check_output(output)
    parts, counts = PartsFolder(output), {"read": 0, "done": 0, "absent": 0}
    for video in videos:
        try:
            kind = "done" if not overwrite and parts.contains(video.identity()) else "read"
        except VideoError:
            kind = "absent"
        counts[kind] += 1
        span = "" if video.start is None else f" from {video.start:g} to {video.end:g} s"
        yield f"{kind}: {video.path}{span}"
    yield f"{counts['read']} to read, {counts['done']} done before, {counts['absent']} absent"


def feature_provenance(model: VideoModel, settings: EmbeddingSettings) -> dict[str, Any]:
    """Return the provenance of vectors (model, weights, preprocessing, settings) as JSON values."""
    stride = settings.window_seconds if settings.stride_seconds is None else settings.stride_seconds
    placement = {"window": settings.window_seconds, "stride": stride, "normalized": settings.normalize}
    return vector_provenance(model, {**placement, "width": model.embed_dim})


class TableWriter(VectorWriter):
    """Write the vectors of each video to OUTPUT.parts, then one table of all.

    Args:
        videos: of the table. output, overwrite: see `embed`. provenance: from `feature_provenance`.

    Raises:
        RunError: OUTPUT.parts has other settings.
    """

    def __init__(
        self, videos: Sequence[VideoFile], output: Path, provenance: dict[str, Any], *, overwrite: bool = False
    ) -> None:
        super().__init__(videos)
        self.output, self.provenance, self.parts = output, provenance, PartsFolder(output)
        compared = {name: value for name, value in provenance.items() if name not in IGNORED_PROVENANCE_KEYS}
        self.parts.create_or_resume(compared, overwrite=overwrite)
        self.report.dim = provenance["width"]
        self.identities: list[str] = []
        self._pending: list[int] = []
        self._buffers: defaultdict[int, list[tuple[NDArray[np.float64], NDArray[np.float32]]]] = defaultdict(list)
        for index, video in enumerate(videos):
            try:
                self.identities.append(video.identity())
            except VideoError as error:
                self.identities.append("")
                self.report.unreadable.append(ReadFailure(video.path, str(error).removeprefix(f"{video.path}: ")))
                continue
            if self.parts.read(self.identities[-1], video.path) is None:
                self._pending.append(index)
            else:
                self.report.resumed += 1

    def pending(self) -> list[int]:
        """Return the indices of the videos that were not finished when the run began."""
        return self._pending

    def write(self, index: int, windows: Sequence[Window], values: Tensor) -> None:
        """Buffer the vectors until the video is finished."""
        spans = np.array([(window.start, window.end) for window in windows], np.float64)
        self._buffers[index].append((spans, values.numpy()))

    def finish(self, index: int, end: VideoEnd, num_vectors: int) -> None:
        """Write the part file of a video."""
        path = self.videos[index].path
        if num_vectors:
            spans, values = zip(*self._buffers.pop(index), strict=True)
            vectors = VideoVectors(path, np.concatenate(spans), np.concatenate(values), end.reason)
            self.parts.write(self.identities[index], vectors)
        else:
            self.report.unreadable.append(ReadFailure(path, end.reason))

    def read_finished(self) -> Iterator[VideoVectors]:
        """Yield the vectors of the finished videos, in the order of the videos."""
        for video, identity in zip(self.videos, self.identities, strict=True):
            vectors = self.parts.read(identity, video.path) if identity else None
            if vectors is not None:
                yield vectors

    def write_table(self) -> ReadReport:
        """Write the table and NAME.skipped.jsonl; return the report. Raises VideoError if no video could be read."""
        report = self.final_report()
        write_table(self.output, self.read_finished(), report.vectors, report.dim, self.provenance)
        return report

    def final_report(self) -> ReadReport:
        """Complete the report and write NAME.skipped.jsonl. Raises VideoError if no video could be read."""
        report = self.report
        for vectors in self.read_finished():
            report.vectors += len(vectors.values)
            if vectors.reason:
                report.truncated.append(ReadFailure(vectors.path, vectors.reason))
        skipped = self.output.with_suffix(".skipped.jsonl")
        failures = [("in part", one) for one in report.truncated] + [("nothing", one) for one in report.unreadable]
        rows = [{"path": failure.path, "read": kind, "reason": failure.reason} for kind, failure in failures]
        if rows:
            write_text(skipped, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        else:
            skipped.unlink(missing_ok=True)
        if not report.vectors:
            report.raise_unreadable()
        return report
