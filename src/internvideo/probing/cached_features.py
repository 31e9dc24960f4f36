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
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from internvideo import untrusted
from internvideo.data.loader import EvalLoader, LoaderSettings
from internvideo.data.manifest import Manifest, Sample
from internvideo.data.preprocessing import Preprocessing
from internvideo.data.sampling import Indices
from internvideo.data.transforms import EvalTransform
from internvideo.errors import RunError, VideoError, WeightsError
from internvideo.features.video_files import file_state
from internvideo.inference.hub_folder import model_hash
from internvideo.inference.video_model import VideoModel
from internvideo.storage import read_safetensors, write_safetensors

Kind = Literal["video", "tokens"]
"""One vector per video (`VideoModel.encode_clips`), or its tokens (`VideoModel.tokens`, at most MOST_TOKENS)."""

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
        computed: how many were not in the cache. seconds: that these took, decoding included.
    """

    values: Tensor
    read: NDArray[np.int64]
    coverage: dict[str, Any]
    computed: int
    seconds: float


@dataclass(frozen=True)
class ClipRule:
    """Adapt the frame sampling of a `Preprocessing` to the loader: one view per video."""

    preprocessing: Preprocessing

    @property
    def frames(self) -> int:
        """T."""
        return self.preprocessing.frames

    def test(self, n: int) -> list[Indices]:
        """Return the frame indices (T,) of the one view of a video with n frames."""
        return self.preprocessing.indices(n)

    def train(self, n: int, rng: np.random.RandomState) -> Indices:
        """Return the same indices; nothing is random."""
        return self.test(n)[0]


def encode(model: VideoModel, clips: Tensor, kind: Kind) -> Tensor:
    """Encode clips (B, 3, T, S, S) -> (B, E) float32, or tokens (B, N, D) float16 with N at most MOST_TOKENS."""
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
        "frame_step": model.frame_step,
        "kind": kind,
        "most_tokens": MAX_TOKENS if kind == "tokens" else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def row_key(manifest: Manifest, row: Sample) -> str:
    """Hash a video file or a piece of it, with its size and time: 24 hex digits."""
    path = manifest.video_path(row).absolute()
    state = ""
    with suppress(VideoError):  # a missing file is reported as unreadable by the loader
        state = file_state(str(path), row.frame_rate).replace("|", " ")
    return hashlib.sha256(f"{path}\n{row.span}\n{state}".encode("utf-8", "surrogateescape")).hexdigest()[:24]


@dataclass
class FeatureCache:
    """Cached rows of one model and one kind: one file, and parts beside it during a run.

    Args:
        folder: of the files. name: of the file, from the model and `cache_key`.
    """

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
    model: VideoModel,
    manifest: Manifest,
    folder: Path,
    *,
    kind: Kind = "video",
    batch_size: int = 8,
    workers: int = 0,
) -> Features:
    """Return the features of all readable videos of a manifest, from the cache in `folder` or computed.

    Shows a progress bar. Computed features are saved every SAVE_INTERVAL_S and on interruption.

    Raises:
        RunError: no video can be read, a feature that is not finite, or a folder that cannot be written.
    """
    cache = FeatureCache(folder, f"{kind}-{model.name}-{cache_key(model, kind)}")
    cache.read()
    keys = [row_key(manifest, row) for row in manifest.rows]
    uncached: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key not in cache.rows:
            uncached.setdefault(key, index)
    start = time.perf_counter()
    failures: dict[str, str] = {}
    if uncached:
        missing = Manifest(
            tuple(manifest.rows[index] for index in uncached.values()), manifest.classes, manifest.root, manifest.source
        )
        keys_by_id = dict(zip((row.id for row in missing.rows), uncached, strict=True))
        failures = _compute(model, missing, kind, cache, keys_by_id, batch_size, workers)
        cache.join()
    read = np.asarray([index for index, key in enumerate(keys) if key in cache.rows], dtype=np.int64)
    unreadable = [
        {"id": row.id, "path": row.path, "reason": failures.get(key, "cannot be read")}
        for row, key in zip(manifest.rows, keys, strict=True)
        if key not in cache.rows
    ]
    if not len(read):
        raise RunError(
            manifest.source,
            f"none of {len(keys)} videos can be read ({unreadable[0]['reason']})",
            "",
            "check the files",
        )
    values = torch.stack([cache.rows[keys[index]] for index in read])
    coverage = {"asked": len(keys), "read": len(read), "unreadable": unreadable}
    return Features(values, read, coverage, len(uncached) - len(failures), time.perf_counter() - start)


def _compute(
    model: VideoModel,
    manifest: Manifest,
    kind: Kind,
    cache: FeatureCache,
    keys_by_id: Mapping[str, str],
    batch_size: int,
    workers: int,
) -> dict[str, str]:
    """Encode every video of the manifest into the cache. Returns key -> reason of the unreadable ones."""
    rule = model.preprocessing
    settings = LoaderSettings(batch_size=batch_size, workers=workers, short_side=rule.short_side)
    transform = EvalTransform(rule.size, resize=rule.resize, style=rule.style, squash=rule.squash)
    loader = EvalLoader(manifest, ClipRule(rule), transform, settings)
    new_rows: dict[str, Tensor] = {}
    saved = time.perf_counter()
    try:
        with tqdm(total=len(manifest), desc="features", unit="clip", disable=None) as bar:
            for ids, values in _encoded(model, loader, kind):
                new_rows.update({keys_by_id[name]: value for name, value in zip(ids, values, strict=True)})
                bar.update(len(ids))
                if time.perf_counter() - saved > SAVE_INTERVAL_S:
                    cache.add(new_rows)
                    new_rows, saved = {}, time.perf_counter()
            bar.update(len(loader.unreadable))
    finally:  # also when it was interrupted
        cache.add(new_rows)
    return {keys_by_id[name]: reason for name, _, reason in loader.unreadable}


def _encoded(model: VideoModel, loader: EvalLoader, kind: Kind) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    for batch, _ in loader:
        values = encode(model, batch.video, kind)
        nonfinite = ~torch.isfinite(values.flatten(1)).all(dim=1)
        if nonfinite.any():
            name = batch.ids[int(nonfinite.nonzero()[0])]
            raise RunError(f"model {model.name}", f"the feature of '{name}' is not finite", "", "check the weights")
        yield batch.ids, values
