"""Load feature sequences of untrimmed videos: a folder of .npy files with an index -> FeatureBatch (ActionFormer).

Feature g of a video at `fps` frames per second covers the frames g * stride to g * stride + window. Random numbers
depend only on (seed, epoch, video), so a batch depends only on its index.
Shapes: B batch, C channels, T steps, G actions.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor

from internvideo import distributed, untrusted, untrusted_arrays
from internvideo.data.batch import FeatureBatch
from internvideo.data.loader import LoaderSettings, check_batches
from internvideo.data.manifest import read_manifest
from internvideo.data.settings import Settings
from internvideo.errors import ManifestError, RecipeError, RunError
from internvideo.tasks.temporal_localization import feature_index

INDEX = "index.json"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class FeatureSettings(Settings):
    """Settings of feature sequences: reading and, in training, random cropping."""

    folder: Path | None = Field(None, description="folder of the .npy files; by default that of the index")
    annotations: Path | None = Field(None, description="manifest whose splits and segments replace the index's, by id")
    fps: float | None = Field(None, gt=0.0, description="frames per second, if the index has none")
    stride: float | None = Field(None, gt=0.0, description="frames between features, if the index has none")
    window: float | None = Field(None, gt=0.0, description="frames per feature, if the index has none")
    class_agnostic: bool = Field(False, description="all actions are of one class; video-level scores give the class")
    resized: int | None = Field(None, ge=2, le=2**20, description="every sequence is interpolated to this many steps")
    resized_window: float = Field(
        1.0, ge=0.0, description="window of an interpolated step, in steps; released FineAction code: 16"
    )
    shortest: float | None = Field(0.9, gt=0.0, le=1.0, description="training: minimum length of a crop, as a fraction")
    overlap: float = Field(0.5, ge=0.0, le=1.0, description="training: fraction of an action that a crop must contain")
    tries: int = Field(200, ge=1, le=10**6, description="training: maximum random crops until one contains an action")


@dataclass(frozen=True)
class FeatureVideo:
    """An untrimmed video with its features and actions.

    Attributes:
        id: name. file: .npy file of the features. subset: split.
        fps: frames per second. stride, window: of the features, in frames. duration: s.
        spans: (G, 2) s. labels: (G,) class indices.
    """

    id: str
    file: Path
    subset: str
    fps: float
    stride: float
    window: float
    duration: float
    spans: Floats
    labels: Ints


@dataclass(frozen=True)
class FeatureSequence:
    """Model input: features (C, T) float32, and their grid."""

    values: Tensor
    grid: feature_index.FeatureGrid


@dataclass(frozen=True)
class FeatureSet:
    """Videos with features, and the class names of their actions.

    Attributes:
        videos: videos that have a feature file. classes: class names. source: the index.
        protocol: how the features were made, from the index.
        missing: ids of the index without a feature file.
    """

    videos: tuple[FeatureVideo, ...]
    classes: tuple[str, ...]
    source: Path
    protocol: Mapping[str, Any]
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.videos)

    def subset(self, split: str) -> FeatureSet:
        """Return the videos of a split (case-insensitive), or a part of it: "train:1/3" is the first of three.

        Raises:
            ManifestError: there are none.
        """
        match = re.fullmatch(r"(?s)(.*?)(?::(\d{1,4})/(\d{1,4}))?", split)
        name, *numbers = match.groups(default="1") if match else (split, "1", "1")
        part, parts = map(int, numbers)
        split_videos = [video for video in self.videos if video.subset.lower() == name.lower()]
        chosen = tuple(split_videos[part - 1 :: parts]) if 1 <= part <= parts else ()
        if not chosen:
            present = ", ".join(sorted({video.subset for video in self.videos})) or "none"
            raise ManifestError(self.source, f"no video of split {split}", f"splits of this index: {present}")
        return replace(self, videos=chosen)

    @cached_property
    def width(self) -> int:
        """C, the number of channels. Raises RunError: a file cannot be read."""
        return int(load(self.videos[0]).shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the videos, their actions, the classes and how features were made, 16 hex digits."""
        protocol = {key: value for key, value in self.protocol.items() if key not in ("source", "internvideo")}
        digest = hashlib.sha256(json.dumps([self.classes, protocol], sort_keys=True).encode())
        for video in self.videos:
            grid = (video.fps, video.stride, video.window, video.duration)
            actions = (video.spans.tolist(), video.labels.tolist())
            digest.update(json.dumps([video.id, video.subset, grid, actions]).encode())
        return digest.hexdigest()[:16]


def read_feature_set(path: Path, settings: FeatureSettings | None = None) -> FeatureSet:
    """Read an index of `internvideo extract`, or annotations in ActivityNet's format (`database`) beside features.

    Args:
        path: the folder, or the index itself.
        settings: folder of the features, and values that the index lacks.

    Raises:
        ManifestError: an unreadable index, with the video and field; no video with features.
    """
    settings = settings or FeatureSettings()
    source = path / INDEX if path.is_dir() else path
    try:
        content = untrusted.read_json(source)
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
        checked = feature_index.Index.model_validate(content)
    except OSError as error:
        hint = "make it with `internvideo extract`"
        raise ManifestError(
            source, f"cannot be read: {error.strerror or error}", "an index of features", hint
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"])
        raise ManifestError(source, f"'{location}': {first['msg']}, found {first['input']!r}") from error
    except ValueError as error:
        raise ManifestError(source, f"no index of features ({error})", 'JSON with a "database" of videos') from error
    entries = checked.database
    feature_index.drop_invalid_segments(entries, checked.classes or (), source)
    classes = tuple(checked.classes or feature_index.classes_of(entries))
    folder = settings.folder or source.parent
    videos = [
        _video(name, folder / f"{name}.npy", entry, checked.protocol, classes, settings, source)
        for name, entry in entries.items()
    ]
    if settings.annotations is not None:
        videos, classes = _annotated(videos, settings.annotations)
    present = tuple(video for video in videos if video.file.is_file())
    if not present:
        raise ManifestError(source, f"none of {len(videos)} videos has features in {folder}", "", "extract them")
    feature_index.check_ends([(video.spans[:, 0], video.duration) for video in present], source)
    missing = tuple(video.id for video in videos if not video.file.is_file())
    return FeatureSet(present, classes, source, content.get("protocol", {}), missing)


def _video(
    name: str,
    file: Path,
    entry: feature_index.Entry,
    protocol: feature_index.Grid,
    classes: tuple[str, ...],
    settings: FeatureSettings,
    source: Path,
) -> FeatureVideo:
    grid = []
    for key in ("fps", "stride", "window"):
        value = getattr(entry, key) or getattr(protocol, key) or getattr(settings, key)
        if not value:
            raise ManifestError(f"{source}: {name}", f"no {key}", "a number above 0", f"give data.features.{key}")
        grid.append(float(value))
    index_of = {label: index for index, label in enumerate(classes)}
    unknown = next((part.label for part in entry.annotations if part.label not in index_of), None)
    if unknown is not None:
        raise ManifestError(f"{source}: {name}", f"class '{unknown}'", f"the {len(classes)} classes of the index")
    spans = np.asarray([part.segment for part in entry.annotations], dtype=np.float64).reshape(-1, 2)
    labels = np.asarray([index_of[part.label] for part in entry.annotations], dtype=np.int64)
    fps, stride, window = grid
    return FeatureVideo(name, file, entry.subset, fps, stride, window, entry.duration, spans, labels)


def _annotated(videos: list[FeatureVideo], path: Path) -> tuple[list[FeatureVideo], tuple[str, ...]]:
    """Select the videos of a manifest, with its splits, actions and classes."""
    manifest = read_manifest(path).with_notes_logged()
    video_of_id = {video.id: video for video in videos}
    annotated = []
    for row in manifest.rows:
        if row.id in video_of_id:
            spans = np.asarray([(part.start, part.end) for part in row.segments], dtype=np.float64).reshape(-1, 2)
            labels = np.asarray([part.label for part in row.segments], dtype=np.int64)
            annotated.append(replace(video_of_id[row.id], subset=row.split or "", spans=spans, labels=labels))
    if not annotated:
        raise ManifestError(path, "no row has features", "ids of the index")
    return annotated, manifest.classes


def load(video: FeatureVideo) -> NDArray[np.float32]:
    """Read the features (T, C) of a video. Raises RunError: the file is not a finite 2-D array of numbers."""
    try:
        values = untrusted_arrays.read_npy(video.file)
    except (OSError, ValueError) as error:
        raise RunError(video.file, f"cannot be read: {error}", "features, T x C", "extract them again") from error
    if values.dtype.kind in "SU" or values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise RunError(video.file, f"an array {values.shape}, or numbers that are not finite", "features, T x C")
    result: NDArray[np.float32] = values.astype(np.float32)
    return result


def sequence(video: FeatureVideo, settings: FeatureSettings) -> FeatureSequence:
    """Read the whole sequence of a video, interpolated if `settings.resized` is set. Raises RunError."""
    values = torch.from_numpy(load(video)).T.contiguous()
    grid = feature_index.FeatureGrid(video.fps, video.stride, video.window, video.duration)
    if settings.resized is None:
        return FeatureSequence(values, grid)
    values = torch.nn.functional.interpolate(values[None], settings.resized, mode="linear", align_corners=False)[0]
    stride = video.duration * video.fps / settings.resized
    return FeatureSequence(values, replace(grid, stride=stride, window=stride * settings.resized_window))


def actions(video: FeatureVideo, features: FeatureSequence, settings: FeatureSettings) -> tuple[Tensor, Tensor]:
    """Return spans (G, 2) in steps and classes (G,) of the actions that start inside the features, clipped to them."""
    length = features.values.shape[1]
    spans = features.grid.steps(video.spans)
    inside = spans[:, 0] < length
    spans = np.minimum(spans[inside], float(length))
    labels = np.zeros(len(spans), dtype=np.int64) if settings.class_agnostic else video.labels[inside]
    return torch.from_numpy(spans).float(), torch.from_numpy(labels.astype(np.int64))


def cut(
    values: Tensor, spans: Tensor, labels: Tensor, longest: int, settings: FeatureSettings, rng: np.random.RandomState
) -> tuple[Tensor, Tensor, Tensor]:
    """Crop a sequence at random, for training.

    Sequences of more than `longest` steps are cropped to `longest`, others to a random length of at least
    `settings.shortest` of theirs. Crops are sampled until one contains at least `settings.overlap` of an action. Such
    actions are kept, clipped to the crop.

    Args:
        values: (C, T). spans: (G, 2) steps. labels: (G,).

    Returns:
        values, spans and labels of the crop.
    """
    full_length, length = values.shape[1], longest
    if full_length <= longest:
        length = full_length
        if settings.shortest is not None:
            length = int(rng.randint(max(round(settings.shortest * full_length), 1), full_length + 1))
        if length == full_length:
            return values, spans, labels
    sizes = (spans[:, 1] - spans[:, 0]).clamp(min=1e-6)
    for _ in range(settings.tries):
        start = int(rng.randint(0, full_length - length + 1))
        inside = (spans[:, 1].clamp(max=start + length) - spans[:, 0].clamp(min=start)).clamp(min=0.0)
        kept = inside / sizes >= settings.overlap
        if bool(kept.any()) or not len(spans):
            break
    part = spans[kept].clamp(min=start, max=start + length) - start
    return values[:, start : start + length], part, labels[kept]


class SequenceLoader:
    """Load batches of training sequences, padded to the model's length.

    Args:
        features: videos with their actions. settings: how they are read and cropped.
        length: steps of a batch. loader: batch size, seed, shuffling, memory of the feature cache.

    Raises:
        RecipeError: interpolated sequences longer than the batch; fewer videos than one batch.
    """

    def __init__(self, features: FeatureSet, settings: FeatureSettings, length: int, loader: LoaderSettings) -> None:
        if settings.resized is not None and settings.resized > length:
            raise RecipeError("data.features.resized", str(settings.resized), f"{length}, the model's length, or less")
        self.features, self.settings, self.length, self.loader = features, settings, length, loader
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.data_time, self._bytes = 0.0, 0
        self._cache: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        check_batches(len(self), loader, len(features), f"sequences in {features.source}")

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        global_batch = self.loader.batch_size * self.world_size
        return len(self.features) // global_batch if self.loader.drop_last else -(-len(self.features) // global_batch)

    def epoch(self, k: int, start: int = 0) -> Iterator[FeatureBatch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`. Raises RunError: features cannot be read."""
        count = len(self.features)
        seed = np.random.SeedSequence([self.loader.seed, k]).generate_state(4)
        order = np.random.RandomState(seed).permutation(count) if self.loader.shuffle else np.arange(count)
        size = self.loader.batch_size
        for number in range(start, len(self)):
            began = time.perf_counter()
            first = (number * self.world_size + self.rank) * size
            whole = self.loader.drop_last or self.world_size > 1
            batch = self._batch(k, [int(order[i % count]) for i in range(first, first + size) if whole or i < count])
            self.data_time += time.perf_counter() - began
            yield batch

    def _whole(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        if index in self._cache:
            return self._cache[index]
        sample = self._read(index)
        self._bytes += sample[0].nbytes
        if self._bytes <= self.loader.cache_megabytes * 2**20:
            self._cache[index] = sample
        return sample

    def _read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        video = self.features.videos[index]
        features = sequence(video, self.settings)
        return (features.values, *actions(video, features, self.settings))

    def _batch(self, k: int, indices: list[int]) -> FeatureBatch:
        parts = []
        for index in indices:
            seed = np.random.SeedSequence([self.loader.seed, k, index, 1]).generate_state(4)
            parts.append(cut(*self._whole(index), self.length, self.settings, np.random.RandomState(seed)))
        values, spans, labels = zip(*parts, strict=True)
        ids = tuple(self.features.videos[index].id for index in indices)
        return FeatureBatch(*self._padded(indices, values, self.length), ids, spans, labels)

    def _padded(self, indices: Sequence[int], parts: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
        """Pad sequences (C, T) with zeros to (B, C, length); return them and the mask (B, length) of real steps."""
        values = torch.zeros(len(parts), parts[0].shape[0], length)
        mask = torch.zeros(len(parts), length, dtype=torch.bool)
        for row, (index, part) in enumerate(zip(indices, parts, strict=True)):
            if part.shape[0] != values.shape[1]:
                name = self.features.videos[index].file
                raise RunError(name, f"{part.shape[0]} channels", f"{values.shape[1]}, as the others")
            values[row, :, : part.shape[1]], mask[row, : part.shape[1]] = part, True
        return values, mask
