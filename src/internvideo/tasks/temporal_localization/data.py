"""Load feature sequences of untrimmed videos: a folder of .npy files with an index -> FeatureBatch (ActionFormer).

Feature g of a video at `fps` frames per second covers the frames from g * stride to g * stride + window. Random crops
depend only on (seed, epoch, video), so a batch depends only on epoch and batch index.
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

    folder: Path | None = Field(None, description="folder of the .npy files; by default the folder of the index")
    annotations: Path | None = Field(
        None, description="manifest whose splits and segments replace those of the index, by video id"
    )
    fps: float | None = Field(None, gt=0.0, description="frames per second, if the index has none")
    stride: float | None = Field(None, gt=0.0, description="frames between features, if the index has none")
    window: float | None = Field(None, gt=0.0, description="frames per feature, if the index has none")
    class_agnostic: bool = Field(False, description="one class for all actions; video-level scores classify segments")
    resized: int | None = Field(None, ge=2, le=2**20, description="interpolate every sequence to this many steps")
    resized_window: float = Field(
        1.0, ge=0.0, description="window of an interpolated step, in steps; released FineAction code: 16"
    )
    shortest: float | None = Field(
        0.9, gt=0.0, le=1.0, description="training: minimum length of a random crop, as a fraction; null: no crop"
    )
    overlap: float = Field(0.5, ge=0.0, le=1.0, description="training: fraction of an action that a crop must contain")
    tries: int = Field(200, ge=1, le=10**6, description="training: random crops to try until one contains an action")


@dataclass(frozen=True)
class FeatureVideo:
    """An untrimmed video with its features and actions.

    Attributes:
        id: name. file: .npy file of the features. subset: name of its split.
        fps: frames per second. stride, window: of the features, in frames. duration: in seconds.
        spans: (G, 2) actions, in seconds. labels: (G,) class indices.
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
    """Features (C, T) float32 of a video, and their temporal grid."""

    values: Tensor
    grid: feature_index.FeatureGrid


@dataclass(frozen=True)
class FeatureSet:
    """Videos with features, and the class names of their actions.

    Attributes:
        videos: videos with a feature file. classes: class names. source: path of the index.
        protocol: settings of the feature extraction, from the index.
        missing: ids of the videos of the index without a feature file.
    """

    videos: tuple[FeatureVideo, ...]
    classes: tuple[str, ...]
    source: Path
    protocol: Mapping[str, Any]
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.videos)

    def subset(self, split: str) -> FeatureSet:
        """Select the videos of a split (case-insensitive), or every n-th: "train:2/3" is its videos 1, 4, 7, ...

        Raises:
            ManifestError: the selection is empty.
        """
        match = re.fullmatch(r"(?s)(.*?)(?::(\d{1,4})/(\d{1,4}))?", split)
        name, *counts = match.groups(default="1") if match else (split, "1", "1")
        part, num_parts = map(int, counts)
        split_videos = [video for video in self.videos if video.subset.lower() == name.lower()]
        subset_videos = tuple(split_videos[part - 1 :: num_parts]) if 1 <= part <= num_parts else ()
        if not subset_videos:
            present = ", ".join(sorted({video.subset for video in self.videos})) or "none"
            raise ManifestError(self.source, f"no video of split {split}", f"splits of this index: {present}")
        return replace(self, videos=subset_videos)

    @cached_property
    def width(self) -> int:
        """C, the number of channels. Raises RunError: a file cannot be read."""
        return int(load_features(self.videos[0]).shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of videos, actions, classes and settings of the feature extraction, 16 hex digits."""
        protocol = {key: value for key, value in self.protocol.items() if key not in ("source", "internvideo")}
        digest = hashlib.sha256(json.dumps([self.classes, protocol], sort_keys=True).encode())
        for video in self.videos:
            grid = (video.fps, video.stride, video.window, video.duration)
            actions = (video.spans.tolist(), video.labels.tolist())
            digest.update(json.dumps([video.id, video.subset, grid, actions]).encode())
        return digest.hexdigest()[:16]


def read_feature_set(path: Path, settings: FeatureSettings | None = None) -> FeatureSet:
    """Read an index of `internvideo extract`, or annotations in ActivityNet's format (`database`).

    Args:
        path: the index, or its folder.
        settings: folder of the features, and values that the index lacks.

    Raises:
        ManifestError: an invalid index, naming video and field, or no video with features.
    """
    settings = settings or FeatureSettings()
    source = path / INDEX if path.is_dir() else path
    try:
        content = untrusted.read_json(source)
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
        index = feature_index.IndexFile.model_validate(content)
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
        hint = "make it from a manifest or videos with `internvideo extract`"
        raise ManifestError(
            source, f"no index of features ({error})", 'JSON with a "database" of videos', hint
        ) from error
    entries = index.database
    feature_index.drop_invalid_segments(entries, index.classes or (), source)
    classes = tuple(index.classes or feature_index.class_names(entries))
    folder = settings.folder or source.parent
    videos = [
        _parse_video(name, folder / f"{name}.npy", entry, index.protocol, classes, settings, source)
        for name, entry in entries.items()
    ]
    if settings.annotations is not None:
        videos, classes = _apply_annotations(videos, settings.annotations)
    videos_with_features = tuple(video for video in videos if video.file.is_file())
    if not videos_with_features:
        raise ManifestError(source, f"none of {len(videos)} videos has features in {folder}", "", "extract them")
    feature_index.check_action_starts([(video.spans[:, 0], video.duration) for video in videos_with_features], source)
    missing = tuple(video.id for video in videos if not video.file.is_file())
    return FeatureSet(videos_with_features, classes, source, content.get("protocol", {}), missing)


def _parse_video(
    name: str,
    file: Path,
    entry: feature_index.VideoEntry,
    protocol: feature_index.GridEntry,
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
    unknown = next((segment.label for segment in entry.annotations if segment.label not in index_of), None)
    if unknown is not None:
        raise ManifestError(f"{source}: {name}", f"class '{unknown}'", f"the {len(classes)} classes of the index")
    spans = np.asarray([segment.segment for segment in entry.annotations], dtype=np.float64).reshape(-1, 2)
    labels = np.asarray([index_of[segment.label] for segment in entry.annotations], dtype=np.int64)
    fps, stride, window = grid
    return FeatureVideo(name, file, entry.subset, fps, stride, window, entry.duration, spans, labels)


def _apply_annotations(videos: list[FeatureVideo], path: Path) -> tuple[list[FeatureVideo], tuple[str, ...]]:
    """Select the videos of a manifest, and replace their splits, actions and classes by the manifest's."""
    manifest = read_manifest(path).with_notes_logged()
    video_of_id = {video.id: video for video in videos}
    annotated = []
    for row in manifest.rows:
        if row.id in video_of_id:
            spans = np.asarray([(segment.start, segment.end) for segment in row.segments], dtype=np.float64).reshape(
                -1, 2
            )
            labels = np.asarray([segment.label for segment in row.segments], dtype=np.int64)
            annotated.append(replace(video_of_id[row.id], subset=row.split or "", spans=spans, labels=labels))
    if not annotated:
        raise ManifestError(path, "no row has features", "ids of the index")
    return annotated, manifest.classes


def load_features(video: FeatureVideo) -> NDArray[np.float32]:
    """Read the features (T, C) of a video. Raises RunError if the file is not a 2-D array of finite numbers."""
    try:
        values = untrusted_arrays.read_npy(video.file)
    except (OSError, ValueError) as error:
        raise RunError(video.file, f"cannot be read: {error}", "features, T x C", "extract them again") from error
    if values.dtype.kind in "SU" or values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise RunError(video.file, f"an array {values.shape}, or numbers that are not finite", "features, T x C")
    result: NDArray[np.float32] = values.astype(np.float32)
    return result


def read_sequence(video: FeatureVideo, settings: FeatureSettings) -> FeatureSequence:
    """Read all features of a video, interpolated in time if `settings.resized` is set. Raises RunError."""
    values = torch.from_numpy(load_features(video)).T.contiguous()
    grid = feature_index.FeatureGrid(video.fps, video.stride, video.window, video.duration)
    if settings.resized is None:
        return FeatureSequence(values, grid)
    values = torch.nn.functional.interpolate(values[None], settings.resized, mode="linear", align_corners=False)[0]
    stride = video.duration * video.fps / settings.resized
    return FeatureSequence(values, replace(grid, stride=stride, window=stride * settings.resized_window))


def actions_in_steps(
    video: FeatureVideo, features: FeatureSequence, settings: FeatureSettings
) -> tuple[Tensor, Tensor]:
    """Return spans (G, 2) in feature steps and class indices (G,) of a video's actions.

    Actions that start at step T or later are dropped; others end at T at the latest. Starts may be negative.
    """
    length = features.values.shape[1]
    spans = features.grid.steps(video.spans)
    starts_inside = spans[:, 0] < length
    spans = np.minimum(spans[starts_inside], float(length))
    labels = np.zeros(len(spans), dtype=np.int64) if settings.class_agnostic else video.labels[starts_inside]
    return torch.from_numpy(spans).float(), torch.from_numpy(labels.astype(np.int64))


def random_crop(
    values: Tensor,
    spans: Tensor,
    labels: Tensor,
    max_length: int,
    settings: FeatureSettings,
    rng: np.random.RandomState,
) -> tuple[Tensor, Tensor, Tensor]:
    """Crop a sequence at random, for training.

    A sequence of more than `max_length` steps is cropped to `max_length`, another one to a random fraction of its
    length, at least `settings.shortest` (None: not cropped). Crops are sampled until one contains at least the fraction
    `settings.overlap` of an action, or `settings.tries` times; all such actions of the last crop are returned, clipped
    to it, and there may be none.

    Args:
        values: (C, T). spans: (G, 2) steps. labels: (G,).

    Returns:
        values, spans and labels of the crop.
    """
    full_length, length = values.shape[1], max_length
    if full_length <= max_length:
        length = full_length
        if settings.shortest is not None:
            length = int(rng.randint(max(round(settings.shortest * full_length), 1), full_length + 1))
        if length == full_length:
            return values, spans, labels
    durations = (spans[:, 1] - spans[:, 0]).clamp(min=1e-6)
    for _ in range(settings.tries):
        start = int(rng.randint(0, full_length - length + 1))
        overlap = (spans[:, 1].clamp(max=start + length) - spans[:, 0].clamp(min=start)).clamp(min=0.0)
        is_kept = overlap / durations >= settings.overlap
        if bool(is_kept.any()) or not len(spans):
            break
    crop_spans = spans[is_kept].clamp(min=start, max=start + length) - start
    return values[:, start : start + length], crop_spans, labels[is_kept]


class SequenceLoader:
    """Load batches of training sequences, padded to the model's length.

    Args:
        features: videos with their actions. settings: reading and cropping of the features.
        length: steps of a padded sequence. loader_settings: batch size, seed, shuffling, size of the feature cache.

    Raises:
        RecipeError: interpolated sequences longer than the batch; fewer videos than one batch.
    """

    def __init__(
        self, features: FeatureSet, settings: FeatureSettings, length: int, loader_settings: LoaderSettings
    ) -> None:
        if settings.resized is not None and settings.resized > length:
            raise RecipeError("data.features.resized", str(settings.resized), f"{length}, the model's length, or less")
        self.features, self.settings, self.length, self.loader_settings = features, settings, length, loader_settings
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.data_time, self._bytes = 0.0, 0
        self._cache: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        check_batches(len(self), loader_settings, len(features), f"sequences in {features.source}")

    def __len__(self) -> int:
        """Number of batches per epoch, the same in every process."""
        global_batch = self.loader_settings.batch_size * self.world_size
        num_videos = len(self.features)
        return num_videos // global_batch if self.loader_settings.drop_last else -(-num_videos // global_batch)

    def epoch(self, k: int, start: int = 0) -> Iterator[FeatureBatch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`. Raises RunError: features cannot be read.

        Without `drop_last` several processes fill the last batch with the first videos of the epoch; one process gives
        a smaller batch.
        """
        num_videos = len(self.features)
        seed = np.random.SeedSequence([self.loader_settings.seed, k]).generate_state(4)
        shuffle = self.loader_settings.shuffle
        order = np.random.RandomState(seed).permutation(num_videos) if shuffle else np.arange(num_videos)
        size = self.loader_settings.batch_size
        for batch_index in range(start, len(self)):
            started = time.perf_counter()
            first = (batch_index * self.world_size + self.rank) * size
            wrap_around = self.loader_settings.drop_last or self.world_size > 1
            batch = self._batch(
                k, [int(order[i % num_videos]) for i in range(first, first + size) if wrap_around or i < num_videos]
            )
            self.data_time += time.perf_counter() - started
            yield batch

    def _cached_sample(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        if index in self._cache:
            return self._cache[index]
        sample = self._read(index)
        self._bytes += sample[0].nbytes
        if self._bytes <= self.loader_settings.cache_megabytes * 2**20:
            self._cache[index] = sample
        return sample

    def _read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        video = self.features.videos[index]
        features = read_sequence(video, self.settings)
        return (features.values, *actions_in_steps(video, features, self.settings))

    def _batch(self, k: int, indices: list[int]) -> FeatureBatch:
        crops = []
        for index in indices:
            seed = np.random.SeedSequence([self.loader_settings.seed, k, index, 1]).generate_state(4)
            crops.append(
                random_crop(*self._cached_sample(index), self.length, self.settings, np.random.RandomState(seed))
            )
        values, spans, labels = zip(*crops, strict=True)
        ids = tuple(self.features.videos[index].id for index in indices)
        return FeatureBatch(*self._pad(indices, values, self.length), ids, spans, labels)

    def _pad(self, indices: Sequence[int], sequences: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
        """Pad sequences (C, T) with zeros to (B, C, length); return them and the mask (B, length) of real steps."""
        values = torch.zeros(len(sequences), sequences[0].shape[0], length)
        mask = torch.zeros(len(sequences), length, dtype=torch.bool)
        for row, (index, values_of_video) in enumerate(zip(indices, sequences, strict=True)):
            if values_of_video.shape[0] != values.shape[1]:
                name = self.features.videos[index].file
                raise RunError(name, f"{values_of_video.shape[0]} channels", f"{values.shape[1]}, as the others")
            values[row, :, : values_of_video.shape[1]], mask[row, : values_of_video.shape[1]] = values_of_video, True
        return values, mask
