"""Compute the features of a manifest's videos once and cache them on disk.

The cache key is the model (hash of its weights), the preprocessing and the kind of features; within a file, a row's key
is the video file (path, span, size and time of change). An interrupted run resumes, new labels need no computation, a
new video only its own, and another model or a changed file has other keys.

Shapes: n videos, B batch, T frames, S side, N tokens, D dimension of a token, E dimension of the features.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo import untrusted
from internvideo.data.manifest import Manifest, Sample
from internvideo.errors import RunError, VideoError, WeightsError, shown
from internvideo.features.engine import TimedWindows, VectorWriter, VideoEnd, Window, run_engine
from internvideo.features.video_files import VideoFile, file_state, video_of_row
from internvideo.inference.hub_folder import model_hash
from internvideo.inference.video_model import VideoModel
from internvideo.storage import read_safetensors, write_safetensors
from internvideo.terminal import LOGGER

Kind = Literal["video", "tokens"]
"""One vector per video (`VideoModel.encode_clips`), or its tokens (`VideoModel.tokens`, at most MAX_TOKENS)."""

MAX_TOKENS = 98
"""More tokens than this are average-pooled over neighbors, which cuts the cost of probe and cache to a tenth."""
SAVE_INTERVAL_S = 20.0
MAX_FLOAT16 = 65504.0


@dataclass(frozen=True)
class Features:
    """The features of a manifest's videos.

    Attributes:
        values: (n, E) float32, or (n, N, D) float16 tokens; of the readable videos.
        read: (n,) their indices in the manifest, ascending.
        coverage: {"asked", "read", "unreadable": [{"id", "path", "reason"}]}.
        computed: number of videos that were not in the cache. seconds: their time, decoding included.
    """

    values: Tensor
    read: NDArray[np.int64]
    coverage: dict[str, Any]
    computed: int
    seconds: float


def encode(model: VideoModel, clips: Tensor, kind: Kind) -> Tensor:
    """Encode clips (B, 3, T, S, S) -> (B, E) float32, or tokens (B, N, D) float16 with N at most MAX_TOKENS."""
    if kind == "video":
        return model.encode_clips(clips)
    tokens = model.tokens(clips)
    if tokens.shape[1] > MAX_TOKENS:
        tokens = torch.nn.functional.adaptive_avg_pool1d(tokens.transpose(1, 2), MAX_TOKENS).transpose(1, 2)
    return tokens.clamp(-MAX_FLOAT16, MAX_FLOAT16).half()


def cache_key(model: VideoModel, kind: Kind) -> str:
    """Hash everything that determines the features: 16 hex digits."""
    content = {
        "weights": model_hash(model),
        "preprocessing": model.preprocessing.to_json(),
        "precision": model.precision,
        "frame_step": model.temporal_stride,
        "kind": kind,
        "most_tokens": MAX_TOKENS if kind == "tokens" else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def row_key(manifest: Manifest, row: Sample) -> str:
    """Hash a video file or a piece of it, with its size and time: 24 hex digits."""
    path = manifest.video_path(row).absolute()
    state = ""
    with suppress(VideoError):  # a missing file is reported as unreadable by the engine
        state = file_state(str(path), row.frame_rate).replace("|", " ")
    return hashlib.sha256(f"{path}\n{row.span}\n{state}".encode("utf-8", "surrogateescape")).hexdigest()[:24]


@dataclass
class FeatureCache:
    """Cached rows of one model and one kind: the file FOLDER/NAME.safetensors, and parts beside it during a run."""

    folder: Path
    name: str
    rows: dict[str, Tensor] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Path of the merged file."""
        return self.folder / f"{self.name}.safetensors"

    def parts(self) -> list[Path]:
        """List the files of an interrupted run, in order."""
        return sorted(self.folder.glob(f"{self.name}.part-*.safetensors"))

    def read(self) -> None:
        """Load all cached rows; a corrupt file counts as absent."""
        for path in [self.file, *self.parts()]:
            with suppress(WeightsError, KeyError, ValueError):
                tensors, metadata = read_safetensors(path)
                keys = untrusted.parse_json(metadata["rows"])
                self.rows.update(zip(keys, tensors["features"], strict=True))

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Write rows to a new part. Raises RunError (a full disk)."""
        if rows:
            numbers = [int(path.name.split(".part-")[1][:5]) for path in self.parts()]
            number = max(numbers, default=-1) + 1  # the process id keeps two fits on one folder apart
            _write(self.folder / f"{self.name}.part-{number:05d}-{os.getpid()}.safetensors", rows)
            self.rows.update(rows)

    def join(self) -> None:
        """Merge all rows into one file and delete the parts. Raises RunError."""
        parts = self.parts()
        if parts:
            self.read()  # also rows that another fit on this folder has written meanwhile
            _write(self.file, self.rows)
            for path in parts:
                path.unlink(missing_ok=True)


def _write(path: Path, rows: Mapping[str, Tensor]) -> None:
    write_safetensors(path, {"features": torch.stack(list(rows.values()))}, {"rows": json.dumps(list(rows))})


def read_features(
    model: VideoModel, manifest: Manifest, folder: Path, *, kind: Kind = "video", batch_size: int = 8, workers: int = 0
) -> Features:
    """Return the features of all readable videos of a manifest, from the cache in `folder` or computed.

    Shows a progress bar. Computed features are saved every SAVE_INTERVAL_S and on interruption.

    Raises:
        RunError: no video can be read, a feature that is not finite, or a folder that cannot be written.
    """
    cache = FeatureCache(folder, f"{kind}-{model.name}-{cache_key(model, kind)}")
    cache.read()
    keys = [row_key(manifest, row) for row in manifest.rows]
    uncached = {key: row for key, row in zip(keys, manifest.rows, strict=True) if key not in cache.rows}
    start = time.perf_counter()
    failures: dict[str, str] = {}
    if uncached:
        writer = CacheWriter([video_of_row(manifest, row) for row in uncached.values()], list(uncached), cache)
        windows = TimedWindows(model.preprocessing)
        encode_kind = partial(encode, model, kind=kind)
        run_engine(writer, windows, encode_kind, model, batch_size=batch_size, workers=workers, in_order=True)
        failures = writer.failures
        cache.join()
    read = np.asarray([index for index, key in enumerate(keys) if key in cache.rows], dtype=np.int64)
    unreadable = [
        {"id": row.id, "path": row.path, "reason": failures.get(key, "cannot be read")}
        for row, key in zip(manifest.rows, keys, strict=True)
        if key not in cache.rows
    ]
    if not len(read):
        found = f"none of {len(keys)} videos can be read ({unreadable[0]['reason']})"
        raise RunError(manifest.source, found, "", "check the files")
    values = torch.stack([cache.rows[keys[index]] for index in read])
    coverage = {"asked": len(keys), "read": len(read), "unreadable": unreadable}
    return Features(values, read, coverage, len(uncached) - len(failures), time.perf_counter() - start)


class CacheWriter(VectorWriter):
    """Add the one vector (or the tokens) of each video to a cache, a part every SAVE_INTERVAL_S.

    Attributes:
        failures: key -> why the video has no vector.
    """

    def __init__(self, videos: Sequence[VideoFile], keys: Sequence[str], cache: FeatureCache) -> None:
        super().__init__(videos)
        self.keys, self.cache, self.failures = keys, cache, dict[str, str]()
        self._new_rows: dict[str, Tensor] = {}
        self._saved = time.perf_counter()

    def pending(self) -> Sequence[int]:
        """Return all videos."""
        return range(len(self.videos))

    def write(self, index: int, windows: Sequence[Window], values: Tensor) -> None:
        """Take the vector of a video."""
        self._new_rows[self.keys[index]] = values[0]

    def finish(self, index: int, end: VideoEnd, num_vectors: int) -> None:
        """Note a video without a vector, and log one that was not read to its end."""
        path = self.videos[index].path
        if not num_vectors:
            self.failures[self.keys[index]] = f"{path}: {end.reason}"
        elif end.reason:
            LOGGER.warning("%s: %s", shown(path), shown(end.reason))

    def after_batch(self, unfinished: Collection[int]) -> None:
        """Save new rows every SAVE_INTERVAL_S."""
        if time.perf_counter() - self._saved > SAVE_INTERVAL_S:
            self.close()

    def close(self) -> None:
        """Save new rows."""
        self.cache.add(self._new_rows)
        self._new_rows, self._saved = {}, time.perf_counter()
