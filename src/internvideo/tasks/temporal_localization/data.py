"""Sequences of features of untrimmed videos: a folder of .npy with an index -> FeatureBatch (ActionFormer).

Feature number g of a video at `fps` frames a second stands for the frames g * stride to g * stride + window. Everything
random is drawn from (seed, epoch, video), so a batch depends on its place alone.
Shapes: B batch, C channels, T steps, G actions.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
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
from internvideo.tasks.temporal_localization.feature_index import Entry, Grid, Index, check_ends, classes_of, meant

INDEX = "index.json"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class FeatureSettings(Settings):
    """How a sequence of features is read and, in training, cut."""

    folder: Path | None = Field(None, description="of the .npy files; by default that of the index")
    annotations: Path | None = Field(None, description="a manifest whose splits and segments count, by id")
    fps: float | None = Field(None, gt=0.0, description="frames a second, where the index does not tell")
    stride: float | None = Field(None, gt=0.0, description="frames between features, where the index does not tell")
    window: float | None = Field(None, gt=0.0, description="frames of a feature, where the index does not tell")
    class_agnostic: bool = Field(False, description="every action is of one class; video scores give the classes")
    resized: int | None = Field(None, ge=2, le=2**20, description="every sequence is stretched to so many steps")
    resized_window: float = Field(
        1.0, ge=0.0, description="window of a stretched step, in steps; released FineAction code: 16"
    )
    shortest: float | None = Field(0.9, gt=0.0, le=1.0, description="training: a random part this long at least")
    overlap: float = Field(0.5, ge=0.0, le=1.0, description="training: share of an action that must be inside a part")
    tries: int = Field(200, ge=1, le=10**6, description="training: draws of a part until an action is in it")


@dataclass(frozen=True)
class FeatureVideo:
    """One untrimmed video.

    Attributes:
        id, file: its name and its features. subset: its split.
        fps, stride, window: of the features, frames. duration: s.
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
    """Features as a model sees them: values (C, T) float32, and the grid they lie on (frames)."""

    values: Tensor
    stride: float
    window: float

    def steps(self, seconds: Floats, fps: float) -> Floats:
        """Seconds -> feature steps, not whole."""
        result: Floats = (seconds * fps - 0.5 * self.window) / self.stride
        return result


@dataclass(frozen=True)
class FeatureSet:
    """Videos with features, and the class names of their actions.

    Attributes:
        videos, classes: as told. source: the index.
        protocol: how the features were made, as the index tells it.
        missing: ids of the index without a file of features.
    """

    videos: tuple[FeatureVideo, ...]
    classes: tuple[str, ...]
    source: Path
    protocol: Mapping[str, Any]
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.videos)

    def subset(self, split: str) -> FeatureSet:
        """The videos of a split, or a part of it: "train:1/3" is the first of three; capital letters do not matter.

        Raises ManifestError when there is none.
        """
        found = re.fullmatch(r"(?s)(.*?)(?::(\d{1,4})/(\d{1,4}))?", split)
        name, *numbers = found.groups(default="1") if found else (split, "1", "1")
        part, parts = map(int, numbers)
        whole = [video for video in self.videos if video.subset.lower() == name.lower()]
        chosen = tuple(whole[part - 1 :: parts]) if 1 <= part <= parts else ()
        if not chosen:
            present = ", ".join(sorted({video.subset for video in self.videos})) or "none"
            raise ManifestError(self.source, f"no video of split {split}", f"splits of this index: {present}")
        return replace(self, videos=chosen)

    @cached_property
    def width(self) -> int:
        """C. Raises RunError for a file that cannot be read."""
        return int(load(self.videos[0]).shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with the videos, their actions, the classes and how features were made."""
        made = {key: value for key, value in self.protocol.items() if key not in ("source", "internvideo")}
        digest = hashlib.sha256(json.dumps([self.classes, made], sort_keys=True).encode())
        for video in self.videos:
            grid = (video.fps, video.stride, video.window, video.duration)
            actions = (video.spans.tolist(), video.labels.tolist())
            digest.update(json.dumps([video.id, video.subset, grid, actions]).encode())
        return digest.hexdigest()[:16]


def read_feature_set(path: Path, settings: FeatureSettings | None = None) -> FeatureSet:
    """Read an index of `internvideo extract`, or annotations in ActivityNet's format (`database`) beside features.

    Args:
        path: the folder, or the index itself.
        settings: where features lie, and what the index does not tell.

    Raises:
        ManifestError: an index that cannot be read, with the video and field; not one video with features.
    """
    settings = settings or FeatureSettings()
    source = path / INDEX if path.is_dir() else path
    try:
        content = untrusted.read_json(source)
        if not isinstance(content, dict):
            raise ValueError(f"holds a {type(content).__name__}")
        checked = Index.model_validate(content)
    except OSError as error:
        do = "make it with `internvideo extract`"
        raise ManifestError(source, f"cannot be read: {error.strerror or error}", "an index of features", do) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ManifestError(source, f"'{place}': {first['msg']}, found {first['input']!r}") from error
    except ValueError as error:
        raise ManifestError(source, f"no index of features ({error})", 'JSON with a "database" of videos') from error
    entries = checked.database
    meant(entries, checked.classes or (), source)
    classes = tuple(checked.classes or classes_of(entries))
    folder = settings.folder or source.parent
    videos = [
        _video(name, folder / f"{name}.npy", entry, checked.protocol, classes, settings, source)
        for name, entry in entries.items()
    ]
    if settings.annotations is not None:
        videos, classes = _annotated(videos, settings.annotations)
    present = tuple(video for video in videos if video.file.is_file())
    if not present:
        raise ManifestError(source, f"not one of {len(videos)} videos has features in {folder}", "", "extract them")
    check_ends([(video.spans[:, 0], video.duration) for video in present], source)
    missing = tuple(video.id for video in videos if not video.file.is_file())
    return FeatureSet(present, classes, source, content.get("protocol", {}), missing)


def _video(
    name: str,
    file: Path,
    entry: Entry,
    protocol: Grid,
    classes: tuple[str, ...],
    settings: FeatureSettings,
    source: Path,
) -> FeatureVideo:
    values = {}
    for key in ("fps", "stride", "window"):
        values[key] = getattr(entry, key) or getattr(protocol, key) or getattr(settings, key)
        if not values[key]:
            raise ManifestError(f"{source}: {name}", f"no {key}", "a number above 0", f"give data.features.{key}")
    place = {label: index for index, label in enumerate(classes)}
    actions = entry.annotations
    unknown = [part.label for part in actions if part.label not in place]
    if unknown:
        raise ManifestError(f"{source}: {name}", f"class '{unknown[0]}'", f"the {len(classes)} classes of the index")
    spans = np.asarray([part.segment for part in actions], dtype=np.float64).reshape(-1, 2)
    labels = np.asarray([place[part.label] for part in actions], dtype=np.int64)
    fps, stride, window = (float(values[key]) for key in ("fps", "stride", "window"))
    return FeatureVideo(name, file, entry.subset, fps, stride, window, entry.duration, spans, labels)


def _annotated(videos: list[FeatureVideo], path: Path) -> tuple[list[FeatureVideo], tuple[str, ...]]:
    """The videos of a manifest, with its splits, actions and classes."""
    manifest = read_manifest(path).with_notes_logged()
    known = {video.id: video for video in videos}
    found = []
    for row in manifest.rows:
        if row.id in known:
            spans = np.asarray([(part.start, part.end) for part in row.segments], dtype=np.float64).reshape(-1, 2)
            labels = np.asarray([part.label for part in row.segments], dtype=np.int64)
            found.append(replace(known[row.id], subset=row.split or "", spans=spans, labels=labels))
    if not found:
        raise ManifestError(path, "no row has features", "ids of the index")
    return found, manifest.classes


def load(video: FeatureVideo) -> NDArray[np.float32]:
    """(T, C) features as they lie on the disk. Raises RunError for a file that is no finite table of numbers."""
    try:
        values = untrusted_arrays.read_npy(video.file)
    except (OSError, ValueError) as error:
        raise RunError(video.file, f"cannot be read: {error}", "features, T x C", "extract them again") from error
    if values.dtype.kind in "SU" or values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise RunError(video.file, f"an array {values.shape}, or numbers that are not finite", "features, T x C")
    result: NDArray[np.float32] = values.astype(np.float32)
    return result


def sequence(video: FeatureVideo, settings: FeatureSettings) -> FeatureSequence:
    """The whole sequence of a video as a model sees it, stretched where the settings say so. Raises RunError."""
    values = torch.from_numpy(load(video)).T.contiguous()
    if settings.resized is None:
        return FeatureSequence(values, video.stride, video.window)
    values = torch.nn.functional.interpolate(values[None], settings.resized, mode="linear", align_corners=False)[0]
    stride = video.duration * video.fps / settings.resized
    return FeatureSequence(values, stride, stride * settings.resized_window)


def actions(video: FeatureVideo, made: FeatureSequence, settings: FeatureSettings) -> tuple[Tensor, Tensor]:
    """(G, 2) steps and (G,) classes of the actions that begin inside the features, cut at their end."""
    length = made.values.shape[1]
    spans = made.steps(video.spans, video.fps)
    inside = spans[:, 0] < length
    spans = np.minimum(spans[inside], float(length))
    labels = np.zeros(len(spans), dtype=np.int64) if settings.class_agnostic else video.labels[inside]
    return torch.from_numpy(spans).float(), torch.from_numpy(labels.astype(np.int64))


def cut(
    values: Tensor, spans: Tensor, labels: Tensor, longest: int, settings: FeatureSettings, rng: np.random.RandomState
) -> tuple[Tensor, Tensor, Tensor]:
    """A random part of a sequence, for training.

    Longer ones are cut to `longest` steps, others to `settings.shortest` of their length or more; drawn again until an
    action lies in it by `settings.overlap` of its length. Such actions stay, cut to the part.

    Args:
        values: (C, T). spans: (G, 2) steps. labels: (G,).

    Returns:
        the same three of the part.
    """
    whole = values.shape[1]
    length = longest
    if whole <= longest:
        if settings.shortest is None:
            return values, spans, labels
        low = max(round(settings.shortest * whole), 1)
        length = int(rng.randint(low, whole + 1))
        if length == whole:
            return values, spans, labels
    sizes = (spans[:, 1] - spans[:, 0]).clamp(min=1e-6)
    for _ in range(settings.tries):
        start = int(rng.randint(0, whole - length + 1))
        inside = (spans[:, 1].clamp(max=start + length) - spans[:, 0].clamp(min=start)).clamp(min=0.0)
        kept = inside / sizes >= settings.overlap
        if bool(kept.any()) or not len(spans):
            break
    part = spans[kept].clamp(min=start, max=start + length) - start
    return values[:, start : start + length], part, labels[kept]


class SequenceLoader:
    """Batches of training sequences, padded to the model's length.

    Args:
        features: videos with their actions. settings: how they are cut.
        length: steps of a batch. loader: batch size, seed, shuffling, memory for features.

    Raises:
        RecipeError: stretched sequences that are longer than the batch; not one batch in an epoch.
    """

    def __init__(
        self,
        features: FeatureSet,
        settings: FeatureSettings,
        length: int,
        loader: LoaderSettings,
    ) -> None:
        if settings.resized is not None and settings.resized > length:
            raise RecipeError("data.features.resized", str(settings.resized), f"{length}, the model's length, or less")
        self.features, self.settings, self.length, self.loader = features, settings, length, loader
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.data_time, self._bytes = 0.0, 0
        self._kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        check_batches(len(self), loader, len(features), f"sequences in {features.source}")

    def __len__(self) -> int:
        """Batches of an epoch on this process."""
        share = self.loader.batch_size * self.world_size
        return len(self.features) // share if self.loader.drop_last else -(-len(self.features) // share)

    def epoch(self, k: int, start: int = 0) -> Iterator[FeatureBatch]:
        """Batches `start`, `start + 1`, ... of epoch `k`. Raises RunError for features that cannot be read."""
        count = len(self.features)
        words = np.random.SeedSequence([self.loader.seed, k]).generate_state(4)
        order = np.random.RandomState(words).permutation(count) if self.loader.shuffle else np.arange(count)
        size = self.loader.batch_size
        for number in range(start, len(self)):
            began = time.perf_counter()
            first = (number * self.world_size + self.rank) * size
            chosen = [int(order[(first + at) % count]) for at in range(size)]
            if not self.loader.drop_last and self.world_size == 1:
                chosen = chosen[: count - first]
            batch = self._batch(k, chosen)
            self.data_time += time.perf_counter() - began
            yield batch

    def _whole(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        if index not in self._kept:
            found = self._read(index)
            self._bytes += found[0].nbytes
            if self._bytes > self.loader.cache_megabytes * 2**20:
                return found
            self._kept[index] = found
        return self._kept[index]

    def _read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        video = self.features.videos[index]
        made = sequence(video, self.settings)
        return (made.values, *actions(video, made, self.settings))

    def _batch(self, k: int, chosen: list[int]) -> FeatureBatch:
        parts = []
        for index in chosen:
            words = np.random.SeedSequence([self.loader.seed, k, index, 1]).generate_state(4)
            parts.append(cut(*self._whole(index), self.length, self.settings, np.random.RandomState(words)))
        values = torch.zeros(len(parts), parts[0][0].shape[0], self.length)
        mask = torch.zeros(len(parts), self.length, dtype=torch.bool)
        for row, (part, _, _) in enumerate(parts):
            if part.shape[0] != values.shape[1]:
                name = self.features.videos[chosen[row]].file
                raise RunError(name, f"{part.shape[0]} channels", f"{values.shape[1]}, as the others")
            values[row, :, : part.shape[1]], mask[row, : part.shape[1]] = part, True
        return FeatureBatch(
            values,
            mask,
            tuple(self.features.videos[index].id for index in chosen),
            tuple(spans for _, spans, _ in parts),
            tuple(labels for _, _, labels in parts),
        )
