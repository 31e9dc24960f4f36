"""Features of a manifest's videos, computed once and kept.

A cache file belongs to one model (by the hash of its weights), one preprocessing and one kind of features; inside, a
row belongs to one video file (its path, span, size and time of change). So a run that was interrupted goes on where
it was, new labels cost nothing, a new video costs that video, and another model or a changed file is never mistaken
for the old one.

Shapes: n videos, B batch, T frames, S side, N tokens, D width, E width of the features.
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
from internvideo.inference.video_model import VideoModel
from internvideo.storage import read_safetensors, write_safetensors
from internvideo.tasks.protocol import weights_hash

Kind = Literal["video", "tokens"]
"""One vector a video (`VideoModel.encode_clips`), or its tokens (`VideoModel.tokens`, at most MOST_TOKENS)."""

MOST_TOKENS = 98
"""More tokens than this are averaged over neighbours: a probe then costs a tenth, the cache too."""
SECONDS_BETWEEN_SAVES = 20.0
HALF_LIMIT = 65504.0


@dataclass(frozen=True)
class Features:
    """What a model makes of a manifest's videos.

    Attributes:
        values: (n, E) float32, or (n, N, D) float16 tokens; of the videos that could be read.
        read: (n,) their indices in the manifest, ascending.
        coverage: {"asked", "read", "unreadable": [{"id", "path", "reason"}]}.
        computed: how many were not in the cache. seconds: what these took, decoding included.
    """

    values: Tensor
    read: NDArray[np.int64]
    coverage: dict[str, Any]
    computed: int
    seconds: float


@dataclass(frozen=True)
class ClipRule:
    """A preprocessing's frame rule as the loader asks for it, one view a video."""

    preprocessing: Preprocessing

    @property
    def frames(self) -> int:
        """T."""
        return self.preprocessing.frames

    def test(self, n: int) -> list[Indices]:
        """(T,) indices of the one view of a video with n frames."""
        return self.preprocessing.indices(n)

    def train(self, n: int, rng: np.random.RandomState) -> Indices:
        """The same: nothing is drawn."""
        return self.test(n)[0]


def encode(model: VideoModel, clips: Tensor, kind: Kind) -> Tensor:
    """Clips (B, 3, T, S, S) -> (B, E) float32, or tokens (B, N, D) float16 with N at most MOST_TOKENS."""
    if kind == "video":
        return model.encode_clips(clips)
    tokens = model.tokens(clips)
    if tokens.shape[1] > MOST_TOKENS:
        tokens = torch.nn.functional.adaptive_avg_pool1d(tokens.transpose(1, 2), MOST_TOKENS).transpose(1, 2)
    return tokens.clamp(-HALF_LIMIT, HALF_LIMIT).half()


def model_hash(model: VideoModel) -> str:
    """SHA-256 of its weights, 64 hex digits."""
    return model.metadata.get("weights_sha256") or weights_hash(model.module)


def cache_key(model: VideoModel, kind: Kind) -> str:
    """16 hex digits of everything that makes features different."""
    about = {
        "weights": model_hash(model),
        "preprocessing": model.preprocessing.to_json(),
        "precision": model.precision,
        "frame_step": model.frame_step,
        "kind": kind,
        "most_tokens": MOST_TOKENS if kind == "tokens" else None,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def row_key(manifest: Manifest, row: Sample) -> str:
    """Of one video file or a piece of it; another one as soon as the file changes."""
    path = manifest.video_path(row).absolute()
    state = ""
    with suppress(VideoError):  # what is not there is told as unreadable, by the loader
        state = file_state(str(path), row.frame_rate).replace("|", " ")
    return hashlib.sha256(f"{path}\n{row.span}\n{state}".encode("utf-8", "surrogateescape")).hexdigest()[:24]


@dataclass
class FeatureCache:
    """The rows kept for one model and one kind: one file, and parts beside it while a run is going on.

    Args:
        folder: where the files lie. name: of the file, from the model and `cache_key`.
    """

    folder: Path
    name: str
    rows: dict[str, Tensor] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """The whole file."""
        return self.folder / f"{self.name}.safetensors"

    def parts(self) -> list[Path]:
        """Files of a run that was interrupted, in order."""
        return sorted(self.folder.glob(f"{self.name}.part-*.safetensors"))

    def read(self) -> None:
        """Load everything that is kept; a damaged file counts as absent."""
        for path in [self.file, *self.parts()]:
            with suppress(WeightsError, KeyError, ValueError):
                tensors, metadata = read_safetensors(path)
                keys = untrusted.parse_json(metadata["rows"])
                self.rows.update(zip(keys, tensors["features"], strict=True))

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Keep rows in a part of their own. Raises RunError (a full disk)."""
        if rows:
            taken = [int(path.name.split(".part-")[1][:5]) for path in self.parts()]
            number = max(taken, default=-1) + 1  # the process id keeps two fits on one folder apart
            _write(self.folder / f"{self.name}.part-{number:05d}-{os.getpid()}.safetensors", rows)
            self.rows.update(rows)

    def join(self) -> None:
        """All rows into the whole file; the parts go. Raises RunError."""
        parts = self.parts()
        if parts:
            self.read()  # also what another fit on this folder has kept meanwhile
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
    """Features of all readable videos of a manifest, from the cache in `folder` where they are there.

    Shows how far it is and how long it will take. What was computed is saved every few seconds and when interrupted.

    Raises:
        RunError: no video can be read, a feature that is not finite, or a folder that cannot be written.
    """
    cache = FeatureCache(folder, f"{kind}-{model.name}-{cache_key(model, kind)}")
    cache.read()
    keys = [row_key(manifest, row) for row in manifest.rows]
    waiting: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key not in cache.rows:
            waiting.setdefault(key, index)
    began = time.perf_counter()
    lost: dict[str, str] = {}
    if waiting:
        missing = Manifest(
            tuple(manifest.rows[index] for index in waiting.values()), manifest.classes, manifest.root, manifest.source
        )
        places = dict(zip((row.id for row in missing.rows), waiting, strict=True))
        lost = _compute(model, missing, kind, cache, places, batch_size, workers)
        cache.join()
    read = np.asarray([index for index, key in enumerate(keys) if key in cache.rows], dtype=np.int64)
    gone = [
        {"id": row.id, "path": row.path, "reason": lost.get(key, "cannot be read")}
        for row, key in zip(manifest.rows, keys, strict=True)
        if key not in cache.rows
    ]
    if not len(read):
        raise RunError(
            manifest.source, f"none of {len(keys)} videos can be read ({gone[0]['reason']})", "", "check the files"
        )
    values = torch.stack([cache.rows[keys[index]] for index in read])
    coverage = {"asked": len(keys), "read": len(read), "unreadable": gone}
    return Features(values, read, coverage, len(waiting) - len(lost), time.perf_counter() - began)


def _compute(
    model: VideoModel,
    manifest: Manifest,
    kind: Kind,
    cache: FeatureCache,
    places: Mapping[str, str],
    batch_size: int,
    workers: int,
) -> dict[str, str]:
    """Encode every video of the manifest into the cache. Returns key -> reason of the unreadable ones."""
    rule = model.preprocessing
    settings = LoaderSettings(batch_size=batch_size, workers=workers, short_side=rule.short_side)
    transform = EvalTransform(rule.size, resize=rule.resize, style=rule.style, squash=rule.squash)
    loader = EvalLoader(manifest, ClipRule(rule), transform, settings)
    fresh: dict[str, Tensor] = {}
    saved = time.perf_counter()
    try:
        with tqdm(total=len(manifest), desc="features", unit="clip", disable=None) as bar:
            for ids, values in _encoded(model, loader, kind):
                fresh.update({places[name]: value for name, value in zip(ids, values, strict=True)})
                bar.update(len(ids))
                if time.perf_counter() - saved > SECONDS_BETWEEN_SAVES:
                    cache.add(fresh)
                    fresh, saved = {}, time.perf_counter()
            bar.update(len(loader.unreadable))
    finally:  # also when it was interrupted
        cache.add(fresh)
    return {places[name]: reason for name, _, reason in loader.unreadable}


def _encoded(model: VideoModel, loader: EvalLoader, kind: Kind) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    for batch, _ in loader:
        values = encode(model, batch.video, kind)
        bad = ~torch.isfinite(values.flatten(1)).all(dim=1)
        if bad.any():
            name = batch.ids[int(bad.nonzero()[0])]
            raise RunError(f"model {model.name}", f"the feature of '{name}' is not finite", "", "check the weights")
        yield batch.ids, values
