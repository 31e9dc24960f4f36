"""Compute the features of a manifest's videos once and cache them on disk.

A cache file belongs to a model (hash of its weights), its preprocessing and a kind of features. The key of a row in it
is a hash of the video file's path, span, size and modification time. So an interrupted run resumes, changed labels need
no computation, and only new or changed videos are encoded.

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
"""More tokens than this are average-pooled over neighbors, which makes probe and cache up to ten times cheaper."""
SAVE_INTERVAL_S = 20.0
MAX_FLOAT16 = 65504.0


@dataclass(frozen=True)
class Features:
    """Features of the n readable videos of a manifest.

    Attributes:
        values: (n, E) float32, or (n, N, D) float16 tokens.
        row_index: (n,) row of the manifest of each video, ascending.
        coverage: {"asked": number of rows, "read": n, "unreadable": [{"id", "path", "reason"}]}.
        num_computed: number of videos that were not in the cache. seconds: time to decode and encode these.
    """

    values: Tensor
    row_index: NDArray[np.int64]
    coverage: dict[str, Any]
    num_computed: int
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
    """Hash the model and settings that determine the features: 16 hexadecimal digits."""
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
    """Hash path, span, size and modification time of a row's video file: 24 hexadecimal digits."""
    path = manifest.video_path(row).absolute()
    state = ""
    with suppress(VideoError):  # a missing file is reported as unreadable by the engine
        state = file_state(str(path), row.frame_rate).replace("|", " ")
    return hashlib.sha256(f"{path}\n{row.span}\n{state}".encode("utf-8", "surrogateescape")).hexdigest()[:24]


@dataclass
class FeatureCache:
    """Cached features by row key, of one model and one kind.

    They are in FOLDER/NAME.safetensors. During a run, new rows are in additional files NAME.part-*.safetensors, which
    `merge_parts` merges at the end.
    """

    folder: Path
    name: str
    rows: dict[str, Tensor] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Path of the merged file."""
        return self.folder / f"{self.name}.safetensors"

    def part_files(self) -> list[Path]:
        """List the part files of this run or of interrupted ones, oldest first."""
        return sorted(self.folder.glob(f"{self.name}.part-*.safetensors"))

    def load(self) -> None:
        """Load all rows from disk; corrupt files are skipped."""
        for path in [self.file, *self.part_files()]:
            with suppress(WeightsError, KeyError, ValueError):
                tensors, metadata = read_safetensors(path)
                keys = untrusted.parse_json(metadata["rows"])
                self.rows.update(zip(keys, tensors["features"], strict=True))

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Write rows to a new part file. Raises RunError (a full disk)."""
        if rows:
            indices = [int(path.name.split(".part-")[1][:5]) for path in self.part_files()]
            index = max(indices, default=-1) + 1  # the process id distinguishes parallel fits on one folder
            _write_rows(self.folder / f"{self.name}.part-{index:05d}-{os.getpid()}.safetensors", rows)
            self.rows.update(rows)

    def merge_parts(self) -> None:
        """Merge all rows into one file and delete the parts. Raises RunError."""
        part_files = self.part_files()
        if part_files:
            self.load()  # another fit on this folder may have written rows meanwhile
            _write_rows(self.file, self.rows)
            for path in part_files:
                path.unlink(missing_ok=True)


def _write_rows(path: Path, rows: Mapping[str, Tensor]) -> None:
    write_safetensors(path, {"features": torch.stack(list(rows.values()))}, {"rows": json.dumps(list(rows))})


def read_features(
    model: VideoModel, manifest: Manifest, folder: Path, *, kind: Kind = "video", batch_size: int = 8, workers: int = 0
) -> Features:
    """Return the features of all readable videos of a manifest, from the cache in `folder` or computed.

    Shows a progress bar. Computed features are saved every SAVE_INTERVAL_S seconds and on interruption.

    Raises:
        RunError: no video can be read, a feature is not finite, or the folder cannot be written.
    """
    cache = FeatureCache(folder, f"{kind}-{model.name}-{cache_key(model, kind)}")
    cache.load()
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
        cache.merge_parts()
    row_index = np.asarray([index for index, key in enumerate(keys) if key in cache.rows], dtype=np.int64)
    unreadable = [
        {"id": row.id, "path": row.path, "reason": failures.get(key, "cannot be read")}
        for row, key in zip(manifest.rows, keys, strict=True)
        if key not in cache.rows
    ]
    if not len(row_index):
        found = f"none of {len(keys)} videos can be read ({unreadable[0]['reason']})"
        raise RunError(manifest.source, found, "", "check the files")
    values = torch.stack([cache.rows[keys[index]] for index in row_index])
    coverage = {"asked": len(keys), "read": len(row_index), "unreadable": unreadable}
    return Features(values, row_index, coverage, len(uncached) - len(failures), time.perf_counter() - start)


class CacheWriter(VectorWriter):
    """Write one vector (or the tokens) per video to a cache, with a new part file every SAVE_INTERVAL_S seconds.

    Attributes:
        failures: row key -> reason why the video has no features.
    """

    def __init__(self, videos: Sequence[VideoFile], keys: Sequence[str], cache: FeatureCache) -> None:
        super().__init__(videos)
        self.keys, self.cache, self.failures = keys, cache, dict[str, str]()
        self._new_rows: dict[str, Tensor] = {}
        self._save_time = time.perf_counter()

    def pending(self) -> Sequence[int]:
        """Return the indices of all videos: none is done, because cached ones are not passed to the writer."""
        return range(len(self.videos))

    def write(self, index: int, windows: Sequence[Window], values: Tensor) -> None:
        """Store the features of the video of an index, which has a single window, until the next save."""
        self._new_rows[self.keys[index]] = values[0]

    def finish(self, index: int, end: VideoEnd, num_vectors: int) -> None:
        """Record why a video has no features, and log a warning for one that was not read to its end."""
        path = self.videos[index].path
        if not num_vectors:
            self.failures[self.keys[index]] = f"{path}: {end.reason}"
        elif end.reason:
            LOGGER.warning("%s: %s", shown(path), shown(end.reason))

    def after_batch(self, unfinished: Collection[int]) -> None:
        """Save new rows every SAVE_INTERVAL_S seconds."""
        if time.perf_counter() - self._save_time > SAVE_INTERVAL_S:
            self.close()

    def close(self) -> None:
        """Save new rows."""
        self.cache.add(self._new_rows)
        self._new_rows, self._save_time = {}, time.perf_counter()
